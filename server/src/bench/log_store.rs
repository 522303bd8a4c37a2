//! The log, as the workloads drive it: each thread encodes its own entries, appends them, and waits
//! until they are durable.
//!
//! The threads share a few *shards*, as the groups of a node do: appends of one shard become
//! durable in the order of their tickets, and the log tells each shard once a sync.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::{Identity, LogDb, Metrics, Options};
use parking_lot::Mutex;

use super::payload::payload;
use super::store::{Append, Store, Writer};
use super::sync_counter::{CountingDisk, SyncCounter};
use super::tickets::Tickets;
use super::work_dir::check_room;
use super::{BenchError, Stop};

const TERM: Term = Term(1);
/// Bytes that a load lets wait for the disk before it waits itself.
const LOAD_WINDOW_BYTES: u64 = 16 << 20;

#[derive(Default)]
struct Shard {
    /// The last ticket given out; held while its batch is appended, so that they stay in order.
    last_ticket: Mutex<u64>,
    tickets: Tickets,
}

/// Who hears of durable batches.
struct Shards {
    shards: Vec<Shard>,
    is_fenced: AtomicBool,
}

impl LogObserver for Shards {
    fn on_durable(&self, shard: u32, ticket: u64) {
        self.shards[shard as usize].tickets.advance(ticket);
    }

    fn on_fenced(&self, _: &LogError) {
        self.is_fenced.store(true, Ordering::Release);
    }
}

/// An open log in a benchmark's directory.
pub(super) struct LogStore {
    log: Arc<LogDb>,
    options: Options,
    shards: Arc<Shards>,
    syncs: SyncCounter,
    payload_bytes: u32,
    stop: Stop,
}

impl LogStore {
    /// Opens or creates the log in `dir`.
    pub(super) fn open(
        dir: &Path,
        shards: u32,
        payload_bytes: u32,
        stop: &Stop,
    ) -> Result<Self, BenchError> {
        let identity = Identity {
            cluster_id: 1,
            node: NodeId::new(1).expect("one is an id"),
        };
        let options = Options::new(dir, identity);
        let syncs = SyncCounter::default();
        let disk = Arc::new(CountingDisk::new(dir, syncs.clone()));
        let log = LogDb::open_with(disk, options.clone())?;
        let shards = Arc::new(Shards {
            shards: (0..shards.max(1)).map(|_| Shard::default()).collect(),
            is_fenced: AtomicBool::new(false),
        });
        log.set_observer(Arc::<Shards>::clone(&shards));
        Ok(Self {
            log,
            options,
            shards,
            syncs,
            payload_bytes,
            stop: stop.clone(),
        })
    }

    /// What the log counts itself.
    pub(super) fn metrics(&self) -> Metrics {
        self.log.metrics()
    }

    /// First and last index of each group, as found when the log was opened.
    pub(super) fn stored_bounds(&self) -> BTreeMap<u32, (u64, u64)> {
        let groups = self.log.take_stored_groups();
        let bounds = groups.iter().filter_map(|group| {
            let (first, last) = (group.terms.first()?.0, group.terms.last()?.1);
            Some((group.group.0, (first.0, last.0)))
        });
        bounds.collect()
    }

    /// Whether these are the first and last index of a group now.
    pub(super) fn has_bounds(&self, group: u32, first: u64, last: u64) -> bool {
        let read = |first, last| self.log.read(GroupId(group), Index(first), Index(last), 1);
        read(first, last).is_ok()
            && matches!(
                read(first - 1, last),
                Err(LogError::Compacted { first: kept, .. }) if kept.0 == first
            )
            && matches!(read(last + 1, last + 1), Err(LogError::NotFound { .. }))
    }

    /// Entries from `first` to `last`, in pieces of about `max_bytes`; counts those that are not as
    /// they were written.
    pub(super) fn read_checked(
        &self,
        group: u32,
        (first, last): (u64, u64),
        max_bytes: usize,
    ) -> Result<u64, BenchError> {
        let (mut next, mut wrong) = (first, 0);
        while next <= last {
            let blocks = self
                .log
                .read(GroupId(group), Index(next), Index(last), max_bytes)?;
            for entry in blocks.iter().flat_map(Block::entries) {
                let want = payload(group, next, self.payload_bytes);
                wrong += u64::from(entry.index.0 != next || entry.payload != want);
                next += 1;
            }
        }
        Ok(wrong)
    }

    /// Appends many writes without waiting for each; all are durable when it returns.
    pub(super) fn load(
        &self,
        rounds: impl Iterator<Item = Vec<Append>>,
        mut on_entries: impl FnMut(u64),
    ) -> Result<(), BenchError> {
        let (mut last, mut mark, mut since_mark) = (0, 0, 0);
        for round in rounds {
            last = self.push(0, self.encode(&round))?;
            let count: u64 = round.iter().map(|append| append.count).sum();
            on_entries(count);
            since_mark += count * u64::from(self.payload_bytes);
            if since_mark >= LOAD_WINDOW_BYTES {
                self.wait(0, mark)?;
                (mark, since_mark) = (last, 0);
            }
            self.stop.check()?;
        }
        self.wait(0, last)
    }

    /// Tells the log that entries up to these indexes are not needed; durable when it returns.
    pub(super) fn compact(&self, compact_to: &[(u32, u64)]) -> Result<(), BenchError> {
        let writes = compact_to.iter().map(|(group, index)| GroupWrite {
            compact_to: Some(Index(*index)),
            ..GroupWrite::new(GroupId(*group))
        });
        let last = self.push(0, writes.collect())?;
        self.wait(0, last)
    }

    /// Writes what is pending and gives the directory up.
    pub(super) fn close(&self) {
        self.log.close();
    }

    fn encode(&self, round: &[Append]) -> Vec<GroupWrite> {
        let writes = round.iter().map(|append| {
            let entries = (append.first..=append.last()).map(|index| {
                let payload = payload(append.group, index, self.payload_bytes);
                (EntryKind::Normal, payload)
            });
            let entries: Vec<(EntryKind, Bytes)> = entries.collect();
            GroupWrite {
                compact_to: append.compact_to.map(Index),
                blocks: vec![Block::encode(Index(append.first), TERM, &entries)],
                hard_state: Some(HardState {
                    term: TERM,
                    vote: NodeId::new(1),
                    commit: Index(append.commit()),
                }),
                ..GroupWrite::new(GroupId(append.group))
            }
        });
        writes.collect()
    }

    fn push(&self, shard: u32, writes: Vec<GroupWrite>) -> Result<u64, BenchError> {
        let mut last = self.shards.shards[shard as usize].last_ticket.lock();
        *last += 1;
        let ticket = *last;
        self.log.append(WriteBatch {
            shard,
            ticket,
            writes,
        })?;
        Ok(ticket)
    }

    fn wait(&self, shard: u32, ticket: u64) -> Result<(), BenchError> {
        let tickets = &self.shards.shards[shard as usize].tickets;
        let waited = tickets.wait(ticket, &self.stop);
        // The cause says more than that everything stops.
        waited.or_else(|stopped| self.check().and(Err(stopped)))
    }
}

impl Store for LogStore {
    fn writer(&self, number: u32) -> impl Writer {
        let shards = u32::try_from(self.shards.shards.len()).expect("a small number");
        LogWriter {
            store: self,
            shard: number % shards,
        }
    }

    fn syncs(&self) -> u64 {
        self.syncs.get()
    }

    fn check(&self) -> Result<(), BenchError> {
        if self.shards.is_fenced.load(Ordering::Acquire) {
            // It says why.
            self.push(0, Vec::new())?;
        }
        if !self.log.has_room() {
            let needed = self.options.min_free_bytes + self.options.segment_bytes;
            check_room(&self.options.dir, needed)?;
        }
        Ok(())
    }
}

struct LogWriter<'a> {
    store: &'a LogStore,
    shard: u32,
}

impl Writer for LogWriter<'_> {
    fn append(&mut self, round: &[Append]) -> Result<(), BenchError> {
        let ticket = self.store.push(self.shard, self.store.encode(round))?;
        self.store.wait(self.shard, ticket)
    }
}
