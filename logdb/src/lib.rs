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
//! segment is the oldest still needed, in the same write that makes it so. Reads of full segments are from
//! memory maps (`map`, the only module with `unsafe`), those of the active one positional reads; both are checked
//! against the block's checksum. What full segments hold is told by `outline` files, so that a start does not read them.

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
mod handoff;
mod index;
mod inspect;
mod loaded;
mod map;
mod metrics;
mod options;
mod outline;
mod pack;
mod reclaim;
mod recover;
mod repair;
mod repairs;
mod reserve;
mod scrub;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod snapshots;
mod space;
mod state;
mod sync;
#[cfg(test)]
mod tests;
mod waiting;
mod writer;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use multiraft_engine::block::Block;
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, Index};
use parking_lot::Mutex;

pub use compact::{SPACE_FACTOR, SPACE_SEGMENTS};
pub use disk::{Access, Disk, DiskFile, FsDisk, Writes};
pub use dump::StoppedLog;
pub use error::Error;
pub use format::{FORMAT_VERSION, PAGE_BYTES};
pub use handoff::Turn;
pub use inspect::{
    GroupReport, Pin, Problem, Report, SegmentReport, VerifyReport, inspect, verify,
};
pub use map::Map;
pub use metrics::Metrics;
pub use options::{DEFAULT_SPARES, Identity, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, Options};
pub use pack::Compression;
pub use repair::{Describe, RepairPlan, plan_repair, repair};
pub use segment::SegmentId;
pub use snapshots::{
    SNAPSHOT_FORMAT_VERSION, SNAPSHOT_RESERVE_BYTES, SnapshotDir, SnapshotMetrics, SnapshotReport,
    inspect_snapshots,
};
pub use space::LogSpace;
pub use writer::Writer;

use directory::DirectoryLock;
use handoff::Handoff;
use outline::{Ending, Outline};
use recover::{Outlined, Outlines, Scan, Scanner};
use reserve::{Left, Prepared, Reserve, Reuse};
use segment::Segment;
use state::State;
use waiting::Fenced;
use writer::Shared;

/// The log of a node. Closed by [`LogDb::close`] or when the last handle is dropped.
pub struct LogDb {
    shared: Arc<Shared>,
    /// For callers that lead; `None` if somebody else turns the writer.
    writer: Option<Arc<Mutex<Writer>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Given up by [`LogDb::close`], when nothing is written any more; bytes of mapped segments keep it.
    lock: Mutex<Option<Arc<DirectoryLock>>>,
    /// Segments that were not read at a start after a crash.
    unread: Vec<SegmentId>,
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
        let lock = Arc::new(lock);
        log.shared
            .state
            .lock()
            .table
            .guard_maps(Arc::<DirectoryLock>::clone(&lock));
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
            spawn("log-writer", Box::new(move || shared.state.run(&writer)))?
        };
        log.threads.lock().push(writer);
        let reserve = {
            let shared = Arc::clone(&shared);
            spawn("log-reserve", Box::new(move || shared.reserve.run()))?
        };
        log.threads.lock().push(reserve);
        let unread = std::mem::take(&mut log.unread);
        if !unread.is_empty() {
            let work = Box::new(move || scrub::run(&shared, &unread));
            log.threads.lock().push(spawn("log-scrub", work)?);
        }
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
            outlines: Outlines::Used,
        };
        let scan = scanner.scan()?;
        let Ready {
            state,
            reserve,
            outline,
            unread,
        } = prepare(scan, disk, incarnation, &options)?;
        let durable = state.durable;
        let shared = Arc::new(Shared {
            state: Handoff::new(state, durable),
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
            unread,
        };
        Ok((log, Writer::new(shared, outline)))
    }

    /// Appends and waits until it is on stable storage, with all that was appended before. What several threads
    /// append meanwhile shares one write; a caller that finds the log idle makes the write itself, which
    /// spares two thread switches. Each group at most once in `writes`.
    ///
    /// # Errors
    /// [`LogError::Fenced`]: not acknowledged. After a restart it may be found all the same.
    pub fn append_durable(&self, writes: &[GroupWrite]) -> Result<(), LogError> {
        let Options {
            compression,
            batch_bytes,
            ..
        } = self.shared.options;
        let packed = pack::pack(writes, compression);
        let state = &self.shared.state;
        let waited = state.put_durable(self.writer.as_deref(), |state| {
            state.check_open()?;
            Ok::<_, LogError>(state.append_waiting(writes, packed, batch_bytes))
        })?;
        waited.map_err(|Fenced| state.lock().refusal())
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
        self.shared.reserve.turn().map(drop)
    }

    /// Writes what is pending, ends the threads and gives the directory up, as soon as nobody holds blocks that
    /// were read from full segments. Later appends are refused; reads still work. Idempotent.
    pub fn close(&self) {
        self.shared.state.close(|state| state.closing = true);
        self.shared.reserve.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
        self.shared.state.lock().table.give_up_maps();
        self.lock.lock().take();
    }
}

impl Drop for LogDb {
    fn drop(&mut self) {
        self.close();
    }
}

/// A log that may be written to.
struct Ready {
    state: State,
    reserve: Reserve,
    /// Of the active segment.
    outline: Option<Outline>,
    /// Segments whose entries nobody has looked at since the crash.
    unread: Vec<SegmentId>,
}

/// Makes the directory fit for writing: clears the torn tail, finds the active segment and the
/// files to use next.
fn prepare(
    mut scan: Scan,
    disk: Arc<dyn Disk>,
    incarnation: u64,
    options: &Options,
) -> Result<Ready, Error> {
    let spares = clean_up(&disk, options)?;
    let mut dead = Vec::new();
    for id in scan.dead {
        // Its length decides whether it becomes a spare.
        let file = disk.open(&id.file_name()).and_then(|file| file.len());
        dead.push((id, file.map_err(Error::io("opening a segment"))?));
    }
    let active = scan.table.iter().last();
    let is_new = active.is_none();
    let is_empty = active.is_none_or(|active| active.batches() == 0);
    let wanted = active.map_or(scan.oldest, |active| active.id.next());
    let mut left = Left {
        spares,
        ready: None,
        outlined: keep_outlines(&scan.outlines, &*disk)?,
    };
    scan.repairs.forget_if_old(&*disk, scan.oldest)?;
    if let Some(active) = active {
        if !scan.is_closed {
            recover::scrub(active.file.as_ref(), active.end, active.file_bytes)?;
        }
        let file = disk.open_durable(&active.id.file_name());
        let file = file.map_err(Error::io("opening a segment"))?;
        scan.table.reopen_active(file);
        left.ready = take_prepared(&scan.empty, &disk)?;
        // Names that an earlier process did not sync are synced before they are relied on; and the active
        // segment's outline is gone for good before the segment is written to.
        disk.sync_dir()
            .map_err(Error::io("syncing the log directory"))?;
    }
    let reserve = Reserve::new(disk, incarnation, options, left, wanted);
    let active = scan.outlines.pop();
    // A full segment is the active one again if nothing came of the next.
    let is_active_unread = active.as_ref().is_some_and(|a| a.is_stored) && !scan.is_closed;
    let outline = active.map(|active| active.outline);
    let outline = outline.or(is_empty.then(Outline::default));
    if is_new {
        let first = reserve
            .take_next(0)
            .map_err(Error::io("creating a segment"))?;
        let segment = Segment::new(first.id, first.file, first.bytes, scan.last_sequence + 1);
        scan.table.push(segment);
    }
    let mut unread = Vec::new();
    for sealed in scan.outlines {
        let file_bytes = scan.table.file_bytes(sealed.segment);
        match (sealed.is_stored, file_bytes) {
            (false, Some(bytes)) => {
                reserve.put_outline(sealed.segment, bytes, sealed.outline, Ending::Sealed);
            }
            (true, _) if !scan.is_closed => unread.push(sealed.segment),
            _ => {}
        }
    }
    if is_active_unread {
        unread.extend(scan.table.iter().last().map(|active| active.id));
    }
    for (id, bytes) in dead {
        reserve.retire(id, bytes, Reuse::Allowed);
    }
    let mut state = State::new(scan.index, scan.table, scan.last_sequence, scan.oldest);
    state.is_tail_unproven = scan.is_tail_unproven;
    Ok(Ready {
        state,
        reserve,
        outline,
        unread,
    })
}

/// Deletes all outlines but those that were used, and that of the active segment too.
fn keep_outlines(known: &[Outlined], disk: &dyn Disk) -> Result<BTreeSet<SegmentId>, Error> {
    let sealed = known.iter().rev().skip(1);
    let kept: BTreeSet<_> = sealed.filter(|o| o.is_stored).map(|o| o.segment).collect();
    let names = disk.list().map_err(Error::io("listing segments"))?;
    for name in names {
        if outline::segment_of(&name).is_some_and(|id| !kept.contains(&id)) {
            disk.remove(&name)
                .map_err(Error::io("removing an outline"))?;
        }
    }
    Ok(kept)
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
        let Options {
            compression,
            batch_bytes,
            ..
        } = self.shared.options;
        let packed = pack::pack(&batch.writes, compression);
        self.shared.state.put(|state| {
            state.check_open()?;
            state.append(&batch, packed, batch_bytes);
            Ok(())
        })
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
        state::load_all(group, &found)
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
