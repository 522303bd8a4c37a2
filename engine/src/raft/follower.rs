//! What a follower does with a leader's messages, and with its own clients' requests.

use bytes::Bytes;

use super::effects::{ProposalOutcome, ReadOutcome, Refusal};
use super::message::{AppendResponse, Message};
use super::read_index::Reader;
use super::{Group, Role};
use crate::block::{Block, EntryKind};
use crate::types::{Index, NodeId, Term};

/// The most proposals one answer speaks for: far more than a turn forwards, and few enough that a
/// hostile count costs nothing.
const MAX_FORWARDED: u32 = 1 << 16;

impl Group {
    /// Entries, or only news of the commit index, from the leader of our term (Raft §5.3).
    pub(super) fn on_append(
        &mut self,
        from: NodeId,
        prev_index: Index,
        prev_term: Term,
        commit: Index,
        blocks: &[Block],
    ) {
        if !self.follow(from) || !self.is_well_formed(prev_index, prev_term, blocks) {
            return;
        }
        if prev_index < self.log.commit() {
            let last = self.log.commit(); // stale: committed entries agree (Raft §5.4)
            self.accept_up_to(from, last);
            return;
        }
        if self.log.term(prev_index) != Some(prev_term) {
            self.reject_append(from, prev_index, prev_term);
            return;
        }
        if !self.log.accept(blocks) {
            tracing::error!(group = %self.id, %from, "append would cut a committed entry: ignored");
            return;
        }
        let last = blocks.last().map_or(prev_index, Block::last);
        self.log.commit_to(commit.min(last));
        self.accept_up_to(from, last);
    }

    /// Where our log may agree, so that the leader skips whole terms and not single entries.
    fn reject_append(&mut self, from: NodeId, prev_index: Index, prev_term: Term) {
        let hint_index = self.log.find_conflict_by_term(prev_index, prev_term);
        let hint_term = self.log.term(hint_index).unwrap_or_default();
        let last = self.log.last();
        let response = AppendResponse::Rejected {
            prev: prev_index,
            hint_index,
            hint_term,
            last,
        };
        self.promise(from, Message::AppendEntriesResponse(response));
    }

    /// Blocks from a peer must follow `prev` without a gap, in terms that rise up to ours.
    fn is_well_formed(&self, prev_index: Index, prev_term: Term, blocks: &[Block]) -> bool {
        let mut end = (prev_index, prev_term);
        let ok = prev_index.0 < u64::MAX / 2
            && blocks.iter().all(|block| {
                let follows = block.first() == end.0.next() && block.term() >= end.1;
                end = (block.last(), block.term());
                follows
            });
        if !ok || end.1 > self.hard_state.term {
            tracing::warn!(group = %self.id, %prev_index, "append with a gap or a future term");
            return false;
        }
        true
    }

    /// The leader lives; it names no more than we hold, so its commit index is safe to take.
    pub(super) fn on_heartbeat(&mut self, from: NodeId, commit: Index, read_round: u64) {
        if !self.follow(from) {
            return;
        }
        self.log.commit_to(commit.min(self.log.last()));
        // An echo says only that we knew no newer term: it needs no disk, but our term does.
        if self.written.term == self.hard_state.term && self.pending.is_empty() {
            self.send(from, Message::HeartbeatResponse { read_round });
        } else {
            self.promise(from, Message::HeartbeatResponse { read_round });
        }
    }

    /// Word from the leader of our term. False from anybody else.
    fn follow(&mut self, from: NodeId) -> bool {
        if matches!(self.role, Role::Leader(_)) || self.leader.is_some_and(|l| l != from) {
            tracing::error!(group = %self.id, %from, "a second leader in one term: ignored");
            return false;
        }
        if self.leader != Some(from) || !matches!(self.role, Role::Follower) {
            self.become_follower(self.hard_state.term, Some(from));
        }
        self.leader_lost = false;
        self.election_elapsed = 0;
        true
    }

    /// A client here proposes: append, or forward to the leader.
    pub(super) fn on_propose(&mut self, request: u64, payload: Bytes) {
        if let Role::Leader(_) = self.role {
            let term = self.hard_state.term;
            match self.append_proposal(payload) {
                Ok(index) => {
                    let appended = ProposalOutcome::Appended {
                        request,
                        index,
                        term,
                    };
                    self.effects.proposals.push(appended);
                }
                Err(reason) => self.refuse_proposal(request, reason),
            }
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
        self.send(
            leader,
            Message::Propose {
                first_request: request,
                payloads,
            },
        );
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
        if matches!(self.role, Role::Leader(_)) {
            for payload in payloads {
                let Ok(index) = self.append_proposal(payload) else {
                    break;
                };
                first.get_or_insert(index);
                count += 1;
            }
        }
        if first.is_some() {
            self.send(
                from,
                Message::ProposeResponse {
                    first_request,
                    count,
                    index: first,
                },
            );
        }
        let refused = u32::try_from(total - u64::from(count)).unwrap_or(u32::MAX);
        let Some(first_request) = first_request.checked_add(u64::from(count)) else {
            return;
        };
        if refused > 0 {
            let refusal = Message::ProposeResponse {
                first_request,
                count: refused,
                index: None,
            };
            self.send(from, refusal);
        }
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

    /// A client here reads.
    pub(super) fn on_read(&mut self, request: u64) {
        if let Role::Leader(leader) = &mut self.role {
            leader.reads.push(Reader {
                from: self.node,
                request,
            });
            self.advance_reads();
            return;
        }
        if let Some(leader) = self.leader.filter(|_| !self.leader_lost) {
            self.send(leader, Message::ReadIndex { request });
        } else {
            let index = Err(Refusal::NoLeader);
            self.effects.reads.push(ReadOutcome { request, index });
        }
    }

    /// A peer's client reads.
    pub(super) fn on_forwarded_read(&mut self, from: NodeId, request: u64) {
        if let Role::Leader(leader) = &mut self.role {
            leader.reads.push(Reader { from, request });
            self.advance_reads();
        } else {
            self.send(
                from,
                Message::ReadIndexResponse {
                    request,
                    index: None,
                },
            );
        }
    }

    /// Tells a reader its index, here or over there.
    pub(super) fn answer_read(&mut self, reader: Reader, index: Result<Index, Refusal>) {
        let Reader { from, request } = reader;
        if from == self.node {
            self.effects.reads.push(ReadOutcome { request, index });
        } else {
            self.send(
                from,
                Message::ReadIndexResponse {
                    request,
                    index: index.ok(),
                },
            );
        }
    }

    fn append_proposal(&mut self, payload: Bytes) -> Result<Index, Refusal> {
        if payload.len() > self.limits.proposal_bytes {
            return Err(Refusal::TooLarge);
        }
        let Role::Leader(leader) = &mut self.role else {
            return Err(Refusal::NoLeader);
        };
        leader.take_room(
            self.log.applied(),
            payload.len(),
            self.limits.uncommitted_bytes,
        )?;
        let index = self
            .log
            .stage(self.hard_state.term, EntryKind::Normal, payload);
        leader.note_room(index);
        Ok(index)
    }
}
