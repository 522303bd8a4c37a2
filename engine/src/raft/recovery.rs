//! Shrinking a group that has lost its quorum for good to those of its members that are left.
//!
//! No rule of Raft allows this: what only the lost members held is gone, even if it was acknowledged, and
//! a lost member that comes back with its old data may form a second group with others like it. So it
//! happens only when an operator asks for it, on the survivor with the most complete log:
//!
//! 1. It takes a term that no lost member can have reached ([`TERM_LEAP`]), and makes it and its own vote
//!    durable before it speaks: two leaders of one term are impossible even if it crashes and is asked
//!    again.
//! 2. It leads without votes. What its own disk has counts as committed, and it speaks to survivors only;
//!    it takes no proposals, and reads find no quorum.
//! 3. It removes the others by ordinary changes, one after the other, each an entry of the log: so every
//!    survivor comes to the same membership by the same way, and whoever lacks entries gets them as usual.
//! 4. Only survivors are left: from here on the rules hold again.
//!
//! A survivor's committed entries are all in a log that is at least as complete by the rule of votes (Raft
//! §5.4.1): the entry was held by a quorum, so by every leader of a later term (§5.4.3), and the last
//! entry of the better log is of such a term, or of the same term and behind it (§5.3).

use std::collections::BTreeSet;

use super::candidate::Candidate;
use super::conf_change::{Change, ConfChange, Transition};
use super::membership::MemberRole;
use super::{Group, Role};
use crate::types::{Index, NodeId, Term};

/// How many terms ahead the new leader goes. Lost members that still live could have gone on through some
/// terms, one in each election timeout; they do not come that far in a day.
pub const TERM_LEAP: u64 = 1 << 20;

/// What an operator has seen of a replica before deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which configuration, by [`super::membership::Membership::index`].
    pub membership: Index,
    /// The end of its log.
    pub last: (Index, Term),
}

/// Why a group is not recovered by this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum RecoveryRefusal {
    #[error(
        "node {0} leads the group in this node's eyes: it needs no recovery, or try again later"
    )]
    HasLeader(NodeId),
    #[error("node {0} is no member of the group, so it cannot be a survivor")]
    NotAMember(NodeId),
    #[error("this node is not among the survivors")]
    NotASurvivor,
    #[error("this node is a witness: it has no data to go on with; ask a survivor that has")]
    NoData,
    #[error("this node waits for the group's state itself; ask a survivor that has it")]
    NoState,
    #[error("this node's log ends with its own removal; ask another survivor")]
    Leaving,
    #[error("the replica has changed since it was looked at: look again")]
    Changed,
    #[error("the group's term has come to its end")]
    LastTerm,
}

impl Group {
    /// What an operator is to have seen of this replica to decide now.
    pub fn seen(&self) -> Seen {
        Seen {
            membership: self.membership.index,
            last: (self.log.last(), self.log.last_term()),
        }
    }

    /// Whether this replica may go on with only these members.
    ///
    /// # Errors
    /// Each variant of [`RecoveryRefusal`] says what to do instead.
    pub fn check_recovery(
        &self,
        survivors: &BTreeSet<NodeId>,
        seen: Seen,
    ) -> Result<(), RecoveryRefusal> {
        if let Some(leader) = self.leader {
            return Err(RecoveryRefusal::HasLeader(leader));
        }
        let members = &self.membership.members;
        let is_stranger = |id: &&NodeId| !members.contains_key(id);
        if let Some(&stranger) = survivors.iter().find(is_stranger) {
            return Err(RecoveryRefusal::NotAMember(stranger));
        }
        if !survivors.contains(&self.node) {
            return Err(RecoveryRefusal::NotASurvivor);
        }
        let role = members.get(&self.node).map(|member| member.role);
        if role == Some(MemberRole::Witness) {
            return Err(RecoveryRefusal::NoData);
        }
        let is_waiting = self.log.is_state_missing() || self.log.has_pending_snapshot();
        if self.is_joining || is_waiting || self.is_amnesiac() {
            return Err(RecoveryRefusal::NoState);
        }
        let next = self.pending_configuration();
        if next.is_some_and(|(_, next)| !next.contains(self.node)) {
            return Err(RecoveryRefusal::Leaving);
        }
        if seen != self.seen() {
            return Err(RecoveryRefusal::Changed);
        }
        if self.hard_state.term.0 >= u64::MAX / 2 {
            return Err(RecoveryRefusal::LastTerm);
        }
        Ok(())
    }

    /// Goes on with only these members, unless [`Group::check_recovery`] says no.
    pub(super) fn on_recover(&mut self, survivors: BTreeSet<NodeId>) {
        if let Err(reason) = self.check_recovery(&survivors, self.seen()) {
            tracing::error!(group = %self.id, %reason, "no recovery");
            return;
        }
        tracing::warn!(group = %self.id, ?survivors, "goes on without its quorum: an operator says so");
        self.hard_state.term = Term(self.hard_state.term.0 + TERM_LEAP);
        self.hard_state.vote = Some(self.node);
        self.role = Role::Candidate(Candidate::without_quorum(survivors));
        self.set_leader(None);
        self.reset_election_timer();
    }

    /// The term and our vote in it are durable: leads without the votes of others.
    pub(super) fn lead_survivors(&mut self, survivors: BTreeSet<NodeId>) {
        self.become_leader();
        if let Role::Leader(leader) = &mut self.role {
            leader.peers.retain(|id, _| survivors.contains(id));
            leader.survivors = Some(survivors);
        }
    }

    /// One step towards a group of the survivors only, if an earlier one is done.
    pub(super) fn shrink(&mut self) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if leader.survivors.is_none() || !self.may_change() {
            return;
        }
        if let Some(change) = self.next_shrinking() {
            self.log_change(&change);
            return;
        }
        tracing::warn!(group = %self.id, membership = ?self.membership, "has recovered");
        if let Role::Leader(leader) = &mut self.role {
            leader.survivors = None;
            leader.want_all(super::progress::Wanted::Append);
        }
    }

    /// The change that a leader of survivors has to make next: leave a joint configuration, get a vote if
    /// it has none, remove one who is lost. `None` also for every other leader.
    pub(super) fn next_shrinking(&self) -> Option<ConfChange> {
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        let survivors = leader.survivors.as_ref()?;
        if self.configuration.is_joint() {
            return Some(ConfChange::default());
        }
        let change = if self.configuration.votes(self.node) {
            let mut all = self.membership.members.keys();
            Change::Remove(*all.find(|id| !survivors.contains(id))?)
        } else {
            Change::Voter(self.node)
        };
        Some(ConfChange::new(Transition::Auto, vec![change]))
    }
}
