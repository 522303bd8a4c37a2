//! Who belongs to a group, in which role, and where (Raft §6, thesis §4).
//!
//! A [`Membership`] is what is stored and shown; a [`Configuration`] is what the rules count with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::traits::PeerAddress;
use crate::types::{Index, NodeId};

/// The most members a group may have. A quorum beyond a handful only costs latency.
pub const MAX_MEMBERS: usize = 64;
const ENCODING_VERSION: u8 = 3;

fn put_members(out: &mut BytesMut, members: &BTreeMap<NodeId, Member>) {
    out.put_u16_le(u16::try_from(members.len()).expect("checked: few members"));
    for (id, member) in members {
        out.put_u32_le(id.get());
        out.put_u8(match member.role {
            MemberRole::Voter => 1,
            MemberRole::Learner => 2,
            MemberRole::Witness => 3,
        });
        put_address(out, &member.address);
    }
}

fn take_members(bytes: &mut &[u8]) -> Result<BTreeMap<NodeId, Member>, MembershipError> {
    let bad = |_| MembershipError::Malformed;
    let mut members = BTreeMap::new();
    for _ in 0..bytes.try_get_u16_le().map_err(bad)? {
        let id = bytes.try_get_u32_le().map_err(bad)?;
        let id = NodeId::new(id).ok_or(MembershipError::Malformed)?;
        let role = match bytes.try_get_u8().map_err(bad)? {
            1 => MemberRole::Voter,
            2 => MemberRole::Learner,
            3 => MemberRole::Witness,
            _ => return Err(MembershipError::Malformed),
        };
        let address = take_address(bytes)?;
        members.insert(id, Member { role, address });
    }
    Ok(members)
}

pub(super) fn put_incarnations(out: &mut BytesMut, incarnations: &BTreeMap<NodeId, u64>) {
    out.put_u16_le(u16::try_from(incarnations.len()).expect("checked: few members"));
    for (id, incarnation) in incarnations {
        out.put_u32_le(id.get());
        out.put_u64_le(*incarnation);
    }
}

/// Reads what [`put_incarnations`] wrote.
pub(super) fn take_incarnations(
    bytes: &mut &[u8],
) -> Result<BTreeMap<NodeId, u64>, MembershipError> {
    let bad = |_| MembershipError::Malformed;
    let mut incarnations = BTreeMap::new();
    for _ in 0..bytes.try_get_u16_le().map_err(bad)? {
        let id = bytes.try_get_u32_le().map_err(bad)?;
        let id = NodeId::new(id).ok_or(MembershipError::Malformed)?;
        let incarnation = bytes.try_get_u64_le().map_err(bad)?;
        if incarnation == 0 {
            return Err(MembershipError::Malformed);
        }
        incarnations.insert(id, incarnation);
    }
    Ok(incarnations)
}

/// Port, length of the host, host.
pub(super) fn put_address(out: &mut BytesMut, address: &PeerAddress) {
    out.put_u16_le(address.port);
    let host = address.host.as_bytes();
    out.put_u16_le(u16::try_from(host.len()).expect("checked: host names are short"));
    out.put_slice(host);
}

/// Reads what [`put_address`] wrote.
pub(super) fn take_address(bytes: &mut &[u8]) -> Result<PeerAddress, MembershipError> {
    let bad = |_| MembershipError::Malformed;
    let port = bytes.try_get_u16_le().map_err(bad)?;
    let length = usize::from(bytes.try_get_u16_le().map_err(bad)?);
    let (host, rest) = bytes
        .split_at_checked(length)
        .ok_or(MembershipError::Malformed)?;
    *bytes = rest;
    let host = std::str::from_utf8(host).map_err(|_| MembershipError::Malformed)?;
    Ok(PeerAddress {
        host: host.to_owned(),
        port,
    })
}

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

impl MemberRole {
    /// Whether it counts in elections and commits.
    pub fn votes(self) -> bool {
        matches!(self, Self::Voter | Self::Witness)
    }
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it does.
    pub role: MemberRole,
    /// Where its node is reached for Raft.
    pub address: PeerAddress,
}

/// All members of a group, by node; during a change also those it leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Every node with its role and address; the incoming half of a joint configuration.
    pub members: BTreeMap<NodeId, Member>,
    /// The outgoing half while a change is under way.
    pub joint: Option<Joint>,
    /// The log index of the change that made it, its id for compare-and-set; zero at the start.
    pub index: Index,
    /// Which life of a member's data was admitted, as far as a leader knows it yet. A node that
    /// comes back with another one has forgotten its votes and its log: it is not the member any
    /// more, until it has left the group and joined again. See [`super::incarnation`].
    pub incarnations: BTreeMap<NodeId, u64>,
}

/// The half of a joint configuration that is on its way out (Raft §6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joint {
    /// The voters before the change. A member of both halves acts as its incoming role says; who
    /// becomes a learner still votes here until the change is left.
    pub outgoing: BTreeMap<NodeId, Member>,
    /// The leader leaves the joint configuration as soon as it is applied.
    pub auto_leave: bool,
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
    /// The membership that a group starts with.
    pub fn new(members: BTreeMap<NodeId, Member>) -> Self {
        Self {
            members,
            ..Self::default()
        }
    }

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

    /// The bytes that the log stores: a version, the configuration's id, the members, and during a
    /// change the outgoing half, the incarnations.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ENCODING_VERSION);
        out.put_u64_le(self.index.0);
        put_members(&mut out, &self.members);
        match &self.joint {
            None => out.put_u8(0),
            Some(joint) => {
                out.put_u8(if joint.auto_leave { 2 } else { 1 });
                put_members(&mut out, &joint.outgoing);
            }
        }
        put_incarnations(&mut out, &self.incarnations);
        out.freeze()
    }

    /// Reads what [`Membership::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MembershipError> {
        let bad = |_| MembershipError::Malformed;
        if bytes.try_get_u8().map_err(bad)? != ENCODING_VERSION {
            return Err(MembershipError::Malformed);
        }
        let index = Index(bytes.try_get_u64_le().map_err(bad)?);
        let members = take_members(&mut bytes)?;
        let joint = match bytes.try_get_u8().map_err(bad)? {
            0 => None,
            kind @ (1 | 2) => Some(Joint {
                outgoing: take_members(&mut bytes)?,
                auto_leave: kind == 2,
            }),
            _ => return Err(MembershipError::Malformed),
        };
        let incarnations = take_incarnations(&mut bytes)?;
        if bytes.is_empty() {
            Ok(Self {
                members,
                joint,
                index,
                incarnations,
            })
        } else {
            Err(MembershipError::Malformed)
        }
    }

    /// What the rules count with.
    pub fn configuration(&self) -> Configuration {
        let none = BTreeMap::new();
        let outgoing = self.joint.as_ref().map_or(&none, |joint| &joint.outgoing);
        let with = |role: MemberRole| self.members.iter().filter(move |(_, m)| m.role == role);
        let is_leaving = |id: &NodeId| outgoing.contains_key(id);
        let (learners_next, learners) = with(MemberRole::Learner)
            .map(|(&id, _)| id)
            .partition(is_leaving);
        let voters = self.members.iter().filter(|(_, m)| m.role.votes());
        let witness =
            |(&id, member): (&NodeId, &Member)| (member.role == MemberRole::Witness).then_some(id);
        Configuration {
            voters: voters.map(|(&id, _)| id).collect(),
            outgoing: outgoing.keys().copied().collect(),
            learners,
            learners_next,
            witnesses: self
                .members
                .iter()
                .chain(outgoing)
                .filter_map(witness)
                .collect(),
            auto_leave: self.joint.as_ref().is_some_and(|joint| joint.auto_leave),
        }
    }

    /// The addresses of all who take part, in either half.
    pub fn addresses(&self) -> impl Iterator<Item = (NodeId, &PeerAddress)> {
        let outgoing = self.joint.iter().flat_map(|joint| &joint.outgoing);
        let all = self.members.iter().chain(outgoing);
        all.map(|(&id, member)| (id, &member.address))
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
    /// Vote in the outgoing half, and become learners when it is left.
    pub learners_next: BTreeSet<NodeId>,
    /// The voters without data.
    pub witnesses: BTreeSet<NodeId>,
    /// The leader leaves the joint configuration by itself.
    pub auto_leave: bool,
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

    /// Whether `id` takes part in any role.
    pub fn contains(&self, id: NodeId) -> bool {
        self.votes(id) || self.learners.contains(&id)
    }

    /// Whether `id` may campaign: it votes and has data.
    pub fn may_lead(&self, id: NodeId) -> bool {
        self.votes(id) && !self.witnesses.contains(&id)
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
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

#[cfg(test)]
mod tests;
