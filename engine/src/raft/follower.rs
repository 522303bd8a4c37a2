//! What a follower does with a leader's messages.

use super::effects::Snapshot;
use super::message::{AppendResponse, Message};
use super::{Group, Role};
use crate::block::Block;
use crate::planted;
use crate::types::{Index, NodeId, Term};

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
        if self.is_joining {
            self.ask_for_state(from);
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
        match self.log.accept(blocks) {
            Ok(None) => {}
            Ok(Some(cut)) => self.on_cut(cut),
            Err(conflict) => {
                tracing::error!(group = %self.id, %from, ?conflict, "append ignored");
                return;
            }
        }
        let last = blocks.last().map_or(prev_index, Block::last);
        self.agreed = (self.hard_state.term, last);
        self.log.commit_to(commit.min(last));
        self.accept_up_to(from, last);
    }

    /// Entries from `cut` on are gone: what was written before proves nothing for what comes in
    /// their place. Else: 1. entry 5 of term 1 is on its way to the disk; 2. entry 5 of term 2
    /// replaces it; 3. the first write's completion would count the second as durable.
    fn on_cut(&mut self, cut: Index) {
        for write in &mut self.pending {
            if !planted!("B20") {
                write.last = write.last.min(cut.prev());
            }
        }
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

    /// Up to where a heartbeat's commit index speaks of our log. A leader names no more than we hold;
    /// but if our data may have a former life, it may mean what that life held: then only what this
    /// leader's appends were checked against.
    fn trusted_end(&self) -> Index {
        let (term, last) = self.agreed;
        if self.is_confirmed() {
            self.log.last()
        } else if term == self.hard_state.term {
            last.min(self.log.last())
        } else {
            Index::ZERO
        }
    }

    /// The leader lives, and tells what is committed.
    pub(super) fn on_heartbeat(&mut self, from: NodeId, commit: Index, read_round: u64) {
        if !self.follow(from) {
            return;
        }
        let end = self.trusted_end();
        self.log.commit_to(commit.min(end));
        if commit > end && !self.is_confirmed() {
            let last = self.log.commit();
            self.accept_up_to(from, last); // less than it thinks: it sends an append
        }
        // An echo says only that we knew no newer term just now: no disk is needed for that. Who
        // commits in a newer term has durable acknowledgements of a quorum, and one of that quorum
        // is asked in every round.
        self.send(from, Message::HeartbeatResponse { read_round });
        if self.log.is_state_missing() {
            self.ask_for_state(from);
        }
    }

    /// Without state nothing can be applied.
    fn ask_for_state(&mut self, leader: NodeId) {
        let from = self.log.first().prev();
        let response = AppendResponse::StateMissing { from };
        self.send(leader, Message::AppendEntriesResponse(response));
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
        self.silence = 0;
        true
    }

    /// The state after entries that the leader no longer has (Raft §7). Whatever the outcome, the
    /// leader learns from where it can go on.
    pub(super) fn on_install_snapshot(&mut self, from: NodeId, snapshot: Snapshot) {
        if !self.follow(from) {
            return;
        }
        self.install(snapshot);
        let last = if self.log.has_pending_snapshot() {
            self.log.last()
        } else {
            self.log.commit()
        };
        self.accept_up_to(from, last);
    }

    /// A new group begins with the state of another one, and in its term: nothing was logged or promised
    /// here before.
    pub(super) fn on_import(&mut self, snapshot: Snapshot) {
        if self.hard_state.term != Term::ZERO || self.log.last() != Index::ZERO {
            tracing::error!(group = %self.id, "an import into a group that has begun: ignored");
            return;
        }
        self.hard_state.term = snapshot.term;
        self.install(snapshot);
    }

    /// Takes a snapshot over unless it is stale, in a term yet to come, not for us, or our log has
    /// its last entry: then everything before agrees too (log matching), and entries behind it are
    /// kept, which we may have acknowledged.
    fn install(&mut self, snapshot: Snapshot) {
        let Snapshot { index, term, .. } = snapshot;
        let is_sane = index.0 < u64::MAX / 2 && Term::ZERO < term && term <= self.hard_state.term;
        let is_missed = self.log.is_state_missing() && index >= self.log.first().prev();
        if (index <= self.log.commit() && !is_missed) || !is_sane {
            return;
        }
        if self.log.term(index) == Some(term) {
            if is_missed {
                self.replace_state(snapshot);
            } else {
                self.log.commit_to(index);
            }
            return;
        }
        if index <= self.log.commit() {
            tracing::error!(group = %self.id, %index, %term, "a snapshot against a committed entry: ignored");
            return;
        }
        let configuration = snapshot.membership.configuration();
        let is_past = self.is_joining && snapshot.membership.index < self.membership.index;
        if !configuration.contains(self.node) || is_past {
            tracing::warn!(group = %self.id, %index, "a snapshot of a membership without us: ignored");
            return;
        }
        self.is_joining = false;
        self.log.restart_after(index, term);
        for write in &mut self.pending {
            write.last = Index::ZERO; // its entries are gone
        }
        self.set_membership(snapshot.membership.clone());
        self.effects.install = Some(snapshot);
    }

    /// Our log agrees with the snapshot, only the state before it is lost.
    fn replace_state(&mut self, snapshot: Snapshot) {
        self.log.replace_state(snapshot.index);
        if snapshot.membership.index > self.membership.index {
            self.set_membership(snapshot.membership.clone());
        }
        self.effects.install = Some(snapshot);
    }
}
