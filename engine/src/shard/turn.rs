//! What goes into a shard's turn and what comes out.

use std::collections::BTreeSet;

use super::status::GroupStatus;
use crate::block::Block;
use crate::error::{
    BootstrapError, ChangeMembershipError, JoinError, LeaveError, ProposeError, ReadError,
    RecoverError,
};
use crate::events::GroupEvent;
use crate::raft::conf_change::ConfChange;
use crate::raft::effects::Snapshot;
use crate::raft::membership::Membership;
use crate::raft::message::Envelope;
use crate::raft::recovery::Seen;
use crate::snapshot::{SnapshotDone, SnapshotSending, SnapshotTask, Travelling};
use crate::traits::{LogError, PeerAddress, WriteBatch};
use crate::types::{GroupId, Index, NodeId, Term};

/// Answers a bootstrap.
pub type BootstrapReply = Box<dyn FnOnce(Result<(), BootstrapError>) + Send>;
/// Answers a change of the membership.
pub type MembershipReply = Box<dyn FnOnce(Result<Membership, ChangeMembershipError>) + Send>;
/// Answers a request to join.
pub type JoinReply = Box<dyn FnOnce(Result<(), JoinError>) + Send>;
/// Answers a request to leave.
pub type LeaveReply = Box<dyn FnOnce(Result<(), LeaveError>) + Send>;
/// Answers a request to go on without a quorum.
pub type RecoverReply = Box<dyn FnOnce(Result<(), RecoverError>) + Send>;
/// Answers a question for the state of groups.
pub type StatusReply = Box<dyn FnOnce(Vec<GroupStatus>) + Send>;

/// What may happen to a shard.
pub enum ShardInput<P, R> {
    /// One tick passed for all groups.
    Tick,
    /// Messages of peers, for groups of this shard.
    Messages(Vec<Envelope>),
    /// A client proposes.
    Propose(GroupId, bytes::Bytes, P),
    /// A client reads.
    Read(GroupId, R),
    /// All batches up to this ticket are durable.
    Durable(u64),
    /// The apply stage is done up to these indexes.
    Applied(Vec<(GroupId, Index)>),
    /// A node is gone.
    PeerDown(NodeId),
    /// The log has given back the space of a group's entries up to this one.
    Reclaimed(GroupId, Index),
    /// Start a group with these members.
    Bootstrap(GroupId, Membership, BootstrapReply),
    /// Start a group from this snapshot, whose file is here.
    Import(GroupId, Snapshot, BootstrapReply),
    /// Somebody here wants another membership.
    ChangeMembership(GroupId, ConfChange, MembershipReply),
    /// Make this node a member of a running group: in the role it has here, by asking the others here.
    Join(GroupId, Membership, JoinReply),
    /// Take this node out of a group, and delete what is here of it.
    Leave(GroupId, LeaveReply),
    /// Nobody waits any more for this node to join the group, or to leave it.
    GiveUp(GroupId),
    /// Go on with only these members of a group that has lost its quorum, if the replica is as was seen.
    Recover(GroupId, BTreeSet<NodeId>, Seen, RecoverReply),
    /// Hand leadership of a group over to this voter.
    TransferLeadership(GroupId, NodeId),
    /// Entries of a group up to this index are not needed any more.
    Compact(GroupId, Index),
    /// Make a snapshot of a group now, if anything was applied since the last one.
    MakeSnapshot(GroupId),
    /// Work on a group's snapshot has ended.
    SnapshotDone(GroupId, SnapshotDone),
    /// News of a snapshot on its way to a peer.
    SnapshotSending(Travelling, SnapshotSending),
    /// A leader's snapshot has arrived: its file is here, whole and durable.
    SnapshotReceived(Envelope),
    /// Tell the state of these groups; of all if empty.
    Status(Vec<GroupId>, StatusReply),
    /// The log or the state machine failed: stop serving, for good.
    Fence(LogError),
}

/// Work of the apply stage, in order.
#[derive(Debug)]
pub enum ApplyTask<P> {
    /// Who waits for the output of an entry.
    Await(GroupId, Index, Term, P),
    /// Committed and durable entries.
    Apply(GroupId, Vec<Block>),
    /// Entries up to this index, on a witness: there is nothing to apply them to.
    Pass(GroupId, Index),
    /// Make a snapshot of the state after all entries before this task.
    Save(GroupId, Snapshot),
    /// Take a snapshot over: its file is here, and the log has restarted behind it, durably.
    Restore(GroupId, Snapshot),
    /// Delete the state and the snapshots of a group; the log has forgotten it.
    Remove(GroupId),
    /// Nothing more will come: whoever waits gets no output here.
    GiveUp,
}

/// What became of a request that concerns a whole group, and whom to tell.
pub enum Answer {
    /// A group was started, or not.
    Bootstrap(BootstrapReply, Result<(), BootstrapError>),
    /// The membership was changed, or not.
    Membership(MembershipReply, Result<Membership, ChangeMembershipError>),
    /// This node has joined, or not.
    Join(JoinReply, Result<(), JoinError>),
    /// This node has left, or not.
    Leave(LeaveReply, Result<(), LeaveError>),
    /// This node leads what is left of a group, or not.
    Recover(RecoverReply, Result<(), RecoverError>),
}

impl Answer {
    /// Tells it.
    pub fn deliver(self) {
        match self {
            Self::Bootstrap(reply, result) => reply(result),
            Self::Membership(reply, result) => reply(result),
            Self::Join(reply, result) => reply(result),
            Self::Leave(reply, result) => reply(result),
            Self::Recover(reply, result) => reply(result),
        }
    }
}

/// Everything one turn asks for, in the order in which it is to be done.
#[must_use = "dropped effects are lost writes and lost messages"]
pub struct TurnEffects<P, R> {
    /// For the log.
    pub write: Option<WriteBatch>,
    /// For the transport.
    pub send: Vec<Envelope>,
    /// For the transport: each an [`crate::raft::message::Message::InstallSnapshot`] that goes with its file.
    pub send_snapshots: Vec<Envelope>,
    /// For the apply stage.
    pub apply: Vec<ApplyTask<P>>,
    /// For whoever works on snapshots.
    pub snapshot_tasks: Vec<SnapshotTask>,
    /// Proposals that have no result.
    pub refused: Vec<(P, ProposeError)>,
    /// Reads that may be served now, or not at all.
    pub reads: Vec<(R, Result<Index, ReadError>)>,
    /// What happened, for watchers.
    pub events: Vec<GroupEvent>,
    /// What became of requests that concern whole groups.
    pub answers: Vec<Answer>,
    /// Where nodes are reached.
    pub learned: Vec<(NodeId, PeerAddress)>,
    /// There is work left that waits for no input: call the next turn at once.
    pub wants_turn: bool,
}

impl<P, R> Default for TurnEffects<P, R> {
    fn default() -> Self {
        Self {
            write: None,
            send: Vec::new(),
            send_snapshots: Vec::new(),
            apply: Vec::new(),
            snapshot_tasks: Vec::new(),
            refused: Vec::new(),
            reads: Vec::new(),
            events: Vec::new(),
            answers: Vec::new(),
            learned: Vec::new(),
            wants_turn: false,
        }
    }
}
