//! The files of snapshots of all groups of a node: whole and durable, or not there.
//!
//! ```text
//! save     view ─▶ chunks ─▶ 7-90-3.snap.tmp ─▶ sync ─▶ rename ─▶ sync the directory ─▶ listed
//! receive  peer ─▶ bytes  ─▶ 7-90-4.snap.tmp ─▶ sync ─▶ read back and check ─▶ …       ─▶ listed
//! load     listed ─▶ chunk by chunk, each checked ─▶ state machine
//! open     listed ─▶ the very bytes of the file   ─▶ peer
//! ```
//! Read in this order: `format` (the bytes), `names`, `files` (which there are, and every change of
//! a name), `write`, `read`, `receive`, `owner` (whose directory it is), `inspect`.
//!
//! Invariants:
//! - A file is listed only when its bytes, its length and its name are durable. So a crash at any
//!   moment leaves it whole or unlisted, and leaves the older ones as they were.
//! - No byte comes out of [`SnapshotStore::load`] that was not checked. A file that is found to be
//!   damaged is set aside, counted and named in the log of events, and an older whole one counts again.
//! - A failed sync is final for its file, which is deleted: nobody retries it.
//! - A whole file is a true one, wherever it came from: what a majority agreed on up to an index does
//!   not change. So it does no harm if one is found at a start whose publication was cut off before
//!   anybody was told of it, or an older one whose deletion was.
//!
//! The directory is used by one process at a time: whoever opens it holds the lock of the log.

mod files;
mod format;
mod inspect;
mod names;
mod owner;
mod read;
mod receive;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::Path;
use std::sync::Arc;

use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::snapshot::{
    IncomingSnapshot, SnapshotError, SnapshotFile, SnapshotIn, SnapshotStore, SnapshotView,
};
use multiraft_engine::types::{GroupId, Index};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

pub use format::SNAPSHOT_FORMAT_VERSION;
pub use inspect::{SnapshotReport, inspect_snapshots};

use crate::directory::create_dir;
use crate::disk::{Access, Disk, FsDisk};
use crate::error::Error;
use files::Files;
use format::{Flaw, Header};
use names::Name;
use read::{Opened, Outgoing, ReadError, Reader};
use receive::Incoming;
use write::Writer;

/// Free bytes that a snapshot from a peer must leave: the default of
/// [`Options::min_free_bytes`](crate::Options::min_free_bytes), below which the log refuses
/// proposals. One made here needs no such reserve: it is what lets the log become shorter.
pub const SNAPSHOT_RESERVE_BYTES: u64 = 256 << 20;
/// Content of a chunk that is written here, bytes; readers take up to 1 MiB.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes written between two syncs of a growing file.
const SYNC_BYTES: u64 = 16 << 20;

/// The sizes above; tests choose smaller ones.
#[expect(clippy::struct_field_names, reason = "units are last in names")]
#[derive(Debug, Clone, Copy)]
struct Limits {
    reserve_bytes: u64,
    chunk_bytes: usize,
    sync_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reserve_bytes: SNAPSHOT_RESERVE_BYTES,
            chunk_bytes: CHUNK_BYTES,
            sync_bytes: SYNC_BYTES,
        }
    }
}

/// What the store counts. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct SnapshotMetrics {
    /// Snapshots made here.
    pub saved: Counter,
    /// Snapshots from peers that became durable.
    pub received: Counter,
    /// Snapshots from peers that were not what was announced.
    pub refused: Counter,
    /// Files that were found to be damaged and set aside.
    pub damaged: Counter,
}

impl SnapshotMetrics {
    /// Makes the metrics known under names that begin with `snapshots_`.
    pub fn register(&self, registry: &mut Registry) {
        let snapshots = registry.sub_registry_with_prefix("snapshots");
        snapshots.register("saved", "Snapshots made here", self.saved.clone());
        snapshots.register("received", "Snapshots from peers", self.received.clone());
        let refused = self.refused.clone();
        snapshots.register("refused", "Snapshots from peers not as announced", refused);
        snapshots.register("damaged", "Files set aside", self.damaged.clone());
    }
}

/// The snapshots of a node. See the module's documentation.
pub struct SnapshotDir {
    files: Arc<Files>,
}

impl SnapshotDir {
    /// Opens the snapshots of the log with this incarnation, in a directory of the real file system,
    /// which is created if it is missing. The log is opened before, and holds the lock.
    ///
    /// # Errors
    /// As [`SnapshotDir::open`], and [`Error::CannotCreate`].
    pub fn open_dir(dir: &Path, incarnation: u64) -> Result<Arc<Self>, Error> {
        create_dir(dir).map_err(|source| Error::CannotCreate {
            dir: dir.to_owned(),
            source,
        })?;
        Self::open(Arc::new(FsDisk::new(dir, Access::ReadWrite)), incarnation)
    }

    /// Opens the snapshots of the log with this incarnation. Deletes what was not finished, and sets
    /// aside what is not whole; files with other names are left alone.
    ///
    /// # Errors
    /// [`Error::OtherIncarnation`]: the log that they belong to is gone. [`Error::NewerSnapshot`]:
    /// a newer program wrote here. [`Error::IdentityDamaged`] and [`Error::Io`].
    pub fn open(disk: Arc<dyn Disk>, incarnation: u64) -> Result<Arc<Self>, Error> {
        Self::open_with(disk, incarnation, Limits::default())
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        incarnation: u64,
        limits: Limits,
    ) -> Result<Arc<Self>, Error> {
        let names = disk.list().map_err(Error::io("listing snapshots"))?;
        owner::check(&*disk, &names, incarnation)?;
        // Names that an earlier process did not sync are synced before they are relied on.
        disk.sync_dir()
            .map_err(Error::io("syncing the directory of snapshots"))?;
        let files = Files::new(disk, limits);
        let names = names.iter().filter_map(|name| Name::from_file_name(name));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable(); // what was set aside before what is set aside now, which is then kept
        for name in names {
            match name {
                Name::Temporary(..) => (files.disk.remove(&name.file_name()))
                    .map_err(Error::io("removing an unfinished snapshot"))?,
                Name::Damaged(group, index) => files.keep_damaged(group, index),
                Name::Whole(group, index) => find(&files, group, index)?,
            }
        }
        let files = Arc::new(files);
        Ok(Arc::new(Self { files }))
    }

    /// What the store counts.
    pub fn metrics(&self) -> SnapshotMetrics {
        self.files.metrics.clone()
    }
}

/// Lists a file that was found at the start, or sets it aside.
fn find(files: &Files, group: GroupId, index: Index) -> Result<(), Error> {
    let name = Name::Whole(group, index).file_name();
    let opened = files.disk.open(&name).map_err(ReadError::from);
    let header = opened.and_then(|file| Ok(Opened::read(file)?.header));
    let what = match header {
        Ok(header) if (header.group, header.snapshot.index) == (group, index) => {
            files.list(header);
            return Ok(());
        }
        Ok(_) => "it says that it is another snapshot",
        Err(ReadError::Flaw(Flaw::Damaged(what))) => what,
        Err(ReadError::Flaw(Flaw::Newer(found))) => {
            let known = SNAPSHOT_FORMAT_VERSION;
            return Err(Error::NewerSnapshot { name, found, known });
        }
        // A directory, or a link that leads nowhere: none of ours.
        Err(ReadError::Io(error)) if is_no_file(error.kind()) => return Ok(()),
        Err(ReadError::Io(error)) => return Err(Error::io("reading a snapshot")(error)),
    };
    files.set_aside_found(group, index, what);
    Ok(())
}

/// Whether the name is that of a directory, or of nothing.
fn is_no_file(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::IsADirectory | io::ErrorKind::NotFound)
}

/// Tells a full disk from a failing one; `bytes` are needed in all.
fn no_room(error: io::Error, bytes: u64) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SnapshotError::NoRoom { bytes }
        }
        _ => SnapshotError::Io(error),
    }
}

impl SnapshotStore for SnapshotDir {
    fn of(&self, group: GroupId) -> Vec<Snapshot> {
        self.files.of(group)
    }

    fn remove(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        self.files.remove_one(group, index)
    }

    fn newest(&self) -> Vec<(GroupId, Snapshot)> {
        self.files.newest()
    }

    fn save(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        view: &mut dyn SnapshotView,
    ) -> Result<(), SnapshotError> {
        assert!(
            group.0 != 0 && Index::ZERO < snapshot.index,
            "a snapshot is of a group, and covers an entry"
        );
        let header = Header {
            group,
            snapshot: snapshot.clone(),
        };
        if self.files.has_whole(&header)? {
            return Ok(());
        }
        let temporary = self.files.begin(&header, None)?;
        let writer = Writer::begin(temporary, &header);
        let mut writer = writer.map_err(|error| no_room(error, 0))?;
        let written = view.write_to(&mut writer);
        let bytes = writer.bytes();
        let temporary = written.and_then(|()| writer.finish());
        let temporary = temporary.map_err(|error| no_room(error, bytes))?;
        self.files.publish(temporary, header)?;
        self.files.metrics.saved.inc();
        Ok(())
    }

    fn verify(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        let (opened, origin) = self.files.open(group, index)?;
        opened.verify().map_err(|error| origin.refuse(error))
    }

    fn load(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotIn>, SnapshotError> {
        let (opened, origin) = self.files.open(group, index)?;
        Ok(Box::new(Reader::new(opened.chunks, origin)))
    }

    fn remove_others(
        &self,
        group: GroupId,
        keep: Option<Index>,
    ) -> Result<Vec<Index>, SnapshotError> {
        self.files.remove_others(group, keep)
    }

    fn open(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotFile>, SnapshotError> {
        let (opened, _) = self.files.open(group, index)?;
        Ok(Box::new(Outgoing {
            file: opened.file,
            bytes: opened.bytes,
            checksum: opened.checksum,
        }))
    }

    fn receive(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        bytes: u64,
        checksum: u32,
    ) -> Result<Box<dyn IncomingSnapshot>, SnapshotError> {
        let announced = Header {
            group,
            snapshot: snapshot.clone(),
        };
        let temporary = self.files.begin(&announced, Some(bytes))?;
        Ok(Box::new(Incoming::new(
            temporary, announced, bytes, checksum,
        )))
    }
}
