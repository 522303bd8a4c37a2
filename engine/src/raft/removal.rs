//! How a replica learns that it was removed, and when it may go.
//!
//! Who is removed may never get the entry that says so: the leader stops sending to it. So a replica
//! that hears from no leader, or that is no member by its own word, asks the others: *am I a member?*
//! ([`Message::AmIMember`]); who has applied a configuration without it tells so
//! ([`Message::Removed`]). Until it may go it answers as before. Else:
//!
//! 1. Leader 1 of {1, 2} removes itself. Both hold the entry: it is committed, and 1 applies it.
//! 2. Node 1 deletes its replica. Node 2 does not know that the entry is committed.
//! 3. Node 2 campaigns in {1, 2} and needs the vote of 1, for ever.
//!
//! So a replica goes when a quorum of the newest configuration that it was told of has told it of that
//! one: these have applied the removal, durably, and can go on by themselves. Whatever the group
//! committed before, they hold, so nothing is lost with the one that goes.
//!
//! It must not go by the word of those who do not know that it came back. Who tells says up to where
//! it has applied, and a replica believes nobody who has not applied the last change of the membership
//! that it holds itself: it acknowledges entries of a configuration only behind the change that made it.

use std::collections::BTreeSet;

use super::membership::Membership;
use super::message::Message;
use super::quorum::{VoteResult, joint_vote};
use super::{Group, Role};
use crate::types::{Index, NodeId};

/// Election timeouts of silence after which a member asks whether it still is one.
const PATIENCE: u32 = 3;

/// What a replica was told of configurations without it.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    newest: Membership,
    told: BTreeSet<NodeId>,
    /// Where changes are in our own log has to be known first.
    needs_kinds: bool,
}

impl Farewell {
    /// Whether it has to be known where changes are in the log.
    pub(super) fn needs_kinds(&self) -> bool {
        self.needs_kinds
    }

    /// Whether anybody has told of a configuration without us.
    pub(super) fn has_begun(&self) -> bool {
        !self.told.is_empty()
    }
}

impl Group {
    /// Asks the others whether this replica still is a member, if there is reason to doubt it.
    pub(super) fn maybe_ask(&mut self) {
        let election = self.limits.election_ticks;
        let period = if self.is_stranger() {
            (election / 3).max(1)
        } else {
            PATIENCE * election
        };
        let is_due = self.silence > 0 && self.silence.is_multiple_of(period);
        if !is_due || self.wants_to_join() || self.is_lost() {
            return;
        }
        for to in self.known_others() {
            self.send(to, Message::AmIMember);
        }
    }

    /// All others who are members by what is known here, or by what was told.
    pub(super) fn known_others(&self) -> BTreeSet<NodeId> {
        let mut all = self.configuration.all();
        all.extend(self.farewell.newest.configuration().all());
        all.extend(self.lost.iter().flat_map(|lost| &lost.others));
        all.remove(&self.node);
        all
    }

    /// Whether this replica is no member by its own word.
    fn is_stranger(&self) -> bool {
        self.is_joining || !self.configuration.contains(self.node)
    }

    /// Tells who asks that it is no member, if that is so; once what says so is durable here.
    pub(super) fn on_am_i_member(&mut self, from: NodeId) {
        if self.is_joining || self.configuration.contains(from) {
            return;
        }
        let removed = Message::Removed {
            membership: self.membership.clone(),
            applied: self.log.applied(),
        };
        self.promise(from, removed);
    }

    /// A member has applied a configuration without us, and everything up to `applied`.
    pub(super) fn on_removed(&mut self, from: NodeId, membership: Membership, applied: Index) {
        let is_old = if self.is_stranger() {
            membership.index < self.membership.index
        } else {
            membership.index <= self.membership.index
        };
        let configuration = membership.configuration();
        let is_group = !configuration.voters.is_empty() && membership.index <= applied;
        let is_without_us = is_group && !configuration.contains(self.node);
        let comes_back = self.wants_to_join() && !self.is_lost();
        if is_old || !is_without_us || comes_back || self.may_have_forgotten(applied) {
            return;
        }
        self.farewell.needs_kinds = self.log.has_unknown_kinds();
        if self.farewell.needs_kinds || self.log.last_conf_change() > applied {
            return; // it asks again
        }
        let addresses = membership.addresses();
        let addresses = addresses.map(|(id, address)| (id, address.clone()));
        self.effects.learned.extend(addresses);
        if self.farewell.told.is_empty() || membership.index > self.farewell.newest.index {
            self.farewell = Farewell {
                newest: membership,
                told: BTreeSet::from([from]),
                needs_kinds: false,
            };
        } else if membership.index == self.farewell.newest.index {
            self.farewell.told.insert(from);
        }
        self.maybe_go();
    }

    fn maybe_go(&mut self) {
        let Farewell { newest, told, .. } = &self.farewell;
        let configuration = newest.configuration();
        let is_told = |id| told.contains(&id).then_some(true);
        if joint_vote(configuration.halves(), is_told) != VoteResult::Won {
            return;
        }
        let newest = newest.clone();
        if matches!(self.role, Role::Leader(_)) {
            self.become_follower(self.hard_state.term, None);
        }
        self.effects.left = Some(newest);
    }
}
