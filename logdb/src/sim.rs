//! A disk in memory, for tests and simulation: writes are volatile and torn by sector, changes of
//! names are lost from the last one back, lengths of growing files are lost like their bytes, syncs
//! can fail, space can end. A process that crashes keeps what the disk has.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a wrong use of it is a broken test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    cached: Vec<u8>,
    dirty: BTreeSet<usize>,
    growth: Growth,
    /// Bytes that the device cannot read.
    unreadable: Option<Range<usize>>,
}

/// Whether a file's length changes.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Growth {
    #[default]
    Fixed,
    Growing,
}

impl Inode {
    /// What is cached becomes durable in this sector; the rest of a longer file is zeros.
    fn keep(&mut self, sector: usize) {
        let end = self.durable.len().min((sector + 1) * SECTOR);
        let range = sector * SECTOR..end;
        self.durable[range.clone()].copy_from_slice(&self.cached[range]);
    }

    /// Bytes taken from the free ones.
    fn grown_bytes(&self) -> u64 {
        match self.growth {
            Growth::Fixed => 0,
            Growth::Growing => self.cached.len() as u64,
        }
    }
}

type Names = BTreeMap<String, Arc<Mutex<Inode>>>;

#[derive(Default)]
struct Disks {
    names: Names,
    durable_names: Names,
    /// The names after each change since they were durable.
    unsynced_names: Vec<Names>,
    free_bytes: u64,
    /// Writes, syncs and name changes so far; the one with this number and all later ones fail.
    operations: u64,
    fail_from: Option<u64>,
    fail_next_sync: bool,
    fail_next_dir_sync: bool,
}

impl Disks {
    /// Bytes of all growing files.
    fn grown_bytes(&self) -> u64 {
        let files = self.names.values();
        files.map(|inode| inode.lock().grown_bytes()).sum()
    }

    /// A file lost its name.
    fn give_back(&mut self, file: &Mutex<Inode>) {
        let grown_bytes = file.lock().grown_bytes();
        self.free_bytes = self.free_bytes.saturating_add(grown_bytes);
    }

    /// A name was given, changed or taken away.
    fn names_changed(&mut self) {
        self.unsynced_names.push(self.names.clone());
    }

    /// The names that a crash leaves: the durable ones, or any that followed. A file system keeps
    /// the order of such changes.
    fn names_after_crash(&mut self, seed: u64) -> Names {
        let mut steps = std::mem::take(&mut self.unsynced_names);
        steps.insert(0, self.durable_names.clone());
        // A generator of its own: what else a seed draws does not depend on the number of names.
        let mut rng = SmallRng::seed_from_u64(!seed);
        steps.swap_remove(rng.random_range(0..steps.len()))
    }

    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fail_from {
            Some(at) if self.operations > at => Err(io::Error::other("power is off")),
            _ => Ok(()),
        }
    }
}

/// See the module's documentation.
#[derive(Default)]
pub struct SimDisk(Arc<Mutex<Disks>>);

struct SimFile {
    disk: Arc<Mutex<Disks>>,
    inode: Arc<Mutex<Inode>>,
}

impl SimDisk {
    /// An empty disk of 1 GiB.
    pub fn new() -> Arc<Self> {
        let disk = Self::default();
        disk.0.lock().free_bytes = 1 << 30;
        Arc::new(disk)
    }

    /// Writes, syncs and changes of names so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Power fails at this operation and stays off until [`SimDisk::crash`].
    pub fn fail_from(&self, operation: u64) {
        self.0.lock().fail_from = Some(operation);
    }

    /// Whether power has failed.
    pub fn is_off(&self) -> bool {
        let disk = self.0.lock();
        disk.fail_from.is_some_and(|at| at < disk.operations)
    }

    /// The next sync of a file fails, and what it should have kept is lost.
    pub fn fail_next_sync(&self) {
        self.0.lock().fail_next_sync = true;
    }

    /// The next sync of the directory fails: no name becomes durable by it.
    pub fn fail_next_dir_sync(&self) {
        self.0.lock().fail_next_dir_sync = true;
    }

    /// Nothing is going to fail any more.
    pub fn mend(&self) {
        let mut disk = self.0.lock();
        disk.fail_from = None;
        disk.fail_next_sync = false;
        disk.fail_next_dir_sync = false;
    }

    /// New files fit up to this size; growing files use it up.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.0.lock().free_bytes = bytes;
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// A byte rots, on the platter and in the cache.
    pub fn flip(&self, name: &str, at: usize) {
        let inode = Arc::clone(&self.0.lock().names[name]);
        let mut inode = inode.lock();
        inode.durable[at] ^= 0x40;
        inode.cached[at] ^= 0x40;
    }

    /// The device cannot read these bytes of a file any more.
    pub fn fail_reads(&self, name: &str, range: Range<usize>) {
        let inode = Arc::clone(&self.0.lock().names[name]);
        inode.lock().unreadable = Some(range);
    }

    /// What a file durably holds.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().names[name].lock().durable.clone()
    }

    /// Replaces what a file holds.
    pub fn set_bytes(&self, name: &str, bytes: &[u8]) {
        let inode = Arc::clone(&self.0.lock().names[name]);
        let mut inode = inode.lock();
        inode.durable = bytes.to_vec();
        inode.cached = bytes.to_vec();
    }

    /// Power fails and comes back: unsynced sectors are all kept, or each is kept, lost or garbage.
    pub fn crash(&self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = self.0.lock();
        disk.fail_from = None;
        let grown_before = disk.grown_bytes();
        if rng.random() {
            disk.unsynced_names.clear();
        } else {
            disk.names = disk.names_after_crash(seed);
        }
        disk.durable_names = disk.names.clone();
        let outcomes = if rng.random() { 0..1 } else { 0..3 };
        for inode in disk.names.values() {
            let mut inode = inode.lock();
            let (synced, written) = (inode.durable.len(), inode.cached.len());
            if synced < written {
                let kept = match outcomes.end {
                    1 => written,
                    _ => rng.random_range(synced..=written),
                };
                inode.durable.resize(kept, 0);
            }
            for sector in std::mem::take(&mut inode.dirty) {
                if inode.durable.len() <= sector * SECTOR {
                    continue; // it was not grown that far
                }
                match rng.random_range(outcomes.clone()) {
                    0 => inode.keep(sector),
                    1 => {
                        let end = inode.durable.len().min((sector + 1) * SECTOR);
                        rng.fill(&mut inode.durable[sector * SECTOR..end]);
                    }
                    _ => {}
                }
            }
            let Inode {
                durable, cached, ..
            } = &mut *inode;
            cached.clone_from(durable);
        }
        let free_bytes = disk.free_bytes.saturating_add(grown_before);
        disk.free_bytes = free_bytes.saturating_sub(disk.grown_bytes());
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut disk = self.0.lock();
        disk.operation()?;
        if disk.free_bytes < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; usize::try_from(bytes).unwrap()];
        let inode = Arc::new(Mutex::new(Inode {
            durable: zeros.clone(),
            cached: zeros,
            dirty: BTreeSet::new(),
            growth: Growth::Fixed,
            unreadable: None,
        }));
        disk.names.insert(name.to_owned(), Arc::clone(&inode));
        disk.names_changed();
        drop(disk);
        let disk = Arc::clone(&self.0);
        Ok(Arc::new(SimFile { disk, inode }))
    }

    fn create_growing(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut disk = self.0.lock();
        disk.operation()?;
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = Arc::new(Mutex::new(Inode {
            growth: Growth::Growing,
            ..Inode::default()
        }));
        disk.names.insert(name.to_owned(), Arc::clone(&inode));
        disk.names_changed();
        drop(disk);
        let disk = Arc::clone(&self.0);
        Ok(Arc::new(SimFile { disk, inode }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let names = &self.0.lock().names;
        let inode = names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile {
            disk: Arc::clone(&self.0),
            inode: Arc::clone(inode),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.operation()?;
        let inode = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        if let Some(replaced) = disk.names.insert(to.to_owned(), inode) {
            disk.give_back(&replaced);
        }
        disk.names_changed();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.operation()?;
        let removed = disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.give_back(&removed);
        disk.names_changed();
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.operation()?;
        if std::mem::take(&mut disk.fail_next_dir_sync) {
            return Err(io::Error::other("sync failed"));
        }
        disk.durable_names = disk.names.clone();
        disk.unsynced_names.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().free_bytes)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inode.lock().cached.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let inode = self.inode.lock();
        let end = start + buffer.len();
        let meets = |bad: &Range<usize>| start < bad.end && bad.start < end;
        if inode.unreadable.as_ref().is_some_and(meets) {
            return Err(io::Error::other("the device cannot read it"));
        }
        let bytes = inode.cached.get(start..end);
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let mut result = disk.operation();
        // The write during which power fails leaves its bytes unsynced.
        if disk.fail_from.is_some_and(|at| at + 1 < disk.operations) {
            return result;
        }
        let start = usize::try_from(offset).unwrap();
        let mut inode = self.inode.lock();
        let mut bytes = bytes;
        if inode.growth == Growth::Growing {
            assert!(start <= inode.cached.len(), "it grows at its end");
            let free_bytes = usize::try_from(disk.free_bytes).unwrap();
            let most = free_bytes.saturating_add(inode.cached.len() - start);
            if most < bytes.len() {
                // What fits is written, as the kernel does it.
                bytes = &bytes[..most];
                result = result.and(Err(io::ErrorKind::StorageFull.into()));
            }
            let length = inode.cached.len().max(start + bytes.len());
            disk.free_bytes -= (length - inode.cached.len()) as u64;
            inode.cached.resize(length, 0);
        }
        inode.cached[start..start + bytes.len()].copy_from_slice(bytes);
        inode
            .dirty
            .extend(start / SECTOR..(start + bytes.len()).div_ceil(SECTOR));
        result
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.operation()?;
        let mut inode = self.inode.lock();
        if std::mem::take(&mut disk.fail_next_sync) {
            inode.dirty.clear(); // lost, and clean (fsyncgate)
            return Err(io::Error::other("sync failed"));
        }
        let length = inode.cached.len();
        inode.durable.resize(length, 0);
        for sector in std::mem::take(&mut inode.dirty) {
            inode.keep(sector);
        }
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut inode = self.inode.lock();
        assert!(inode.dirty.is_empty(), "synced before");
        let Inode {
            durable, cached, ..
        } = &mut *inode;
        cached.clone_from(durable);
        Ok(())
    }
}
