//! What the engine tells about its groups, in the order in which it happened.

use crate::raft::membership::Membership;
use crate::types::{GroupId, NodeId, Term};

/// Something that happened to a group here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// The replica has loaded its state and can serve; once a start. Carries the members then.
    MemberReady {
        /// Whose.
        group: GroupId,
        /// Everyone in it.
        membership: Membership,
    },
    /// A configuration change took effect here.
    MembershipChanged {
        /// Whose.
        group: GroupId,
        /// Everyone in it now.
        membership: Membership,
        /// Who came, went, or has another role or address; nobody when a joint configuration was
        /// left.
        changed: Vec<NodeId>,
    },
    /// The term or the leader known here changed.
    LeaderUpdated {
        /// Whose.
        group: GroupId,
        /// The term.
        term: Term,
        /// `None`: no leader is known in that term.
        leader: Option<NodeId>,
    },
}

/// Told of events on a shard's thread: must not block.
pub trait EventSink: Send + Sync + 'static {
    /// All events of one turn, in order.
    fn on_events(&self, events: Vec<GroupEvent>);
}
