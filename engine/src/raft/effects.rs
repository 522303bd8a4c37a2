//! All that goes into a group, all that comes out.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::conf_change::ConfChange;
use super::joining::Wish;
use super::membership::Membership;
use super::message::{Envelope, JoinRefusal};
use crate::block::Block;
use crate::traits::{GroupWrite, LogError, PeerAddress};
use crate::types::{Index, NodeId, Term};

/// What a snapshot stands for: the state after its last entry (Raft §7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last entry that it covers.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership after that entry.
    pub membership: Membership,
}

/// What the core reads when it composes messages: stored entries, and the newest snapshot.
pub trait Source {
    /// Stored blocks, from `first` to `last` (both inside) and cut exactly there: at least one
    /// block, then no more than `max_bytes`.
    fn blocks(
        &mut self,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError>;

    /// The newest snapshot that can be sent, if it covers entry `from`; `None`: there is none at the
    /// moment, and whoever owns the snapshots sees to it that there will be one.
    fn snapshot(&mut self, from: Index) -> Option<Snapshot>;
}

/// A function that reads blocks, without snapshots.
impl<F: FnMut(Index, Index, usize) -> Result<Vec<Block>, LogError>> Source for F {
    fn blocks(
        &mut self,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError> {
        self(first, last, max_bytes)
    }

    fn snapshot(&mut self, _from: Index) -> Option<Snapshot> {
        None
    }
}

/// How sending a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The peer has it.
    Sent,
    /// The peer has nothing of it.
    Failed,
}

/// What may happen to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One tick of the clock passed.
    Tick,
    /// A peer said something; checked only as far as its bytes.
    Message(Envelope),
    /// A client here proposes; the number comes back in [`ProposalOutcome`].
    Propose {
        /// Rising; the caller's name for the proposal.
        request: u64,
        /// The command.
        payload: Bytes,
    },
    /// Somebody here wants another membership; the number comes back in [`ProposalOutcome`]. What
    /// became of it shows when the entry is applied: a change that the leader refuses is logged as
    /// an empty command.
    ProposeConfChange {
        /// Rising; the caller's name for the proposal.
        request: u64,
        /// What.
        change: ConfChange,
    },
    /// A client here wants to read; the number comes back in [`ReadOutcome`].
    Read {
        /// Rising; the caller's name for the read.
        request: u64,
    },
    /// The write with this number, and all before it, are on stable storage.
    Durable(u64),
    /// The apply stage has come to this configuration change; from here on it counts.
    ConfChange(Index, ConfChange),
    /// The state machine has applied everything up to this index, or taken over a snapshot of it.
    Applied(Index),
    /// Entries up to this index, at most the applied one, are not needed any more.
    Compact(Index),
    /// Campaign now, if this replica may.
    Campaign,
    /// Join or leave, again and again until it is so; `None`: neither any more.
    Wish(Option<Wish>),
    /// Begin with this snapshot, of another group; only before anything else.
    Import(Snapshot),
    /// Hand leadership over to this voter (thesis §3.10).
    TransferLeadership(NodeId),
    /// Go on with only these members, without a quorum: see [`super::recovery`].
    Recover(BTreeSet<NodeId>),
    /// Forget who leads, so that this replica votes at once.
    ForgetLeader,
    /// Appends to this peer are lost.
    Unreachable(NodeId),
    /// The snapshot of this index, which was to be taken over, turned out to be damaged.
    SnapshotLost(Index),
    /// Sending a snapshot to this peer has ended.
    SnapshotSent(NodeId, SnapshotOutcome),
    /// The node of this peer is gone: what is in flight to it is lost, and if it led, nobody does.
    PeerDown(NodeId),
}

/// What became of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProposalOutcome {
    /// In the leader's log; committed once an entry of this term is applied at this index.
    Appended {
        /// The caller's number.
        request: u64,
        /// Where.
        index: Index,
        /// In which term.
        term: Term,
    },
    /// Not accepted; proposing again cannot apply it twice.
    Refused {
        /// The caller's number.
        request: u64,
        /// Why.
        reason: Refusal,
    },
}

/// Why a proposal or a read was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Ask again when there is a leader.
    #[error("the group has no leader at the moment")]
    NoLeader,
    /// The group's uncommitted entries fill their limit.
    #[error("the group is busy")]
    Busy,
    /// Leadership is being handed over; ask again.
    #[error("leadership is being handed over")]
    Transferring,
    /// Never to be taken: longer than `Limits::proposal_bytes`.
    #[error("the proposal is too large")]
    TooLarge,
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The caller's number: this read and all open ones with lower numbers of the same answer.
    pub request: u64,
    /// Serve once this is applied; an error: ask again.
    pub index: Result<Index, Refusal>,
}

/// What a step asks of its caller, in the order in which `Shard::turn` does it.
#[must_use = "dropped effects are lost writes and lost messages"]
#[derive(Debug, Default)]
pub struct Effects {
    /// Make durable as one unit, then answer with [`Input::Durable`] and the number. An empty write
    /// only asks for that answer, once every write before it is durable.
    pub write: Option<(u64, GroupWrite)>,
    /// Send at once: what promises nothing about our disk. A [`super::message::Message::InstallSnapshot`]
    /// goes with the snapshot's file, and the end of that is told by [`Input::SnapshotSent`]; but to
    /// a witness it goes alone, and nothing is told.
    pub send: Vec<Envelope>,
    /// Send when `write`, and every write before it, is durable: vote and append responses are
    /// promises (thesis §3.8).
    pub send_when_durable: Vec<Envelope>,
    /// Take this snapshot over into the state machine when `write`, and every write before it, is
    /// durable, then answer with [`Input::Applied`], or with [`Input::SnapshotLost`].
    pub install: Option<Snapshot>,
    /// Apply: committed, in index order, each entry once in a run. For each configuration change
    /// in it [`Input::ConfChange`] is due.
    pub apply: Vec<Block>,
    /// What became of proposals.
    pub proposals: Vec<ProposalOutcome>,
    /// What became of reads.
    pub reads: Vec<ReadOutcome>,
    /// The term or the leader known here changed.
    pub leader: Option<(Term, Option<NodeId>)>,
    /// Where nodes are reached that may be no members, or not known as such yet.
    pub learned: Vec<(NodeId, PeerAddress)>,
    /// This node cannot join.
    pub join_refused: Option<JoinRefusal>,
    /// The group goes on without this replica: delete it, and keep of it only its term and vote, and
    /// this membership, by which it is gone.
    pub left: Option<Membership>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.write.is_none()
            && self.send.is_empty()
            && self.send_when_durable.is_empty()
            && self.install.is_none()
            && self.apply.is_empty()
            && self.proposals.is_empty()
            && self.reads.is_empty()
            && self.leader.is_none()
            && self.learned.is_empty()
            && self.join_refused.is_none()
            && self.left.is_none()
    }
}
