//! Changes of who belongs to a group (Raft §6, thesis §4): simple ones and joint ones.
//!
//! A change is an entry of the log. It takes effect when it is applied, and the leader logs the next
//! one only after that; so at most one is under way. This is later than in the paper, where it counts
//! from the append on. It is safe, first because no replica ever campaigns two configurations behind:
//! a leader logs change B only when A is applied, so its appends of B carry a commit index that covers
//! A; a replica stores both in one write; so whoever holds B knows that A is committed, and
//! [`super::candidate`] does not campaign before A is applied. Second because neighbouring
//! configurations have overlapping quorums: a simple change moves at most one voter (thesis §4.1), a
//! joint one needs both majorities (Raft §6).
//!
//! The no-op that a leader commits first closes the hole of the thesis' first version (Ongaro,
//! raft-dev 2015): a new leader takes no change before an entry of its own term is applied.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::membership::{
    Joint, MAX_MEMBERS, Member, MemberRole, Membership, MembershipError, put_address,
    put_incarnations, take_address, take_incarnations,
};
use crate::traits::PeerAddress;
use crate::types::{Index, NodeId};

const ENCODING_VERSION: u8 = 2;

/// What happens to one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// It becomes a voter with data.
    Voter(NodeId),
    /// It becomes a learner.
    Learner(NodeId),
    /// It becomes a witness.
    Witness(NodeId),
    /// It leaves.
    Remove(NodeId),
    /// Only its address changes, or its incarnation becomes known.
    Update(NodeId),
}

impl Change {
    /// Whom it concerns.
    pub fn node(self) -> NodeId {
        match self {
            Self::Voter(id)
            | Self::Learner(id)
            | Self::Witness(id)
            | Self::Remove(id)
            | Self::Update(id) => id,
        }
    }
}

/// How a change gets from one configuration to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Transition {
    /// Simple if at most one member changes, else joint and left automatically.
    #[default]
    Auto,
    /// Joint, left automatically.
    Implicit,
    /// Joint, until a change without members leaves it.
    Explicit,
}

/// An entry that changes the membership. One without changes leaves a joint configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfChange {
    /// How.
    pub transition: Transition,
    /// What, in order.
    pub changes: Vec<Change>,
    /// The configuration it was made for, by [`Membership::index`]: refused under any other.
    pub expected: Option<Index>,
    /// Where members are reached, of those that are new or move.
    pub addresses: BTreeMap<NodeId, PeerAddress>,
    /// Which life of their data is admitted, of those of whom it becomes known. One that is known
    /// changes only by leaving and coming back.
    pub incarnations: BTreeMap<NodeId, u64>,
}

/// Why a change is refused. Deterministic: all replicas refuse it alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ChangeError {
    #[error("made for configuration {expected}, the present one is {present}")]
    Overtaken { expected: Index, present: Index },
    #[error("the joint configuration of an earlier change must be left first")]
    AlreadyJoint,
    #[error("there is no joint configuration to leave")]
    NotJoint,
    #[error("a group without voters cannot become joint")]
    NothingToLeave,
    #[error("no voter with data would be left")]
    NoVoter,
    #[error("more than one voter would change at once without a joint configuration")]
    TooManyVoters,
    #[error("{0} members, at most {MAX_MEMBERS} are allowed")]
    TooManyMembers(usize),
    #[error("node {0} must leave before it can change from or to a witness: its data would lack")]
    WitnessStays(NodeId),
}

impl ConfChange {
    /// A change of these members.
    pub fn new(transition: Transition, changes: Vec<Change>) -> Self {
        Self {
            transition,
            changes,
            ..Self::default()
        }
    }

    /// Whether it needs no joint configuration: it concerns one member, or moves no voter.
    fn is_simple(&self) -> bool {
        let is_update = |change: &Change| matches!(change, Change::Update(_));
        self.transition == Transition::Auto
            && (self.changes.len() == 1 || self.changes.iter().all(is_update))
    }

    /// Whether it leaves a joint configuration.
    pub fn leaves_joint(&self) -> bool {
        self.changes.is_empty() && self.transition == Transition::Auto
    }

    /// The payload of its entry.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ENCODING_VERSION);
        out.put_u8(match self.transition {
            Transition::Auto => 0,
            Transition::Implicit => 1,
            Transition::Explicit => 2,
        });
        // No entry has this index: blocks refuse it.
        out.put_u64_le(self.expected.map_or(u64::MAX, |index| index.0));
        out.put_u16_le(u16::try_from(self.changes.len()).expect("bounded by the members"));
        for change in &self.changes {
            let (kind, id) = match change {
                Change::Voter(id) => (1, id),
                Change::Learner(id) => (2, id),
                Change::Witness(id) => (3, id),
                Change::Remove(id) => (4, id),
                Change::Update(id) => (5, id),
            };
            out.put_u8(kind);
            out.put_u32_le(id.get());
        }
        out.put_u16_le(u16::try_from(self.addresses.len()).expect("bounded by the members"));
        for (id, address) in &self.addresses {
            out.put_u32_le(id.get());
            put_address(&mut out, address);
        }
        put_incarnations(&mut out, &self.incarnations);
        out.freeze()
    }

    /// Reads what [`ConfChange::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MembershipError> {
        let bytes = &mut bytes;
        let bad = |_| MembershipError::Malformed;
        let version = bytes.try_get_u8().map_err(bad)?;
        let transition = match bytes.try_get_u8().map_err(bad)? {
            0 => Transition::Auto,
            1 => Transition::Implicit,
            2 => Transition::Explicit,
            _ => return Err(MembershipError::Malformed),
        };
        let expected = bytes.try_get_u64_le().map_err(bad)?;
        let mut changes = Vec::new();
        for _ in 0..bytes.try_get_u16_le().map_err(bad)? {
            changes.push(take_change(bytes)?);
        }
        let mut addresses = BTreeMap::new();
        for _ in 0..bytes.try_get_u16_le().map_err(bad)? {
            let id = take_node(bytes)?;
            addresses.insert(id, take_address(bytes)?);
        }
        let incarnations = take_incarnations(bytes)?;
        if version != ENCODING_VERSION || !bytes.is_empty() || changes.len() > 2 * MAX_MEMBERS {
            return Err(MembershipError::Malformed);
        }
        Ok(Self {
            transition,
            changes,
            expected: (expected != u64::MAX).then_some(Index(expected)),
            addresses,
            incarnations,
        })
    }
}

fn take_node(bytes: &mut &[u8]) -> Result<NodeId, MembershipError> {
    let id = bytes
        .try_get_u32_le()
        .map_err(|_| MembershipError::Malformed)?;
    NodeId::new(id).ok_or(MembershipError::Malformed)
}

fn take_change(bytes: &mut &[u8]) -> Result<Change, MembershipError> {
    let kind = bytes.try_get_u8().map_err(|_| MembershipError::Malformed)?;
    let id = take_node(bytes)?;
    match kind {
        1 => Ok(Change::Voter(id)),
        2 => Ok(Change::Learner(id)),
        3 => Ok(Change::Witness(id)),
        4 => Ok(Change::Remove(id)),
        5 => Ok(Change::Update(id)),
        _ => Err(MembershipError::Malformed),
    }
}

impl Membership {
    /// The membership after `change`, an entry at `index`; or why there is none.
    pub fn changed(&self, change: &ConfChange, index: Index) -> Result<Self, ChangeError> {
        if let Some(expected) = change.expected.filter(|&expected| expected != self.index) {
            let present = self.index;
            return Err(ChangeError::Overtaken { expected, present });
        }
        let mut next = if change.leaves_joint() {
            self.leave_joint()?
        } else if change.is_simple() {
            self.simple(change)?
        } else {
            self.enter_joint(change)?
        };
        next.index = index;
        self.carry_incarnations(change, &mut next);
        Ok(next)
    }

    /// What is known of a member stays so while it takes part without a gap: in the outgoing half of
    /// a joint configuration it still has the vote that its old life promised.
    fn carry_incarnations(&self, change: &ConfChange, next: &mut Self) {
        let was_voting = |id: &NodeId| {
            let outgoing = next.joint.as_ref().map(|joint| &joint.outgoing);
            outgoing.is_some_and(|half| half.contains_key(id))
        };
        let is_new = |id: &NodeId| {
            let has_left = change.changes.contains(&Change::Remove(*id));
            (has_left || !self.members.contains_key(id)) && !was_voting(id)
        };
        let stays = |id: &NodeId| next.members.contains_key(id) || was_voting(id);
        let known = self.incarnations.iter();
        let mut incarnations: BTreeMap<NodeId, u64> = known
            .filter(|(id, _)| stays(id) && !is_new(id))
            .map(|(&id, &incarnation)| (id, incarnation))
            .collect();
        for (&id, &incarnation) in change.incarnations.iter().filter(|(id, _)| stays(id)) {
            incarnations.entry(id).or_insert(incarnation);
        }
        next.incarnations = incarnations;
    }

    /// At most one voter more or less: the quorums overlap without a joint configuration
    /// (thesis §4.1).
    pub fn simple(&self, change: &ConfChange) -> Result<Self, ChangeError> {
        if self.joint.is_some() {
            return Err(ChangeError::AlreadyJoint);
        }
        let mut next = self.clone();
        next.apply_changes(change)?;
        let voters = |m: &Self| -> BTreeSet<NodeId> { m.configuration().voters };
        if voters(self).symmetric_difference(&voters(&next)).count() > 1 {
            return Err(ChangeError::TooManyVoters);
        }
        Ok(next)
    }

    /// Old and new majority must agree until the change is left (Raft §6).
    pub fn enter_joint(&self, change: &ConfChange) -> Result<Self, ChangeError> {
        if self.joint.is_some() {
            return Err(ChangeError::AlreadyJoint);
        }
        let voters = self.members.iter().filter(|(_, m)| m.role.votes());
        let outgoing: BTreeMap<_, _> = voters.map(|(&id, m)| (id, m.clone())).collect();
        if outgoing.is_empty() {
            return Err(ChangeError::NothingToLeave);
        }
        let mut next = self.clone();
        next.apply_changes(change)?;
        next.joint = Some(Joint {
            outgoing,
            auto_leave: change.transition != Transition::Explicit,
        });
        Ok(next)
    }

    /// Only the incoming half is left; its learners that voted in the other are learners now.
    pub fn leave_joint(&self) -> Result<Self, ChangeError> {
        if self.joint.is_none() {
            return Err(ChangeError::NotJoint);
        }
        Ok(Self {
            joint: None,
            ..self.clone()
        })
    }

    fn apply_changes(&mut self, change: &ConfChange) -> Result<(), ChangeError> {
        for &step in &change.changes {
            let role = match step {
                Change::Voter(_) => MemberRole::Voter,
                Change::Learner(_) => MemberRole::Learner,
                Change::Witness(_) => MemberRole::Witness,
                Change::Remove(id) => {
                    self.members.remove(&id);
                    continue;
                }
                Change::Update(id) => {
                    self.update_address(id, change);
                    continue;
                }
            };
            self.set_role(step.node(), role, change)?;
        }
        // A group whose only voters are witnesses has a quorum that nobody can lead.
        if !self.members.values().any(|m| m.role == MemberRole::Voter) {
            return Err(ChangeError::NoVoter);
        }
        match self.members.len() {
            count if count > MAX_MEMBERS => Err(ChangeError::TooManyMembers(count)),
            _ => Ok(()),
        }
    }

    fn update_address(&mut self, id: NodeId, change: &ConfChange) {
        if let (Some(member), Some(address)) =
            (self.members.get_mut(&id), change.addresses.get(&id))
        {
            member.address = address.clone();
        }
    }

    /// A witness has no data to become anything else with, and others would keep theirs.
    fn set_role(
        &mut self,
        id: NodeId,
        role: MemberRole,
        change: &ConfChange,
    ) -> Result<(), ChangeError> {
        let address = change.addresses.get(&id);
        match self.members.get_mut(&id) {
            None => {
                let nowhere = PeerAddress {
                    host: String::new(),
                    port: 0,
                };
                let address = address.cloned().unwrap_or(nowhere);
                self.members.insert(id, Member { role, address });
            }
            Some(member) => {
                let is_witness = |role| role == MemberRole::Witness;
                if is_witness(member.role) != is_witness(role) {
                    return Err(ChangeError::WitnessStays(id));
                }
                member.role = role;
                if let Some(address) = address {
                    member.address = address.clone();
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
