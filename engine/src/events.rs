//! What the engine tells about its groups, in the order in which it happened.

use crate::raft::membership::Membership;
use crate::types::{GroupId, Index, NodeId, Term};

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
    /// This node is out of the group, and what it has of it is being deleted.
    Left {
        /// Whose.
        group: GroupId,
    },
    /// Something happened to a snapshot or to the log behind it.
    Snapshot {
        /// Whose.
        group: GroupId,
        /// The last entry that the snapshot covers; of [`SnapshotEvent::LogCompacted`] and
        /// [`SnapshotEvent::LogDbCompacted`] the last one that is gone.
        index: Index,
        /// What.
        event: SnapshotEvent,
    },
}

/// What may happen to snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// A new local one is durable.
    Created,
    /// The files of an older one are gone.
    Compacted,
    /// The first chunk to this peer is about to leave.
    SendStarted(NodeId),
    /// This peer has confirmed the whole file.
    SendCompleted(NodeId),
    /// Sending to this peer was given up; in place of `SendCompleted`.
    SendAborted(NodeId),
    /// One from this peer is complete, checked and durable.
    Received(NodeId),
    /// The state machine goes on from it.
    Recovered,
    /// Entries up to the index can no longer be read.
    LogCompacted,
    /// The log has given back the space of all entries up to the index.
    LogDbCompacted,
}

/// Told of events on a shard's thread: must not block.
pub trait EventSink: Send + Sync + 'static {
    /// All events of one turn, in order.
    fn on_events(&self, events: Vec<GroupEvent>);
}
