//! A store of snapshots in memory, with disks that fail when told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::snapshot::{
    IncomingSnapshot, SnapshotError, SnapshotFile, SnapshotIn, SnapshotStore, SnapshotView,
};
use multiraft_engine::types::{GroupId, Index};

use super::described;

/// Clones are the same store.
#[derive(Clone)]
pub struct MemoryStore(Arc<(Mutex<Inner>, Condvar)>);

pub struct Inner {
    pub files: BTreeMap<(GroupId, Index), Vec<u8>>,
    /// What each file stands for.
    described: BTreeMap<(GroupId, Index), Snapshot>,
    /// Announced files beyond this are refused.
    pub room: u64,
    /// Partial files at the moment, and the most there ever were.
    pub partial: usize,
    pub most_partial: usize,
    /// Bytes appended since the beginning, to any file.
    pub appended: u64,
    /// Files finished since the beginning.
    pub finished: usize,
    pub disk: Disk,
    pub hangs: Hangs,
    /// Threads that hang.
    pub hanging: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Works,
    /// Reads of a file from this offset on fail.
    FailsToReadFrom(u64),
    FailsToWrite,
    FailsToSync,
}

/// What does not return.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hangs {
    Nothing,
    Appends,
    Syncs,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            described: BTreeMap::new(),
            room: 1 << 30,
            partial: 0,
            most_partial: 0,
            appended: 0,
            finished: 0,
            disk: Disk::Works,
            hangs: Hangs::Nothing,
            hanging: 0,
        };
        Self(Arc::new((Mutex::new(inner), Condvar::new())))
    }
}

impl MemoryStore {
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap()
    }

    /// From now on this hangs, and what hung before goes on.
    pub fn hang(&self, hangs: Hangs) {
        self.inner().hangs = hangs;
        self.0.1.notify_all();
    }

    fn inner_unless(&self, hangs: Hangs) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner();
        inner.hanging += 1;
        let waited = self.0.1.wait_while(inner, |inner| inner.hangs == hangs);
        inner = waited.unwrap();
        inner.hanging -= 1;
        inner
    }

    pub fn with(group: u32, index: u64, bytes: Vec<u8>) -> Self {
        let store = Self::default();
        store.put(group, index, bytes);
        store
    }

    pub fn put(&self, group: u32, index: u64, bytes: Vec<u8>) {
        let place = (GroupId(group), Index(index));
        let mut inner = self.inner();
        inner.files.insert(place, bytes);
        inner.described.insert(place, described(index));
    }

    pub fn get(&self, group: u32, index: u64) -> Option<Vec<u8>> {
        let place = (GroupId(group), Index(index));
        self.inner().files.get(&place).cloned()
    }

    pub fn shared(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.clone())
    }
}

impl SnapshotStore for MemoryStore {
    fn of(&self, group: GroupId) -> Vec<Snapshot> {
        let described = &self.inner().described;
        let of_group = described.iter().filter(|((of, _), _)| *of == group);
        of_group.map(|(_, snapshot)| snapshot.clone()).collect()
    }

    fn remove(&self, _group: GroupId, _index: Index) -> Result<(), SnapshotError> {
        unreachable!("the transport does not ask")
    }

    fn verify(&self, _group: GroupId, _index: Index) -> Result<(), SnapshotError> {
        unreachable!("the transport does not ask")
    }

    fn newest(&self) -> Vec<(GroupId, Snapshot)> {
        unreachable!("the transport does not ask")
    }

    fn save(
        &self,
        _group: GroupId,
        _snapshot: &Snapshot,
        _view: &mut dyn SnapshotView,
    ) -> Result<(), SnapshotError> {
        unreachable!("the transport does not ask")
    }

    fn load(&self, _group: GroupId, _index: Index) -> Result<Box<dyn SnapshotIn>, SnapshotError> {
        unreachable!("the transport does not ask")
    }

    fn remove_others(
        &self,
        _group: GroupId,
        _keep: Option<Index>,
    ) -> Result<Vec<Index>, SnapshotError> {
        unreachable!("the transport does not ask")
    }

    fn open(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotFile>, SnapshotError> {
        let bytes = self.inner().files.get(&(group, index)).cloned();
        let bytes = bytes.ok_or(SnapshotError::NotFound { group, index })?;
        let store = self.clone();
        Ok(Box::new(File { store, bytes }))
    }

    fn receive(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        bytes: u64,
        checksum: u32,
    ) -> Result<Box<dyn IncomingSnapshot>, SnapshotError> {
        let mut inner = self.inner();
        if bytes > inner.room {
            return Err(SnapshotError::NoRoom { bytes });
        }
        inner.partial += 1;
        inner.most_partial = inner.most_partial.max(inner.partial);
        Ok(Box::new(Partial {
            store: self.clone(),
            group,
            snapshot: snapshot.clone(),
            expected: (bytes, checksum),
            taken: Vec::new(),
        }))
    }
}

struct File {
    store: MemoryStore,
    bytes: Vec<u8>,
}

impl SnapshotFile for File {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn checksum(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let first = usize::try_from(offset).unwrap();
        let end = first + buffer.len();
        if matches!(self.store.inner().disk, Disk::FailsToReadFrom(bad) if end as u64 > bad) {
            return Err(io::Error::other("a bad sector"));
        }
        buffer.copy_from_slice(&self.bytes[first..end]);
        Ok(())
    }
}

struct Partial {
    store: MemoryStore,
    group: GroupId,
    snapshot: Snapshot,
    expected: (u64, u32),
    taken: Vec<u8>,
}

impl Partial {
    fn damaged(&self, what: &'static str) -> SnapshotError {
        let (group, index) = (self.group, self.snapshot.index);
        SnapshotError::Damaged { group, index, what }
    }
}

impl IncomingSnapshot for Partial {
    fn written(&self) -> u64 {
        self.taken.len() as u64
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut inner = self.store.inner_unless(Hangs::Appends);
        if inner.disk == Disk::FailsToWrite {
            return Err(io::Error::other("a failing disk").into());
        }
        inner.appended += bytes.len() as u64;
        drop(inner);
        self.taken.extend_from_slice(bytes);
        assert!(
            self.written() <= self.expected.0,
            "the receiver checks that"
        );
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotError> {
        if (self.written(), crc32fast::hash(&self.taken)) != self.expected {
            return Err(self.damaged("length or checksum"));
        }
        let store = self.store.clone();
        let mut inner = store.inner_unless(Hangs::Syncs);
        if inner.disk == Disk::FailsToSync {
            return Err(io::Error::other("a failing disk").into());
        }
        inner.finished += 1;
        let place = (self.group, self.snapshot.index);
        inner.files.insert(place, std::mem::take(&mut self.taken));
        inner.described.insert(place, self.snapshot.clone());
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.store.inner().partial -= 1;
    }
}
