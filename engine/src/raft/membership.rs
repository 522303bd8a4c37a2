//! Who belongs to a group, in which role, and where (Raft §6, thesis §4).
//!
//! A [`Membership`] is what is stored and shown; a [`Configuration`] is what the rules count with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::traits::PeerAddress;
use crate::types::NodeId;

/// The most members a group may have. A quorum beyond a handful only costs latency.
pub const MAX_MEMBERS: usize = 64;
const ENCODING_VERSION: u8 = 1;

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberRole {
    /// Votes, stores data, may lead.
    Voter,
    /// Stores data, has no vote (thesis §4.2.1).
    Learner,
    /// Votes and acknowledges, stores entry headers only, never leads.
    Witness,
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it does.
    pub role: MemberRole,
    /// Where its node is reached for Raft.
    pub address: PeerAddress,
}

/// All members of a group, by node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Every node with its role and address.
    pub members: BTreeMap<NodeId, Member>,
}

/// Why a membership cannot be that of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum MembershipError {
    #[error("a group needs at least one voting member with data")]
    NoVoter,
    #[error("{0} members, at most {MAX_MEMBERS} are allowed")]
    TooMany(usize),
    #[error("members {0} and {1} have the same address")]
    DuplicateAddress(NodeId, NodeId),
    #[error("the stored membership does not decode")]
    Malformed,
}

impl Membership {
    /// Refuses what no group can start with.
    pub fn check(&self) -> Result<(), MembershipError> {
        if self.members.len() > MAX_MEMBERS {
            return Err(MembershipError::TooMany(self.members.len()));
        }
        if !self.members.values().any(|m| m.role == MemberRole::Voter) {
            return Err(MembershipError::NoVoter);
        }
        let mut seen = BTreeMap::new();
        for (&id, member) in &self.members {
            if let Some(other) = seen.insert(&member.address, id) {
                return Err(MembershipError::DuplicateAddress(other, id));
            }
        }
        Ok(())
    }

    /// The bytes that the log stores: a version, then each member.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ENCODING_VERSION);
        out.put_u16_le(u16::try_from(self.members.len()).expect("checked: few members"));
        for (id, member) in &self.members {
            out.put_u32_le(id.get());
            out.put_u8(match member.role {
                MemberRole::Voter => 1,
                MemberRole::Learner => 2,
                MemberRole::Witness => 3,
            });
            out.put_u16_le(member.address.port);
            let host = member.address.host.as_bytes();
            out.put_u16_le(u16::try_from(host.len()).expect("checked: host names are short"));
            out.put_slice(host);
        }
        out.freeze()
    }

    /// Reads what [`Membership::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MembershipError> {
        let bad = |_| MembershipError::Malformed;
        if bytes.try_get_u8().map_err(bad)? != ENCODING_VERSION {
            return Err(MembershipError::Malformed);
        }
        let mut members = BTreeMap::new();
        for _ in 0..bytes.try_get_u16_le().map_err(bad)? {
            let id = bytes.try_get_u32_le().map_err(bad)?;
            let role = match bytes.try_get_u8().map_err(bad)? {
                1 => MemberRole::Voter,
                2 => MemberRole::Learner,
                3 => MemberRole::Witness,
                _ => return Err(MembershipError::Malformed),
            };
            let port = bytes.try_get_u16_le().map_err(bad)?;
            let length = usize::from(bytes.try_get_u16_le().map_err(bad)?);
            let (host, rest) = bytes
                .split_at_checked(length)
                .ok_or(MembershipError::Malformed)?;
            bytes = rest;
            let host = std::str::from_utf8(host).map_err(|_| MembershipError::Malformed)?;
            let address = PeerAddress {
                host: host.to_owned(),
                port,
            };
            let id = NodeId::new(id).ok_or(MembershipError::Malformed)?;
            members.insert(id, Member { role, address });
        }
        if bytes.is_empty() {
            Ok(Self { members })
        } else {
            Err(MembershipError::Malformed)
        }
    }

    /// What the rules count with.
    pub fn configuration(&self) -> Configuration {
        let with = |role: fn(MemberRole) -> bool| {
            self.members
                .iter()
                .filter(|(_, m)| role(m.role))
                .map(|(&id, _)| id)
                .collect()
        };
        Configuration {
            voters: with(|r| matches!(r, MemberRole::Voter | MemberRole::Witness)),
            outgoing: BTreeSet::new(),
            learners: with(|r| r == MemberRole::Learner),
            witnesses: with(|r| r == MemberRole::Witness),
        }
    }

    /// The member that campaigns first in a fresh group, drawn from `seed` (the group's id) so
    /// that the leaders of many groups spread evenly over the nodes.
    pub fn first_candidate(&self, seed: u32) -> Option<NodeId> {
        let voters: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| m.role == MemberRole::Voter)
            .collect();
        let at = (seed as usize).checked_rem(voters.len())?;
        voters.get(at).map(|(id, _)| **id)
    }
}

/// The sets that quorums are made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// All who vote, witnesses included; the incoming half of a joint configuration.
    pub voters: BTreeSet<NodeId>,
    /// The outgoing half; empty outside a change (Raft §6).
    pub outgoing: BTreeSet<NodeId>,
    /// Receive entries, have no vote.
    pub learners: BTreeSet<NodeId>,
    /// The voters without data.
    pub witnesses: BTreeSet<NodeId>,
}

impl Configuration {
    /// Both halves, for [`super::quorum`].
    pub fn halves(&self) -> [&BTreeSet<NodeId>; 2] {
        [&self.voters, &self.outgoing]
    }

    /// Whether `id` has a vote in either half.
    pub fn votes(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether `id` may campaign: it votes and has data.
    pub fn may_lead(&self, id: NodeId) -> bool {
        self.votes(id) && !self.witnesses.contains(&id)
    }

    /// Everyone a leader replicates to, itself included, by rising id.
    pub fn all(&self) -> BTreeSet<NodeId> {
        self.voters
            .iter()
            .chain(&self.outgoing)
            .chain(&self.learners)
            .copied()
            .collect()
    }
}
