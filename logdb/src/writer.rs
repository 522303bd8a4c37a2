//! The writer: takes what gathered while it was busy, one write, one sync, tells the shards.
//!
//! ```text
//! appends ─▶ pending batch ─▶ take ─▶ write ─▶ sync ─▶ durable, observers ─▶ compact ─▶ …
//!            the next one fills while this one is on its way: no timer, no delay
//! ```
//! Invariants:
//! - One batch is on its way at a time: a crash tears at most one.
//! - A failed write or sync fences the log for ever. Never tried again, for:
//!   1. the sync fails, the kernel marks the lost pages clean; 2. the next sync succeeds;
//!   3. the log acknowledges what no disk holds.
//! - Observers hear of a batch only after its sync.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use multiraft_engine::planted;
use multiraft_engine::traits::{LogError, LogObserver};
use parking_lot::Mutex;

use crate::batch::PendingBatch;
use crate::compact::Compactor;
use crate::format::Generation;
use crate::handoff::{Handoff, Turn, Turns};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::outline::{Ending, Outline};
use crate::reserve::Reserve;
use crate::segment::{Segment, SegmentId};
use crate::state::State;

/// Bytes written between two looks at free space and at what compaction could do.
const CHECK_BYTES: u64 = 1 << 20;

/// What all handles of one log share.
pub(crate) struct Shared {
    pub(crate) state: Handoff<State>,
    pub(crate) observer: Mutex<Option<Arc<dyn LogObserver>>>,
    pub(crate) reserve: Reserve,
    pub(crate) options: Options,
    pub(crate) incarnation: u64,
    pub(crate) metrics: Metrics,
}

/// The writer's work, one turn at a time. In production the log's thread takes the turns, or a caller
/// that waits for its own append and found nobody at it; in tests a simulator.
pub struct Writer {
    shared: Arc<Shared>,
    compactor: Compactor,
    /// Bytes to write before free space and compaction are looked at again.
    unchecked_bytes: u64,
    /// Of the active segment; `None` if it is not known what is in it, since some of it was given up.
    outline: Option<Outline>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, outline: Option<Outline>) -> Self {
        let compactor = Compactor::new(Arc::clone(&shared));
        Self {
            shared,
            compactor,
            unchecked_bytes: 0,
            outline,
        }
    }

    /// Makes the oldest pending batch durable, then does a bounded piece of compaction if one is due.
    pub fn turn(&mut self) -> Turn {
        let turn = self.commit_next();
        let is_compaction_due = {
            let state = self.shared.state.lock();
            state.is_compaction_due && !state.closing
        };
        match turn {
            Turn::Worked | Turn::Idle if is_compaction_due => {
                self.compactor.turn();
                Turn::Worked
            }
            turn => turn,
        }
    }

    fn commit_next(&mut self) -> Turn {
        let (sequence, bytes) = {
            let mut state = self.shared.state.lock();
            if state.fenced.is_some() {
                return Turn::Fenced;
            }
            let Some(batch) = state.pending.front_mut() else {
                return Turn::Idle;
            };
            batch.is_closed = true;
            (batch.sequence, batch.padded_bytes())
        };
        if let Err(error) = self.make_place(bytes, sequence) {
            tracing::warn!(%error, "no log segment for the next batch, waiting for disk space");
            self.shared.reserve.refresh_room();
            return Turn::Full;
        }
        self.commit()
    }

    /// A clean shutdown, when nothing is pending: proves the tail, and writes down where the log ends. Appends
    /// are refused from then on. The log's thread does it at [`LogDb::close`](crate::LogDb::close); it is here for
    /// who turns the writer.
    pub fn finish(&mut self) {
        self.shared.state.lock().closing = true;
        self.prove_tail();
        let active = {
            let state = self.shared.state.lock();
            let is_done = state.fenced.is_none() && state.pending.is_empty();
            let active = state.table.active();
            (is_done && !state.is_tail_unproven).then_some((active.id, active.file_bytes))
        };
        if let Some((id, file_bytes)) = active
            && let Some(outline) = self.outline.take()
        {
            let reserve = &self.shared.reserve;
            reserve.put_outline(id, file_bytes, outline, Ending::Closed);
            reserve.store_outlines();
        }
    }

    /// Ends a clean shutdown with an empty batch: it proves that the batch before it was durable,
    /// so that damage to that one is found and not taken for a torn tail.
    pub(crate) fn prove_tail(&mut self) {
        {
            let mut state = self.shared.state.lock();
            if !state.is_tail_unproven {
                return;
            }
            state.make_pending(0, u64::MAX);
        }
        self.turn();
    }

    /// Writes the oldest pending batch, for which there is place.
    fn commit(&mut self) -> Turn {
        let (batch, header, bytes, file, offset) = {
            let mut state = self.shared.state.lock();
            let mut batch = state.pending.pop_front().expect("nobody else takes one");
            let oldest = state.table.oldest_needed(state.durable);
            let active = state.table.active();
            let header = batch.header(state.durable, oldest, active.file_bytes);
            let generation = Generation {
                incarnation: self.shared.incarnation,
                segment: active.id,
            };
            let (file, offset) = (Arc::clone(&active.file), active.end);
            let bytes = Arc::new(batch.seal(&header, generation));
            state.cache.push(batch.sequence, Arc::clone(&bytes));
            (batch, header, bytes, file, offset)
        };
        assert!(
            header.synced_through + 1 == header.sequence,
            "one batch at a time"
        );
        let padded_bytes = header.padded_bytes();
        let started = Instant::now();
        let written = file.write_durable_at(&bytes, offset);
        let written = written.or_else(|error| if planted!("B7") { Ok(()) } else { Err(error) });
        if let Err(error) = written {
            return self.fence(error);
        }
        drop((file, bytes)); // who holds them keeps a segment from being retired, a buffer from being used again
        if let Some(outline) = &mut self.outline {
            outline.push(&header, batch.items());
        }
        let metrics = &self.shared.metrics;
        metrics.on_batch(padded_bytes, batch.appends, started.elapsed());
        let is_checked = self.unchecked_bytes < padded_bytes;
        self.unchecked_bytes = if is_checked {
            CHECK_BYTES.min(self.shared.options.segment_bytes / 8)
        } else {
            self.unchecked_bytes - padded_bytes
        };
        self.on_written(&batch, header.oldest, padded_bytes, is_checked);
        if is_checked {
            self.shared.reserve.refresh_room();
        }
        Turn::Worked
    }

    /// Rolls to the next segment if the active one has no place for `bytes`.
    fn make_place(&mut self, bytes: u64, sequence: u64) -> io::Result<()> {
        let (full, full_bytes) = {
            let state = self.shared.state.lock();
            let active = state.table.active();
            if active.end + bytes <= active.file_bytes {
                return Ok(());
            }
            (active.id, active.file_bytes)
        };
        let next = self.shared.reserve.take_next(bytes)?;
        let segment = Segment::new(next.id, next.file, next.bytes, sequence);
        let mut state = self.shared.state.lock();
        state.table.push(segment);
        state.is_compaction_due = true;
        drop(state);
        if let Some(outline) = self.outline.replace(Outline::default()) {
            let reserve = &self.shared.reserve;
            reserve.put_outline(full, full_bytes, outline, Ending::Sealed);
        }
        Ok(())
    }

    fn on_written(&self, batch: &PendingBatch, oldest: SegmentId, bytes: u64, is_checked: bool) {
        {
            let mut state = self.shared.state.lock();
            state.table.place(batch.sequence, bytes);
            state.durable = batch.sequence;
            state.published = oldest;
            state.is_tail_unproven = batch.has_items();
            let free = state
                .cache
                .shrink(self.shared.options.cache_bytes, batch.sequence);
            let max_bytes = 2 * self.shared.options.batch_bytes;
            if let Some(free) = free.filter(|free| free.capacity() as u64 <= max_bytes) {
                state.free_buffer = free;
            }
            let has_news = state.table.take_news(batch.sequence, oldest);
            state.is_compaction_due |= is_checked || has_news;
        }
        self.shared.state.advance(batch.sequence);
        let observer = self.shared.observer.lock().clone();
        if let Some(observer) = observer {
            for (shard, ticket) in &batch.acks {
                observer.on_durable(*shard, *ticket);
            }
        }
    }

    fn fence(&self, error: io::Error) -> Turn {
        tracing::error!(%error, "a log write or sync failed: the log is fenced");
        let error = Arc::new(error);
        {
            let mut state = self.shared.state.lock();
            state.fenced = Some(Arc::clone(&error));
        }
        self.shared.state.fence();
        let observer = self.shared.observer.lock().clone();
        if let Some(observer) = observer {
            observer.on_fenced(&LogError::Fenced(error));
        }
        Turn::Fenced
    }
}

impl Turns for Writer {
    fn turn(&mut self) -> Turn {
        self.turn()
    }

    fn commit_next(&mut self) -> Turn {
        self.commit_next()
    }

    fn finish(&mut self) {
        self.finish();
    }
}
