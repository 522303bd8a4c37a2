//! Joining running groups, and the wish to leave them: who asked, and when it is answered.

use super::{Answer, JoinReply, LeaveReply, Replica, Shard};
use crate::description::{Description, Standing};
use crate::error::{JoinError, LeaveError};
use crate::raft::effects::Input;
use crate::raft::joining::Wish;
use crate::raft::membership::{Member, MemberRole, Membership};
use crate::raft::message::JoinRefusal;
use crate::types::{GroupId, NodeId};

/// A lost replica comes back as soon as it is gone.
pub(super) struct Rejoin {
    /// What it is to be.
    place: Member,
    /// Who waits for that.
    joiners: Vec<(Member, JoinReply)>,
}

impl Rejoin {
    /// Who waits, if nothing comes of it.
    pub(super) fn into_joiners(self) -> impl Iterator<Item = JoinReply> {
        self.joiners.into_iter().map(|(_, reply)| reply)
    }
}

impl<P, R> Replica<P, R> {
    /// What is left to do for this replica when it is gone.
    pub(super) fn take_rejoin(&mut self) -> Option<Rejoin> {
        let place = self.raft.wished_place().filter(|_| self.raft.is_lost())?;
        let joiners = std::mem::take(&mut self.joiners);
        Some(Rejoin { place, joiners })
    }

    /// Why this replica's node cannot leave, if so: somebody with data and a vote must stay.
    fn why_not_leave(&self) -> Option<LeaveError> {
        let membership = self.raft.membership();
        let own = self.raft.node();
        let mut others = membership.members.iter().filter(|(id, _)| **id != own);
        let is_alone = others.clone().next().is_none();
        let has_heir = others.any(|(_, member)| member.role == MemberRole::Voter);
        (!is_alone && !has_heir).then_some(LeaveError::LastVoter)
    }
}

impl<P, R> Shard<P, R> {
    /// This node wants to be a member of a running group, in the role it has in this membership; the
    /// others in it are those to ask.
    pub(super) fn on_join(&mut self, group: GroupId, membership: Membership, reply: JoinReply) {
        let member = match self.check_join(group, &membership) {
            Ok(member) => member,
            Err(error) => {
                self.out.answers.push(Answer::Join(reply, Err(error)));
                return;
            }
        };
        let named: Vec<NodeId> = membership.members.keys().copied().collect();
        if !self.groups.contains_key(&group) {
            self.create_joining(group, membership, member.role);
        }
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.raft.hear_of(named);
            replica.joiners.push((member.clone(), reply));
        }
        self.step(group, Input::Wish(Some(Wish::Join(member))));
    }

    fn check_join(&self, group: GroupId, membership: &Membership) -> Result<Member, JoinError> {
        if let Some(error) = &self.fenced {
            return Err(JoinError::Fenced(error.clone()));
        }
        membership.check()?;
        let own = membership.members.get(&self.config.node);
        let own = own.ok_or(JoinError::NotAMember)?;
        if membership.members.len() == 1 {
            return Err(JoinError::NobodyToAsk);
        }
        if self.removing.contains_key(&group) || self.leaving.contains_key(&group) {
            return Err(JoinError::Leaving(group));
        }
        let present = self.groups.get(&group).filter(|r| !r.raft.is_joining());
        let present = present.and_then(|r| r.raft.membership().members.get(&self.config.node));
        match present.map(|member| member.role) {
            Some(role) if role == own.role => {}
            None if self.log.has_room() || self.groups.contains_key(&group) => {}
            None => return Err(JoinError::DiskFull),
            Some(MemberRole::Learner) if own.role == MemberRole::Voter => {}
            Some(_) => return Err(JoinError::Refused(JoinRefusal::OtherRole)),
        }
        Ok(own.clone())
    }

    /// A replica that waits for the group's state. If it was here before, its term and vote still
    /// count, and the configuration by which it left.
    pub(super) fn create_joining(
        &mut self,
        group: GroupId,
        mut membership: Membership,
        role: MemberRole,
    ) {
        let (hard_state, gone) = self.left.remove(&group).unwrap_or_default();
        membership.index = gone.index;
        let description = Description {
            standing: Standing::Joining,
            is_witness: role == MemberRole::Witness,
            membership,
        };
        self.create(group, description, hard_state, None);
    }

    /// What a lost replica wants by itself: the place that it had, as far as it is known.
    pub(super) fn wish_of_lost(&self, group: GroupId) -> Option<Wish> {
        let replica = self.groups.get(&group);
        let lost = replica.filter(|replica| replica.raft.is_lost())?;
        let place = lost.raft.membership().members.get(&self.config.node);
        place.cloned().map(Wish::Join)
    }

    /// The group goes on without the lost replica that was here: it joins anew.
    pub(super) fn rejoin(&mut self, group: GroupId, rejoin: Rejoin, mut told: Membership) {
        let Rejoin { place, joiners } = rejoin;
        told.members.insert(self.config.node, place.clone());
        self.create_joining(group, told, place.role);
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.joiners = joiners;
        }
        self.step(group, Input::Wish(Some(Wish::Join(place))));
    }

    /// This node wants to leave a group. Answered when nothing of it is left here.
    pub(super) fn on_leave(&mut self, group: GroupId, reply: LeaveReply) {
        if let Some(error) = &self.fenced {
            let fenced = Err(LeaveError::Fenced(error.clone()));
            self.out.answers.push(Answer::Leave(reply, fenced));
            return;
        }
        if let Some(removing) = self.removing.get_mut(&group) {
            removing.leavers.push(reply);
            return;
        }
        let Some(replica) = self.groups.get_mut(&group) else {
            let has_left = self.left.contains_key(&group);
            let result = has_left.then_some(()).ok_or(LeaveError::NotAMember(group));
            self.out.answers.push(Answer::Leave(reply, result));
            return;
        };
        if let Some(error) = replica.why_not_leave() {
            self.out.answers.push(Answer::Leave(reply, Err(error)));
            return;
        }
        replica.leavers.push(reply);
        if replica.raft.is_joining() && !replica.raft.is_lost() {
            self.go(group);
        } else {
            self.step(group, Input::Wish(Some(Wish::Leave)));
        }
    }

    /// Nobody waits any more for this node's joining or leaving. A replica that no leader has spoken to
    /// yet goes; one that is a member already goes on catching up.
    pub(super) fn on_give_up(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        replica.joiners.clear();
        replica.leavers.clear();
        let is_waiting = replica.raft.is_joining() && !replica.raft.is_lost();
        let is_forlorn = is_waiting && replica.raft.leader().is_none();
        self.step(group, Input::Wish(self.wish_of_lost(group)));
        if is_forlorn {
            self.go(group);
        }
    }

    /// A replica that waits for its state has promised nothing but its vote: it may go at any time.
    fn go(&mut self, group: GroupId) {
        if let Some(replica) = self.groups.get(&group) {
            let membership = replica.raft.membership().clone();
            self.leaving.insert(group, membership);
            self.out.wants_turn = true;
        }
    }

    /// Tells those who wait for this node to have its place.
    pub(super) fn answer_joiners(&mut self, group: GroupId, refused: Option<JoinRefusal>) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        if let Some(reason) = refused {
            let refused = replica.joiners.drain(..);
            let refused = refused.map(|(_, reply)| Answer::Join(reply, Err(reason.into())));
            self.out.answers.extend(refused);
            self.on_give_up(group);
            return;
        }
        let raft = &replica.raft;
        let joined = replica
            .joiners
            .extract_if(.., |(place, _)| raft.has_place(place));
        let joined = joined.map(|(_, reply)| Answer::Join(reply, Ok(())));
        self.out.answers.extend(joined);
    }
}
