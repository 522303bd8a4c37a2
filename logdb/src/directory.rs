//! The data directory's lock and identity: who may use it, and whose it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use multiraft_engine::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The newest format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// Whose a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The node.
    pub node: NodeId,
}

#[derive(Debug, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: u64,
    node: u32,
    incarnation: u64,
}

/// A directory that is ours until this is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    incarnation: u64,
    _lock: File,
}

impl Directory {
    /// Creates or opens, locks and checks a directory.
    pub fn open(path: &Path, identity: Identity) -> Result<Self, Error> {
        let fresh = !path.exists();
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(Error::io(path))?;
        if fresh && let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
        let lock = lock(path)?;
        let incarnation = match read_identity(path)? {
            Some(found) => check(path, &found, identity)?,
            None if has_segments(path)? => {
                return Err(Error::NoIdentity {
                    path: path.to_owned(),
                });
            }
            None => write_identity(path, identity)?,
        };
        Ok(Self {
            path: path.to_owned(),
            incarnation,
            _lock: lock,
        })
    }

    /// Locks the directory of a stopped node, to look at it.
    pub fn open_stopped(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Err(Error::NoLog {
                path: path.to_owned(),
            });
        }
        let found = read_identity(path)?.ok_or_else(|| Error::NoLog {
            path: path.to_owned(),
        })?;
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            incarnation: found.incarnation,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drawn when the directory was made: a wiped node comes back with another.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let lock = path.join("LOCK");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&lock).map_err(Error::io(&lock))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { lock }),
        Err(TryLockError::Error(source)) => Err(Error::Io { path: lock, source }),
    }
}

fn check(path: &Path, found: &IdentityFile, identity: Identity) -> Result<u64, Error> {
    let path = path.to_owned();
    if found.format > FORMAT {
        return Err(Error::NewerFormat {
            path,
            found: found.format,
            known: FORMAT,
        });
    }
    if found.cluster_id != identity.cluster_id {
        let (found, wanted) = (found.cluster_id, identity.cluster_id);
        return Err(Error::ForeignCluster {
            path,
            found,
            wanted,
        });
    }
    if found.node != identity.node.get() {
        return Err(Error::ForeignNode {
            path,
            found: found.node,
            wanted: identity.node,
        });
    }
    Ok(found.incarnation)
}

fn read_identity(path: &Path) -> Result<Option<IdentityFile>, Error> {
    let path = path.join("IDENTITY");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let found = serde_json::from_slice(&bytes);
            found
                .map(Some)
                .map_err(|source| Error::Identity { path, source })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// Written whole or not at all: temporary file, sync, rename, sync of the directory.
fn write_identity(path: &Path, identity: Identity) -> Result<u64, Error> {
    let incarnation = rand::random();
    let file = IdentityFile {
        format: FORMAT,
        cluster_id: identity.cluster_id,
        node: identity.node.get(),
        incarnation,
    };
    let (temporary, target) = (path.join("IDENTITY.tmp"), path.join("IDENTITY"));
    let bytes = serde_json::to_vec_pretty(&file).expect("numbers always serialize");
    let mut out = File::create(&temporary).map_err(Error::io(&temporary))?;
    out.write_all(&bytes)
        .and_then(|()| out.sync_all())
        .map_err(Error::io(&temporary))?;
    std::fs::rename(&temporary, &target).map_err(Error::io(&target))?;
    sync_dir(path)?;
    Ok(incarnation)
}

fn has_segments(path: &Path) -> Result<bool, Error> {
    let mut entries = std::fs::read_dir(path).map_err(Error::io(path))?;
    Ok(entries.any(|e| e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "seg"))))
}

/// A new or renamed file survives a crash only once its directory is synced.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io(path))
}
