//! A disk in memory, for tests and simulation: writes are volatile and torn by sector, names by
//! directory, syncs can fail, space can end. A process that crashes keeps what the disk has.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a wrong use of it is a broken test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
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
}

type Names = BTreeMap<String, Arc<Mutex<Inode>>>;

#[derive(Default)]
struct Disks {
    names: Names,
    durable_names: Names,
    free_bytes: u64,
    /// Writes, syncs and name changes so far; the one with this number and all later ones fail.
    operations: u64,
    fail_from: Option<u64>,
    fail_next_sync: bool,
}

impl Disks {
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

    /// The next sync of a file fails, and what it should have kept is lost.
    pub fn fail_next_sync(&self) {
        self.0.lock().fail_next_sync = true;
    }

    /// New files fit up to this size.
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
        if rng.random() {
            disk.durable_names = disk.names.clone();
        } else {
            disk.names = disk.durable_names.clone();
        }
        let outcomes = if rng.random() { 0..1 } else { 0..3 };
        for inode in disk.names.values() {
            let mut inode = inode.lock();
            for sector in std::mem::take(&mut inode.dirty) {
                let Inode {
                    durable, cached, ..
                } = &mut *inode;
                let end = durable.len().min((sector + 1) * SECTOR);
                let range = sector * SECTOR..end;
                match rng.random_range(outcomes.clone()) {
                    0 => durable[range.clone()].copy_from_slice(&cached[range]),
                    1 => rng.fill(&mut durable[range]),
                    _ => {}
                }
            }
            let Inode {
                durable, cached, ..
            } = &mut *inode;
            cached.clone_from(durable);
        }
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
        }));
        disk.names.insert(name.to_owned(), Arc::clone(&inode));
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
        disk.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.operation()?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.operation()?;
        disk.durable_names = disk.names.clone();
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
        let bytes = inode.cached.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (result, is_begun) = {
            let mut disk = self.disk.lock();
            let result = disk.operation();
            // The write during which power fails leaves its bytes unsynced.
            let is_begun = disk.fail_from.is_none_or(|at| disk.operations <= at + 1);
            (result, is_begun)
        };
        let start = usize::try_from(offset).unwrap();
        let mut inode = self.inode.lock();
        if is_begun {
            inode.cached[start..start + bytes.len()].copy_from_slice(bytes);
            inode
                .dirty
                .extend(start / SECTOR..(start + bytes.len()).div_ceil(SECTOR));
        }
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
        for sector in std::mem::take(&mut inode.dirty) {
            let range = sector * SECTOR..inode.cached.len().min((sector + 1) * SECTOR);
            let Inode {
                durable, cached, ..
            } = &mut *inode;
            durable[range.clone()].copy_from_slice(&cached[range]);
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
