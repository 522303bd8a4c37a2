//! What every replica does with a message before its role does: who may speak, and the rules of terms
//! (Raft Figure 2, all servers).

use super::Group;
use super::effects::{ReadOutcome, Refusal};
use super::message::{Envelope, Message};
use super::read_index::ReadMode;
use crate::planted;
use crate::types::{Index, NodeId, Term};

impl Group {
    pub(super) fn on_message(&mut self, envelope: Envelope) {
        if self.is_lost() {
            self.on_message_while_lost(envelope);
            return;
        }
        // Who is new learns of its group from requests of strangers; answers come from those asked.
        let is_known =
            !envelope.message.is_response() || self.configuration.contains(envelope.from);
        if envelope.to != self.node || envelope.from == self.node || !is_known {
            tracing::debug!(group = %self.id, from = %envelope.from, "message from no member");
            return;
        }
        if !self.is_admitted(&envelope) {
            tracing::debug!(group = %self.id, from = %envelope.from, "message of a member's other life");
            return;
        }
        let Envelope {
            from,
            term,
            message,
            ..
        } = envelope;
        match message {
            Message::Propose {
                first_request,
                payloads,
            } => {
                self.on_forwarded_proposals(from, first_request, payloads);
            }
            Message::ProposeResponse {
                first_request,
                count,
                index,
            } => {
                self.on_propose_response(first_request, count, index, term);
            }
            Message::ReadIndex { request } => self.on_forwarded_read(from, request),
            Message::ReadIndexResponse { request, index } => {
                let index = index.ok_or(Refusal::NoLeader);
                self.effects.reads.push(ReadOutcome { request, index });
            }
            Message::ProposeConfChange { request, change } => {
                self.on_forwarded_conf_change(from, request, &change);
            }
            Message::TransferLeadership { to } => self.on_transfer(to),
            Message::AmIMember => self.on_am_i_member(from),
            Message::Removed {
                membership,
                applied,
            } => self.on_removed(from, membership, applied),
            Message::Join(request) => self.on_join(from, request),
            Message::JoinRefused(reason) => self.on_join_refused(reason),
            Message::PreVote(_)
            | Message::PreVoteResponse { .. }
            | Message::RequestVote(_)
            | Message::RequestVoteResponse { .. }
            | Message::AppendEntries { .. }
            | Message::AppendEntriesResponse(_)
            | Message::Heartbeat { .. }
            | Message::HeartbeatResponse { .. }
            | Message::InstallSnapshot { .. }
            | Message::TimeoutNow => self.on_term_message(from, term, message),
        }
    }

    /// The rules that all servers follow (Raft Figure 2): newer terms rule, older ones are told so.
    fn on_term_message(&mut self, from: NodeId, term: Term, message: Message) {
        if term == Term(u64::MAX) {
            return; // nothing could follow it: no honest peer gets there
        }
        if term > self.hard_state.term && !self.enter_newer_term(from, term, &message) {
            return;
        }
        if term < self.hard_state.term {
            self.on_old_term(from, &message);
            return;
        }
        match message {
            Message::PreVote(request) => self.on_pre_vote(from, term, request),
            Message::RequestVote(request) => self.on_request_vote(from, request),
            Message::PreVoteResponse { granted } => self.on_pre_vote_response(from, granted),
            Message::RequestVoteResponse {
                granted,
                last_index,
                last_term,
            } => self.on_vote_response(from, granted, (last_index, last_term)),
            Message::InstallSnapshot { snapshot } => self.on_install_snapshot(from, snapshot),
            Message::AppendEntries {
                prev_index,
                prev_term,
                commit,
                blocks,
            } => {
                self.on_append(from, prev_index, prev_term, commit, &blocks);
            }
            Message::Heartbeat { commit, read_round } => {
                self.on_heartbeat(from, commit, read_round);
            }
            Message::AppendEntriesResponse(response) => self.on_append_response(from, response),
            Message::HeartbeatResponse { read_round } => {
                self.on_heartbeat_response(from, read_round);
            }
            Message::TimeoutNow => self.on_timeout_now(),
            Message::Propose { .. }
            | Message::ProposeResponse { .. }
            | Message::ProposeConfChange { .. }
            | Message::TransferLeadership { .. }
            | Message::AmIMember
            | Message::Removed { .. }
            | Message::Join(_)
            | Message::JoinRefused(_)
            | Message::ReadIndex { .. }
            | Message::ReadIndexResponse { .. } => {
                unreachable!("forwarded requests belong to no term")
            }
        }
    }

    /// A message of a newer term. Returns whether it is still to be handled.
    fn enter_newer_term(&mut self, from: NodeId, term: Term, message: &Message) -> bool {
        match message {
            Message::PreVote(request) | Message::RequestVote(request)
                if !request.transfer && self.leader_is_alive() && !planted!("B17") =>
            {
                false // thesis §4.2.3: a removed or cut-off server must not disturb the others
            }
            Message::PreVote(request) => {
                self.on_pre_vote(from, term, *request); // promises nothing, so changes nothing
                false
            }
            Message::PreVoteResponse { granted: true } => {
                self.on_pre_vote_response_ahead(from, term);
                false
            }
            Message::AppendEntries { .. }
            | Message::Heartbeat { .. }
            | Message::InstallSnapshot { .. } => {
                self.become_follower(term, Some(from));
                true
            }
            Message::PreVoteResponse { granted: false }
            | Message::RequestVote(_)
            | Message::RequestVoteResponse { .. }
            | Message::AppendEntriesResponse(_)
            | Message::HeartbeatResponse { .. }
            | Message::TimeoutNow
            | Message::Propose { .. }
            | Message::ProposeResponse { .. }
            | Message::ProposeConfChange { .. }
            | Message::TransferLeadership { .. }
            | Message::AmIMember
            | Message::Removed { .. }
            | Message::Join(_)
            | Message::JoinRefused(_)
            | Message::ReadIndex { .. }
            | Message::ReadIndexResponse { .. } => {
                self.become_follower(term, None);
                true
            }
        }
    }

    /// A message of an old term. Its sender learns the newer one, or with pre-vote and
    /// check-quorum it could wait for ever: a node that came back with a higher term ignores the
    /// leader, and the others ignore its campaigns.
    fn on_old_term(&mut self, from: NodeId, message: &Message) {
        match message {
            Message::AppendEntries { .. } | Message::Heartbeat { .. } => {
                let is_told = self.limits.check_quorum || self.limits.pre_vote;
                if is_told && !planted!("B16") {
                    self.accept_up_to(from, Index::ZERO); // only its term matters
                }
            }
            Message::PreVote(_) => self.send(from, Message::PreVoteResponse { granted: false }),
            // Or two that campaign by turns, one always a few terms behind, could do so for ever.
            Message::RequestVote(request) => {
                let response = Message::RequestVoteResponse {
                    granted: false,
                    last_index: request.last_index,
                    last_term: request.last_term,
                };
                self.send(from, response);
            }
            Message::PreVoteResponse { .. }
            | Message::RequestVoteResponse { .. }
            | Message::AppendEntriesResponse(_)
            | Message::HeartbeatResponse { .. }
            | Message::TimeoutNow
            | Message::InstallSnapshot { .. }
            | Message::Propose { .. }
            | Message::ProposeResponse { .. }
            | Message::ProposeConfChange { .. }
            | Message::TransferLeadership { .. }
            | Message::AmIMember
            | Message::Removed { .. }
            | Message::Join(_)
            | Message::JoinRefused(_)
            | Message::ReadIndex { .. }
            | Message::ReadIndexResponse { .. } => {}
        }
    }

    /// Whether a leader may live that counts on our patience (thesis §6.2, §4.2.3). After a start we
    /// do not know whom we heard: with leases there may be one.
    fn leader_is_alive(&self) -> bool {
        let may_have_forgotten =
            self.limits.reads != ReadMode::Index && self.age < self.limits.election_ticks;
        let is_heard = self.leader.is_some()
            && !self.leader_lost
            && self.election_elapsed < self.limits.election_ticks;
        self.limits.check_quorum && (is_heard || may_have_forgotten)
    }
}
