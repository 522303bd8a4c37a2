//! Whole groups: taking over a snapshot's state, and removal.
//!
//! Both first put a mark in place of the group's row, which makes its other rows mean nothing, then
//! work in bounded batches, and replace the mark last:
//! ```text
//!           ┌─ Restoring ── old rows deleted, new rows put ── Present(applied, term, revision)
//! Present ──┤       └────── the snapshot is bad: rows deleted ── Emptied
//!           └─ Removing ─── rows deleted ── no row
//! ```
//! A crash leaves all batches up to one. Before the mark that is the old state; after it [`finish`]
//! deletes the rows when the store is opened, and the group counts as empty. Were rows deleted
//! without a mark: 1. the newest deletions are lost in a crash; 2. the group's row still says that
//! all up to its index is applied; 3. keys are missing on this replica for ever.
//!
//! The mark is put between two apply calls. From then on an apply call refuses the group, so that the
//! other batches need not wait for applies of other groups, nor those for more than one batch.
//!
//! [`finish`]: KvMachine::finish

use std::collections::BTreeSet;

use multiraft_engine::snapshot::SnapshotIn;
use multiraft_engine::state_machine::RestoreError;
use multiraft_engine::types::{GroupId, Index, Term};
use parking_lot::{Condvar, Mutex};

use super::KvMachine;
use crate::kv::error::{KvError, StoreError};
use crate::kv::rows::{GroupRow, RowKind};
use crate::kv::snapshot::{Reader, check_position};

impl KvMachine {
    /// Deletes all state of a group, durably when it returns. The caller applies nothing to it
    /// meanwhile. Takes as long as the group is large.
    pub fn remove_group(&self, group: GroupId) -> Result<(), KvError> {
        let _claim = self.claims.claim(group);
        if self.store.view().group(group)?.is_none() {
            return Ok(());
        }
        self.mark(group, GroupRow::Removing)?;
        self.finish(group, GroupRow::Removing)
    }

    /// Replaces all state of a group by a snapshot's, durably when it returns; see
    /// [`multiraft_engine::state_machine::StateMachine::restore`]. Reads of the group are refused
    /// meanwhile, and after a snapshot that was not taken over.
    pub fn restore_group(
        &self,
        group: GroupId,
        index: Index,
        term: Term,
        from: &mut dyn SnapshotIn,
    ) -> Result<(), RestoreError<KvError>> {
        let _claim = self.claims.claim(group);
        let mut reader = Reader::open(from)?;
        let state = reader.state();
        check_position(state, index, term)?;
        self.mark(group, GroupRow::Restoring).map_err(fatal)?;
        self.remove_rows(group).map_err(fatal)?;
        match self.put_rows(group, &mut reader) {
            Ok(()) => {
                let mut batch = self.store.batch();
                batch.put_group(group, GroupRow::Present(state));
                batch.commit().map_err(fatal)?;
                self.flush().map_err(RestoreError::Machine)
            }
            Err(RestoreError::Snapshot(error)) => {
                self.finish(group, GroupRow::Restoring).map_err(fatal)?;
                Err(RestoreError::Snapshot(error))
            }
            Err(RestoreError::Machine(error)) => Err(RestoreError::Machine(error)),
        }
    }

    /// Finishes what the group's row says was begun, by deleting the rows that mean nothing.
    pub(super) fn finish(&self, group: GroupId, row: GroupRow) -> Result<(), KvError> {
        match row {
            GroupRow::Present(_) | GroupRow::Emptied => return Ok(()),
            GroupRow::Removing => {
                self.remove_rows(group)?;
                let mut batch = self.store.batch();
                batch.remove_group(group);
                batch.commit()?;
            }
            GroupRow::Restoring => {
                self.remove_rows(group)?;
                let mut batch = self.store.batch();
                batch.put_group(group, GroupRow::Emptied);
                batch.commit()?;
            }
        }
        self.flush()
    }

    /// Puts a mark in place of a group's row. No apply call may be under way: it could have read the
    /// old row, and would put it back.
    fn mark(&self, group: GroupId, row: GroupRow) -> Result<(), StoreError> {
        let _applying = self.applying.lock();
        let mut batch = self.store.batch();
        batch.put_group(group, row);
        batch.commit()
    }

    /// Deletes the rows of a marked group. One view of all of them: a scan from the group's first
    /// row for each batch would pass all that was deleted before, again and again.
    fn remove_rows(&self, group: GroupId) -> Result<(), StoreError> {
        let view = self.store.view();
        let mut batch = self.store.batch();
        for kind in RowKind::ALL {
            for row in view.rows(group, kind) {
                let (row_key, _) = row?;
                batch.remove_row(kind, row_key);
                if batch.is_full() {
                    batch.commit()?;
                    batch = self.store.batch();
                }
            }
        }
        batch.commit()
    }

    /// Puts a snapshot's rows into a marked group that has none.
    fn put_rows(
        &self,
        group: GroupId,
        reader: &mut Reader<'_>,
    ) -> Result<(), RestoreError<KvError>> {
        let mut batch = self.store.batch();
        while let Some(row) = reader.next()? {
            batch.put_row(group, row.kind, row.key, row.value);
            if batch.is_full() {
                batch.commit().map_err(fatal)?;
                batch = self.store.batch();
            }
        }
        batch.commit().map_err(fatal)
    }
}

fn fatal(error: impl Into<KvError>) -> RestoreError<KvError> {
    RestoreError::Machine(error.into())
}

/// The groups that are being replaced or removed: each by one call at a time. Otherwise the second
/// call could delete the rows of a group that began anew when the first returned.
#[derive(Default)]
pub(super) struct Claims {
    groups: Mutex<BTreeSet<GroupId>>,
    released: Condvar,
}

impl Claims {
    /// Waits until nobody else has the group.
    fn claim(&self, group: GroupId) -> Claim<'_> {
        let mut groups = self.groups.lock();
        while !groups.insert(group) {
            self.released.wait(&mut groups);
        }
        Claim {
            claims: self,
            group,
        }
    }
}

/// A claimed group; dropping it lets the next one have it.
struct Claim<'a> {
    claims: &'a Claims,
    group: GroupId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.groups.lock().remove(&self.group);
        self.claims.released.notify_all();
    }
}
