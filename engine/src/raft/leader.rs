//! What a leader does besides replicating: heartbeats, staying leader only while it is one, handing
//! over, following its own configuration.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::conf_change::ConfChange;
use super::effects::{Refusal, Source};
use super::joining::Round;
use super::message::Message;
use super::progress::{Progress, Wanted};
use super::quorum::{VoteResult, joint_vote};
use super::read_index::ReadRounds;
use super::{Group, OnRemoval, Role};
use crate::block::EntryKind;
use crate::planted;
use crate::types::{Index, NodeId};

/// What only a leader has.
#[derive(Debug)]
pub struct Leader {
    /// Every other member, learners and witnesses included.
    pub(super) peers: BTreeMap<NodeId, Progress>,
    pub(super) reads: ReadRounds,
    /// Ticks since it was elected.
    pub(super) ticks: u64,
    /// The incarnations of peers that the configuration lacks yet.
    pub(super) met: BTreeMap<NodeId, u64>,
    /// Learners that want a vote.
    pub(super) rounds: BTreeMap<NodeId, Round>,
    /// At least the index of every configuration change in the log that is not applied.
    pub(super) pending_conf_change: Index,
    /// Who is left of a group that has lost its quorum, until the others are removed.
    pub(super) survivors: Option<BTreeSet<NodeId>>,
    /// Whom leadership is being handed to.
    pub(super) transferee: Option<NodeId>,
    /// A change that takes our vote is logged: nothing may come behind it. Else: 1. we commit and
    /// apply it with more entries behind it, and step down; 2. those who stay do not know that it is
    /// committed and need our vote; 3. we refuse it, because our log is longer: the group is dead. The
    /// same when it was logged by an earlier leader: then only the empty entry of our term is behind.
    pub(super) is_leaving: bool,
    /// The transferee has everything: tell it to campaign after the appends.
    pub(super) timeout_now_due: bool,
    /// Somebody was told to campaign in this term, whatever became of it.
    pub(super) timeout_now_sent: bool,
    heartbeat_elapsed: u32,
    /// Last index and bytes of proposals that are not applied yet.
    room: VecDeque<(Index, usize)>,
    room_bytes: usize,
    room_taken: usize,
}

impl Leader {
    /// Takes `bytes` of the group's limit, after giving back what was applied. An empty limit takes
    /// any proposal, so that one larger than the limit is not stuck for ever; and an empty proposal
    /// is never refused, so that a joint configuration can always be left.
    pub(super) fn take_room(
        &mut self,
        applied: Index,
        bytes: usize,
        limit: usize,
    ) -> Result<(), Refusal> {
        while let Some(&(_, bytes)) = self.room.front().filter(|r| r.0 <= applied) {
            self.room.pop_front();
            self.room_bytes -= bytes;
        }
        if self.room_bytes > 0 && bytes > 0 && self.room_bytes + bytes > limit {
            return Err(Refusal::Busy);
        }
        self.room_bytes += bytes;
        self.room_taken = bytes;
        Ok(())
    }

    /// The bytes just taken belong to the entry at `index`.
    pub(super) fn note_room(&mut self, index: Index) {
        let bytes = std::mem::take(&mut self.room_taken);
        self.room.push_back((index, bytes));
    }

    /// Every peer is to be told something.
    pub(super) fn want_all(&mut self, wanted: Wanted) {
        for peer in self.peers.values_mut() {
            peer.want(wanted);
        }
    }
}

impl Group {
    /// Won: assume nothing of the peers, and append an empty entry, since entries of earlier terms
    /// commit only under one of ours (Raft §5.4.2).
    pub(super) fn become_leader(&mut self) {
        let last = self.log.last();
        let peers = self.configuration.all().into_iter();
        let peers = peers.filter(|&id| id != self.node);
        let mut leader = Leader {
            peers: peers.map(|id| (id, Progress::new(last))).collect(),
            reads: ReadRounds::default(),
            ticks: 0,
            met: BTreeMap::new(),
            rounds: BTreeMap::new(),
            // There may be a change anywhere in the log: wait until all of it is applied.
            pending_conf_change: last,
            survivors: None,
            transferee: None,
            is_leaving: false,
            timeout_now_due: false,
            timeout_now_sent: false,
            heartbeat_elapsed: 0,
            room: VecDeque::new(),
            room_bytes: 0,
            room_taken: 0,
        };
        leader.want_all(Wanted::Append);
        let term = self.hard_state.term;
        self.log.stage(term, EntryKind::Noop, Bytes::new());
        self.role = Role::Leader(Box::new(leader));
        self.note_own_leave();
        self.first_candidate = false;
        self.reset_election_timer();
        self.set_leader(Some(self.node));
    }

    fn note_own_leave(&mut self) {
        let next = self.pending_configuration();
        let loses_vote = next.is_some_and(|(_, next)| !next.votes(self.node));
        if let Role::Leader(leader) = &mut self.role {
            leader.is_leaving = loses_vote && self.limits.on_removal == OnRemoval::StepDown;
        }
    }

    /// A leader must know of the changes in its log, also of those that were there when its process
    /// started: before, it takes no proposal, and with witnesses it commits nothing. So must a replica
    /// that is told to go.
    pub(super) fn learn_kinds(&mut self, source: &mut dyn Source) {
        let is_leader = matches!(self.role, Role::Leader(_));
        let is_needed = is_leader || self.farewell.needs_kinds();
        if !is_needed || !self.log.has_unknown_kinds() {
            return;
        }
        if let Err(error) = self.log.learn_kinds(source) {
            tracing::error!(group = %self.id, %error, "cannot read what the log holds: tried again");
            return;
        }
        self.note_own_leave();
        self.maybe_commit();
    }

    pub(super) fn on_leader_tick(&mut self) {
        self.silence = 0;
        self.election_elapsed += 1;
        if self.election_elapsed >= self.limits.election_ticks {
            self.election_elapsed = 0;
            if self.limits.check_quorum && !self.has_live_quorum() && !self.is_recovering() {
                self.become_follower(self.hard_state.term, None); // thesis §6.2
                return;
            }
            if let Role::Leader(leader) = &mut self.role {
                leader.transferee = None; // it took too long: go on leading (thesis §3.10)
            }
        }
        let limit = self.limits.stuck_disk_ticks;
        if self.pending.front().is_some_and(|w| w.age >= limit) {
            self.become_follower(self.hard_state.term, None);
            return;
        }
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.ticks += 1;
        leader.heartbeat_elapsed += 1;
        if leader.heartbeat_elapsed >= self.limits.heartbeat_ticks {
            leader.heartbeat_elapsed = 0;
            self.send_heartbeats();
        }
        self.admit_members();
        self.shrink();
    }

    /// Whether it leads only survivors, without a quorum.
    pub(super) fn is_recovering(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.survivors.is_some())
    }

    /// Whether a quorum spoke since the last time we asked.
    fn has_live_quorum(&mut self) -> bool {
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let node = self.node;
        let active = |id| {
            let peer = leader.peers.get(&id);
            Some(id == node || peer.is_some_and(|p| p.recent_active))
        };
        let live = joint_vote(self.configuration.halves(), active) == VoteResult::Won;
        for peer in leader.peers.values_mut() {
            peer.recent_active = false;
        }
        live
    }

    /// Each names at most what its receiver is known to hold.
    pub(super) fn send_heartbeats(&mut self) {
        let commit = self.log.commit();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let keep_ticks = self.limits.election_ticks;
        let read_round = leader.reads.next_round(leader.ticks, keep_ticks);
        let mut beats = Vec::with_capacity(leader.peers.len());
        for (&to, peer) in &mut leader.peers {
            let commit = commit.min(peer.matched);
            peer.on_commit_sent(commit);
            beats.push((to, commit));
        }
        for (to, commit) in beats {
            self.send(to, Message::Heartbeat { commit, read_round });
        }
    }

    pub(super) fn on_heartbeat_response(&mut self, from: NodeId, read_round: u64) {
        let last = self.log.last();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.recent_active = true;
        peer.on_heartbeat_response(last);
        leader.reads.on_echo(from, read_round);
        self.advance_reads();
    }

    /// Hands leadership to `to`, which must vote and have data: brings it up to date, then tells it
    /// to campaign (thesis §3.10). Given up after an election timeout.
    pub(super) fn on_transfer(&mut self, to: NodeId) {
        let last = self.log.last();
        let may_lead = self.configuration.may_lead(to);
        match &mut self.role {
            Role::Leader(leader) => {
                let Some(peer) = leader.peers.get_mut(&to).filter(|_| may_lead) else {
                    if to == self.node {
                        leader.transferee = None;
                    }
                    return;
                };
                if leader.transferee.replace(to) == Some(to) {
                    return; // it is under way
                }
                self.election_elapsed = 0;
                if peer.matched == last {
                    leader.timeout_now_due = true;
                } else {
                    peer.want(Wanted::Append);
                }
            }
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => {
                if let Some(leader) = self.leader {
                    self.send(leader, Message::TransferLeadership { to });
                }
            }
        }
    }

    /// The transferee has everything: it campaigns at once, ahead of all timeouts.
    pub(super) fn send_timeout_now(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if std::mem::take(&mut leader.timeout_now_due)
            && let Some(to) = leader.transferee
        {
            leader.timeout_now_sent = true;
            self.send(to, Message::TimeoutNow);
        }
    }

    /// The apply stage has come to a change: from here on it counts.
    pub(super) fn on_conf_change(&mut self, index: Index, change: &ConfChange) {
        if index <= self.membership.index {
            return; // applied again after a restart: the stored membership has it
        }
        match self.membership.changed(change, index) {
            Ok(membership) => self.set_membership(membership),
            Err(reason) => {
                tracing::warn!(group = %self.id, %index, %reason, "configuration change without effect");
            }
        }
    }

    /// Follows a new configuration: other quorums, other peers.
    pub(super) fn set_membership(&mut self, membership: super::membership::Membership) {
        self.configuration = membership.configuration();
        self.membership = membership;
        let last = self.log.last();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let all = self.configuration.all();
        leader.peers.retain(|id, _| all.contains(id));
        leader.met.retain(|id, _| all.contains(id));
        leader.rounds.retain(|id, _| all.contains(id));
        let is_lost =
            |id: &NodeId| (leader.survivors.as_ref()).is_some_and(|left| !left.contains(id));
        let peers = all.iter().filter(|&&id| id != self.node);
        for id in peers.copied().filter(|id| !is_lost(id)) {
            let joined = || Progress::joined(last);
            leader.peers.entry(id).or_insert_with(joined);
        }
        if !self.configuration.votes(self.node) {
            match self.limits.on_removal {
                OnRemoval::StepDown if !planted!("B15") => {
                    self.become_follower(self.hard_state.term, None);
                }
                OnRemoval::StepDown | OnRemoval::LeadOn => {}
            }
            return;
        }
        leader.want_all(Wanted::Entries);
        if leader
            .transferee
            .is_some_and(|to| !self.configuration.votes(to))
        {
            leader.transferee = None;
        }
        self.maybe_commit();
    }

    /// Leaves a joint configuration that is to be left automatically, once it is applied.
    pub(super) fn maybe_leave_joint(&mut self) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if self.configuration.auto_leave
            && self.log.applied() >= leader.pending_conf_change
            && let Err(reason) = self.append_conf_change(&ConfChange::default())
        {
            // Tried again at the next applied entry, and by whoever leads then.
            tracing::debug!(group = %self.id, %reason, "the joint configuration is not left yet");
        }
    }
}
