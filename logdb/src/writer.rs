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
use std::time::{Duration, Instant};

use multiraft_engine::planted;
use multiraft_engine::traits::{LogError, LogObserver};
use parking_lot::{Condvar, Mutex};

use crate::batch::PendingBatch;
use crate::compact::Compactor;
use crate::format::Generation;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::reserve::Reserve;
use crate::segment::{Segment, SegmentId};
use crate::state::State;

/// How long the thread waits before it asks a full disk for a segment again.
const FULL_DISK_RETRY: Duration = Duration::from_millis(100);

/// What all handles of one log share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Condvar,
    pub(crate) observer: Mutex<Option<Arc<dyn LogObserver>>>,
    pub(crate) reserve: Reserve,
    pub(crate) options: Options,
    pub(crate) incarnation: u64,
    pub(crate) metrics: Metrics,
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A batch became durable; there may be more to do.
    Worked,
    /// Nothing to write.
    Idle,
    /// The batch waits for a segment: the disk is full. Nothing is lost; try again later.
    Full,
    /// A write or sync failed: nothing will become durable any more.
    Fenced,
}

/// The writer's work, one turn at a time; a thread calls it in production, a simulator in tests.
pub struct Writer {
    shared: Arc<Shared>,
    compactor: Compactor,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let compactor = Compactor::new(Arc::clone(&shared));
        Self { shared, compactor }
    }

    /// Makes the oldest pending batch durable, then does a bounded piece of compaction.
    pub fn turn(&mut self) -> Turn {
        let batch = {
            let mut state = self.shared.state.lock();
            if state.fenced.is_some() {
                return Turn::Fenced;
            }
            state.pending.pop_front()
        };
        let Some(batch) = batch else {
            return Turn::Idle;
        };
        let turn = self.commit(batch);
        if turn == Turn::Worked && !self.shared.state.lock().closing {
            self.compactor.turn();
        }
        turn
    }

    /// The thread: turns until the log is closed and drained, or fenced.
    pub(crate) fn run(&mut self) {
        loop {
            match self.turn() {
                Turn::Worked => {}
                Turn::Fenced => return,
                Turn::Full => {
                    let mut state = self.shared.state.lock();
                    if state.closing {
                        return; // what is pending was never acknowledged
                    }
                    self.shared.wake.wait_for(&mut state, FULL_DISK_RETRY);
                }
                Turn::Idle => {
                    let mut state = self.shared.state.lock();
                    if state.closing {
                        drop(state);
                        return self.prove_tail();
                    }
                    if state.pending.is_empty() {
                        self.shared.wake.wait(&mut state);
                    }
                }
            }
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

    fn commit(&mut self, mut batch: PendingBatch) -> Turn {
        let claims = batch.header(0, SegmentId(0));
        let padded_bytes = claims.padded_bytes();
        if let Err(error) = self.make_place(padded_bytes, batch.sequence) {
            tracing::warn!(%error, "no log segment for the next batch, waiting for disk space");
            self.shared.reserve.refresh_room();
            self.shared.state.lock().pending.push_front(batch);
            return Turn::Full;
        }
        let (header, segment, file, offset) = {
            let state = self.shared.state.lock();
            let oldest = state.table.oldest_needed(state.durable);
            let active = state.table.active();
            let header = batch.header(state.durable, oldest);
            (header, active.id, Arc::clone(&active.file), active.end)
        };
        assert!(
            header.synced_through + 1 == header.sequence,
            "one batch at a time"
        );
        let generation = Generation {
            incarnation: self.shared.incarnation,
            segment,
        };
        let bytes = batch.seal(&header, generation);
        let started = Instant::now();
        let written = file
            .write_all_at(&bytes, offset)
            .and_then(|()| file.sync_data());
        let written = written.or_else(|error| if planted!("B7") { Ok(()) } else { Err(error) });
        if let Err(error) = written {
            return self.fence(error);
        }
        drop(file);
        let metrics = &self.shared.metrics;
        metrics.on_batch(padded_bytes, batch.appends, started.elapsed());
        self.on_written(&batch, header.oldest, padded_bytes, bytes);
        self.shared.reserve.refresh_room();
        Turn::Worked
    }

    /// Rolls to the next segment if the active one has no place for `bytes`.
    fn make_place(&self, bytes: u64, sequence: u64) -> io::Result<()> {
        {
            let state = self.shared.state.lock();
            let active = state.table.active();
            if active.end + bytes <= active.file_bytes {
                return Ok(());
            }
        }
        let next = self.shared.reserve.take_next(bytes)?;
        let segment = Segment::new(next.id, next.file, next.bytes, sequence);
        self.shared.state.lock().table.push(segment);
        Ok(())
    }

    fn on_written(&self, batch: &PendingBatch, oldest: SegmentId, bytes: u64, buffer: Vec<u8>) {
        {
            let mut state = self.shared.state.lock();
            state.table.place(batch.sequence, bytes);
            state.durable = batch.sequence;
            state.published = oldest;
            state.is_tail_unproven = batch.has_items();
            if buffer.capacity() as u64 <= 2 * self.shared.options.batch_bytes {
                state.free_buffer = buffer;
            }
            state.shrink_cache(self.shared.options.cache_bytes);
        }
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
            state.pending.clear();
        }
        let observer = self.shared.observer.lock().clone();
        if let Some(observer) = observer {
            observer.on_fenced(&LogError::Fenced(error));
        }
        Turn::Fenced
    }
}
