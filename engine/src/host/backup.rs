//! A group's state out of a node and into another cluster.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Host;
use crate::error::{BootstrapError, ExportError, ImportError};
use crate::raft::effects::Snapshot;
use crate::raft::membership::Membership;
use crate::shard::ShardInput;
use crate::snapshot::{SnapshotIn, SnapshotView};
use crate::state_machine::StateMachine;
use crate::types::{GroupId, Index, Term};

impl<M: StateMachine> Host<M> {
    /// Opens the newest snapshot of a group here, to copy it elsewhere. Later snapshots do not disturb who
    /// reads it. Blocks for a moment.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn export(&self, group: GroupId) -> Result<(Snapshot, Box<dyn SnapshotIn>), ExportError> {
        let store = &self.inner.parts.snapshots;
        let newest = store.of(group).pop();
        let snapshot = newest.ok_or(ExportError::NoSnapshot(group))?;
        let file = store.load(group, snapshot.index)?;
        Ok((snapshot, file))
    }

    /// Starts a new group on this node alone with the state that `view` writes, as it was after the entry
    /// `index` of term `term` of the group that it comes from. Others can join it then: each gets the
    /// state from here, so all have the same. Returns when this node would go on with it after a crash.
    ///
    /// # Errors
    /// See [`ImportError`]; nothing is left here then.
    pub async fn import(
        &self,
        group: GroupId,
        mut membership: Membership,
        (index, term): (Index, Term),
        mut view: Box<dyn SnapshotView>,
    ) -> Result<(), ImportError> {
        membership.check().map_err(BootstrapError::from)?;
        let node = self.inner.config.node;
        if membership.members.len() != 1 || !membership.members.contains_key(&node) {
            return Err(ImportError::NotAlone);
        }
        if index == Index::ZERO || term == Term::ZERO || index.0 >= u64::MAX / 2 {
            return Err(ImportError::NoPosition);
        }
        if !self.status(&[group]).await.is_empty() {
            return Err(BootstrapError::Exists(group).into());
        }
        membership.index = index;
        let snapshot = Snapshot {
            index,
            term,
            membership,
        };
        let store = Arc::clone(&self.inner.parts.snapshots);
        let (to_save, saving) = (snapshot.clone(), Arc::clone(&store));
        let saved = tokio::task::spawn_blocking(move || saving.save(group, &to_save, &mut *view));
        saved.await.map_err(|_| BootstrapError::Stopped)??;
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        let pushed = shard.push(ShardInput::Import(group, snapshot, reply));
        pushed.map_err(|_| BootstrapError::Stopped)?;
        let started = receiver.await.unwrap_or(Err(BootstrapError::Stopped));
        // Where the group is in the way, or was, the file is of no use; else it is the group's beginning.
        if started.is_err() && self.status(&[group]).await.is_empty() {
            let removed = tokio::task::spawn_blocking(move || store.remove(group, index));
            if !matches!(removed.await, Ok(Ok(()))) {
                tracing::warn!(%group, "the snapshot of a failed import stays until the next start");
            }
        }
        Ok(started?)
    }
}
