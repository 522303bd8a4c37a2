//! Snapshots: the state of one group after some entry, in place of the log up to it (Raft §7).
//!
//! ```text
//! made here   apply stage ─ StateMachine::snapshot ─▶ view ─ SnapshotStore::save ─▶ file ─▶ compact the log
//! sent        leader's core ─ InstallSnapshot ─▶ Transport::send_snapshot ─▶ the peer's store ─▶ its core
//! taken over  the log restarts behind it, durably ─▶ SnapshotStore::load ─▶ StateMachine::restore
//! ```
//! A file is whole and durable under its name before anybody is told of it; the log forgets entries
//! only behind such a file; and the state machine takes one over only when the log has restarted
//! behind it. So after a crash at any moment the state is what the machine kept, or it is behind the
//! log's beginning, and the file is there to start from.

use std::io;

use crate::planted;
use crate::raft::effects::Snapshot;
use crate::state_machine::{RestoreError, StateMachine};
use crate::types::{GroupId, Index, NodeId};

/// The state of one group at one moment. Later entries do not change it.
pub trait SnapshotView: Send {
    /// Writes all of it; called once, on a thread that may block.
    ///
    /// # Errors
    /// What `out` said, or why the state cannot be read.
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()>;
}

/// Where a state machine writes its snapshot: the state first, then files that it keeps beside it.
pub trait SnapshotOut: io::Write {
    /// What is written from here on is the file `name`. Names of up to 255 bytes mean something to
    /// the machine alone: no path is ever made of them.
    ///
    /// # Errors
    /// What the disk says.
    fn begin_file(&mut self, name: &str) -> io::Result<()>;
}

/// A snapshot being read: the state first, then the files beside it. No byte comes out of it whose
/// checksum was not right; damage is an [`io::ErrorKind::InvalidData`].
pub trait SnapshotIn: io::Read {
    /// Goes on to the next file beside the state; reading then gives its bytes. What was not read
    /// of the part before is skipped, but checked. `None`: there are no more.
    ///
    /// # Errors
    /// Damage, or what the disk says.
    fn next_file(&mut self) -> io::Result<Option<String>>;
}

/// Why a snapshot cannot be had or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum SnapshotError {
    /// Make or fetch another one.
    #[error("group {group}: there is no snapshot at {index}")]
    NotFound { group: GroupId, index: Index },
    /// The file is set aside: make or fetch another one.
    #[error("group {group}: the snapshot at {index} is damaged: {what}")]
    Damaged {
        group: GroupId,
        index: Index,
        what: &'static str,
    },
    /// Try again when there is room.
    #[error("no room for a snapshot: {bytes} bytes are needed")]
    NoRoom { bytes: u64 },
    /// The state machine could not write or take over its state, or the disk failed.
    #[error("a snapshot's file: {0}")]
    Io(#[from] io::Error),
}

/// The files of snapshots of all groups of a node. At most a few of each group, the newest counts.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The snapshots of a group by rising index, as found when the store was opened and since then.
    /// Their descriptions and lengths are checked, not yet every byte.
    fn of(&self, group: GroupId) -> Vec<Snapshot>;

    /// The newest snapshot of each group.
    fn newest(&self) -> Vec<(GroupId, Snapshot)>;

    /// Writes a snapshot; it is whole and durable under its name when this returns. Blocks.
    ///
    /// # Errors
    /// Nothing is left behind then.
    fn save(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        view: &mut dyn SnapshotView,
    ) -> Result<(), SnapshotError>;

    /// Opens a snapshot to take it over.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or what is wrong with the file.
    fn load(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotIn>, SnapshotError>;

    /// Deletes a snapshot, if it is there. Who still reads it goes on reading it.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, group: GroupId, index: Index) -> Result<(), SnapshotError>;

    /// Deletes a group's snapshots but the one at `keep`, if that is there; with `None` all of them,
    /// durably, and what is being written or received of the group is never listed. Returns what was
    /// deleted.
    ///
    /// # Errors
    /// What the disk says.
    fn remove_others(
        &self,
        group: GroupId,
        keep: Option<Index>,
    ) -> Result<Vec<Index>, SnapshotError>;

    /// Opens a snapshot's file to send it.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or what is wrong with the file.
    fn open(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotFile>, SnapshotError>;

    /// Reads and checks every byte of a snapshot: after a peer did not get it. Blocks.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], or what is wrong with the file, which does not count any more.
    fn verify(&self, group: GroupId, index: Index) -> Result<(), SnapshotError>;

    /// Begins to receive a snapshot whose file has `bytes` bytes and this checksum, under a name of
    /// the store's own making.
    ///
    /// # Errors
    /// [`SnapshotError::NoRoom`] before anything is written.
    fn receive(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        bytes: u64,
        checksum: u32,
    ) -> Result<Box<dyn IncomingSnapshot>, SnapshotError>;
}

/// A whole snapshot file, as it is sent.
pub trait SnapshotFile: Send + Sync {
    /// Its length in bytes.
    fn bytes(&self) -> u64;

    /// CRC-32 of all its bytes.
    fn checksum(&self) -> u32;

    /// Fills `buffer` from `offset` on; not checked, the receiver does that.
    ///
    /// # Errors
    /// What the disk says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A snapshot file on its way in. Dropping it deletes what came.
pub trait IncomingSnapshot: Send {
    /// Bytes taken so far.
    fn written(&self) -> u64;

    /// Takes the bytes that follow.
    ///
    /// # Errors
    /// What the disk says, or [`SnapshotError::Damaged`] beyond the announced length.
    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError>;

    /// All bytes came: checks every one of them and that the file says of itself what was announced,
    /// makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`]: nothing is left of it. Or what the disk says.
    fn finish(self: Box<Self>) -> Result<(), SnapshotError>;
}

/// What happened to a snapshot on its way to a peer, for watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotSending {
    /// Its first chunk is about to leave.
    Started,
    /// The peer has confirmed the whole file.
    Completed,
    /// It was given up; told once for each start, in place of `Completed`.
    Aborted,
}

/// A snapshot that travels: whose, and up to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Travelling {
    /// The group.
    pub group: GroupId,
    /// The receiver.
    pub to: NodeId,
    /// The last entry that it covers.
    pub index: Index,
}

/// Work on a snapshot that may take long: off the shards' loops and off the apply stage.
pub enum SnapshotTask {
    /// Write this state to a file, and forget older ones.
    Save(GroupId, Snapshot, Box<dyn SnapshotView>),
    /// Take this snapshot over into the state machine.
    Restore(GroupId, Snapshot),
    /// A peer did not get this one: see whether it is whole.
    Verify(GroupId, Index),
    /// One came of a group that is not here: away with it.
    Forget(GroupId),
    /// Delete the state of a group and its snapshots.
    Remove(GroupId),
}

/// What became of a [`SnapshotTask`]. `removed` are the older snapshots whose files are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotDone {
    /// The file is there, durably.
    Saved {
        /// Which.
        snapshot: Snapshot,
        /// See above.
        removed: Vec<Index>,
    },
    /// There is none: the disk is full or failing. The older one is still there.
    NotSaved,
    /// The state machine goes on from this one.
    Restored {
        /// Which.
        snapshot: Snapshot,
        /// See above.
        removed: Vec<Index>,
    },
    /// The file of this one is damaged.
    Lost(Index),
    /// This one is whole.
    Verified,
    /// This one is not there any more, or damaged: another has to be made.
    Unusable(Index),
    /// Nothing is left of a group that is not here.
    Forgotten,
    /// Nothing is left of the group; with the snapshots that were deleted.
    Removed(Vec<Index>),
}

impl SnapshotTask {
    /// Whose it is.
    pub fn group(&self) -> GroupId {
        match self {
            Self::Save(group, ..)
            | Self::Restore(group, _)
            | Self::Verify(group, _)
            | Self::Forget(group)
            | Self::Remove(group) => *group,
        }
    }

    /// Does it. Blocks.
    ///
    /// # Errors
    /// The state machine cannot go on.
    pub fn run<M: StateMachine>(
        self,
        machine: &M,
        store: &dyn SnapshotStore,
    ) -> Result<SnapshotDone, M::Error> {
        match self {
            Self::Save(group, snapshot, mut view) => {
                if let Err(error) = store.save(group, &snapshot, &mut *view) {
                    let index = snapshot.index;
                    tracing::warn!(%group, %index, %error, "no snapshot was made; tried again later");
                    return Ok(SnapshotDone::NotSaved);
                }
                // The log is compacted behind it next: a restart should not need the file.
                machine.flush()?;
                let removed = remove_older(store, group, snapshot.index);
                Ok(SnapshotDone::Saved { snapshot, removed })
            }
            Self::Restore(group, snapshot) => {
                if restore(machine, store, group, &snapshot)? {
                    let removed = remove_older(store, group, snapshot.index);
                    Ok(SnapshotDone::Restored { snapshot, removed })
                } else {
                    Ok(SnapshotDone::Lost(snapshot.index))
                }
            }
            Self::Forget(group) => {
                forget(store, group);
                Ok(SnapshotDone::Forgotten)
            }
            Self::Remove(group) => {
                machine.remove(group)?;
                Ok(SnapshotDone::Removed(forget(store, group)))
            }
            Self::Verify(group, index) => Ok(match store.verify(group, index) {
                Ok(()) => SnapshotDone::Verified,
                Err(error @ (SnapshotError::NotFound { .. } | SnapshotError::Damaged { .. })) => {
                    tracing::error!(%group, %index, %error, "a snapshot cannot be sent");
                    SnapshotDone::Unusable(index)
                }
                Err(error) => {
                    tracing::warn!(%group, %index, %error, "a snapshot cannot be checked");
                    SnapshotDone::Verified
                }
            }),
        }
    }
}

/// Takes a snapshot over into the machine. False: its file cannot be used.
///
/// # Errors
/// The state machine cannot go on.
pub fn restore<M: StateMachine>(
    machine: &M,
    store: &dyn SnapshotStore,
    group: GroupId,
    snapshot: &Snapshot,
) -> Result<bool, M::Error> {
    let index = snapshot.index;
    let mut file = match store.load(group, index) {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(%group, %index, %error, "a snapshot cannot be taken over");
            return Ok(planted!("lost-state"));
        }
    };
    match machine.restore(group, index, snapshot.term, &mut *file) {
        Ok(()) => Ok(true),
        Err(RestoreError::Machine(error)) => Err(error),
        Err(RestoreError::Snapshot(error)) => {
            tracing::error!(%group, %index, %error, "a snapshot cannot be taken over");
            Ok(planted!("lost-state"))
        }
    }
}

/// Deletes the snapshots of a group that is not here, and tells which; what cannot be deleted is at the next
/// start.
pub fn forget(store: &dyn SnapshotStore, group: GroupId) -> Vec<Index> {
    match store.remove_others(group, None) {
        Ok(removed) => {
            let count = removed.len();
            if count > 0 {
                tracing::info!(%group, count, "deleted the snapshots of a group that is not here");
            }
            removed
        }
        Err(error) => {
            tracing::warn!(%group, %error, "snapshots of a group that is not here stay");
            Vec::new()
        }
    }
}

/// One that cannot be deleted now is deleted with the next.
fn remove_older(store: &dyn SnapshotStore, group: GroupId, than: Index) -> Vec<Index> {
    let older = store.of(group).into_iter().map(|snapshot| snapshot.index);
    let older = older.filter(|&index| index < than);
    let is_removed = |index: &Index| match store.remove(group, *index) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%group, %index, %error, "an older snapshot cannot be deleted");
            false
        }
    };
    older.filter(is_removed).collect()
}
