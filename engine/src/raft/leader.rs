//! What a leader does: replicate, count, commit, stay leader only while it is one.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::effects::Refusal;
use super::log::ReadBlocks;
use super::message::{AppendResponse, Message};
use super::progress::{Progress, ProgressState};
use super::quorum::{VoteResult, joint_index, joint_vote};
use super::read_index::ReadRounds;
use super::{Group, Role};
use crate::block::{Block, EntryKind};
use crate::types::{Index, NodeId};

/// What only a leader has.
#[derive(Debug)]
pub struct Leader {
    /// Every other member, learners and witnesses included.
    pub(super) peers: BTreeMap<NodeId, Progress>,
    pub(super) reads: ReadRounds,
    /// The no-op of this term; once it is committed, everything before it is (Raft §5.4.2).
    first_index: Index,
    heartbeat_elapsed: u32,
    /// Last index and bytes of proposals that are not applied yet.
    room: VecDeque<(Index, usize)>,
    room_bytes: usize,
    room_taken: usize,
}

impl Leader {
    /// Takes `bytes` of the group's limit, after giving back what was applied. An empty limit takes
    /// any proposal, so that one larger than the limit is not stuck for ever.
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
        if self.room_bytes > 0 && self.room_bytes + bytes > limit {
            return Err(Refusal::Busy);
        }
        self.room_bytes += bytes;
        self.room_taken = bytes;
        Ok(())
    }

    /// The bytes just taken belong to the entry at `index`.
    pub(super) fn note_room(&mut self, index: Index) {
        self.room
            .push_back((index, std::mem::take(&mut self.room_taken)));
    }
}

impl Group {
    /// Won: assume nothing of the peers, and append an empty entry, since entries of earlier terms
    /// commit only under one of ours (Raft §5.4.2).
    pub(super) fn become_leader(&mut self) {
        let last = self.log.last();
        let peers = self
            .configuration
            .all()
            .into_iter()
            .filter(|&id| id != self.node);
        let first_index = self
            .log
            .stage(self.hard_state.term, EntryKind::Noop, Bytes::new());
        self.role = Role::Leader(Box::new(Leader {
            peers: peers.map(|id| (id, Progress::new(last))).collect(),
            reads: ReadRounds::default(),
            first_index,
            heartbeat_elapsed: 0,
            room: VecDeque::new(),
            room_bytes: 0,
            room_taken: 0,
        }));
        self.first_candidate = false;
        self.election_elapsed = 0;
        self.set_leader(Some(self.node));
    }

    pub(super) fn on_leader_tick(&mut self) {
        self.election_elapsed += 1;
        if self.election_elapsed >= self.limits.election_ticks {
            self.election_elapsed = 0;
            if self.limits.check_quorum && !self.has_live_quorum() {
                self.become_follower(self.hard_state.term, None);
                return;
            }
        }
        // A disk that hangs must not keep a leader alive that can commit nothing by itself.
        if self
            .pending
            .front()
            .is_some_and(|w| w.age >= 2 * self.limits.election_ticks)
        {
            self.become_follower(self.hard_state.term, None);
            return;
        }
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.heartbeat_elapsed += 1;
        if leader.heartbeat_elapsed >= self.limits.heartbeat_ticks {
            leader.heartbeat_elapsed = 0;
            self.send_heartbeats();
        }
    }

    /// Whether a quorum gave word since the last question (thesis §6.2).
    fn has_live_quorum(&mut self) -> bool {
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let (node, peers) = (self.node, &leader.peers);
        let active = |id| Some(id == node || peers.get(&id).is_some_and(|p| p.recent_active));
        let live = joint_vote(self.configuration.halves(), active) == VoteResult::Won;
        for peer in leader.peers.values_mut() {
            peer.recent_active = false;
        }
        live
    }

    fn send_heartbeats(&mut self) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let read_round = leader.reads.current();
        let commit = self.log.commit();
        let beats: Vec<_> = leader
            .peers
            .iter()
            .map(|(&to, p)| (to, commit.min(p.matched)))
            .collect();
        for (to, commit) in beats {
            self.send(to, Message::Heartbeat { commit, read_round });
        }
    }

    pub(super) fn on_append_response(&mut self, from: NodeId, response: AppendResponse) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.recent_active = true;
        match response {
            AppendResponse::Accepted { last } => {
                if last > self.log.last() {
                    tracing::error!(group = %self.id, %from, %last, "accepted what was never sent");
                    return;
                }
                if peer.on_accepted(last) {
                    self.maybe_commit();
                }
            }
            AppendResponse::Rejected {
                prev,
                hint_index,
                hint_term,
                last,
            } => {
                // Where the peer's log ends in an older term, ours may hold less of that term.
                let hint = self
                    .log
                    .find_conflict_by_term(hint_index.min(last), hint_term);
                peer.on_rejected(prev, hint);
            }
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
        peer.on_heartbeat_response(last, self.limits.window);
        leader.reads.on_ack(from, read_round);
        self.advance_reads();
    }

    /// Commits what a quorum holds durably, ourselves by our own disk's word, if the entry is of
    /// this term (Raft §5.4.2, Figure 8).
    pub(super) fn maybe_commit(&mut self) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let (node, durable) = (self.node, self.log.durable());
        let matched = |id| {
            if id == node {
                durable
            } else {
                leader.peers.get(&id).map_or(Index::ZERO, |p| p.matched)
            }
        };
        let Some(index) = joint_index(self.configuration.halves(), matched) else {
            return;
        };
        if self.log.term(index) == Some(self.hard_state.term) && self.log.commit_to(index) {
            self.advance_reads(); // those that waited for the first commit of the term
        }
    }

    /// Starts a round for waiting reads, and answers a round that a quorum has echoed.
    pub(super) fn advance_reads(&mut self) {
        loop {
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            if self.log.commit() < leader.first_index {
                return; // the commit index may lag behind what earlier leaders committed
            }
            let started = leader.reads.start(self.log.commit());
            let (node, halves) = (self.node, self.configuration.halves());
            let confirmed = leader.reads.take_confirmed(|acks| {
                joint_vote(halves, |id| Some(id == node || acks.contains(&id))) == VoteResult::Won
            });
            if let Some((readers, index)) = confirmed {
                for reader in readers {
                    self.answer_read(reader, Ok(index));
                }
            } else {
                if started {
                    self.send_heartbeats();
                }
                return;
            }
        }
    }

    /// Sends each peer what it lacks, as far as its window allows.
    pub(super) fn send_appends(&mut self, read: &mut ReadBlocks<'_>) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        self.log.seal();
        let mut peers = std::mem::take(&mut leader.peers);
        for (&to, peer) in &mut peers {
            while !peer.is_paused(self.limits.window) && self.wants_append(to, peer) {
                if !self.send_append(to, peer, read) {
                    break;
                }
            }
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
    }

    /// The last entry that a peer may be sent. A witness gets none that is not durable here: a
    /// leader could send one, crash before its own disk has it, and leave the witness with the
    /// longer log, without data, voting for nobody. The group would be stuck.
    fn last_for(&self, to: NodeId) -> Index {
        let witness = self.configuration.witnesses.contains(&to);
        if witness {
            self.log.durable()
        } else {
            self.log.last()
        }
    }

    fn wants_append(&self, to: NodeId, peer: &Progress) -> bool {
        let news = peer.sent_commit < self.log.commit() && peer.state == ProgressState::Replicate;
        peer.next <= self.last_for(to) || peer.ask || news
    }

    /// One append from the peer's next index on. False when it could not be read.
    fn send_append(&mut self, to: NodeId, peer: &mut Progress, read: &mut ReadBlocks<'_>) -> bool {
        let prev_index = peer.next.prev();
        let Some(prev_term) = self.log.term(prev_index) else {
            tracing::warn!(group = %self.id, %to, %prev_index, "the peer needs a compacted entry");
            return false;
        };
        let last = self.last_for(to);
        let blocks = if peer.next > last {
            Ok(Vec::new())
        } else {
            self.log
                .blocks(peer.next, last, self.limits.append_bytes, read)
        };
        let mut blocks = match blocks {
            Ok(blocks) => blocks,
            Err(error) => {
                tracing::error!(group = %self.id, %to, %error, "cannot read entries to send");
                return false;
            }
        };
        if self.configuration.witnesses.contains(&to) {
            blocks = blocks.iter().map(Block::headers_only).collect();
        }
        let bytes = blocks.iter().map(|b| b.bytes().len()).sum();
        let commit = self.log.commit();
        peer.on_sent(blocks.last().map_or(prev_index, Block::last), bytes, commit);
        self.send(
            to,
            Message::AppendEntries {
                prev_index,
                prev_term,
                commit,
                blocks,
            },
        );
        true
    }
}
