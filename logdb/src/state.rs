//! What appends, reads and the writer share, under one lock that nobody holds while the disk
//! works.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::block::Block;
use multiraft_engine::traits::{GroupWrite, LogError, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, Index as LogIndex};

use crate::batch::PendingBatch;
use crate::buffer::PageBuffer;
use crate::cache::BatchCache;
use crate::format::Item;
use crate::handoff::Desk;
use crate::index::{Index, Position, Span};
use crate::pack::{self, Packed};
use crate::segment::{self, SegmentId, SegmentTable};

/// Where a read finds a span's block.
pub(crate) enum Source {
    Memory(Bytes),
    Segment {
        bytes: segment::Contents,
        offset: u64,
    },
}

/// A part of a read: entries `first..=last` of a block.
pub(crate) struct Found {
    pub(crate) first: LogIndex,
    pub(crate) last: LogIndex,
    pub(crate) at: Position,
    pub(crate) source: Source,
}

/// The log in memory.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and all combinations occur"
)]
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) table: SegmentTable,
    /// Batches that wait for the writer, oldest first; the last one grows.
    pub(crate) pending: VecDeque<PendingBatch>,
    /// Sequence of the next batch to begin.
    pub(crate) next_sequence: u64,
    /// All batches up to this one are on stable storage.
    pub(crate) durable: u64,
    /// What the newest durable batch says is the oldest segment needed.
    pub(crate) published: SegmentId,
    /// No later batch proves yet that the newest durable one was durable.
    pub(crate) is_tail_unproven: bool,
    pub(crate) fenced: Option<Arc<io::Error>>,
    /// A thread takes the writer's turns: the log's own, or a caller that waits for its append.
    pub(crate) is_led: bool,
    /// The compactor has something to look at.
    pub(crate) is_compaction_due: bool,
    pub(crate) closing: bool,
    /// What the engine takes once.
    pub(crate) stored: Vec<StoredGroup>,
    /// A written batch's memory, for the next one.
    pub(crate) free_buffer: PageBuffer,
    /// Batches on their way to the disk, and those written last.
    pub(crate) cache: BatchCache,
}

impl State {
    /// The state after a recovery that ended with batch `durable`.
    pub(crate) fn new(index: Index, table: SegmentTable, durable: u64, oldest: SegmentId) -> Self {
        Self {
            stored: index.stored_groups(),
            index,
            table,
            pending: VecDeque::new(),
            next_sequence: durable + 1,
            durable,
            published: oldest,
            is_tail_unproven: false,
            fenced: None,
            is_led: false,
            is_compaction_due: false,
            closing: false,
            free_buffer: PageBuffer::default(),
            cache: BatchCache::default(),
        }
    }

    /// Refuses when nothing can become durable any more.
    pub(crate) fn check_open(&self) -> Result<(), LogError> {
        if self.fenced.is_some() || self.closing {
            return Err(self.refusal());
        }
        Ok(())
    }

    /// Why nothing can become durable any more.
    pub(crate) fn refusal(&self) -> LogError {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed");
        let fenced = self.fenced.as_ref().map(Arc::clone);
        LogError::Fenced(fenced.unwrap_or_else(|| Arc::new(closed())))
    }

    /// Adds a shard's writes to the pending batch and to the index; its ticket is told when they are durable.
    pub(crate) fn append(&mut self, batch: &WriteBatch, packed: Vec<Packed>, batch_bytes: u64) {
        self.append_writes(&batch.writes, packed, batch_bytes);
        let pending = self.make_pending(0, u64::MAX);
        pending.acknowledge(batch.shard, batch.ticket);
    }

    /// The same for who waits; returns the sequence of the batch that makes all of them durable.
    pub(crate) fn append_waiting(
        &mut self,
        writes: &[GroupWrite],
        packed: Vec<Packed>,
        batch_bytes: u64,
    ) -> u64 {
        self.append_writes(writes, packed, batch_bytes);
        let pending = self.make_pending(0, u64::MAX);
        pending.appends += 1;
        pending.sequence
    }

    /// `packed` has every block, or none if they are stored as they are.
    fn append_writes(&mut self, writes: &[GroupWrite], packed: Vec<Packed>, batch_bytes: u64) {
        let mut packed = packed.into_iter();
        for write in writes {
            let bytes = match packed.as_slice().get(..write.blocks.len()) {
                Some(packed) => packed.iter().map(|p| p.bytes.len()).sum::<usize>(),
                None => write.blocks.iter().map(|b| b.bytes().len()).sum(),
            };
            self.make_pending(bytes as u64, batch_bytes);
            self.push_write(write, &mut packed);
        }
    }

    /// The batch that grows, begun anew if `more` bytes would make it too large. One group's
    /// write never spans batches, for it is atomic.
    pub(crate) fn make_pending(&mut self, more: u64, batch_bytes: u64) -> &mut PendingBatch {
        let is_small = |p: &PendingBatch| !p.has_items() || p.bytes() + more <= batch_bytes;
        let fits = |p: &PendingBatch| !p.is_closed && is_small(p);
        if !self.pending.back().is_some_and(fits) {
            let buffer = std::mem::take(&mut self.free_buffer);
            let batch = PendingBatch::new(self.next_sequence, buffer);
            self.pending.push_back(batch);
            self.next_sequence += 1;
        }
        self.pending.back_mut().expect("just made sure")
    }

    fn push_write(&mut self, write: &GroupWrite, packed: &mut impl Iterator<Item = Packed>) {
        let group = write.group;
        if write.remove {
            self.push(group, &Item::Remove, None);
        }
        if let Some(meta) = &write.meta {
            self.push(group, &Item::Meta(meta.clone()), None);
        }
        if let Some((index, term)) = write.restart_after {
            let first = self.index.group(group).map(|g| g.state.compacted.0.next());
            self.push(
                group,
                &Item::TruncateFrom(first.unwrap_or(LogIndex(1))),
                None,
            );
            self.push(group, &Item::CompactTo { index, term }, None);
        }
        if let Some(index) = write.compact_to {
            self.push_compact(group, index);
        }
        if let Some(index) = write.truncate_from {
            self.push(group, &Item::TruncateFrom(index), None);
        }
        for block in &write.blocks {
            let packed = packed.next().unwrap_or_else(|| Packed::plain(block));
            self.push_block(group, &packed);
        }
        if let Some(state) = write.hard_state {
            self.push(group, &Item::HardState(state), None);
        }
    }

    fn push_compact(&mut self, group: GroupId, index: LogIndex) {
        let stored = self.index.group(group);
        let term = stored.map(|g| g.term_of(index)).unwrap_or_default();
        if stored.is_none_or(|g| g.state.compacted.0 < index) {
            self.push(group, &Item::CompactTo { index, term }, None);
        }
    }

    fn push_block(&mut self, group: GroupId, packed: &Packed) {
        let stored = self.index.group(group);
        let last = stored.map(super::index::Group::last).unwrap_or_default();
        let compacted = stored.map(|g| g.state.compacted.0).unwrap_or_default();
        let first = packed.item.first;
        assert!(
            compacted < first && first <= last.next(),
            "group {group}: a block from {first} does not join entries {compacted}..={last}"
        );
        self.push(group, &Item::Append(packed.item), Some(&packed.bytes));
    }

    /// Adds one item to the pending batch and to the index: the same for appends and moves.
    pub(crate) fn push(&mut self, group: GroupId, item: &Item, block: Option<&Bytes>) {
        let pending = self.pending.back_mut().expect("make_pending was called");
        let sequence = pending.sequence;
        let offset = pending.push(group, item, block);
        let place = (sequence, offset);
        self.index.apply(group, item, place, &mut self.table);
    }

    /// Where to get the blocks of entries `first..=last`, up to `max_bytes` but at least one.
    pub(crate) fn find(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Found>, LogError> {
        let not_found = |index| LogError::NotFound { group, index };
        let stored = self.index.group(group).ok_or(not_found(first))?;
        if first <= stored.state.compacted.0 {
            let kept = stored.state.compacted.0.next();
            return Err(LogError::Compacted {
                group,
                index: first,
                first: kept,
            });
        }
        if last > stored.last() {
            return Err(not_found(first.max(stored.last().next())));
        }
        if last < first {
            return Err(not_found(last));
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for span in stored.spans_from(first).take_while(|s| s.first <= last) {
            bytes += span.at.block_bytes as usize;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(self.found(span, span.first.max(first), span.last.min(last)));
        }
        Ok(found)
    }

    /// A copy of a block that waits for the writer.
    fn pending(&self, at: Position) -> Option<Bytes> {
        let first = self.pending.front()?.sequence;
        let nth = usize::try_from(at.sequence.checked_sub(first)?).ok()?;
        Some(self.pending.get(nth)?.get(at))
    }

    /// Where to get the block of a span, cut to `first..=last`.
    pub(crate) fn found(&self, span: &Span, first: LogIndex, last: LogIndex) -> Found {
        let in_memory = || self.cache.get(span.at).or_else(|| self.pending(span.at));
        let source = if let Some(bytes) = in_memory() {
            Source::Memory(bytes)
        } else {
            let place = self.table.locate(span.at.sequence);
            let (bytes, batch) = place.expect("a block that is not in memory was written");
            Source::Segment {
                bytes,
                offset: batch + u64::from(span.at.offset),
            }
        };
        Found {
            first,
            last,
            at: span.at,
            source,
        }
    }
}

impl Desk for State {
    fn leader(&mut self) -> &mut bool {
        &mut self.is_led
    }

    fn has_work(&self) -> bool {
        !self.pending.is_empty() || self.is_compaction_due
    }

    fn is_closing(&self) -> bool {
        self.closing
    }

    fn is_durable(&self, sequence: u64) -> bool {
        sequence <= self.durable
    }
}

impl Found {
    /// Gets the block and cuts it; the state's lock is not held.
    pub(crate) fn load(&self, group: GroupId) -> Result<Block, LogError> {
        self.check(group, self.fetch()?)
    }

    /// The block's bytes, unchecked.
    fn fetch(&self) -> Result<Bytes, LogError> {
        Ok(match &self.source {
            Source::Memory(bytes) => bytes.clone(),
            Source::Segment { bytes, offset } => {
                let count = self.at.bytes as usize;
                let read = match bytes {
                    segment::Contents::Mapped(map) => map.get(*offset, count),
                    segment::Contents::InFile(file) => {
                        let mut read = vec![0; count];
                        file.read_exact_at(&mut read, *offset).map(|()| read.into())
                    }
                };
                read.map_err(|e| LogError::Io(Arc::new(e)))?
            }
        })
    }

    fn check(&self, group: GroupId, bytes: Bytes) -> Result<Block, LogError> {
        let damaged = LogError::Damaged {
            group,
            index: self.first,
        };
        let block = pack::unpack(bytes, self.at.block_bytes).map_err(|_| damaged)?;
        let is_another = block.checksum() != self.at.checksum;
        if is_another || block.first() > self.first || block.last() < self.last {
            let index = self.first;
            return Err(LogError::Damaged { group, index });
        }
        Ok(block.slice(self.first, self.last))
    }
}

/// All blocks that were found.
pub(crate) fn load_all(group: GroupId, found: &[Found]) -> Result<Vec<Block>, LogError> {
    let fetched: Result<Vec<Bytes>, _> = found.iter().map(Found::fetch).collect();
    let mut fetched = fetched?.into_iter();
    let mut blocks = Vec::with_capacity(found.len());
    for part in found {
        let bytes = fetched.next().expect("as many as were found");
        // Blocks of one group lie far apart. The next one is on its way from memory while this one is checked.
        if let Some(next) = fetched.as_slice().first() {
            std::hint::black_box(next.first().copied());
        }
        blocks.push(part.check(group, bytes)?);
    }
    Ok(blocks)
}
