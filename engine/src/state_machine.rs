//! What a user of the engine implements: the machine that all replicas of a group run.

use crate::block::Entry;
use crate::types::{GroupId, Index};

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
}
