//! The end of a replica: what waits for it is answered, and what is stored of it is deleted.
//!
//! ```text
//! the core says so ─▶ the log forgets the group but its term and vote ─ durable ─▶ apply stage: behind
//! all that it still has of the group ─▶ state and snapshots are deleted ─▶ gone: who waits is told
//! ```
//! Until then the group cannot be created again here: late completions of the old replica would count
//! for the new one. A crash on the way leaves a log that knows no replica; the next start deletes the
//! rest.

use super::joining::Rejoin;
use super::membership::changed_nodes;
use super::{Answer, ApplyTask, BatchInFlight, LeaveReply, Replica, Shard};
use crate::description::{Description, Standing};
use crate::error::{ChangeMembershipError, JoinError, LeaveError, ProposeError, ReadError};
use crate::events::GroupEvent;
use crate::raft::membership::Membership;
use crate::raft::message::{Envelope, Message};
use crate::snapshot::SnapshotDone;
use crate::traits::{GroupWrite, StoredGroup};
use crate::types::{GroupId, HardState, Index, Term};

/// A replica that is being deleted.
pub(super) struct Removing {
    /// Who waits for its end.
    pub leavers: Vec<LeaveReply>,
    /// It was lost, and joins anew then.
    rejoin: Option<Rejoin>,
    /// What is kept of it.
    kept: (HardState, Membership),
    /// The log has forgotten it.
    is_durable: bool,
    /// Work on its snapshots that has not ended yet.
    works: u32,
}

impl Removing {
    /// Whether there is anything that must not be forgotten.
    fn has_promised(&self) -> bool {
        let (hard_state, membership) = &self.kept;
        hard_state.term > Term::ZERO || membership.index > Index::ZERO
    }
}

impl<P, R> Shard<P, R> {
    /// A group that this node has left, as the log holds it.
    pub fn restore_left(&mut self, stored: &StoredGroup, membership: Membership) {
        self.left
            .insert(stored.group, (stored.hard_state, membership));
    }

    /// Ends the replicas of which the last turn said that they may go.
    pub(super) fn remove_leaving(&mut self) {
        if self.fenced.is_some() {
            return;
        }
        for (group, membership) in std::mem::take(&mut self.leaving) {
            if let Some(replica) = self.groups.remove(&group) {
                self.remove(group, replica, membership);
            }
        }
    }

    fn remove(&mut self, group: GroupId, mut replica: Replica<P, R>, membership: Membership) {
        self.dirty.remove(&group);
        self.tell_removal(group, &replica, &membership);
        let works = replica.snapshots.works();
        let leavers = std::mem::take(&mut replica.leavers);
        let rejoin = replica.take_rejoin();
        let hard_state = HardState {
            commit: Index::ZERO,
            ..replica.raft.hard_state()
        };
        self.refuse_all(group, replica);
        for batch in &mut self.in_flight {
            // What they promise to hold is about to go.
            batch.messages.retain(|envelope| envelope.group != group);
        }
        let removing = Removing {
            leavers,
            rejoin,
            kept: (hard_state, membership),
            is_durable: false,
            works,
        };
        let has_promised = removing.has_promised();
        let left = Description {
            standing: Standing::Left,
            is_witness: false,
            membership: removing.kept.1.clone(),
        };
        self.removals.push(GroupWrite {
            remove: true,
            meta: has_promised.then(|| left.encode()),
            hard_state: has_promised.then_some(hard_state),
            ..GroupWrite::new(group)
        });
        self.removing.insert(group, removing);
    }

    fn tell_removal(&mut self, group: GroupId, replica: &Replica<P, R>, membership: &Membership) {
        let old = replica.raft.membership();
        if !replica.raft.is_joining() && old != membership {
            self.out.events.push(GroupEvent::MembershipChanged {
                group,
                membership: membership.clone(),
                changed: changed_nodes(old, membership),
            });
        }
        self.out.events.push(GroupEvent::Left { group });
    }

    /// Whoever waits for something of this replica waits in vain.
    fn refuse_all(&mut self, group: GroupId, replica: Replica<P, R>) {
        for (_, waiter) in replica.proposals.into_values() {
            self.out.refused.push((waiter, ProposeError::Unknown));
        }
        let waiting = replica.reads.into_values().flat_map(|(_, readers)| readers);
        let unserved = replica.unserved.into_iter().map(|(_, reader)| reader);
        for reader in waiting.chain(unserved).chain(replica.arrived) {
            let unknown = Err(ReadError::UnknownGroup(group));
            self.out.reads.push((reader, unknown));
        }
        let changes = replica.changes.into_values().map(|change| change.1);
        let placed = replica.placed_changes.into_values().map(|change| change.1);
        for reply in changes.chain(placed) {
            let unknown = Err(ChangeMembershipError::Unknown);
            self.out.answers.push(Answer::Membership(reply, unknown));
        }
        for (_, reply) in replica.joiners {
            let removed = Err(JoinError::Removed(group));
            self.out.answers.push(Answer::Join(reply, removed));
        }
    }

    /// The log has forgotten these groups.
    pub(super) fn on_removals_durable(&mut self, groups: Vec<GroupId>) {
        for group in groups {
            if let Some(removing) = self.removing.get_mut(&group) {
                removing.is_durable = true;
                self.delete_state(group);
            }
        }
    }

    fn delete_state(&mut self, group: GroupId) {
        let removing = self.removing.get(&group);
        if removing.is_some_and(|removing| removing.is_durable && removing.works == 0) {
            self.out.apply.push(ApplyTask::Remove(group));
        }
    }

    /// Work on a snapshot of a group that is being removed has ended. False: it is not.
    pub(super) fn on_removing_done(&mut self, group: GroupId, done: &SnapshotDone) -> bool {
        let Some(removing) = self.removing.get_mut(&group) else {
            return false;
        };
        match done {
            SnapshotDone::Saved { .. }
            | SnapshotDone::NotSaved
            | SnapshotDone::Restored { .. }
            | SnapshotDone::Lost(_) => {
                removing.works = removing.works.saturating_sub(1);
                self.delete_state(group);
            }
            SnapshotDone::Removed(removed) => {
                self.tell_removed(group, removed);
                self.end_removal(group);
            }
            SnapshotDone::Verified | SnapshotDone::Unusable(_) | SnapshotDone::Forgotten => {}
        }
        true
    }

    fn end_removal(&mut self, group: GroupId) {
        let Some(removing) = self.removing.remove(&group) else {
            return;
        };
        let (_, told) = &removing.kept;
        let told = told.clone();
        if removing.has_promised() {
            self.left.insert(group, removing.kept);
        }
        let leavers = removing.leavers.into_iter();
        let done = leavers.map(|reply| Answer::Leave(reply, Ok(())));
        self.out.answers.extend(done);
        if let Some(rejoin) = removing.rejoin {
            self.rejoin(group, rejoin, told);
        }
    }

    /// Somebody asks, of a group that is not here any more, whether it is a member: who has left tells
    /// by which configuration, for it may be all that the other one can reach.
    pub(super) fn answer_for_left(&mut self, envelope: &Envelope) {
        let Some((_, membership)) = self.left.get(&envelope.group) else {
            return;
        };
        let is_asked = matches!(envelope.message, Message::AmIMember);
        if is_asked && !membership.configuration().contains(envelope.from) {
            let removed = Message::Removed {
                membership: membership.clone(),
                applied: membership.index,
            };
            self.out.send.push(Envelope {
                group: envelope.group,
                from: self.config.node,
                to: envelope.from,
                term: Term::ZERO,
                incarnation: 0,
                message: removed,
            });
        }
    }

    /// The log failed: nothing more is deleted, and nobody may wait for it.
    pub(super) fn fence_removals(&mut self, error: &crate::traits::LogError) {
        for removing in self.removing.values_mut() {
            let leavers = removing.leavers.drain(..);
            let fenced = || Err(LeaveError::Fenced(error.clone()));
            let fenced = leavers.map(|reply| Answer::Leave(reply, fenced()));
            self.out.answers.extend(fenced);
            let rejoin = removing.rejoin.take().into_iter();
            let joiners = rejoin.flat_map(Rejoin::into_joiners);
            let fenced = joiners.map(|r| Answer::Join(r, Err(JoinError::Fenced(error.clone()))));
            self.out.answers.extend(fenced);
        }
    }

    /// What the log is to forget in this turn.
    pub(super) fn take_removals(
        &mut self,
        batch: &mut BatchInFlight,
        writes: &mut Vec<GroupWrite>,
    ) {
        let removals = std::mem::take(&mut self.removals);
        batch
            .removals
            .extend(removals.iter().map(|write| write.group));
        writes.extend(removals);
    }
}
