//! The one writer: takes what waits, writes it, syncs it once, tells the shards.
//!
//! While one sync runs, the next buffer fills: under load batches grow by themselves, and a lone
//! append waits for nothing but its own sync. There is no timer. [`Writer::turn`] is one round; a
//! thread repeats it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use multiraft_engine::traits::LogError;
use multiraft_engine::types::GroupId;

use crate::db::Shared;
use crate::disk::DiskFile;
use crate::error::Error;
use crate::format::{BlockPlace, SEGMENT_HEADER_BYTES, seal, segment_header, segment_name};
use crate::index::Place;
use crate::recover::Segment;

/// A batch that waits for the writer.
#[derive(Debug, Default)]
pub struct PendingBatch {
    /// Its place in the buffer.
    pub start: usize,
    /// Its padded length.
    pub bytes: usize,
    /// Whom to tell.
    pub source: Option<(u32, u64)>,
    /// Appended blocks.
    pub blocks: Vec<BlockPlace>,
    /// Blocks moved from a segment that is to be freed.
    pub moved: Vec<BlockPlace>,
    /// Groups whose description, hard state, compaction mark are in it.
    pub states: Vec<(GroupId, [bool; 3])>,
}

/// Encoded batches, in order.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Their bytes, back to back.
    pub bytes: Vec<u8>,
    /// What they are.
    pub batches: Vec<PendingBatch>,
}

/// The writer's own state.
pub struct Writer {
    shared: Arc<Shared>,
    active: u64,
    file: Arc<dyn DiskFile>,
    /// Size of the active segment.
    size: u64,
    /// Where the next batch goes.
    offset: u64,
    /// The last sequence given out.
    sequence: u64,
    buffer: Buffer,
}

impl Writer {
    /// Goes on after what was recovered; makes the first segment if there is none.
    pub fn new(shared: Arc<Shared>, sequence: u64) -> Result<Self, Error> {
        let last = shared
            .state
            .lock()
            .segments
            .last_key_value()
            .map(|(&id, s)| (id, s.clone()));
        let (active, segment) = match last {
            Some(last) => last,
            None => (
                1,
                new_segment(&shared, 1, 0).map_err(Error::io(segment_name(1)))?,
            ),
        };
        Ok(Self {
            shared,
            active,
            file: segment.file,
            size: segment.bytes,
            offset: segment.end,
            sequence,
            buffer: Buffer::default(),
        })
    }

    /// One round over all that waits. An error is final: nothing is known of what was written.
    pub fn turn(&mut self) -> io::Result<()> {
        self.buffer.bytes.clear();
        self.buffer.batches.clear();
        std::mem::swap(&mut self.buffer, &mut self.shared.state.lock().buffer);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut first = 0;
        let mut end = self.offset;
        for at in 0..buffer.batches.len() {
            let bytes = buffer.batches[at].bytes as u64;
            if end + bytes > self.size {
                self.write(&mut buffer, first..at)?;
                self.rotate(bytes)?;
                (first, end) = (at, self.offset);
            }
            end += bytes;
        }
        let count = buffer.batches.len();
        self.write(&mut buffer, first..count)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Writes and syncs a run of batches that fits into the active segment.
    fn write(&mut self, buffer: &mut Buffer, run: std::ops::Range<usize>) -> io::Result<()> {
        let Some(batches) = buffer
            .batches
            .get(run)
            .filter(|batches| !batches.is_empty())
        else {
            return Ok(());
        };
        let synced_through = self.sequence;
        let (start, mut end) = (batches[0].start, batches[0].start);
        for batch in batches {
            self.sequence += 1;
            let bytes = &mut buffer.bytes[batch.start..batch.start + batch.bytes];
            seal(bytes, self.sequence, self.active, synced_through);
            end = batch.start + batch.bytes;
        }
        self.file.write_at(&buffer.bytes[start..end], self.offset)?;
        let began = Instant::now();
        self.file.sync()?;
        self.shared
            .metrics
            .sync_seconds
            .observe(began.elapsed().as_secs_f64());
        self.count(batches.len(), end - start);
        self.publish(batches, start);
        self.offset += (end - start) as u64;
        Ok(())
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a histogram's buckets are coarser"
    )]
    fn count(&self, batches: usize, bytes: usize) {
        let metrics = &self.shared.metrics;
        metrics.syncs.inc();
        metrics.batches.inc_by(batches as u64);
        metrics.written_bytes.inc_by(bytes as u64);
        metrics.batches_per_sync.observe(batches as f64);
        metrics.sync_bytes.observe(bytes as f64);
    }

    /// What is durable can be read from its place, and its shards hear of it: once each.
    fn publish(&self, batches: &[PendingBatch], run_start: usize) {
        let mut durable: BTreeMap<u32, u64> = BTreeMap::new();
        let mut state = self.shared.state.lock();
        for batch in batches {
            let start = self.offset + (batch.start - run_start) as u64;
            let at = |offset: usize| Place {
                segment: self.active,
                offset: start + offset as u64,
            };
            for BlockPlace {
                group,
                block,
                offset,
            } in &batch.blocks
            {
                state.index.set_place(*group, block, at(*offset));
                state.cache.note(*group, block);
            }
            for BlockPlace {
                group,
                block,
                offset,
            } in &batch.moved
            {
                state.index.move_block(*group, block, at(*offset));
            }
            for (group, written) in &batch.states {
                if let Some(entry) = state.index.groups.get_mut(group) {
                    for (segment, _) in entry
                        .state_segments
                        .iter_mut()
                        .zip(written)
                        .filter(|s| *s.1)
                    {
                        *segment = self.active;
                    }
                }
            }
            durable.extend(batch.source);
        }
        if let Some(segment) = state.segments.get_mut(&self.active) {
            segment.batches += batches.len() as u64;
            segment.end = self.offset + batches.iter().map(|b| b.bytes as u64).sum::<u64>();
        }
        state.trim_cache();
        drop(state);
        if let Some(observer) = self.shared.observer() {
            for (shard, ticket) in durable {
                observer.on_durable(shard, ticket);
            }
        }
    }

    /// The next segment, with room for at least `bytes`.
    fn rotate(&mut self, bytes: u64) -> io::Result<()> {
        let id = self.active + 1;
        let segment = new_segment(&self.shared, id, bytes)?;
        (self.active, self.size, self.offset) = (id, segment.bytes, segment.end);
        self.file = segment.file;
        self.shared.free_segments(self.active)
    }
}

/// Makes a spare file the segment `id`: its header first, then its name.
fn new_segment(shared: &Shared, id: u64, bytes: u64) -> io::Result<Segment> {
    let spare = shared.take_spare(SEGMENT_HEADER_BYTES + bytes)?;
    let file = shared.disk.open(&spare)?;
    file.write_at(&segment_header(id), 0)?;
    file.sync()?;
    shared.disk.rename(&spare, &segment_name(id))?;
    let (file, size): (Arc<dyn DiskFile>, _) =
        (file.into(), shared.disk.open(&segment_name(id))?.size()?);
    let segment = Segment {
        file,
        bytes: size,
        end: SEGMENT_HEADER_BYTES,
        batches: 0,
    };
    shared.state.lock().segments.insert(id, segment.clone());
    shared.metrics.segments.inc();
    Ok(segment)
}

/// Repeats the writer's turn until the log is closed; fences it at the first error.
pub fn run(mut writer: Writer) {
    while writer.shared.wait_for_work() {
        if let Err(source) = writer.turn() {
            let error = LogError::Fenced(Arc::new(source));
            tracing::error!(%error, "the log stops");
            writer.shared.fence(&error);
            return;
        }
    }
}
