//! Proposals: appended by the leader, forwarded by everybody else.

use bytes::Bytes;

use super::conf_change::{Change, ConfChange};
use super::effects::{ProposalOutcome, Refusal};
use super::membership::MemberRole;
use super::message::Message;
use super::progress::Wanted;
use super::{Group, OnRemoval, Role};
use crate::block::EntryKind;
use crate::planted;
use crate::types::{Index, NodeId, Term};

/// The most proposals one answer speaks for: far more than a turn forwards, and few enough that a
/// hostile count costs nothing.
const MAX_FORWARDED: u32 = 1 << 16;
/// Entries that a learner may lack and still get a vote: what a leader commits while the change is on
/// its way.
const PROMOTION_LAG: u64 = 1000;

impl Group {
    /// A client here proposes: append, or forward to the leader.
    pub(super) fn on_propose(&mut self, request: u64, payload: Bytes) {
        if matches!(self.role, Role::Leader(_)) {
            let appended = self.append_proposal(EntryKind::Normal, payload);
            self.tell_outcome(request, appended);
            return;
        }
        let Some(leader) = self.leader.filter(|_| !self.leader_lost) else {
            self.refuse_proposal(request, Refusal::NoLeader);
            return;
        };
        if let Some(last) = self.effects.send.last_mut()
            && let Message::Propose {
                first_request,
                payloads,
            } = &mut last.message
            && last.to == leader
            && *first_request + payloads.len() as u64 == request
        {
            payloads.push(payload);
            return;
        }
        let payloads = vec![payload];
        let first_request = request;
        self.send(
            leader,
            Message::Propose {
                first_request,
                payloads,
            },
        );
    }

    /// Somebody here wants another membership.
    pub(super) fn on_propose_conf_change(&mut self, request: u64, change: ConfChange) {
        if matches!(self.role, Role::Leader(_)) {
            let appended = self.append_conf_change(&change);
            self.tell_outcome(request, appended);
        } else if let Some(leader) = self.leader.filter(|_| !self.leader_lost) {
            self.send(leader, Message::ProposeConfChange { request, change });
        } else {
            self.refuse_proposal(request, Refusal::NoLeader);
        }
    }

    fn tell_outcome(&mut self, request: u64, appended: Result<Index, Refusal>) {
        let term = self.hard_state.term;
        match appended {
            Ok(index) => self.effects.proposals.push(ProposalOutcome::Appended {
                request,
                index,
                term,
            }),
            Err(reason) => self.refuse_proposal(request, reason),
        }
    }

    /// A peer's clients propose here.
    pub(super) fn on_forwarded_proposals(
        &mut self,
        from: NodeId,
        first_request: u64,
        payloads: Vec<Bytes>,
    ) {
        let total = payloads.len() as u64;
        let mut first = None;
        let mut count: u32 = 0;
        for payload in payloads {
            let Ok(index) = self.append_proposal(EntryKind::Normal, payload) else {
                break;
            };
            first.get_or_insert(index);
            count += 1;
        }
        if first.is_some() {
            self.answer_proposals(from, first_request, count, first);
        }
        let refused = u32::try_from(total - u64::from(count)).unwrap_or(u32::MAX);
        let Some(first_request) = first_request.checked_add(u64::from(count)) else {
            return;
        };
        if refused > 0 {
            self.answer_proposals(from, first_request, refused, None);
        }
    }

    /// A peer wants another membership.
    pub(super) fn on_forwarded_conf_change(
        &mut self,
        from: NodeId,
        request: u64,
        change: &ConfChange,
    ) {
        let index = self.append_conf_change(change).ok();
        self.answer_proposals(from, request, 1, index);
    }

    fn answer_proposals(
        &mut self,
        to: NodeId,
        first_request: u64,
        count: u32,
        index: Option<Index>,
    ) {
        self.send(
            to,
            Message::ProposeResponse {
                first_request,
                count,
                index,
            },
        );
    }

    /// The leader's word on proposals that we forwarded.
    pub(super) fn on_propose_response(
        &mut self,
        first_request: u64,
        count: u32,
        index: Option<Index>,
        term: Term,
    ) {
        if count > MAX_FORWARDED {
            tracing::warn!(group = %self.id, count, "an answer to more proposals than are ever sent");
            return;
        }
        for i in 0..u64::from(count) {
            let Some(request) = first_request.checked_add(i) else {
                return;
            };
            let outcome = match index.and_then(|first| first.0.checked_add(i)) {
                Some(index) => ProposalOutcome::Appended {
                    request,
                    index: Index(index),
                    term,
                },
                None => ProposalOutcome::Refused {
                    request,
                    reason: Refusal::NoLeader,
                },
            };
            self.effects.proposals.push(outcome);
        }
    }

    pub(super) fn refuse_proposal(&mut self, request: u64, reason: Refusal) {
        self.effects
            .proposals
            .push(ProposalOutcome::Refused { request, reason });
    }

    fn append_proposal(&mut self, kind: EntryKind, payload: Bytes) -> Result<Index, Refusal> {
        if payload.len() > self.limits.proposal_bytes {
            return Err(Refusal::TooLarge);
        }
        let is_member = self.configuration.contains(self.node);
        let Role::Leader(leader) = &mut self.role else {
            return Err(Refusal::NoLeader);
        };
        if !is_member {
            return Err(Refusal::NoLeader); // removed while leading: nothing new from us
        }
        if kind == EntryKind::Normal && leader.survivors.is_some() {
            return Err(Refusal::NoLeader); // not before a quorum of the survivors counts
        }
        if leader.transferee.is_some() || leader.is_leaving {
            return Err(Refusal::Transferring); // the new leader must not lack it (thesis §3.10)
        }
        if self.log.has_unknown_kinds() {
            return Err(Refusal::NoLeader); // not before it knows whether it is leaving
        }
        leader.take_room(
            self.log.applied(),
            payload.len(),
            self.limits.uncommitted_bytes,
        )?;
        let index = self.log.stage(self.hard_state.term, kind, payload);
        leader.note_room(index);
        leader.want_all(Wanted::Append);
        Ok(index)
    }

    /// One that may not be logged now is replaced by an empty command, so that its index tells the
    /// proposer what became of it, wherever it is.
    pub(super) fn append_conf_change(&mut self, change: &ConfChange) -> Result<Index, Refusal> {
        if let Some(reason) = self.why_not(change) {
            tracing::info!(group = %self.id, ?change, reason, "configuration change refused");
            return self.append_proposal(EntryKind::Normal, Bytes::new());
        }
        let index = self.append_proposal(EntryKind::ConfChange, change.encode())?;
        let next = self.membership.changed(change, index);
        let loses_vote = next.is_ok_and(|m| !m.configuration().votes(self.node));
        if let Role::Leader(leader) = &mut self.role {
            leader.pending_conf_change = index;
            leader.is_leaving = loses_vote && self.limits.on_removal == OnRemoval::StepDown;
        }
        Ok(index)
    }

    /// One at a time (thesis §4.1), into joint and out again, and none that cannot apply.
    fn why_not(&self, change: &ConfChange) -> Option<&'static str> {
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        if self.limits.unchecked_conf_changes {
            return None;
        }
        if leader.pending_conf_change > self.log.applied() && !planted!("B13") {
            return Some("an earlier change may not be applied yet");
        }
        if leader.survivors.is_some() && self.next_shrinking().as_ref() != Some(change) {
            return Some("the group is being shrunk to its survivors");
        }
        match (self.configuration.is_joint(), change.changes.is_empty()) {
            (true, false) => return Some("the joint configuration must be left first"),
            (false, true) => return Some("there is no joint configuration to leave"),
            (true, true) | (false, false) => {}
        }
        if let [Change::Voter(id)] = change.changes[..]
            && self.lags_too_much(id)
        {
            return Some("the learner lacks too much: its vote would only make quorums slower");
        }
        let next = self.membership.changed(change, self.log.last().next());
        next.err().map(|_| "it does not apply to this membership")
    }

    /// Whether this member is a learner that a leader should not give a vote yet (thesis §4.2.1).
    fn lags_too_much(&self, id: NodeId) -> bool {
        let is_learner =
            self.membership.members.get(&id).map(|m| m.role) == Some(MemberRole::Learner);
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let Some(peer) = leader.peers.get(&id).filter(|_| is_learner) else {
            return false;
        };
        let is_near = self.log.commit().0 <= peer.matched.0 + PROMOTION_LAG;
        !is_near || peer.state_missing.is_some()
    }
}
