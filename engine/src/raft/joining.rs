//! Joining a running group, and the wish to leave it.
//!
//! ```text
//! joiner ─ Join ─▶ any member ─▶ leader: logs it as a learner, or as a witness
//! leader ─ appends ─▶ joiner, which has no state: StateMissing ─▶ a snapshot, and with it the membership
//! joiner ─ Join ─▶ leader: it keeps up, so its vote is logged (thesis §4.2.1)
//! ```
//! Who joins has promised nothing in this life of the replica but its term and vote, which outlive its
//! leaving. It takes no entries before the snapshot, and it never campaigns. It votes only for a
//! candidate of a configuration newer than the one by which it left, zero if it never was here:
//!
//! 1. Nodes J, K and L are the group, J acknowledges an entry, and leaves by a change that K has not
//!    heard of.
//! 2. J comes back with an empty log, and K, which still counts J, asks for its vote.
//! 3. With J's vote K is elected by the old configuration, and the entry is lost.
//!
//! A candidate of a newer configuration has applied the change by which J left, so its log has all that
//! J ever acknowledged. To that one J's vote is due: it may be the majority of a group that added J as a
//! voter at once.
//!
//! Requests are repeated until the membership is as wished, and each is safe to take twice.

use std::collections::BTreeSet;

use super::conf_change::{Change, ChangeError, ConfChange, Transition};
use super::membership::{Member, MemberRole};
use super::message::{JoinRefusal, JoinRequest, Message};
use super::{Group, Role};
use crate::types::{Index, NodeId};

/// What this node wants of its membership, until it is so or the caller drops it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// To be a member in this role, reached at this address.
    Join(Member),
    /// To be none any more.
    Leave,
}

/// A wish being pursued.
#[derive(Debug)]
pub(super) struct Pursuit {
    wish: Wish,
    /// Ticks until the next request.
    wait: u32,
    /// Who was asked last.
    asked: Option<NodeId>,
    /// Leadership was offered to somebody else already.
    has_offered: bool,
}

/// What a leader remembers of a learner that wants a vote: how far the log went when it asked, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    target: Index,
    tick: u64,
}

impl Group {
    /// What this node wants; `None`: nothing any more.
    pub(super) fn on_wish(&mut self, wish: Option<Wish>) {
        self.pursuit = wish.map(|wish| Pursuit {
            wish,
            wait: 0,
            asked: None,
            has_offered: false,
        });
        self.pursue();
    }

    /// Whether this replica has its group's state, or waits for it after joining.
    pub fn is_joining(&self) -> bool {
        self.is_joining
    }

    /// The place that this node wants to have, if it wants one.
    pub fn wished_place(&self) -> Option<Member> {
        match &self.pursuit.as_ref()?.wish {
            Wish::Join(member) => Some(member.clone()),
            Wish::Leave => None,
        }
    }

    /// Whether this node is such a member, for good, as far as is applied here: role and address.
    pub fn has_place(&self, place: &Member) -> bool {
        let member = self.membership.members.get(&self.node);
        !self.is_joining && self.membership.joint.is_none() && member == Some(place)
    }

    /// Whether this node wants to join, and does not have its place yet.
    pub(super) fn wants_to_join(&self) -> bool {
        let wish = self.pursuit.as_ref().map(|pursuit| &pursuit.wish);
        matches!(wish, Some(Wish::Join(member)) if !self.has_place(member))
    }

    /// One step towards what is wished, at most two in an election timeout.
    pub(super) fn pursue(&mut self) {
        let pause = (self.limits.election_ticks / 2).max(1);
        let Some(pursuit) = &mut self.pursuit else {
            return;
        };
        if pursuit.wait > 0 {
            pursuit.wait -= 1;
            return;
        }
        pursuit.wait = pause;
        if self.is_lost() {
            self.ask_for_removal();
            return;
        }
        let Some(pursuit) = &self.pursuit else {
            return;
        };
        match pursuit.wish.clone() {
            Wish::Join(member) if self.has_place(&member) => self.pursuit = None,
            Wish::Join(member) => self.ask_to_join(member),
            Wish::Leave => self.leave(),
        }
    }

    /// A leader whose address is another now has nobody to ask.
    fn ask_to_join(&mut self, member: Member) {
        let request = JoinRequest {
            node: self.node,
            incarnation: self.incarnation,
            member,
        };
        if matches!(self.role, Role::Leader(_)) {
            if let Err(reason) = self.admit(&request) {
                self.on_join_refused(reason);
            }
            return;
        }
        let others = self.configuration.all();
        if let Some(to) = self.next_to_ask(self.leader, &others) {
            self.send(to, Message::Join(request));
        }
    }

    /// The leader if it is known, else one of the others after the other.
    pub(super) fn next_to_ask(
        &mut self,
        leader: Option<NodeId>,
        others: &BTreeSet<NodeId>,
    ) -> Option<NodeId> {
        let pursuit = self.pursuit.as_mut()?;
        let others = || others.iter().copied().filter(|&id| id != self.node);
        let leader = leader.filter(|&id| id != self.node);
        let next = || others().find(|&id| Some(id) > pursuit.asked);
        pursuit.asked = leader.or_else(next).or_else(|| others().next());
        pursuit.asked
    }

    /// Hands leadership over if there is somebody to take it, then asks to be removed. The last member
    /// ends the group.
    fn leave(&mut self) {
        if !self.configuration.contains(self.node) {
            return; // it is done: the others tell so
        }
        let change = ConfChange {
            expected: Some(self.membership.index),
            ..ConfChange::new(Transition::Auto, vec![Change::Remove(self.node)])
        };
        if !matches!(self.role, Role::Leader(_)) {
            if let Some(leader) = self.leader {
                let request = 0; // nobody waits for this number
                self.send(leader, Message::ProposeConfChange { request, change });
            }
            return;
        }
        if self.membership.joint.is_none() && self.membership.members.len() == 1 {
            self.effects.left = Some(self.membership.clone());
            return;
        }
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if leader.transferee.is_some() || !self.may_change() {
            return;
        }
        let heirs = leader.peers.iter();
        let heirs = heirs.filter(|(id, _)| self.configuration.may_lead(**id));
        let heir = heirs
            .max_by_key(|(_, peer)| peer.matched)
            .map(|(&id, _)| id);
        let has_offered = self
            .pursuit
            .as_mut()
            .is_none_or(|pursuit| std::mem::replace(&mut pursuit.has_offered, true));
        match heir {
            Some(heir) if !has_offered => self.on_transfer(heir),
            Some(_) | None => self.log_change(&change),
        }
    }

    /// Somebody asks to become a member, or to get another role; perhaps through another member.
    pub(super) fn on_join(&mut self, from: NodeId, request: JoinRequest) {
        if self.is_joining || request.node == self.node {
            return;
        }
        let address = request.member.address.clone();
        if matches!(self.role, Role::Leader(_)) {
            // Its answers and our appends need the way, before the change is applied.
            self.effects.learned.push((request.node, address));
            if let Err(reason) = self.admit(&request) {
                self.send(request.node, Message::JoinRefused(reason));
            }
        } else if from == request.node
            && let Some(leader) = self.leader.filter(|&id| id != request.node)
        {
            self.effects.learned.push((request.node, address));
            self.send(leader, Message::Join(request));
        }
    }

    /// Logs the next step of somebody's way into the group, if now is the time for one.
    fn admit(&mut self, request: &JoinRequest) -> Result<(), JoinRefusal> {
        if !self.may_change() || self.configuration.is_joint() {
            return Ok(());
        }
        let Some(change) = self.next_step(request)? else {
            return Ok(());
        };
        let mut change = ConfChange {
            expected: Some(self.membership.index),
            ..ConfChange::new(Transition::Auto, vec![change])
        };
        let address = request.member.address.clone();
        change.addresses.insert(request.node, address);
        if request.incarnation != 0 && !matches!(change.changes[..], [Change::Remove(_)]) {
            change
                .incarnations
                .insert(request.node, request.incarnation);
        }
        let next = self.membership.changed(&change, self.log.last().next());
        next.map_err(JoinRefusal::from)?;
        self.log_change(&change);
        Ok(())
    }

    /// `None`: there is nothing to do, or not yet.
    fn next_step(&mut self, request: &JoinRequest) -> Result<Option<Change>, JoinRefusal> {
        let (node, member) = (request.node, &request.member);
        let others = self.membership.members.iter();
        let mut others = others.filter(|(id, _)| **id != node);
        if others.any(|(_, other)| other.address == member.address) {
            return Err(JoinRefusal::AddressTaken);
        }
        let Some(present) = self.membership.members.get(&node) else {
            return Ok(Some(match member.role {
                MemberRole::Voter | MemberRole::Learner => Change::Learner(node),
                MemberRole::Witness => Change::Witness(node),
            }));
        };
        let known = self.membership.incarnations.get(&node).copied();
        if request.incarnation != 0 && known.is_some_and(|known| known != request.incarnation) {
            return Ok(Some(Change::Remove(node))); // its former life has the membership
        }
        if present.role == member.role {
            let has_moved = present.address != member.address;
            return Ok(has_moved.then_some(Change::Update(node)));
        }
        match (present.role, member.role) {
            (MemberRole::Learner, MemberRole::Voter) => {
                Ok(self.keeps_up(node).then_some(Change::Voter(node)))
            }
            _ => Err(JoinRefusal::OtherRole),
        }
    }

    /// Whether a learner has in little time got all that there was when it asked last: a vote that is
    /// far behind would only make quorums slower (thesis §4.2.1).
    fn keeps_up(&mut self, node: NodeId) -> bool {
        let target = self.log.commit();
        let patience = u64::from(2 * self.limits.election_ticks);
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let matched = leader.peers.get(&node).map_or(Index::ZERO, |p| p.matched);
        let tick = leader.ticks;
        let before = leader.rounds.insert(node, Round { target, tick });
        before.is_some_and(|round| matched >= round.target && tick - round.tick <= patience)
    }

    /// The leader says that this node cannot be what it asked for.
    pub(super) fn on_join_refused(&mut self, reason: JoinRefusal) {
        if self.wants_to_join() {
            self.pursuit = None;
            self.effects.join_refused = Some(reason);
        }
    }

    /// Whether a leader may log a change now.
    pub(super) fn may_change(&self) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        leader.pending_conf_change <= self.log.applied()
            && leader.transferee.is_none()
            && !leader.is_leaving
            && self.has_committed_in_term()
    }

    pub(super) fn log_change(&mut self, change: &ConfChange) {
        if let Err(reason) = self.append_conf_change(change) {
            tracing::debug!(group = %self.id, %reason, "a change is logged later");
        }
    }
}

impl From<ChangeError> for JoinRefusal {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::TooManyMembers(_) => Self::TooManyMembers,
            ChangeError::NoVoter => Self::LastVoter,
            ChangeError::Overtaken { .. }
            | ChangeError::AlreadyJoint
            | ChangeError::NotJoint
            | ChangeError::NothingToLeave
            | ChangeError::TooManyVoters
            | ChangeError::WitnessStays(_) => Self::OtherRole,
        }
    }
}
