//! The log, as the workloads drive it: each thread encodes its own entries, appends them, and waits
//! until they are durable.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, LogError, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::{Identity, LogDb, Metrics, Options, Writes};

use super::payload::payload;
use super::store::{Append, Store, Writer};
use super::sync_counter::{CountingDisk, SyncCounter};
use super::work_dir::check_room;
use super::{BenchError, Stop};

const TERM: Term = Term(1);
/// Bytes that a load lets wait for the disk before it waits itself.
const LOAD_WINDOW_BYTES: u64 = 16 << 20;

/// An open log in a benchmark's directory.
pub(super) struct LogStore {
    log: Arc<LogDb>,
    options: Options,
    syncs: SyncCounter,
    payload_bytes: u32,
    stop: Stop,
}

impl LogStore {
    /// Opens or creates the log in `dir`.
    pub(super) fn open(
        dir: &Path,
        writes: Writes,
        payload_bytes: u32,
        stop: &Stop,
    ) -> Result<Self, BenchError> {
        let identity = Identity {
            cluster_id: 1,
            node: NodeId::new(1).expect("one is an id"),
        };
        let options = Options {
            writes,
            ..Options::new(dir, identity)
        };
        let syncs = SyncCounter::default();
        let disk = Arc::new(CountingDisk::new(&options, syncs.clone()));
        let log = LogDb::open_with(disk, options.clone())?;
        Ok(Self {
            log,
            options,
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
        let (mut ticket, mut waiting) = (0, 0);
        for round in rounds {
            let writes = self.encode(&round);
            let count: u64 = round.iter().map(|append| append.count).sum();
            waiting += count * u64::from(self.payload_bytes);
            if waiting >= LOAD_WINDOW_BYTES {
                self.log.append_durable(&writes)?;
                waiting = 0;
            } else {
                ticket += 1;
                self.log.append(WriteBatch {
                    shard: 0,
                    ticket,
                    writes,
                })?;
            }
            on_entries(count);
            self.stop.check()?;
        }
        Ok(self.log.append_durable(&[])?)
    }

    /// Tells the log that entries up to these indexes are not needed; durable when it returns.
    pub(super) fn compact(&self, compact_to: &[(u32, u64)]) -> Result<(), BenchError> {
        let writes = compact_to.iter().map(|(group, index)| GroupWrite {
            compact_to: Some(Index(*index)),
            ..GroupWrite::new(GroupId(*group))
        });
        let writes: Vec<_> = writes.collect();
        Ok(self.log.append_durable(&writes)?)
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
}

impl Store for LogStore {
    fn writer(&self, _: u32) -> impl Writer {
        LogWriter { store: self }
    }

    fn syncs(&self) -> u64 {
        self.syncs.get()
    }

    fn check(&self) -> Result<(), BenchError> {
        if !self.log.has_room() {
            let needed = self.options.min_free_bytes + self.options.segment_bytes;
            check_room(&self.options.dir, needed)?;
        }
        Ok(())
    }
}

struct LogWriter<'a> {
    store: &'a LogStore,
}

impl Writer for LogWriter<'_> {
    fn append(&mut self, round: &[Append]) -> Result<(), BenchError> {
        let writes = self.store.encode(round);
        Ok(self.store.log.append_durable(&writes)?)
    }
}
