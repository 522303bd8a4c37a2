//! What can fail, by what the caller should do about it.

use crate::config::ConfigError;
use crate::raft::effects::Refusal;
use crate::raft::membership::MembershipError;
use crate::raft::message::JoinRefusal;
use crate::raft::recovery::RecoveryRefusal;
use crate::snapshot::SnapshotError;
use crate::traits::LogError;
use crate::types::GroupId;

/// Why a proposal has no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The group is not on this node.
    #[error("group {0} is not on this node")]
    UnknownGroup(GroupId),
    /// Not accepted: proposing again is safe.
    #[error("not accepted: {0}")]
    Refused(#[from] Refusal),
    /// Not accepted: the log's disk has no room; proposing again is safe once there is.
    #[error("not accepted: the log's disk is full")]
    DiskFull,
    /// Accepted, but overwritten by a newer leader's entry: it will never take effect.
    #[error("a newer leader replaced the proposal, it did not take effect")]
    Replaced,
    /// It may take effect or not.
    #[error("the outcome is unknown: the leader's answer was lost")]
    Unknown,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error("not accepted: {0}")]
    Fenced(LogError),
    /// The node is shutting down; the proposal may take effect or not.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a change of the membership has no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeMembershipError {
    /// The group is not on this node.
    #[error("group {0} is not on this node")]
    UnknownGroup(GroupId),
    /// Not accepted: asking again is safe.
    #[error("not accepted: {0}")]
    NotAccepted(Refusal),
    /// It did not take effect and never will: another change was under way, it was made for another
    /// configuration, or it does not apply to this membership.
    #[error("the change does not apply to the present membership, or another one is under way")]
    Refused,
    /// It may take effect or not: look at the membership.
    #[error("the outcome is unknown: the leader's answer was lost")]
    Unknown,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error("not accepted: {0}")]
    Fenced(LogError),
    /// The node is shutting down; it may take effect or not.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a read has no index.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The group is not on this node.
    #[error("group {0} is not on this node")]
    UnknownGroup(GroupId),
    /// Ask again.
    #[error("cannot read: {0}")]
    Refused(#[from] Refusal),
    /// Ask again: the answer was lost.
    #[error("no leader confirmed the read in time")]
    Lost,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error("cannot read: {0}")]
    Fenced(LogError),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a group was not started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The members cannot form a group.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// This node is not a member.
    #[error("this node is not among the members")]
    NotAMember,
    /// It runs here with other members.
    #[error("group {0} runs here with another membership")]
    Exists(GroupId),
    /// This node was a member of it: a group that began again would know nothing of what was promised.
    #[error("this node has left group {0}: join it instead, or use another group id")]
    HasLeft(GroupId),
    /// What is here of the group from before is being deleted; ask again.
    #[error("what is left of group {0} here is being deleted: try again")]
    Leaving(GroupId),
    /// The log's disk has no room.
    #[error("the log's disk is full")]
    DiskFull,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error(transparent)]
    Fenced(LogError),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// Why this node is not a member of a group as wished.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The members that were named cannot be those of a group.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// This node is not among those named, so its role and address are not known.
    #[error("this node is not among the members")]
    NotAMember,
    /// Only this node was named.
    #[error("no member to ask is named besides this node")]
    NobodyToAsk,
    /// The leader says that it cannot be.
    #[error("cannot join: {0}")]
    Refused(#[from] JoinRefusal),
    /// What is here of the group from before is being deleted; ask again.
    #[error("what is left of group {0} here is being deleted: try again")]
    Leaving(GroupId),
    /// It was taken out again meanwhile.
    #[error("this node was removed from group {0} while it joined")]
    Removed(GroupId),
    /// The log's disk has no room.
    #[error("the log's disk is full")]
    DiskFull,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error(transparent)]
    Fenced(LogError),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// Why this node has not left a group.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// It is no member.
    #[error("this node is no member of group {0}")]
    NotAMember(GroupId),
    /// The others have no vote, or no data: make one of them a voter, or let them leave first.
    #[error("this node is the group's last voter with data, and there are other members")]
    LastVoter,
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error(transparent)]
    Fenced(LogError),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a group does not go on without its quorum.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The group is not on this node.
    #[error("group {0} is not on this node")]
    UnknownGroup(GroupId),
    /// This replica cannot be the one to go on.
    #[error(transparent)]
    Refused(RecoveryRefusal),
    /// The log is fenced; this node serves nothing until it is restarted.
    #[error(transparent)]
    Fenced(LogError),
    /// The node is shutting down.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a group's state cannot be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Make one first.
    #[error("group {0} has no snapshot on this node")]
    NoSnapshot(GroupId),
    /// Its file cannot be used: make another one.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Why a group was not started from a copy of another one's state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The group cannot be started here.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Two nodes that began from copies could have begun from different ones.
    #[error("a group is imported on one node alone: the others join it afterwards")]
    NotAlone,
    /// No group is there.
    #[error("the copy does not say after which entry of which term it was made")]
    NoPosition,
    /// The state could not be written: nothing is left of it.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// See there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A stored membership does not decode.
    #[error("group {group}: {source}")]
    Membership {
        /// Whose.
        group: GroupId,
        /// Why.
        source: MembershipError,
    },
    /// The state machine knows more than the log: one of them is not this node's.
    #[error(
        "group {group}: the state machine has applied {applied}, the log ends at {last}: \
         log and state do not belong together"
    )]
    StateAhead {
        /// Whose.
        group: GroupId,
        /// What the machine says.
        applied: crate::types::Index,
        /// What the log holds.
        last: crate::types::Index,
    },
    /// The state machine could not tell what it has applied.
    #[error("group {group}: the state machine failed: {reason}")]
    StateMachine {
        /// Whose.
        group: GroupId,
        /// Its words.
        reason: String,
    },
    /// No thread could be made.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
