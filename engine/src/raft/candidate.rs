//! Elections: campaigning, voting, counting (Raft §5.2, §5.4.1; pre-vote thesis §9.6).

use std::collections::{BTreeMap, BTreeSet};

use super::message::{Message, VoteRequest};
use super::quorum::{VoteResult, joint_vote};
use super::{Group, Role};
use crate::planted;
use crate::types::{Index, NodeId, Term};

/// The votes heard in a campaign, or in the question before it.
#[derive(Debug, Default)]
pub struct Candidate {
    votes: BTreeMap<NodeId, bool>,
    /// Our own vote is tied to a write. Like any other it counts when it is durable; in a pre-vote
    /// when everything before it is.
    pub(super) is_own_vote_queued: bool,
    /// An operator says that these are all who are left: no other vote is asked for or counted.
    survivors: Option<BTreeSet<NodeId>>,
}

impl Candidate {
    /// One that goes on with only these.
    pub(super) fn without_quorum(survivors: BTreeSet<NodeId>) -> Self {
        Self {
            survivors: Some(survivors),
            ..Self::default()
        }
    }
}

/// Our vote for ourselves in a campaign of this term, or in the question before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnVote {
    /// The question.
    Pre(Term),
    /// The campaign.
    Real(Term),
}

impl Group {
    /// Starts an election, or with pre-vote asks whether one could be won, if this replica may.
    pub(super) fn campaign(&mut self) {
        if !self.may_campaign() {
            return;
        }
        if self.limits.pre_vote {
            self.become_pre_candidate();
        } else {
            self.become_candidate(false);
        }
    }

    /// Not a learner, a witness or a stranger; not while a snapshot is on its way in; and not with a
    /// committed configuration change that is not applied: see [`super::conf_change`].
    fn may_campaign(&self) -> bool {
        !matches!(self.role, Role::Leader(_))
            && self.may_lead()
            && !self.is_amnesiac()
            && !self.log.has_unapplied_conf_change()
    }

    /// Whether this replica could be a leader by its role and data.
    pub(super) fn may_lead(&self) -> bool {
        let has_state = !self.is_joining && !self.log.has_pending_snapshot();
        self.configuration.may_lead(self.node) && has_state
    }

    /// The leader hands over: campaign at once, whatever the others heard (thesis §3.10). There is
    /// no need to ask before, for nobody was cut off.
    pub(super) fn on_timeout_now(&mut self) {
        if matches!(self.role, Role::Follower) && self.may_campaign() {
            self.become_candidate(true);
        }
    }

    fn become_pre_candidate(&mut self) {
        self.role = Role::PreCandidate(Candidate::default());
        if self.leader.is_some() {
            self.set_leader(None);
        }
        self.ask_for_votes(false);
    }

    /// A new term, and the first vote is our own: it counts once it is durable.
    fn become_candidate(&mut self, transfer: bool) {
        self.hard_state.term = self.hard_state.term.next();
        self.hard_state.vote = Some(self.node);
        self.role = Role::Candidate(Candidate::default());
        self.set_leader(None);
        self.reset_election_timer();
        self.ask_for_votes(transfer);
    }

    fn ask_for_votes(&mut self, transfer: bool) {
        let request = VoteRequest {
            last_index: self.log.last(),
            last_term: self.log.last_term(),
            transfer,
            configuration: self.membership.index,
        };
        let ask_only = matches!(self.role, Role::PreCandidate(_));
        for peer in self.configuration.all() {
            if peer == self.node || !self.configuration.votes(peer) {
                continue;
            }
            if ask_only {
                let mut envelope = self.envelope(peer, Message::PreVote(request));
                envelope.term = self.hard_state.term.next();
                self.effects.send.push(envelope);
            } else {
                // Before our own disk is done: the answer names what it was for.
                self.send(peer, Message::RequestVote(request));
            }
        }
    }

    /// Would we vote for a candidate of `term` with this log? Grants change nothing here.
    pub(super) fn on_pre_vote(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let open = term > self.hard_state.term || self.may_vote_for(from);
        let granted = open && self.has_vote_for(request) && self.knows_enough(request);
        let mut envelope = self.envelope(from, Message::PreVoteResponse { granted });
        if granted {
            envelope.term = term; // so that the asker knows which campaign is meant
        }
        self.effects.send.push(envelope);
    }

    /// One vote a term, for a log at least as complete as ours (Raft §5.2, §5.4.1).
    pub(super) fn on_request_vote(&mut self, from: NodeId, request: VoteRequest) {
        let granted =
            self.may_vote_for(from) && self.has_vote_for(request) && self.knows_enough(request);
        if granted {
            self.hard_state.vote = Some(from);
            self.election_elapsed = 0;
        }
        let VoteRequest {
            last_index,
            last_term,
            ..
        } = request;
        let response = Message::RequestVoteResponse {
            granted,
            last_index,
            last_term,
        };
        if planted!("B4") {
            self.send(from, response);
        } else {
            self.promise(from, response);
        }
    }

    /// Whether a candidate's log is at least as complete as ours (Raft §5.4.1), as far as our vote
    /// counts. Who lost its vote by an applied change judges up to that change only: what came after
    /// it was committed without us, by a quorum of those who stayed, and every quorum that elects
    /// overlaps that one. Whoever still asks us does not know that the change is committed; if we
    /// held a longer log against it, and its leader is gone, the group would be stuck. This ends
    /// when the log holds a later change, which may give the vote back.
    fn knows_enough(&self, request: VoteRequest) -> bool {
        let theirs = (request.last_term, request.last_index);
        let lost_at = self.membership.index;
        let has_vote = self.configuration.votes(self.node) || self.log.may_hold_conf_change();
        let ours = match self.log.term(lost_at) {
            Some(term) if !has_vote => (term, lost_at),
            _ => (self.log.last_term(), self.log.last()),
        };
        theirs >= ours
    }

    fn may_vote_for(&self, candidate: NodeId) -> bool {
        match self.hard_state.vote {
            Some(vote) => vote == candidate,
            None => self.leader.is_none(),
        }
    }

    /// A grant carries the term of the campaign it is for: one above ours.
    pub(super) fn on_pre_vote_response_ahead(&mut self, from: NodeId, term: Term) {
        if term == self.hard_state.term.next() {
            self.on_pre_vote_response(from, true);
        }
    }

    /// An answer to our question.
    pub(super) fn on_pre_vote_response(&mut self, from: NodeId, granted: bool) {
        if matches!(self.role, Role::PreCandidate(_)) {
            self.count_vote(from, granted);
        }
    }

    /// A vote, or its refusal; for the log with which we campaign, and not for one that we lost in
    /// a crash since.
    pub(super) fn on_vote_response(
        &mut self,
        from: NodeId,
        granted: bool,
        (last_index, last_term): (Index, Term),
    ) {
        let is_ours = (last_index, last_term) == (self.log.last(), self.log.last_term())
            || planted!("late-vote");
        if matches!(self.role, Role::Candidate(_)) && (is_ours || !granted) {
            self.count_vote(from, granted);
        }
    }

    /// Our own vote of this campaign is durable.
    pub(super) fn on_own_vote_durable(&mut self, own: OwnVote) {
        let term = self.hard_state.term;
        let is_this_campaign = match (&self.role, own) {
            (Role::PreCandidate(_), OwnVote::Pre(asked))
            | (Role::Candidate(_), OwnVote::Real(asked)) => asked == term,
            (Role::Follower | Role::Leader(_), _)
            | (Role::PreCandidate(_), OwnVote::Real(_))
            | (Role::Candidate(_), OwnVote::Pre(_)) => false, // it ended meanwhile
        };
        if is_this_campaign {
            self.count_vote(self.node, true);
        }
    }

    /// The own vote of a campaign that is not tied to a write yet, for the write of this turn.
    pub(super) fn take_own_vote(&mut self) -> Option<OwnVote> {
        let term = self.hard_state.term;
        let (candidate, own) = match &mut self.role {
            Role::PreCandidate(candidate) => (candidate, OwnVote::Pre(term)),
            Role::Candidate(candidate) => (candidate, OwnVote::Real(term)),
            Role::Follower | Role::Leader(_) => return None,
        };
        let is_queued = std::mem::replace(&mut candidate.is_own_vote_queued, true);
        (!is_queued).then_some(own)
    }

    fn count_vote(&mut self, from: NodeId, granted: bool) {
        if let Role::Candidate(candidate) = &mut self.role
            && let Some(survivors) = candidate.survivors.take_if(|_| from == self.node)
        {
            self.lead_survivors(survivors);
            return;
        }
        if let Role::PreCandidate(candidate) | Role::Candidate(candidate) = &mut self.role {
            candidate.votes.entry(from).or_insert(granted);
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let (Role::PreCandidate(candidate) | Role::Candidate(candidate)) = &self.role else {
            return;
        };
        let result = joint_vote(self.configuration.halves(), |id| {
            candidate.votes.get(&id).copied()
        });
        // Others may make a quorum without us, but nobody leads in a term that its own disk could
        // forget. Else: 1. we win term 1, and append entry 1, which one peer gets; 2. we crash, and
        // come back in term 0; 3. the others grant us term 1 again, and we append another entry 1 in
        // it: the logs differ, and no rule would ever notice.
        let has_own = candidate.votes.contains_key(&self.node) || planted!("own-vote");
        match (result, &self.role) {
            (VoteResult::Lost, _) => self.become_follower(self.hard_state.term, None),
            (VoteResult::Won, Role::PreCandidate(_)) => self.become_candidate(false),
            (VoteResult::Won, _) if has_own => self.become_leader(),
            (VoteResult::Won | VoteResult::Pending, _) => {} // counted again with the next vote
        }
    }
}
