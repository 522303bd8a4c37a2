//! What replicas of a group say to each other: one variant for each RPC of the paper.

use bytes::Bytes;

use super::conf_change::ConfChange;
use super::effects::Snapshot;
use super::membership::{Member, Membership};
use crate::block::Block;
use crate::types::{GroupId, Index, NodeId, Term};

/// A message of one group with its sender, receiver and the sender's term (Raft §5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The group both ends are replicas of.
    pub group: GroupId,
    /// The sending node; the transport checks it against the connection.
    pub from: NodeId,
    /// The receiving node.
    pub to: NodeId,
    /// The sender's term; for a pre-vote the term it would campaign in (thesis §9.6). Zero for
    /// forwarded client requests, which belong to no term.
    pub term: Term,
    /// Which life of the sender's data speaks: the incarnation that its end of the connection named,
    /// filled in by the receiving transport; 0 if it is not known, and on the way out.
    pub incarnation: u64,
    /// What is said.
    pub message: Message,
}

/// The body of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Would you vote for me? Changes no state (thesis §9.6).
    PreVote(VoteRequest),
    /// Answer to [`Message::PreVote`].
    PreVoteResponse {
        /// Whether the sender would vote.
        granted: bool,
    },
    /// Vote for me (Raft §5.2).
    RequestVote(VoteRequest),
    /// Answer to [`Message::RequestVote`]; durable before it is sent.
    RequestVoteResponse {
        /// Whether the sender voted.
        granted: bool,
        /// The request's last index, so that a vote for an earlier life of the candidate is told
        /// apart. A candidate asks before its own disk is done: 1. it asks, a voter grants; 2. it
        /// crashes and loses term and tail; 3. it asks again in the same term, with a shorter log:
        /// the late grant was not for that one.
        last_index: Index,
        /// The term of that entry.
        last_term: Term,
    },
    /// Entries after `prev` (Raft §5.3); without blocks it tells the commit index or probes.
    AppendEntries {
        /// Index of the entry before the blocks.
        prev_index: Index,
        /// Term of that entry.
        prev_term: Term,
        /// The leader's commit index.
        commit: Index,
        /// Contiguous from `prev_index + 1`.
        blocks: Vec<Block>,
    },
    /// Answer to [`Message::AppendEntries`]; an acceptance is durable before it is sent.
    AppendEntriesResponse(AppendResponse),
    /// The leader lives (Raft §5.2); small, so that many travel in one list.
    Heartbeat {
        /// At most what the receiver is known to hold.
        commit: Index,
        /// The newest read round that waits for this peer; 0 = none (thesis §6.4).
        read_round: u64,
    },
    /// Answer to [`Message::Heartbeat`].
    HeartbeatResponse {
        /// The round of the heartbeat.
        read_round: u64,
    },
    /// The state after `snapshot.index`, in place of entries that the leader no longer has (Raft §7).
    /// It travels with the snapshot's file, and arrives when the receiver has all of it, durably. A
    /// witness keeps no state: to it this goes alone, as any other message.
    InstallSnapshot {
        /// What it stands for.
        snapshot: Snapshot,
    },
    /// Campaign at once (thesis §3.10).
    TimeoutNow,
    /// A follower asks the leader to hand over to this voter.
    TransferLeadership {
        /// Whom.
        to: NodeId,
    },
    /// A follower forwards a configuration change.
    ProposeConfChange {
        /// The sender's number for it.
        request: u64,
        /// What.
        change: ConfChange,
    },
    /// A follower forwards proposals of its clients to the leader.
    Propose {
        /// The sender's number for the first payload; the others count on from it.
        first_request: u64,
        /// One command each.
        payloads: Vec<Bytes>,
    },
    /// Where the leader put forwarded proposals, or that it did not take them.
    ProposeResponse {
        /// As in the request.
        first_request: u64,
        /// How many payloads this answers.
        count: u32,
        /// Index of the first one, appended in the envelope's term; `None`: not accepted.
        index: Option<Index>,
    },
    /// A follower asks the leader for a read index (thesis §6.4).
    ReadIndex {
        /// The sender's number for this read.
        request: u64,
    },
    /// Answer to [`Message::ReadIndex`].
    ReadIndexResponse {
        /// As in the request.
        request: u64,
        /// Reads may be served once this is applied; `None`: not the leader.
        index: Option<Index>,
    },
    /// Who hears from no leader asks whether it was removed. See [`super::removal`].
    AmIMember,
    /// Answer to [`Message::AmIMember`]: no. Durable before it is sent.
    Removed {
        /// Of the group, without the receiver.
        membership: Membership,
        /// Up to where the sender has applied the log: the membership is that of this entry.
        applied: Index,
    },
    /// Somebody wants to be a member, or to have another role. A member passes it on to the leader.
    Join(JoinRequest),
    /// Answer to [`Message::Join`]: never, as things are.
    JoinRefused(JoinRefusal),
}

/// The body of [`Message::Join`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Who wants to join.
    pub node: NodeId,
    /// Which life of its data; 0 if nobody asks.
    pub incarnation: u64,
    /// In which role, reached where.
    pub member: Member,
}

/// Why somebody cannot join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// Remove one first.
    #[error("the group has as many members as it may have")]
    TooManyMembers,
    /// It is a member in another role, which cannot become the wanted one without leaving first.
    #[error("it is a member in another role: leave first")]
    OtherRole,
    /// Another member is reached there.
    #[error("another member has this address")]
    AddressTaken,
    /// Its former life is the last voter with data: recover the group instead.
    #[error("the data that was lost here was that of the group's last voter")]
    LastVoter,
}

impl Message {
    /// Whether it answers something that the receiver asked.
    pub fn is_response(&self) -> bool {
        match self {
            Self::PreVoteResponse { .. }
            | Self::RequestVoteResponse { .. }
            | Self::AppendEntriesResponse(_)
            | Self::HeartbeatResponse { .. }
            | Self::ProposeResponse { .. }
            | Self::ReadIndexResponse { .. } => true,
            Self::PreVote(_)
            | Self::RequestVote(_)
            | Self::AppendEntries { .. }
            | Self::Heartbeat { .. }
            | Self::InstallSnapshot { .. }
            | Self::TimeoutNow
            | Self::TransferLeadership { .. }
            | Self::Propose { .. }
            | Self::ProposeConfChange { .. }
            | Self::ReadIndex { .. }
            | Self::AmIMember
            | Self::Removed { .. }
            | Self::Join(_)
            | Self::JoinRefused(_) => false,
        }
    }
}

/// The body of a pre-vote or vote request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRequest {
    /// Index of the candidate's last entry.
    pub last_index: Index,
    /// Its term.
    pub last_term: Term,
    /// The old leader asked for this election: leader stickiness does not apply (thesis §3.10).
    pub transfer: bool,
    /// The configuration that the candidate has applied, by the index of its change: who knows a newer
    /// one knows better whose votes count. See [`super::incarnation`].
    pub configuration: Index,
}

/// The body of an answer to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendResponse {
    /// The receiver's log agrees with the leader's up to `last`, durably.
    Accepted {
        /// Last index that agrees.
        last: Index,
    },
    /// The entry at `prev` is missing or of another term.
    Rejected {
        /// `prev_index` of the refused append, so that stale answers are told apart.
        prev: Index,
        /// The highest index that may agree: its term is at most that of the refused `prev`.
        hint_index: Index,
        /// The term of that entry here.
        hint_term: Term,
        /// The receiver's last index: nothing beyond it was there (Raft §5.3).
        last: Index,
    },
    /// The receiver's log is as it should be, but the state before its beginning is lost: the file of
    /// the snapshot that it began with is damaged. Another one is needed.
    StateMissing {
        /// The last entry before the log's beginning: the snapshot must cover it.
        from: Index,
    },
}
