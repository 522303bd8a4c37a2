//! The log's directory: one process at a time, one identity for ever.
//!
//! ```text
//! dir/LOCK                 held exclusively by the process that has the log open
//!     IDENTITY             JSON: format, cluster, node, incarnation, checksum; written once
//!     0000000000000007.seg the segments in use, and the prepared next one
//!     spare-0.seg          written zeros or a dead segment, for later use
//! ```

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use multiraft_engine::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::format::FORMAT_VERSION;
use crate::options::Identity;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const IDENTITY_TMP: &str = "IDENTITY.tmp";

/// The lock, held until dropped. The kernel releases it when the process ends in any way.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

#[derive(Debug, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: u64,
    node: u32,
    incarnation: u64,
    /// Of the numbers before it; not there in files of the first programs. Else: 1. a bit of the
    /// incarnation rots; 2. no batch verifies any more; 3. a log full of votes is taken for a new one.
    checksum: Option<u32>,
}

impl IdentityFile {
    fn new(identity: Identity, incarnation: u64) -> Self {
        let mut file = Self {
            format: FORMAT_VERSION,
            cluster_id: identity.cluster_id,
            node: identity.node.get(),
            incarnation,
            checksum: None,
        };
        file.checksum = Some(file.sum());
        file
    }

    fn sum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.format.to_le_bytes());
        hasher.update(&self.cluster_id.to_le_bytes());
        hasher.update(&self.node.to_le_bytes());
        hasher.update(&self.incarnation.to_le_bytes());
        hasher.finalize()
    }

    fn is_intact(&self) -> bool {
        self.checksum.is_none_or(|checksum| checksum == self.sum())
    }
}

/// Read before the rest, so that a newer format's other fields may differ.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Creates the directory if need be, takes the lock, and checks or creates the identity. Returns
/// the lock and the incarnation.
pub(crate) fn open(dir: &Path, identity: Identity) -> Result<(DirectoryLock, u64), Error> {
    create_dir(dir).map_err(|source| Error::CannotCreate {
        dir: dir.to_owned(),
        source,
    })?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let path = dir.join(LOCK);
    let file = options.mode(0o600).open(&path);
    let lock = lock(file.map_err(Error::io("opening LOCK"))?, dir)?;
    let incarnation = match read_identity(dir)? {
        Some(found) => check_identity(dir, &found, identity)?,
        None => create_identity(dir, identity)?,
    };
    Ok((lock, incarnation))
}

/// Takes the lock of a stopped node's directory, changing nothing; returns who it belongs to.
pub(crate) fn open_existing(dir: &Path) -> Result<(DirectoryLock, Identity, u64), Error> {
    let not_a_log = || Error::NotALog { dir: dir.into() };
    let file = File::open(dir.join(LOCK)).map_err(|_| not_a_log())?;
    let lock = lock(file, dir)?;
    let found = read_identity(dir)?.ok_or_else(not_a_log)?;
    let identity = Identity {
        cluster_id: found.cluster_id,
        node: node_of(&found, dir)?,
    };
    Ok((lock, identity, found.incarnation))
}

pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Without this, 1. the log acknowledges, 2. power fails, 3. the whole directory is gone.
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn lock(file: File, dir: &Path) -> Result<DirectoryLock, Error> {
    match file.try_lock() {
        Ok(()) => Ok(DirectoryLock { _file: file }),
        Err(TryLockError::WouldBlock) => {
            let path = dir.join(LOCK);
            Err(Error::Locked { path })
        }
        Err(TryLockError::Error(source)) => Err(Error::io("locking LOCK")(source)),
    }
}

fn read_identity(dir: &Path) -> Result<Option<IdentityFile>, Error> {
    let path = dir.join(IDENTITY);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading IDENTITY")(error)),
    };
    let damaged = |_| Error::IdentityDamaged { path: path.clone() };
    let format: FormatOnly = serde_json::from_slice(&text).map_err(damaged)?;
    if format.format > FORMAT_VERSION {
        return Err(Error::NewerFormat {
            dir: dir.into(),
            found: format.format,
            known: FORMAT_VERSION,
        });
    }
    let file: IdentityFile = serde_json::from_slice(&text).map_err(damaged)?;
    if !file.is_intact() {
        return Err(Error::IdentityDamaged { path });
    }
    Ok(Some(file))
}

fn node_of(found: &IdentityFile, dir: &Path) -> Result<NodeId, Error> {
    let path = dir.join(IDENTITY);
    NodeId::new(found.node).ok_or(Error::IdentityDamaged { path })
}

fn check_identity(dir: &Path, found: &IdentityFile, expected: Identity) -> Result<u64, Error> {
    let node = node_of(found, dir)?;
    if found.cluster_id != expected.cluster_id {
        return Err(Error::OtherCluster {
            dir: dir.into(),
            found: found.cluster_id,
            expected: expected.cluster_id,
        });
    }
    if node != expected.node {
        return Err(Error::OtherNode {
            dir: dir.into(),
            found: node,
            expected: expected.node,
        });
    }
    Ok(found.incarnation)
}

fn create_identity(dir: &Path, identity: Identity) -> Result<u64, Error> {
    let names = std::fs::read_dir(dir).map_err(Error::io("listing the log directory"))?;
    for name in names {
        let name = name
            .map_err(Error::io("listing the log directory"))?
            .file_name();
        if Path::new(&name).extension().is_some_and(|e| e == "seg") {
            return Err(Error::IdentityMissing { dir: dir.into() });
        }
    }
    let file = IdentityFile::new(identity, rand::random());
    let text = serde_json::to_vec_pretty(&file).expect("numbers have a text form");
    replace(dir, &text).map_err(Error::io("writing IDENTITY"))?;
    Ok(file.incarnation)
}

fn replace(dir: &Path, text: &[u8]) -> io::Result<()> {
    let tmp = dir.join(IDENTITY_TMP);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&tmp)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&tmp, dir.join(IDENTITY))?;
    File::open(dir)?.sync_all()
}
