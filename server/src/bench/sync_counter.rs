//! A disk that counts its syncs: the real one, with a counter beside each call that is one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use multiraft_logdb::{Access, Disk, DiskFile, FsDisk, Map, Options};

/// What a new log syncs beside its [`Disk`]: its directory's name, its identity's bytes and its
/// identity's name.
pub(super) const NEW_LOG_SYNCS: u64 = 3;

/// Sync calls so far; clones share the count.
#[derive(Debug, Clone, Default)]
pub(super) struct SyncCounter(Arc<AtomicU64>);

impl SyncCounter {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a call, whatever comes of it.
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) struct CountingDisk {
    disk: FsDisk,
    syncs: SyncCounter,
}

impl CountingDisk {
    pub(super) fn new(options: &Options, syncs: SyncCounter) -> Self {
        let disk = FsDisk::new(&options.dir, Access::ReadWrite).with_writes(options.writes);
        Self { disk, syncs }
    }

    fn counted(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let syncs = self.syncs.clone();
        Arc::new(CountingFile { file, syncs })
    }
}

impl Disk for CountingDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.create(name, bytes)?;
        self.syncs.count(); // its zeros
        Ok(self.counted(file))
    }

    fn create_growing(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(self.disk.create_growing(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(self.disk.open(name)?))
    }

    fn open_durable(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(self.disk.open_durable(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.syncs.count();
        self.disk.sync_dir()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

struct CountingFile {
    file: Arc<dyn DiskFile>,
    syncs: SyncCounter,
}

impl DiskFile for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.count();
        self.file.sync_data()
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.syncs.count();
        self.file.write_durable_at(bytes, offset)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn map(&self) -> io::Result<Option<Map>> {
        self.file.map()
    }
}
