//! The machine as the engine drives it.

use multiraft_engine::block::Entry;
use multiraft_engine::snapshot::{SnapshotIn, SnapshotView};
use multiraft_engine::state_machine::{RestoreError, StateMachine};
use multiraft_engine::types::{GroupId, Index, Term};

use super::error::KvError;
use super::machine::{ApplyOutcome, KvMachine};

impl StateMachine for KvMachine {
    type Output = ApplyOutcome;
    type Error = KvError;

    fn applied(&self, group: GroupId) -> Result<Index, KvError> {
        KvMachine::applied(self, group)
    }

    fn apply(&self, entries: &[(GroupId, Entry)]) -> Result<Vec<ApplyOutcome>, KvError> {
        KvMachine::apply(self, entries)
    }

    fn flush(&self) -> Result<(), KvError> {
        KvMachine::flush(self)
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotView>, KvError> {
        Ok(Box::new(self.snapshot_group(group)?))
    }

    fn restore(
        &self,
        group: GroupId,
        index: Index,
        term: Term,
        from: &mut dyn SnapshotIn,
    ) -> Result<(), RestoreError<KvError>> {
        self.restore_group(group, index, term, from)
    }

    fn remove(&self, group: GroupId) -> Result<(), KvError> {
        self.remove_group(group)
    }
}
