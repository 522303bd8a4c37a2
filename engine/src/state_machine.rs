//! What a user of the engine implements: the machine that all replicas of a group run.

use crate::block::Entry;
use crate::snapshot::{SnapshotIn, SnapshotView};
use crate::types::{GroupId, Index, Term};

/// The state of all groups of a node. Deterministic: equal entries, equal state and outputs.
///
/// The Raft log is the durability: a machine may lose what it applied last in a crash, if what
/// [`StateMachine::applied`] then says is true; the engine applies the rest again.
pub trait StateMachine: Send + Sync + 'static {
    /// The result of one entry, for the client that proposed it.
    type Output: Send + 'static;
    /// Why the machine cannot go on: a failing disk. Refusing a command is an output, no error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The last index of `group` whose effect is in the state; zero for an unknown group.
    fn applied(&self, group: GroupId) -> Result<Index, Self::Error>;

    /// Applies entries, many groups in one batch, rising gaplessly within each; one output each.
    /// Entries that are no commands (no-ops, configuration changes) come too: they move
    /// [`StateMachine::applied`]. State and applied index change as one atomic unit.
    fn apply(&self, entries: &[(GroupId, Entry)]) -> Result<Vec<Self::Output>, Self::Error>;

    /// Makes everything applied so far durable.
    fn flush(&self) -> Result<(), Self::Error>;

    /// The state of a group as it is now, to be written while later entries are applied. Called
    /// between two calls of [`StateMachine::apply`]: must not take long.
    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotView>, Self::Error>;

    /// Replaces whatever is here of a group by a snapshot's state, durably when it returns; the last
    /// entry in it is at `index`, of term `term`. After a crash in between
    /// [`StateMachine::applied`] says what it said before, or zero, or `index`, and means it. No
    /// entry of the group is applied meanwhile; those of others may be.
    ///
    /// An error of `from` ends it, with nothing left of the group or with its old state.
    fn restore(
        &self,
        group: GroupId,
        index: Index,
        term: Term,
        from: &mut dyn SnapshotIn,
    ) -> Result<(), RestoreError<Self::Error>>;

    /// Deletes all state of a group, durably when it returns. No entry of it is applied meanwhile.
    fn remove(&self, group: GroupId) -> Result<(), Self::Error>;
}

/// Why a snapshot was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError<E: std::error::Error> {
    /// Its bytes are wrong, or cannot be read: fetch another one.
    #[error("the snapshot: {0}")]
    Snapshot(#[from] std::io::Error),
    /// The machine cannot go on.
    #[error(transparent)]
    Machine(E),
}
