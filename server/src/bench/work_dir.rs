//! A benchmark's own new directory, and how it goes away.
//!
//! Invariants:
//! - Nothing is written, emptied or deleted outside of it, and it never was there before.
//! - It goes when the benchmark ends, in whatever way short of `kill -9`, unless it is to be kept.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::BenchError;

/// What a log needs beside its data: segments made ahead of need, and its reserve.
pub(super) const MARGIN_BYTES: u64 = 768 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    /// A new directory in `dir`, which exists and has room for `needed_bytes`.
    pub(super) fn create(dir: &Path, needed_bytes: u64, keep: bool) -> Result<Self, BenchError> {
        match std::fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(BenchError::NotADirectory { dir: dir.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BenchError::NoDirectory { dir: dir.into() });
            }
            Err(error) => return Err(BenchError::file("looking at", dir)(error)),
        }
        check_room(dir, needed_bytes)?;
        let name = format!("multiraft-bench-{:08x}", rand::random::<u32>());
        let path = dir.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(BenchError::file("creating", &path))?;
        Ok(Self { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// Refuses when the file system of `dir` has less than this left.
pub(super) fn check_room(dir: &Path, needed_bytes: u64) -> Result<(), BenchError> {
    let stat = rustix::fs::statvfs(dir).map_err(io::Error::from);
    let stat = stat.map_err(BenchError::file("asking for the free space of", dir))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes < needed_bytes {
        return Err(BenchError::NoSpace {
            dir: dir.into(),
            free_mib: free_bytes >> 20,
            needed_mib: needed_bytes >> 20,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn it_is_new_and_goes_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("mine");
        std::fs::write(&users, "precious").unwrap();
        let work = WorkDir::create(dir.path(), 0, false).unwrap();
        std::fs::write(work.path().join("data"), "x").unwrap();
        let other = WorkDir::create(dir.path(), 0, false).unwrap();
        assert_ne!(work.path(), other.path());
        drop((work, other));
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(std::fs::read(&users).unwrap(), b"precious");
        let error = WorkDir::create(&users, 0, false).unwrap_err();
        assert!(matches!(error, BenchError::NotADirectory { .. }), "{error}");
        let error = WorkDir::create(&dir.path().join("no"), 0, false).unwrap_err();
        assert!(matches!(error, BenchError::NoDirectory { .. }), "{error}");
        let error = WorkDir::create(dir.path(), u64::MAX, false).unwrap_err();
        assert!(matches!(error, BenchError::NoSpace { .. }), "{error}");
    }
}
