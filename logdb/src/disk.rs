//! The few operations that the log and the snapshots need of a disk, and the real one.
//!
//! What we assume of a disk, and the simulated one keeps to:
//! - A write is volatile until a sync of its file returns `Ok`; a crash keeps any part of it, in
//!   any order, torn within 4 KiB pages that were being written. It does not touch other pages.
//! - A growing file's length is as volatile as what was written: a crash keeps any length between
//!   the synced one and the written one, and what was lost of it reads as zeros.
//! - A name created, renamed or deleted is volatile until [`Disk::sync_dir`].
//! - A file that is deleted or replaced while it is open goes on for who has it open.
//! - After a failed sync nothing is known: the kernel may have marked the lost pages clean
//!   (fsyncgate), so the same sync is never tried again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::map::Map;

/// A directory of files.
#[expect(
    clippy::missing_errors_doc,
    reason = "as the operating system reports them"
)]
pub trait Disk: Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file of `bytes` real, written, synced zeros: a later `sync_data` of it writes no
    /// metadata. Replaces a file of that name. Its name is not synced. No file is left behind on an error.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// A new empty file that grows by writes at its end, under a name that is not taken. Neither its
    /// name nor its length is durable: [`DiskFile::sync_data`] keeps the length with the bytes.
    fn create_growing(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file of a fixed length for [`DiskFile::write_durable_at`], by the fastest way that the
    /// disk has for it.
    fn open_durable(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name)
    }
    /// Renames, replacing a file of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Deletes.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that new files can still take.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file: of a fixed length, or growing by writes at its end.
#[expect(
    clippy::missing_errors_doc,
    reason = "as the operating system reports them"
)]
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether a file is empty"
)]
pub trait DiskFile: Send + Sync + 'static {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// One positional write. Beyond the end it makes a growing file longer, and begins where it
    /// ends; on an error any part of it may have been done, and the file may be longer.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes earlier writes durable, and the length with them.
    fn sync_data(&self) -> io::Result<()>;
    /// One positional write of whole pages that is durable when it has returned `Ok`. Memory and offset
    /// begin at a page. It says nothing of earlier writes.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)?;
        self.sync_data()
    }
    /// Lets the following reads come from the device, not from pages that a failed sync of an
    /// earlier process left in the cache, clean and never written. Call after `sync_data`.
    fn drop_cache(&self) -> io::Result<()>;
    /// The whole file as memory, if the disk can. Nobody writes to the file as long as somebody holds the map.
    fn map(&self) -> io::Result<Option<Map>> {
        Ok(None)
    }
}

/// A directory of the real file system.
#[derive(Debug)]
pub struct FsDisk {
    dir: PathBuf,
    access: Access,
    writes: Writes,
}

/// How durable writes of a log's batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writes {
    /// Past the page cache, durable by themselves (`O_DIRECT`, `O_DSYNC`): one system call, no copy, and
    /// with most disks one command instead of a write and a flush. A file system that cannot is written to
    /// as with [`Self::Buffered`].
    #[default]
    Direct,
    /// Through the page cache, then `fdatasync`.
    Buffered,
}

/// Whether files may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For the inspection of a stopped node's log.
    ReadOnly,
    /// For a running node.
    ReadWrite,
}

impl FsDisk {
    /// The files in `dir`, which exists.
    pub fn new(dir: &Path, access: Access) -> Self {
        Self {
            dir: dir.to_owned(),
            access,
            writes: Writes::default(),
        }
    }

    /// The same with durable writes made another way.
    #[must_use]
    pub fn with_writes(self, writes: Writes) -> Self {
        Self { writes, ..self }
    }

    fn write_zeros(file: &File, bytes: u64) -> io::Result<()> {
        // A full disk shows here, before anything is written, and the extents are contiguous.
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            let count = usize::try_from(bytes - at).map_or(zeros.len(), |n| n.min(zeros.len()));
            file.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        file.sync_all()
    }
}

impl Disk for FsDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name()));
        let names: io::Result<Vec<_>> = names.collect();
        // A name that is not UTF-8 is none of ours.
        Ok(names?
            .into_iter()
            .filter_map(|n| n.into_string().ok())
            .collect())
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.mode(0o600).open(&path)?;
        if let Err(error) = Self::write_zeros(&file, bytes) {
            std::fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(FsFile::buffered(file))
    }

    fn create_growing(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        // Never through a link, and never into a file that is there.
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        Ok(FsFile::buffered(options.open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let write = self.access == Access::ReadWrite;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(write).open(self.dir.join(name))?;
        Ok(FsFile::buffered(file))
    }

    fn open_durable(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if self.writes == Writes::Buffered {
            return self.open(name);
        }
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(DIRECT);
        let direct = match options.open(&path) {
            Ok(direct) => Some(direct),
            Err(error) if is_unsupported(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Arc::new(FsFile { file, direct }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Written past the page cache, durable when the write returns: the data, and of the file's metadata only what
/// is needed to read it. Not by rustix's names, whose `DSYNC` is `O_SYNC` on Linux: that one also makes each
/// write's time stamp durable, a journal commit for every batch.
const DIRECT: i32 = libc::O_DIRECT | libc::O_DSYNC;

/// Whether a file system said that it does not know direct I/O, or not of this alignment: nothing was done.
fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::INVAL, Errno::OPNOTSUPP].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|code| unsupported.contains(&code))
}

struct FsFile {
    file: File,
    /// The same file, opened as [`DIRECT`] says.
    direct: Option<File>,
}

impl FsFile {
    fn buffered(file: File) -> Arc<dyn DiskFile> {
        let direct = None;
        Arc::new(Self { file, direct })
    }
}

impl DiskFile for FsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let written = self.direct.as_ref().map(|d| d.write_all_at(bytes, offset));
        match written {
            // The kernel may have written a part that ends off a page; all of it is written again.
            Some(Err(error)) if is_unsupported(&error) => {}
            Some(written) => return written,
            None => {}
        }
        self.file.write_all_at(bytes, offset)?;
        self.file.sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(
            &self.file,
            0,
            None,
            rustix::fs::Advice::DontNeed,
        )?)
    }

    fn map(&self) -> io::Result<Option<Map>> {
        Map::new(&self.file)
    }
}
