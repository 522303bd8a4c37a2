//! The machine as the engine drives it.

use multiraft_engine::block::Entry;
use multiraft_engine::state_machine::StateMachine;
use multiraft_engine::types::{GroupId, Index};

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
}
