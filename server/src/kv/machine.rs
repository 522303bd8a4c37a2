//! The machine: applies committed entries of all groups of a node, answers reads.
//!
//! One machine a node. Calls block on the store, so that async code calls them from a thread that
//! may block. Entries of one group come in index order; a call may hold many groups.

use std::path::Path;
use std::sync::Arc;

use multiraft_engine::block::Entry;
use multiraft_engine::snapshot::SnapshotView;
use multiraft_engine::types::{GroupId, Index};
use multiraft_proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeRequest, RangeResponse,
};
use parking_lot::Mutex;

use super::draft::Draft;
use super::error::{KvError, Refusal};
use super::read;
use super::rows::GroupRow;
use super::snapshot::GroupView;
use super::store::Store;
use replace::Claims;

/// Limits of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvConfig {
    /// Bound of the store's cache of blocks, bytes, for all groups together.
    pub cache_bytes: u64,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
        }
    }
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq)]
pub struct ApplyOutcome {
    /// The entry's group.
    pub group: GroupId,
    /// The entry's index.
    pub index: Index,
    /// The answer for the client, or why the entry changed nothing.
    pub result: Result<Response, Refusal>,
}

/// The answer to a change. Headers have revision and term; the service adds who answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// An entry that is not the machine's: it only moves the applied index.
    None,
    /// Applied before; nobody waits for it.
    Skipped,
    /// A key was set.
    Put(PutResponse),
    /// Keys were deleted, or there were none.
    DeleteRange(DeleteRangeResponse),
}

/// The key-value machine of a node.
pub struct KvMachine {
    store: Arc<Store>,
    /// One apply call at a time: a draft reads what it changes, and the store has one journal.
    applying: Mutex<()>,
    /// Groups that are being replaced or removed.
    claims: Claims,
}

impl KvMachine {
    /// Opens the store in `dir` (for a node: `<data_dir>/kv`), or creates it. Finishes removals
    /// that a crash cut short; a group whose snapshot was being taken over waits for another try.
    pub fn open(dir: &Path, config: KvConfig) -> Result<Arc<Self>, KvError> {
        let machine = Self {
            store: Arc::new(Store::open(dir, config.cache_bytes)?),
            applying: Mutex::new(()),
            claims: Claims::default(),
        };
        for (group, row) in machine.store.view().groups()? {
            machine.finish(group, row)?;
        }
        Ok(Arc::new(machine))
    }

    /// The groups that have state here, by id. One that the log does not know was removed from the
    /// log just before a crash: call [`Self::remove_group`], or a new group of that id would take
    /// over old keys.
    pub fn groups(&self) -> Result<Vec<GroupId>, KvError> {
        let groups = self.store.view().groups()?;
        Ok(groups.into_iter().map(|(group, _)| group).collect())
    }

    /// The last entry of the group that is applied; zero if none is, or while a snapshot is being
    /// taken over. Where a replay starts after.
    pub fn applied(&self, group: GroupId) -> Result<Index, KvError> {
        match self.store.view().group(group)? {
            Some(GroupRow::Present(state)) => Ok(state.applied),
            None | Some(GroupRow::Restoring | GroupRow::Emptied) => Ok(Index::ZERO),
            Some(GroupRow::Removing) => Err(KvError::BeingRemoved(group)),
        }
    }

    /// Applies entries, of each group in index order, as one atomic batch without a sync. Returns
    /// one outcome an entry, in their order.
    ///
    /// On an error nothing of the call was applied, for no group.
    pub fn apply(&self, entries: &[(GroupId, Entry)]) -> Result<Vec<ApplyOutcome>, KvError> {
        let _applying = self.applying.lock();
        let mut draft = Draft::new(&self.store);
        let outcomes = entries
            .iter()
            .map(|(group, entry)| {
                Ok(ApplyOutcome {
                    group: *group,
                    index: entry.index,
                    result: draft.apply(*group, entry)?,
                })
            })
            .collect::<Result<Vec<_>, KvError>>()?;
        draft.commit()?;
        Ok(outcomes)
    }

    /// Reads a range from one snapshot of the store.
    ///
    /// The header has the newest revision; ids and term are zero. A group without state reads as an
    /// empty store: whether the group is here is for the caller to know. One whose state waits for a
    /// snapshot is refused with [`KvError::BeingRestored`].
    pub fn range(&self, group: GroupId, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        read::range(&self.store.view(), group, request)
    }

    /// The state of a group as it is now, to be written later, on any thread. Costs nothing but the
    /// disk space of what is deleted before it is dropped; until then the database stays open.
    pub fn snapshot_group(&self, group: GroupId) -> Result<impl SnapshotView + use<>, KvError> {
        let view = self.store.view();
        let state = read::state(&view, group)?;
        Ok(GroupView::new(view, group, state))
    }

    /// Makes all that was applied durable: one sync. To be called before the log drops entries.
    pub fn flush(&self) -> Result<(), KvError> {
        Ok(self.store.flush()?)
    }
}

mod replace;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
