//! What the log asks of a disk, and the real one. The only door to segment files, so that tests can
//! put a disk behind it that loses, tears and fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A segment file of fixed size.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, inside the file's size.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads exactly `bytes.len()` bytes at `offset`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes all earlier writes durable. After an error nothing is known of them.
    fn sync(&self) -> io::Result<()>;
    /// The file's size, bytes.
    fn size(&self) -> io::Result<u64>;
}

/// A directory of segment files.
pub trait Disk: Send + Sync + 'static {
    /// Makes a file with `bytes` zeros really written, durable except for its name.
    fn create(&self, name: &str, bytes: u64) -> io::Result<()>;
    /// Opens a file.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Renames a file, replacing none; durable on return.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable on return.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Bytes that can still be written.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A directory of the operating system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    path: PathBuf,
}

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

impl RealDisk {
    /// The disk under `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = File::create(self.path.join(name))?;
        let zeros = vec![0; ZEROS_BYTES];
        let mut offset = 0;
        while offset < bytes {
            let part = usize::try_from(bytes - offset)
                .unwrap_or(ZEROS_BYTES)
                .min(ZEROS_BYTES);
            file.write_all_at(&zeros[..part], offset)?;
            offset += part as u64;
        }
        file.sync_all()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync_directory()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))?;
        self.sync_directory()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
