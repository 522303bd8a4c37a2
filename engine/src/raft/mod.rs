//! The rules of Raft for one group, as a pure function of its inputs.
//!
//! No clock, no threads, no IO, no randomness but a generator seeded by the caller: equal inputs
//! give equal effects. [`Group::step`] takes one input; [`Group::take_effects`] then gives what all
//! inputs of a turn ask for, in the order in which it must be done.
//!
//! Invariants, asserted: term and commit index never go back; nothing at or below the commit index
//! is cut; a vote and an acceptance leave only after the write they promise (thesis §3.8); a leader
//! counts itself, and commits, only by what is durable (thesis §10.2.1).
//!
//! Read [`effects`], [`message`], this file, `terms`, then [`mod@follower`], [`mod@candidate`],
//! [`mod@leader`], [`mod@incarnation`].

pub mod candidate;
pub mod conf_change;
pub mod effects;
pub mod follower;
pub mod incarnation;
pub mod joining;
pub mod leader;
pub mod limits;
pub mod log;
pub mod lost;
pub mod membership;
pub mod message;
pub mod progress;
pub mod proposals;
pub mod quorum;
pub mod read_index;
pub mod recovery;
mod removal;
pub mod replicate;
mod terms;

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use self::limits::{Limits, OnRemoval};

use self::candidate::{Candidate, OwnVote};
use self::effects::{Effects, Input, ProposalOutcome, Refusal, Source};
use self::incarnation::Identity;
use self::joining::Pursuit;
use self::leader::Leader;
use self::log::RaftLog;
use self::lost::Lost;
use self::membership::{Configuration, Membership};
use self::message::{AppendResponse, Envelope, Message};
use self::progress::{Progress, Wanted};
use self::read_index::ReadMode;
use self::removal::Farewell;
use crate::description::{Description, Standing};
use crate::planted;
use crate::traits::{GroupWrite, StoredGroup};
use crate::types::{GroupId, HardState, Index, NodeId, Term};

/// What a replica is in its term (Raft §5.1); each owns what only it needs.
#[derive(Debug)]
enum Role {
    Follower,
    PreCandidate(Candidate),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// The name of a role, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the paper's words")]
pub enum RoleName {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// A write on its way to the disk.
#[derive(Debug)]
struct PendingWrite {
    number: u64,
    /// The log's end after this write; lowered when a conflict cuts entries of it, so that its
    /// completion never speaks for entries that came later at the same indexes.
    last: Index,
    /// Our vote for ourselves counts with it.
    own_vote: Option<OwnVote>,
    /// Ticks since it was handed out.
    age: u32,
}

/// One replica of one Raft group.
#[derive(Debug)]
pub struct Group {
    id: GroupId,
    node: NodeId,
    /// Of our own data; 0 if nobody asks.
    incarnation: u64,
    limits: Limits,
    membership: Membership,
    /// As the membership says.
    configuration: Configuration,
    /// It waits for the group's state, and has no say until it has it.
    is_joining: bool,
    /// What it promised may be forgotten: it is silent, and joining, until the group goes on without it.
    lost: Option<Lost>,
    /// What this node wants of its membership.
    pursuit: Option<Pursuit>,
    farewell: Farewell,
    hard_state: HardState,
    /// As last written.
    written: HardState,
    leader: Option<NodeId>,
    role: Role,
    log: RaftLog,
    rng: SmallRng,
    election_elapsed: u32,
    election_timeout: u32,
    /// The leader's node is known to be gone: stickiness does not protect it.
    leader_lost: bool,
    first_candidate: bool,
    /// Up to where the leader of this term has found our log to agree, last time.
    agreed: (Term, Index),
    write_number: u64,
    pending: VecDeque<PendingWrite>,
    /// Ticks since the start, up to an election timeout.
    age: u32,
    /// Ticks since a leader was heard.
    silence: u32,
    effects: Effects,
}

impl Group {
    /// A replica from what its log holds. `first_candidate` campaigns at once in a group that never
    /// had a leader; `seed` feeds the election timeouts.
    pub fn restore(
        own: Identity,
        stored: &StoredGroup,
        description: Description,
        applied: Index,
        limits: Limits,
        first_candidate: bool,
        seed: u64,
    ) -> Self {
        let mut log = RaftLog::restore(stored, applied, limits.cache_bytes, limits.apply_rule);
        let Description {
            standing,
            membership,
            ..
        } = description;
        let mut rng = SmallRng::seed_from_u64(seed);
        let is_lost = standing == Standing::Lost && !planted!("lost-speaks");
        let lost = is_lost.then(|| Lost::new(rng.random()));
        let is_joining = standing == Standing::Joining || lost.is_some();
        if is_joining {
            log.await_state();
        } else {
            // A membership becomes durable when its entry is committed; the commit index may not be. Else: 1. a
            // leader without others adds a peer that has no state yet, and crashes; 2. it takes the entry for
            // uncommitted, and the peer has to hold it; 3. the peer needs a snapshot in which it is a member,
            // and none can be made before the entry is committed: the group is stuck.
            log.commit_to(membership.index.min(log.last()));
        }
        let mut group = Self {
            id: stored.group,
            node: own.node,
            incarnation: own.incarnation,
            limits,
            configuration: membership.configuration(),
            membership,
            is_joining,
            lost,
            pursuit: None,
            farewell: Farewell::default(),
            hard_state: HardState {
                commit: log.commit(),
                ..stored.hard_state
            },
            written: stored.hard_state,
            leader: None,
            role: Role::Follower,
            log,
            rng,
            election_elapsed: 0,
            election_timeout: 0,
            leader_lost: false,
            first_candidate,
            agreed: (Term::ZERO, Index::ZERO),
            write_number: 0,
            pending: VecDeque::new(),
            // Who was in no term yet has promised nothing that it could have forgotten.
            age: if stored.hard_state.term == Term::ZERO {
                limits.election_ticks
            } else {
                0
            },
            silence: 0,
            effects: Effects::default(),
        };
        group.reset_election_timer();
        group
    }

    /// Changes the group by one input. Pure: equal inputs, equal effects; so a seed replays a
    /// failure.
    pub fn step(&mut self, input: Input) {
        let (term, commit) = (self.hard_state.term, self.log.commit());
        match input {
            Input::Tick => self.on_tick(),
            Input::Message(envelope) => self.on_message(envelope),
            Input::Propose { request, payload } => self.on_propose(request, payload),
            Input::ProposeConfChange { request, change } => {
                self.on_propose_conf_change(request, change);
            }
            Input::Read { request } => self.on_read(request),
            Input::Durable(number) => self.on_durable(number),
            Input::ConfChange(index, change) => self.on_conf_change(index, &change),
            Input::Applied(index) => self.on_applied(index),
            Input::Compact(index) => self.on_compact(index),
            Input::Campaign => self.campaign(),
            Input::Wish(wish) => self.on_wish(wish),
            Input::TransferLeadership(to) => self.on_transfer(to),
            Input::Import(snapshot) => self.on_import(snapshot),
            Input::Recover(survivors) => self.on_recover(survivors),
            Input::ForgetLeader => self.on_forget_leader(),
            Input::Unreachable(node) => self.on_unreachable(node),
            Input::SnapshotSent(node, outcome) => self.on_snapshot_sent(node, outcome),
            Input::SnapshotLost(index) => self.log.on_snapshot_lost(index),
            Input::PeerDown(node) => self.on_peer_down(node),
        }
        assert!(term <= self.hard_state.term, "term went back"); // Raft §5.1
        assert!(commit <= self.log.commit(), "commit index went back"); // Raft §5.3
    }

    /// What all steps since the last call ask for.
    pub fn take_effects(&mut self, source: &mut dyn Source) -> Effects {
        self.learn_kinds(source);
        self.send_appends(source);
        self.hard_state.commit = self.log.commit();
        self.queue_write();
        let apply_bytes = self.limits.apply_bytes;
        match self.log.take_committed(apply_bytes, source) {
            Ok(blocks) => self.effects.apply = blocks,
            Err(error) => {
                tracing::error!(group = %self.id, %error, "cannot read committed entries");
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// Whether [`Group::take_effects`] would ask for something, [`Group::send_appends`] having been
    /// called.
    pub fn has_effects(&self) -> bool {
        let state = HardState {
            commit: self.written.commit,
            ..self.hard_state
        };
        let is_own_vote_due = match &self.role {
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => {
                !candidate.is_own_vote_queued
            }
            Role::Follower | Role::Leader(_) => false,
        };
        is_own_vote_due
            || !self.effects.is_empty()
            || state != self.written
            || self.log.has_unwritten()
            || self.log.has_committed(self.limits.apply_bytes)
    }

    /// What became of proposals in the last steps, ahead of the other effects.
    pub fn take_outcomes(&mut self) -> Vec<ProposalOutcome> {
        std::mem::take(&mut self.effects.proposals)
    }

    /// Term, vote and commit index, durable or not.
    pub fn hard_state(&self) -> HardState {
        HardState {
            commit: self.log.commit(),
            ..self.hard_state
        }
    }

    /// The newest term seen.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The node that got this replica's vote in its term.
    pub fn vote(&self) -> Option<NodeId> {
        self.hard_state.vote
    }

    /// The leader of the current term, as far as known here.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// What this replica is.
    pub fn role(&self) -> RoleName {
        match self.role {
            Role::Follower => RoleName::Follower,
            Role::PreCandidate(_) => RoleName::PreCandidate,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    /// The replica's log.
    pub fn log(&self) -> &RaftLog {
        &self.log
    }

    /// Who counts.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The node of this replica.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Who belongs to the group, as far as it is applied here.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What a leader knows of its peers, by rising id; empty for everybody else.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        let peers = match &self.role {
            Role::Leader(leader) => Some(&leader.peers),
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => None,
        };
        peers.into_iter().flatten().map(|(&id, peer)| (id, peer))
    }

    /// Sets the election timeout in use, until it is drawn anew. For scenarios.
    pub fn set_election_timeout(&mut self, ticks: u32) {
        self.election_timeout = ticks;
    }

    fn on_tick(&mut self) {
        for write in &mut self.pending {
            write.age += 1;
        }
        self.age = (self.age + 1).min(self.limits.election_ticks);
        self.pursue();
        match self.role {
            Role::Leader(_) => self.on_leader_tick(),
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.election_elapsed = self.election_elapsed.saturating_add(1);
                if self.election_elapsed >= self.election_timeout && self.may_lead() {
                    self.election_elapsed = 0;
                    self.campaign();
                }
                self.silence = self.silence.saturating_add(1);
                self.maybe_ask();
            }
        }
    }

    fn on_applied(&mut self, index: Index) {
        self.log.on_applied(index);
        self.maybe_leave_joint();
        self.shrink();
    }

    /// Compacts no further than what is applied.
    fn on_compact(&mut self, index: Index) {
        self.log.compact(index.min(self.log.applied()));
    }

    /// Makes this replica vote again, and propose to nobody, until it hears of a leader. Not with
    /// leases, which count on its patience.
    fn on_forget_leader(&mut self) {
        let keeps = matches!(self.role, Role::Leader(_)) || self.limits.reads != ReadMode::Index;
        if self.leader.is_some() && !keeps {
            self.set_leader(None);
        }
    }

    fn on_unreachable(&mut self, node: NodeId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(peer) = leader.peers.get_mut(&node)
        {
            peer.on_unreachable();
        }
    }

    fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        self.end_leadership();
        if term > self.hard_state.term {
            self.hard_state.term = term;
            self.hard_state.vote = None;
        }
        self.role = Role::Follower;
        self.set_leader(leader);
        self.reset_election_timer();
    }

    /// Readers of a leader that is none any more ask again.
    fn end_leadership(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        for reader in leader.reads.take_all() {
            self.answer_read(reader, Err(Refusal::NoLeader));
        }
    }

    fn set_leader(&mut self, leader: Option<NodeId>) {
        self.leader_lost = false;
        self.leader = leader;
        self.effects.leader = Some((self.hard_state.term, leader));
    }

    /// Draws the timeout anew, so that ties are rare (Raft §5.2).
    fn reset_election_timer(&mut self) {
        self.election_elapsed = 0;
        let base = self.limits.election_ticks;
        self.election_timeout = if self.first_candidate && self.hard_state.term == Term::ZERO {
            1 + self.rng.random_range(0..2)
        } else {
            self.rng.random_range(base..2 * base) + self.limits.election_priority * base
        };
    }

    /// Our own disk says: everything up to write `number` is durable.
    fn on_durable(&mut self, number: u64) {
        while self.pending.front().is_some_and(|w| w.number <= number) {
            let write = self.pending.pop_front().expect("looked at");
            self.log.on_durable(write.last);
            if let Some(own) = write.own_vote {
                self.on_own_vote_durable(own);
            }
        }
        self.want_durable_for_witnesses();
        self.maybe_commit();
    }

    /// Witnesses are sent only what is durable here.
    fn want_durable_for_witnesses(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            for id in &self.configuration.witnesses {
                if let Some(peer) = leader.peers.get_mut(id) {
                    peer.want(Wanted::Entries);
                }
            }
        }
    }

    /// The peer's node is gone. Evidence, not proof: a pre-vote after a short random grace asks
    /// the others (thesis §9.6 keeps that harmless when the evidence was wrong).
    fn on_peer_down(&mut self, node: NodeId) {
        if let Role::Leader(leader) = &mut self.role {
            if let Some(peer) = leader.peers.get_mut(&node) {
                peer.on_unreachable();
                peer.want(Wanted::Append);
            }
        } else if self.leader == Some(node) && self.limits.reads == ReadMode::Index {
            self.leader_lost = true;
            let grace = self
                .rng
                .random_range(1..=(self.limits.election_ticks / 3).max(1));
            self.election_timeout = self.election_timeout.min(self.election_elapsed + grace);
        }
    }

    /// Hands out what must become durable. A new commit index alone is not worth a write.
    fn queue_write(&mut self) {
        let promise_state = HardState {
            commit: self.written.commit,
            ..self.hard_state
        };
        let own_vote = self.take_own_vote();
        let is_needed = own_vote.is_some() || self.effects.install.is_some();
        if !self.log.has_unwritten() && promise_state == self.written && !is_needed {
            return;
        }
        let mut write = GroupWrite::new(self.id);
        self.log.take_unwritten(&mut write);
        if self.hard_state != self.written {
            write.hard_state = Some(self.hard_state);
            self.written = self.hard_state;
        }
        self.write_number += 1;
        self.pending.push_back(PendingWrite {
            number: self.write_number,
            last: self.log.last(),
            own_vote,
            age: 0,
        });
        self.effects.write = Some((self.write_number, write));
    }

    fn envelope(&self, to: NodeId, message: Message) -> Envelope {
        Envelope {
            group: self.id,
            from: self.node,
            to,
            term: self.hard_state.term,
            incarnation: 0,
            message,
        }
    }

    /// Sends what promises nothing about our disk.
    fn send(&mut self, to: NodeId, message: Message) {
        let envelope = self.envelope(to, message);
        self.effects.send.push(envelope);
    }

    /// Sends once everything this group has written up to this turn is durable.
    fn promise(&mut self, to: NodeId, message: Message) {
        let envelope = self.envelope(to, message);
        self.effects.send_when_durable.push(envelope);
    }

    fn accept_up_to(&mut self, leader: NodeId, last: Index) {
        let response = Message::AppendEntriesResponse(AppendResponse::Accepted { last });
        if planted!("B5") {
            self.send(leader, response);
        } else {
            self.promise(leader, response);
        }
    }
}
