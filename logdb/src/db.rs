//! The log as the engine sees it: appends from many shards, reads, durable marks.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::block::Block;
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, Index};
use parking_lot::{Condvar, Mutex};

use crate::directory::{Directory, Identity};
use crate::disk::{Disk, RealDisk};
use crate::error::Error;
use crate::format::{BatchEncoder, BlockPlace, SEGMENT_HEADER_BYTES};
use crate::index::{BlockRef, LogIndex};
use crate::metrics::Metrics;
use crate::recover::{self, Segment};
use crate::writer::{self, Buffer, PendingBatch, Writer};

/// A turn's writes are split into batches of about this size; a group's write is never split.
const BATCH_BYTES: usize = 8 << 20;
/// The smallest segment that makes sense.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// How often the free space is looked at.
const SPACE_CHECK: Duration = Duration::from_millis(500);

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its directory; made if missing.
    pub dir: PathBuf,
    /// Whose it is.
    pub identity: Identity,
    /// Size of a segment, bytes; default 32 MiB. Existing segments keep theirs.
    pub segment_bytes: u64,
    /// Free segments kept for reuse; one more is always prepared. Default 2.
    pub spare_segments: usize,
    /// Bytes of free disk below which proposals are refused; default 64 MiB.
    pub reserve_bytes: u64,
    /// Bytes of recent blocks kept in memory; default 64 MiB.
    pub cache_bytes: usize,
}

impl Options {
    /// The defaults.
    pub fn new(dir: PathBuf, identity: Identity) -> Self {
        Self {
            dir,
            identity,
            segment_bytes: 32 << 20,
            spare_segments: 2,
            reserve_bytes: 64 << 20,
            cache_bytes: 64 << 20,
        }
    }
}

/// One log for all groups of a node.
pub struct LogDb {
    shared: Arc<Shared>,
    directory: Option<Directory>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What callers, the writer and the preparer share.
pub struct Shared {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) state: Mutex<State>,
    pub(crate) work: Condvar,
    pub(crate) metrics: Metrics,
    observer: Mutex<Option<Arc<dyn LogObserver>>>,
    spares: Mutex<VecDeque<(String, u64)>>,
    spares_changed: Condvar,
    spare_number: AtomicU64,
    room: AtomicBool,
    closing: AtomicBool,
    segment_bytes: u64,
    spare_segments: usize,
    reserve_bytes: u64,
}

/// What one lock guards.
#[derive(Default)]
pub struct State {
    pub(crate) index: LogIndex,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) buffer: Buffer,
    pub(crate) cache: Cache,
    /// The newest segment whose live bytes were written again.
    pub(crate) emptying: u64,
    stored: Vec<StoredGroup>,
    fenced: Option<LogError>,
}

/// Recent blocks, oldest first.
#[derive(Default)]
pub struct Cache {
    recent: VecDeque<(GroupId, Index, usize)>,
    bytes: usize,
    limit: usize,
}

impl Cache {
    /// A block was written and may be forgotten when it is old.
    pub fn note(&mut self, group: GroupId, block: &Block) {
        self.recent
            .push_back((group, block.first(), block.bytes().len()));
        self.bytes += block.bytes().len();
    }
}

impl State {
    /// A whole block by an index in it.
    pub(crate) fn read_block(&self, group: GroupId, index: Index) -> Result<Block, LogError> {
        let not_found = LogError::NotFound { group, index };
        let entry = self.index.groups.get(&group).ok_or(not_found.clone())?;
        let at = entry.blocks.partition_point(|b| b.last < index);
        let reference = entry.blocks.get(at).ok_or(not_found)?;
        let segment = reference
            .place
            .and_then(|p| self.segments.get(&p.segment).cloned());
        load(group, reference, segment)
    }

    /// Forgets the oldest written blocks beyond the limit.
    pub fn trim_cache(&mut self) {
        while self.cache.bytes > self.cache.limit {
            let Some((group, first, bytes)) = self.cache.recent.pop_front() else {
                return;
            };
            self.cache.bytes -= bytes;
            let Some(entry) = self.index.groups.get_mut(&group) else {
                continue;
            };
            let at = entry.blocks.partition_point(|b| b.last < first);
            if let Some(block) = entry.blocks.get_mut(at).filter(|b| b.place.is_some()) {
                block.cached = None;
            }
        }
    }
}

impl LogDb {
    /// Locks, checks and recovers the directory, then starts the writer.
    pub fn open(options: &Options) -> Result<Arc<Self>, Error> {
        check(options)?;
        let directory = Directory::open(&options.dir, options.identity)?;
        let disk = Box::new(RealDisk::new(&options.dir));
        Self::open_on(disk, options, Some(directory))
    }

    /// The same on any disk, without lock and identity: for tests.
    pub fn open_on(
        disk: Box<dyn Disk>,
        options: &Options,
        directory: Option<Directory>,
    ) -> Result<Arc<Self>, Error> {
        check(options)?;
        let recovered = recover::read(&*disk)?;
        recover::cut_tail(&recovered)?;
        let metrics = Metrics::default();
        metrics
            .segments
            .set(recovered.segments.len().try_into().unwrap_or(i64::MAX));
        let stored = recovered
            .index
            .groups
            .iter()
            .map(|(&id, g)| g.stored(id))
            .collect();
        let state = State {
            index: recovered.index,
            segments: recovered.segments,
            cache: Cache {
                limit: options.cache_bytes,
                ..Cache::default()
            },
            stored,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            disk,
            state: Mutex::new(state),
            work: Condvar::new(),
            metrics,
            observer: Mutex::default(),
            spares: Mutex::default(),
            spares_changed: Condvar::new(),
            spare_number: AtomicU64::new(0),
            room: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            segment_bytes: options.segment_bytes,
            spare_segments: options.spare_segments,
            reserve_bytes: options.reserve_bytes,
        });
        shared.adopt_spares()?;
        shared.prepare();
        if shared.state.lock().segments.is_empty() && shared.spares.lock().is_empty() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(Error::Io {
                path: options.dir.clone(),
                source: full,
            });
        }
        let writer = Writer::new(Arc::clone(&shared), recovered.sequence)?;
        let preparer = Arc::clone(&shared);
        let threads = vec![
            spawn("log-writer", move || writer::run(writer))?,
            spawn("log-preparer", move || preparer.prepare_until_closed())?,
        ];
        Ok(Arc::new(Self {
            shared,
            directory,
            threads: Mutex::new(threads),
        }))
    }

    /// Drawn when the directory was made; 0 without one.
    pub fn incarnation(&self) -> u64 {
        self.directory.as_ref().map_or(0, Directory::incarnation)
    }

    /// The groups that are stored, by id.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared
            .state
            .lock()
            .index
            .groups
            .keys()
            .copied()
            .collect()
    }

    /// The log's figures.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Writes what waits and ends the threads. Later appends are refused. Calling again does nothing.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

impl Drop for LogDb {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    thread.map_err(Error::io(name))
}

fn check(options: &Options) -> Result<(), Error> {
    let (bytes, minimum) = (options.segment_bytes, MIN_SEGMENT_BYTES);
    if bytes < minimum {
        Err(Error::SegmentTooSmall { bytes, minimum })
    } else {
        Ok(())
    }
}

impl Log for LogDb {
    fn append(&self, batch: WriteBatch) -> Result<(), LogError> {
        let mut state = self.shared.state.lock();
        if let Some(error) = &state.fenced {
            return Err(error.clone());
        }
        if self.shared.closing.load(Ordering::Acquire) {
            let closed = io::Error::other("the log is closed");
            return Err(LogError::Fenced(Arc::new(closed)));
        }
        state.put(&batch);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn read(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError> {
        let found = self.shared.find(group, first, last, max_bytes)?;
        let mut blocks = Vec::with_capacity(found.len());
        for (reference, file) in found {
            let block = load(group, &reference, file)?;
            blocks.push(block.slice(reference.first.max(first), reference.last.min(last)));
        }
        Ok(blocks)
    }

    fn take_stored_groups(&self) -> Vec<StoredGroup> {
        std::mem::take(&mut self.shared.state.lock().stored)
    }

    fn has_room(&self) -> bool {
        self.shared.room.load(Ordering::Acquire)
    }

    fn set_observer(&self, observer: Arc<dyn LogObserver>) {
        *self.shared.observer.lock() = Some(observer);
    }
}

type Found = (BlockRef, Option<Segment>);

/// The block, from memory or from its segment; checked in either case when it was made or read.
fn load(group: GroupId, reference: &BlockRef, segment: Option<Segment>) -> Result<Block, LogError> {
    if let Some(block) = &reference.cached {
        return Ok(block.clone());
    }
    let missing = LogError::NotFound {
        group,
        index: reference.first,
    };
    let (Some(place), Some(segment)) = (reference.place, segment) else {
        return Err(missing);
    };
    let mut bytes = vec![0; reference.bytes];
    let read = segment.file.read_at(&mut bytes, place.offset);
    read.map_err(|error| LogError::Io(Arc::new(error)))?;
    let damaged = LogError::Damaged {
        group,
        index: reference.first,
    };
    let block = Block::decode(Bytes::from(bytes)).map_err(|_| damaged.clone())?;
    let whole = block.first() <= reference.first
        && reference.last <= block.last()
        && block.term() == reference.term;
    if whole { Ok(block) } else { Err(damaged) }
}

impl State {
    /// Encodes a shard's batch into the buffer, in the caller's thread, and indexes it.
    fn put(&mut self, batch: &WriteBatch) {
        let mut rest = batch.writes.as_slice();
        loop {
            let (part, more) = rest.split_at(part_length(rest));
            rest = more;
            let source = rest.is_empty().then_some((batch.shard, batch.ticket));
            self.put_part(part, source);
            if rest.is_empty() {
                return;
            }
        }
    }

    fn put_part(&mut self, writes: &[GroupWrite], source: Option<(u32, u64)>) {
        let start = self.buffer.bytes.len();
        let mut pending = PendingBatch {
            start,
            source,
            ..PendingBatch::default()
        };
        let mut encoder = BatchEncoder::new(&mut self.buffer.bytes);
        for write in writes {
            let compact = write.compact_to.and_then(|index| {
                let term = self.index.groups.get(&write.group)?.term(index)?;
                Some((index, term))
            });
            let before = encoder.put_write(write, compact);
            for (block, offset) in write.blocks.iter().zip(before) {
                let place = BlockPlace {
                    group: write.group,
                    block: block.clone(),
                    offset,
                };
                pending.blocks.push(place);
            }
            let states = [
                write.meta.is_some(),
                write.hard_state.is_some(),
                compact.is_some(),
            ];
            pending.states.push((write.group, states));
            self.index.apply(write, compact);
        }
        pending.bytes = encoder.finish();
        self.buffer.batches.push(pending);
    }
}

/// How many writes go into one batch: at least one.
fn part_length(writes: &[GroupWrite]) -> usize {
    let mut bytes = 0;
    let fits = |write: &&GroupWrite| {
        bytes += 64 + write.blocks.iter().map(|b| b.bytes().len()).sum::<usize>();
        bytes <= BATCH_BYTES
    };
    writes
        .iter()
        .take_while(fits)
        .count()
        .max(1)
        .min(writes.len())
}

impl Shared {
    /// The references of the blocks to read, and the segments they lie in.
    fn find(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Found>, LogError> {
        let state = self.state.lock();
        let not_found = |index| LogError::NotFound { group, index };
        let entry = state.index.groups.get(&group).ok_or(not_found(first))?;
        if first <= entry.compacted.0 {
            let kept = entry.compacted.0.next();
            return Err(LogError::Compacted {
                group,
                index: first,
                first: kept,
            });
        }
        if last > entry.last() || first > last {
            return Err(not_found(last));
        }
        let start = entry.blocks.partition_point(|b| b.last < first);
        let mut found: Vec<Found> = Vec::new();
        let mut bytes = 0;
        for block in entry.blocks.range(start..).take_while(|b| b.first <= last) {
            bytes += block.bytes;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            let segment = block
                .place
                .and_then(|p| state.segments.get(&p.segment).cloned());
            found.push((block.clone(), segment));
        }
        Ok(found)
    }

    pub(crate) fn observer(&self) -> Option<Arc<dyn LogObserver>> {
        self.observer.lock().clone()
    }

    /// Waits for batches. False once the log is closed and nothing waits.
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut state = self.state.lock();
        while state.buffer.batches.is_empty() {
            if self.closing.load(Ordering::Acquire) {
                return false;
            }
            self.work.wait(&mut state);
        }
        true
    }

    /// Nothing becomes durable any more.
    pub(crate) fn fence(&self, error: &LogError) {
        self.state.lock().fenced = Some(error.clone());
        if let Some(observer) = self.observer() {
            observer.on_fenced(error);
        }
    }

    /// A file of at least `bytes`, made if none is ready. Waits while the disk is full: what waits
    /// with it is not acknowledged, and goes on by itself when space comes back.
    pub(crate) fn take_spare(&self, bytes: u64) -> io::Result<String> {
        if bytes > self.segment_bytes {
            let name = self.spare_name();
            self.disk.create(&name, bytes)?;
            return Ok(name);
        }
        let mut spares = self.spares.lock();
        loop {
            if let Some((name, _)) = spares.pop_front() {
                self.spares_changed.notify_all();
                return Ok(name);
            }
            if self.closing.load(Ordering::Acquire) {
                return Err(io::Error::other("closed while waiting for disk space"));
            }
            self.spares_changed.wait(&mut spares);
        }
    }

    /// Keeps a dead segment's file for reuse, or deletes it.
    pub(crate) fn recycle(&self, name: &str, bytes: u64) -> io::Result<()> {
        let keep = bytes == self.segment_bytes && self.spares.lock().len() < self.spare_segments;
        if !keep {
            return self.disk.remove(name);
        }
        let spare = self.spare_name();
        self.disk.rename(name, &spare)?;
        self.spares.lock().push_back((spare, bytes));
        self.spares_changed.notify_all();
        Ok(())
    }

    fn spare_name(&self) -> String {
        format!(
            "spare-{}.tmp",
            self.spare_number.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Spares of the last run go on being spares, so that a full disk does not stop a restart.
    fn adopt_spares(&self) -> Result<(), Error> {
        let names = self.disk.list().map_err(Error::io("."))?;
        let number = |name: &String| {
            name.strip_prefix("spare-")?
                .strip_suffix(".tmp")?
                .parse()
                .ok()
        };
        let mut highest: u64 = 0;
        for (name, number) in names.iter().filter_map(|name| Some((name, number(name)?))) {
            highest = highest.max(u64::saturating_add(number, 1));
            let size = self
                .disk
                .open(name)
                .and_then(|f| f.size())
                .map_err(Error::io(name))?;
            if size == self.segment_bytes && self.spares.lock().len() < self.spare_segments {
                self.spares.lock().push_back((name.clone(), size));
            } else {
                self.disk.remove(name).map_err(Error::io(name))?;
            }
        }
        self.spare_number.store(highest, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a spare if there is none, and says whether there is room for proposals.
    fn prepare(&self) {
        if self.spares.lock().is_empty() {
            let name = self.spare_name();
            match self
                .disk
                .create(&name, self.segment_bytes.max(SEGMENT_HEADER_BYTES))
            {
                Ok(()) => {
                    self.spares.lock().push_back((name, self.segment_bytes));
                    self.spares_changed.notify_all();
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot prepare a segment");
                    if let Err(error) = self.disk.remove(&name) {
                        tracing::debug!(%error, "no partial segment to remove");
                    }
                }
            }
        }
        let free = self.disk.free_bytes().unwrap_or(0);
        let room = free >= self.reserve_bytes && !self.spares.lock().is_empty();
        if self.room.swap(room, Ordering::AcqRel) != room {
            tracing::warn!(room, free, "room in the log changed");
        }
    }

    fn prepare_until_closed(&self) {
        while !self.closing.load(Ordering::Acquire) {
            self.prepare();
            let mut spares = self.spares.lock();
            if !self.closing.load(Ordering::Acquire) {
                self.spares_changed.wait_for(&mut spares, SPACE_CHECK);
            }
        }
    }

    fn wake_all(&self) {
        let state = self.state.lock();
        self.work.notify_all();
        drop(state);
        let spares = self.spares.lock();
        self.spares_changed.notify_all();
        drop(spares);
    }
}
