//! Configuration changes on their way from the log into the core, the log's description and events.
//!
//! A change counts from the moment when the apply stage comes to it. In this order:
//! 1. the core hands its entry out: it and everything behind it is held back;
//! 2. the next turn tells the core, and writes the new membership to the log;
//! 3. that is durable: the held entries go to the state machine.
//!
//! Were they applied earlier, a crash could leave a machine that has applied the change beside a
//! description without it, and the change would be lost: nobody applies it again.

use super::{Answer, ApplyTask, MembershipReply, Shard};
use crate::block::{Block, EntryKind};
use crate::error::ChangeMembershipError;
use crate::events::GroupEvent;
use crate::raft::conf_change::ConfChange;
use crate::raft::effects::Input;
use crate::raft::membership::Membership;
use crate::types::{GroupId, Index, NodeId, Term};

impl<P, R> Shard<P, R> {
    /// Somebody here wants another membership: the leader logs it, or not.
    pub(super) fn on_change_membership(
        &mut self,
        group: GroupId,
        change: ConfChange,
        reply: MembershipReply,
    ) {
        let error = match &self.fenced {
            Some(error) => ChangeMembershipError::Fenced(error.clone()),
            None => ChangeMembershipError::UnknownGroup(group),
        };
        let replica = self.groups.get_mut(&group);
        let Some(replica) = replica.filter(|_| self.fenced.is_none()) else {
            self.out.answers.push(Answer::Membership(reply, Err(error)));
            return;
        };
        let request = self.next_request;
        self.next_request += 1;
        replica.changes.insert(request, (self.ticks, reply));
        replica
            .raft
            .step(Input::ProposeConfChange { request, change });
        self.dirty.insert(group);
    }

    /// Hands committed blocks to the apply stage, but holds back those behind a change.
    pub(super) fn apply(&mut self, group: GroupId, blocks: Vec<Block>) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        if blocks.is_empty() {
            return;
        }
        let is_witness = replica.is_witness;
        if blocks.iter().any(Block::has_conf_change) {
            replica.due.extend(changes(&blocks));
            replica.held.get_or_insert_default();
            self.out.wants_turn = true;
        } else if !replica.placed_changes.is_empty() {
            // An empty command in a change's place: the leader refused it.
            let end = blocks.last().map_or(Index::ZERO, Block::last);
            self.refuse_changes(group, end);
        }
        let bytes = blocks.iter().map(|block| block.bytes().len()).sum();
        let task = match blocks.last().map(Block::last) {
            Some(last) if is_witness => ApplyTask::Pass(group, last),
            Some(_) | None => ApplyTask::Apply(group, blocks),
        };
        let held = self.groups.get_mut(&group).and_then(|r| r.held.as_mut());
        match held {
            Some(held) => held.push(task),
            None => self.out.apply.push(task),
        }
        self.note_applying(group, bytes);
    }

    /// Step 2, for all groups that came to a change in the last turn.
    pub(super) fn change_memberships(&mut self) {
        let has_due = |(_, replica): &(&GroupId, &super::Replica<P, R>)| !replica.due.is_empty();
        let groups = self.groups.iter().filter(has_due);
        let groups: Vec<GroupId> = groups.map(|(&group, _)| group).collect();
        for group in groups {
            self.change_membership(group);
        }
    }

    fn change_membership(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let before = replica.raft.membership().index;
        let mut end = Index::ZERO;
        for (index, change) in std::mem::take(&mut replica.due) {
            let old = replica.raft.membership().clone();
            replica.raft.step(Input::ConfChange(index, change));
            replica.follow_role();
            let membership = replica.raft.membership();
            if *membership != old {
                self.out.events.push(GroupEvent::MembershipChanged {
                    group,
                    membership: membership.clone(),
                    changed: changed_nodes(&old, membership),
                });
                if let Some((_, reply)) = replica.placed_changes.remove(&index) {
                    let answer = Answer::Membership(reply, Ok(membership.clone()));
                    self.out.answers.push(answer);
                }
            }
            end = index;
        }
        let after = replica.raft.membership();
        if after.index == before {
            self.release_applies(group);
        } else {
            replica.meta_writes += 1;
            let meta = replica.description().encode();
            self.memberships.insert(group, meta);
        }
        self.dirty.insert(group);
        self.refuse_changes(group, end);
    }

    /// Changes placed up to `end` that did not take effect by now never will.
    fn refuse_changes(&mut self, group: GroupId, end: Index) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let later = replica.placed_changes.split_off(&end.next());
        let refused = std::mem::replace(&mut replica.placed_changes, later);
        let refused = refused.into_values().map(|(_, reply): (Term, _)| reply);
        let refused =
            refused.map(|reply| Answer::Membership(reply, Err(ChangeMembershipError::Refused)));
        self.out.answers.extend(refused);
    }

    /// A membership of this group is durable.
    pub(super) fn on_membership_durable(&mut self, group: GroupId) {
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.meta_writes -= 1;
        }
        self.release_applies(group);
    }

    /// Step 3, once no change before the held entries is on its way.
    fn release_applies(&mut self, group: GroupId) {
        if let Some(replica) = self.groups.get_mut(&group)
            && replica.due.is_empty()
            && replica.meta_writes == 0
        {
            let held = replica.held.take().unwrap_or_default();
            self.out.apply.extend(held);
            self.maybe_save(group);
        }
    }
}

/// The changes in these blocks. One that does not decode has no effect, on any replica.
fn changes(blocks: &[Block]) -> Vec<(Index, ConfChange)> {
    let blocks = blocks.iter().filter(|block| block.has_conf_change());
    let entries = blocks.flat_map(|block| block.entries().collect::<Vec<_>>());
    let changes = entries.filter(|entry| entry.kind == EntryKind::ConfChange);
    changes
        .filter_map(|entry| Some((entry.index, ConfChange::decode(&entry.payload).ok()?)))
        .collect()
}

/// Who came, went, or has another role or address.
pub(super) fn changed_nodes(old: &Membership, new: &Membership) -> Vec<NodeId> {
    let all = old.members.keys().chain(new.members.keys());
    let mut changed: Vec<NodeId> = all
        .copied()
        .filter(|id| old.members.get(id) != new.members.get(id))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}
