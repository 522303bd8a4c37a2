//! One log for all Raft groups of a node: many appends, one write, one sync.
//!
//! ```text
//! shard 0 ─ append ─▶ ┌ pending batch ┐ writer: one write, one sync   ┌ 0…07.seg ┐ oldest
//! shard 1 ─ append ─▶ │ items, blocks │ ─────────────────────────────▶ │ 0…08.seg │
//!        ◀─ durable ─ └───────────────┘  then tells every shard        │ 0…09.seg │ active
//!           read ◀─── index: group ─▶ spans ─▶ memory or segment       │ 0…0a.seg │ prepared
//!                                                                      └ spare-3  ┘
//! ```
//! Read in this order: `format` (the bytes), `disk` (what is assumed of a disk), `state` (appends
//! and reads), `writer` (group commit), `recover` (what a crash leaves), `compact` (how space comes
//! back), `reserve` (files ahead of need), `directory` (lock and identity), `inspect`, `dump`. Beside the
//! log, in a directory of their own: `snapshots`.
//!
//! The writer is the log's thread, or a caller of [`LogDb::append_durable`] that finds nobody writing. Its write
//! goes past the page cache and is durable when it returns (`disk::Writes`).
//!
//! Invariants:
//! - Nothing is told to be durable before its sync returned `Ok`; a failed sync is final.
//! - A [`GroupWrite`](multiraft_engine::traits::GroupWrite) is found whole after a crash or not
//!   at all; and if one is found, all that were appended before it are.
//! - A torn tail is cut; damage to anything promised is refused and named, never cut.
//!
//! What was given up after damage is in a file of its own: `repairs`, `damage`,
//! `repair`.
//!
//! There is no manifest file: segment ids order the files, and each batch's header says which
//! segment is the oldest still needed, in the same write that makes it so. Reads are positional
//! reads below the written end, checked against the block's checksum; so no map, no `unsafe`.
#![forbid(unsafe_code)]

mod batch;
mod buffer;
mod cache;
mod compact;
mod damage;
mod directory;
mod disk;
mod dump;
mod error;
mod format;
mod index;
mod inspect;
mod metrics;
mod options;
mod reclaim;
mod recover;
mod repair;
mod repairs;
mod reserve;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod snapshots;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod waiting;
mod writer;

use std::sync::Arc;
use std::thread::JoinHandle;

use multiraft_engine::block::Block;
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, Index};
use parking_lot::{Condvar, Mutex};

pub use compact::{SPACE_FACTOR, SPACE_SEGMENTS};
pub use disk::{Access, Disk, DiskFile, FsDisk, Writes};
pub use dump::StoppedLog;
pub use error::Error;
pub use format::{FORMAT_VERSION, PAGE_BYTES};
pub use inspect::{
    GroupReport, Pin, Problem, Report, SegmentReport, VerifyReport, inspect, verify,
};
pub use metrics::Metrics;
pub use options::{Identity, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, Options};
pub use repair::{Describe, RepairPlan, plan_repair, repair};
pub use segment::SegmentId;
pub use snapshots::{
    SNAPSHOT_FORMAT_VERSION, SNAPSHOT_RESERVE_BYTES, SnapshotDir, SnapshotMetrics, SnapshotReport,
    inspect_snapshots,
};
pub use space::LogSpace;
pub use writer::{Turn, Writer};

use directory::DirectoryLock;
use recover::{Scan, Scanner};
use reserve::{Prepared, Reserve};
use segment::Segment;
use state::State;
use waiting::{DurableSignal, Fenced};
use writer::Shared;

/// The log of a node. Closed by [`LogDb::close`] or when the last handle is dropped.
pub struct LogDb {
    shared: Arc<Shared>,
    /// For callers that lead; `None` if somebody else turns the writer.
    writer: Option<Arc<Mutex<Writer>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Given up by [`LogDb::close`], when nothing is written any more.
    lock: Mutex<Option<DirectoryLock>>,
}

impl LogDb {
    /// Opens or creates the log in a directory, recovers it and starts its two threads.
    ///
    /// # Errors
    /// Each variant of [`Error`] says who should do what. Nothing is changed on
    /// [`Error::Corrupt`].
    pub fn open(options: Options) -> Result<Arc<Self>, Error> {
        let disk = FsDisk::new(&options.dir, Access::ReadWrite).with_writes(options.writes);
        let disk = Arc::new(disk);
        Self::open_with(disk, options)
    }

    /// The same with the segments on another disk: lock and identity are in `options.dir` all the
    /// same.
    ///
    /// # Errors
    /// As [`LogDb::open`].
    pub fn open_with(disk: Arc<dyn Disk>, options: Options) -> Result<Arc<Self>, Error> {
        options.validate()?;
        let (lock, incarnation) = directory::open(&options.dir, options.identity)?;
        let (mut log, writer) = Self::recover(disk, incarnation, options)?;
        *log.lock.lock() = Some(lock);
        let shared = Arc::clone(&log.shared);
        let writer = Arc::new(Mutex::new(writer));
        log.writer = Some(Arc::clone(&writer));
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(work).map_err(Error::io("starting a thread"))
        };
        let writer = {
            let shared = Arc::clone(&shared);
            spawn(
                "log-writer",
                Box::new(move || writer::run(&writer, &shared)),
            )?
        };
        log.threads.lock().push(writer);
        let reserve = spawn("log-reserve", Box::new(move || shared.reserve.run()))?;
        log.threads.lock().push(reserve);
        Ok(Arc::new(log))
    }

    /// Recovers a log without lock, identity and threads: the caller turns the writer, as a
    /// simulator does. `options.dir` is not used.
    ///
    /// # Errors
    /// As [`LogDb::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        incarnation: u64,
        options: Options,
    ) -> Result<(Arc<Self>, Writer), Error> {
        let (log, writer) = Self::recover(disk, incarnation, options)?;
        Ok((Arc::new(log), writer))
    }

    fn recover(
        disk: Arc<dyn Disk>,
        incarnation: u64,
        options: Options,
    ) -> Result<(Self, Writer), Error> {
        options.validate()?;
        let scanner = Scanner {
            disk: &*disk,
            incarnation,
            access: Access::ReadWrite,
        };
        let scan = scanner.scan()?;
        let (state, reserve) = prepare(scan, disk, &options)?;
        let shared = Arc::new(Shared {
            durable: DurableSignal::new(state.durable),
            state: Mutex::new(state),
            wake: Condvar::new(),
            observer: Mutex::new(None),
            reserve,
            options,
            incarnation,
            metrics: Metrics::default(),
        });
        shared.reserve.refresh_room();
        let log = Self {
            shared: Arc::clone(&shared),
            writer: None,
            threads: Mutex::new(Vec::new()),
            lock: Mutex::new(None),
        };
        Ok((log, Writer::new(shared)))
    }

    /// Appends and waits until it is on stable storage, with all that was appended before. What several threads
    /// append meanwhile shares one write; a caller that finds the log idle makes the write itself, which
    /// spares two thread switches. Each group at most once in `writes`.
    ///
    /// # Errors
    /// [`LogError::Fenced`]: not acknowledged. After a restart it may be found all the same.
    pub fn append_durable(&self, writes: &[GroupWrite]) -> Result<(), LogError> {
        let (sequence, leader) = {
            let mut state = self.shared.state.lock();
            state.check_open()?;
            let sequence = state.append_waiting(writes, self.shared.options.batch_bytes);
            let leader = self.writer.as_ref().filter(|_| !state.is_led);
            state.is_led |= leader.is_some();
            (sequence, leader)
        };
        if let Some(leader) = leader {
            leader.lock().lead(sequence);
        }
        let waited = self.shared.durable.wait(sequence);
        waited.or_else(|Fenced| self.shared.state.lock().check_open())
    }

    /// The random number this directory got when it was made: a wiped node that comes back under
    /// its old id has another one, so its peers see that it forgot its votes.
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// The groups that are stored, in order of their ids.
    pub fn groups(&self) -> Vec<GroupId> {
        let state = self.shared.state.lock();
        let groups = state.index.groups_from(GroupId(0));
        groups.map(|(id, _)| id).collect()
    }

    /// What the log counts.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics.clone()
    }

    /// One round of the background's work, files ahead of need: for who turns the writer too.
    ///
    /// # Errors
    /// What the disk says; the log goes on with what it has.
    pub fn prepare(&self) -> std::io::Result<()> {
        self.shared.reserve.turn()
    }

    /// Writes what is pending, ends the threads and gives the directory up. Later appends are
    /// refused; reads still work. Idempotent.
    pub fn close(&self) {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_all();
        self.shared.reserve.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
        self.lock.lock().take();
    }
}

impl Drop for LogDb {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes the directory fit for writing: clears the torn tail, finds the active segment and the
/// files to use next.
fn prepare(
    mut scan: Scan,
    disk: Arc<dyn Disk>,
    options: &Options,
) -> Result<(State, Reserve), Error> {
    let spares = clean_up(&disk, options)?;
    let mut dead = Vec::new();
    for id in scan.dead {
        // Its length decides whether it becomes a spare.
        let file = disk.open(&id.file_name()).and_then(|file| file.len());
        dead.push((id, file.map_err(Error::io("opening a segment"))?));
    }
    let active = scan.table.iter().last();
    let is_new = active.is_none();
    let wanted = active.map_or(scan.oldest, |active| active.id.next());
    let mut ready = None;
    scan.repairs.forget_if_old(&*disk, scan.oldest)?;
    if let Some(active) = active {
        recover::scrub(active.file.as_ref(), active.end, active.file_bytes)?;
        let file = disk.open_durable(&active.id.file_name());
        let file = file.map_err(Error::io("opening a segment"))?;
        scan.table.reopen_active(file);
        ready = take_prepared(&scan.empty, &disk)?;
        // Names that an earlier process did not sync are synced before they are relied on.
        disk.sync_dir()
            .map_err(Error::io("syncing the log directory"))?;
    }
    let reserve = Reserve::new(disk, options, spares, ready, wanted);
    if is_new {
        let first = reserve
            .take_next(0)
            .map_err(Error::io("creating a segment"))?;
        let segment = Segment::new(first.id, first.file, first.bytes, scan.last_sequence + 1);
        scan.table.push(segment);
    }
    for (id, bytes) in dead {
        reserve.retire(id, bytes);
    }
    let mut state = State::new(scan.index, scan.table, scan.last_sequence, scan.oldest);
    state.is_tail_unproven = scan.is_tail_unproven;
    Ok((state, reserve))
}

/// Deletes half-made files; returns the spares.
fn clean_up(disk: &Arc<dyn Disk>, options: &Options) -> Result<Vec<String>, Error> {
    let names = disk.list().map_err(Error::io("listing segments"))?;
    for name in names.iter().filter(|name| reserve::is_half_made(name)) {
        disk.remove(name)
            .map_err(Error::io("removing a half-made segment"))?;
    }
    let spares = names
        .into_iter()
        .filter(|n| reserve::spare_number(n).is_some());
    usable_spares(spares.collect(), disk, options)
}

/// The segment prepared by an earlier process. Only its first page can hold a torn batch's header.
fn take_prepared(empty: &[SegmentId], disk: &Arc<dyn Disk>) -> Result<Option<Prepared>, Error> {
    let Some(id) = empty.first().copied() else {
        return Ok(None);
    };
    let file = disk
        .open_durable(&id.file_name())
        .map_err(Error::io("opening a segment"))?;
    let bytes = file.len().map_err(Error::io("opening a segment"))?;
    recover::scrub(file.as_ref(), 0, PAGE_BYTES.min(bytes))?;
    Ok(Some(Prepared { id, file, bytes }))
}

/// Spares of the present segment size; others, of an earlier setting, are deleted.
fn usable_spares(
    spares: Vec<String>,
    disk: &Arc<dyn Disk>,
    options: &Options,
) -> Result<Vec<String>, Error> {
    let mut usable = Vec::new();
    for name in spares {
        let length = disk.open(&name).and_then(|file| file.len());
        let fits = length.map_err(Error::io("opening a spare"))? == options.segment_bytes;
        if fits && usable.len() < options.max_spares as usize {
            usable.push(name);
        } else {
            disk.remove(&name).map_err(Error::io("removing a spare"))?;
        }
    }
    Ok(usable)
}

impl Log for LogDb {
    fn append(&self, batch: WriteBatch) -> Result<(), LogError> {
        let mut state = self.shared.state.lock();
        state.check_open()?;
        let is_idle = !state.is_led;
        state.append(&batch, self.shared.options.batch_bytes);
        drop(state);
        if is_idle {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    fn read(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError> {
        let found = self
            .shared
            .state
            .lock()
            .find(group, first, last, max_bytes)?;
        found.iter().map(|part| part.load(group)).collect()
    }

    fn take_stored_groups(&self) -> Vec<StoredGroup> {
        std::mem::take(&mut self.shared.state.lock().stored)
    }

    fn has_room(&self) -> bool {
        self.shared.reserve.has_room()
    }

    fn set_observer(&self, observer: Arc<dyn LogObserver>) {
        *self.shared.observer.lock() = Some(observer);
    }
}
