//! All that goes into a group, all that comes out.

use bytes::Bytes;

use super::message::Envelope;
use crate::block::Block;
use crate::traits::GroupWrite;
use crate::types::{Index, NodeId, Term};

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
    /// A client here wants to read; the number comes back in [`ReadOutcome`].
    Read {
        /// Rising; the caller's name for the read.
        request: u64,
    },
    /// The write with this number, and all before it, are on stable storage.
    Durable(u64),
    /// The state machine has applied everything up to this index.
    Applied(Index),
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
    /// Make durable as one unit, then answer with [`Input::Durable`] and the number.
    pub write: Option<(u64, GroupWrite)>,
    /// Send at once: what promises nothing about our disk, or whose promise is kept by now.
    pub send: Vec<Envelope>,
    /// Apply: committed and durable here, in index order, each entry once in a run.
    pub apply: Vec<Block>,
    /// What became of proposals.
    pub proposals: Vec<ProposalOutcome>,
    /// What became of reads.
    pub reads: Vec<ReadOutcome>,
    /// The term or the leader known here changed.
    pub leader: Option<(Term, Option<NodeId>)>,
}
