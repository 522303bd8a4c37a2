//! Replication as the leader does it: appends, answers, commits, snapshots (Raft §5.3, §5.4, §7).
//!
//! Inputs only note what each peer is to be told ([`Wanted`]); [`Group::send_appends`] composes it,
//! once a turn: so many proposals, acknowledgements and commits of a turn become one append a peer.

use std::collections::BTreeSet;

use super::effects::{Snapshot, SnapshotOutcome, Source};
use super::membership::Configuration;
use super::message::{AppendResponse, Message};
use super::progress::{Progress, Wanted};
use super::quorum::{blocking_index, joint_index};
use super::{Group, Role};
use crate::block::Block;
use crate::planted;
use crate::types::{Index, NodeId};

impl Group {
    pub(super) fn on_append_response(&mut self, from: NodeId, response: AppendResponse) {
        let (first, end) = (self.log.first(), self.log.last());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        peer.recent_active = true;
        match response {
            AppendResponse::Accepted { last } => {
                if last > end {
                    tracing::error!(group = %self.id, %from, %last, "accepted what was never sent");
                } else if last < peer.matched {
                    peer.want(Wanted::Append); // it does not know how much we know it to hold
                } else if peer.on_accepted(last, first) {
                    self.on_progress(from);
                }
            }
            AppendResponse::Rejected {
                prev,
                hint_index,
                hint_term,
                last,
            } => {
                // Where the peer's log ends in an older term, ours may hold less of that term.
                let hint = hint_index.min(last);
                let hint = self.log.find_conflict_by_term(hint, hint_term);
                if peer.on_rejected(prev, hint) {
                    peer.want(Wanted::Append);
                }
            }
            AppendResponse::StateMissing { from } => peer.on_state_missing(from),
        }
    }

    /// A peer holds more than before: that may commit, free its window, end a transfer's wait.
    fn on_progress(&mut self, from: NodeId) {
        let committed = self.maybe_commit();
        let (last, commit) = (self.log.last(), self.log.commit());
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(peer) = leader.peers.get_mut(&from) else {
            return;
        };
        if !committed && peer.can_bump_commit(commit) {
            peer.want(Wanted::Append);
        }
        peer.want(Wanted::Entries);
        if leader.is_leaving {
            leader.want_all(Wanted::Entries); // witnesses may have more now
        }
        let Some(peer) = leader.peers.get(&from) else {
            return;
        };
        if leader.transferee == Some(from) && peer.matched == last {
            leader.timeout_now_due = true;
        }
    }

    /// Commits what a quorum holds durably, ourselves by our own disk's word, if the entry is of
    /// this term (Raft §5.4.2, Figure 8). Returns whether that was news; all are told of it then.
    pub(super) fn maybe_commit(&mut self) -> bool {
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let durable = if planted!("self-count") {
            self.log.last()
        } else {
            self.log.durable()
        };
        let node = self.node;
        let matched = |id| {
            if id == node {
                durable
            } else {
                leader.peers.get(&id).map_or(Index::ZERO, |p| p.matched)
            }
        };
        let index = if leader.survivors.is_some() {
            durable // nobody else is asked: see `recovery`
        } else if let Some(index) = joint_index(self.configuration.halves(), matched) {
            index.min(self.last_agreed(&matched))
        } else {
            return false;
        };
        let is_own = self.log.term(index) == Some(self.hard_state.term) || planted!("old-term");
        if !is_own || !self.log.commit_to(index) {
            return false;
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.want_all(Wanted::Append);
        }
        self.advance_reads(); // those that waited for the first commit of the term
        true
    }

    /// Up to where the change in the log that is not applied yet, if there is one, lets what the present
    /// configuration agrees on be committed. What is behind a change that takes somebody's vote has to be
    /// held by those who keep theirs, so many that no majority is without them. Else: 1. leader L of
    /// {L, X, Y} logs the removal of X and an entry behind it; 2. L and X have both: they are committed,
    /// and X applies its removal before L does; 3. L is gone, and Y, which has neither, asks X, whose
    /// vote judges only up to its removal (`knows_enough`): Y leads without the entry. Seen in
    /// simulation with the first entry of a leader's term behind the change of an earlier one. Who is new
    /// need not hold anything: it is sent nothing before the change is applied.
    fn last_agreed(&self, matched: &impl Fn(NodeId) -> Index) -> Index {
        let end = self.log.last();
        if self.log.has_unknown_kinds() {
            return self.log.commit();
        }
        let Some((index, next)) = self.pending_configuration() else {
            return end;
        };
        if !self.leaves_a_leader(index, &next, matched) {
            return index.prev();
        }
        let halves = self.configuration.halves();
        if halves
            .iter()
            .all(|half| half.iter().all(|&id| next.votes(id)))
        {
            return end;
        }
        let held = |half: &&BTreeSet<NodeId>| blocking_index(half, |id| next.votes(id), matched);
        let held = halves.iter().map(held).max().unwrap_or_default();
        held.max(index)
    }

    /// Whether committing a change leaves somebody who can lead. With witnesses a quorum may hold a
    /// change that takes the last vote from all who have it with data: 1. of two with data and a
    /// witness, one and the witness hold the change that removes that one; 2. it is committed and
    /// applied; 3. the other one lacks it, and the witness votes for nobody who lacks it: the group is
    /// dead. So a change commits only when a voter with data of the membership after it has it.
    fn leaves_a_leader(
        &self,
        index: Index,
        next: &Configuration,
        matched: &impl Fn(NodeId) -> Index,
    ) -> bool {
        let all = next.all();
        let mut heirs = all.iter().filter(|&&id| next.may_lead(id));
        index <= self.log.commit()
            || self.configuration.witnesses.is_empty() // every quorum has data then
            || heirs.any(|&id| matched(id) >= index)
    }

    /// The configuration after the change in the log that is not applied yet, and where that is. There
    /// is one at most (see [`super::conf_change`]).
    pub(super) fn pending_configuration(&self) -> Option<(Index, Configuration)> {
        let changes = self.log.unapplied_conf_changes();
        let mut changes = changes.filter(|change| change.0 > self.membership.index);
        changes.find_map(|(index, change)| {
            let next = self.membership.changed(change, *index).ok()?;
            Some((*index, next.configuration()))
        })
    }

    /// Whether an entry of this term is committed: then the commit index covers all that earlier
    /// leaders committed (Raft §8).
    pub(super) fn has_committed_in_term(&self) -> bool {
        self.log.term(self.log.commit()) == Some(self.hard_state.term)
    }

    /// Composes what the peers are to be told, as far as their windows allow. Called by
    /// [`Group::take_effects`]; earlier only by who wants a message for each input.
    pub fn send_appends(&mut self, source: &mut dyn Source) {
        if !matches!(self.role, Role::Leader(_)) {
            return;
        }
        self.log.seal();
        let heirs = self.heirs();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let mut peers = std::mem::take(&mut leader.peers);
        for (&to, peer) in &mut peers {
            let mut wanted = std::mem::take(&mut peer.wanted);
            while wanted > Wanted::Nothing && self.send_append(to, peer, wanted, heirs, source) {
                wanted = Wanted::Entries;
            }
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
        self.send_timeout_now();
    }

    /// The last entry that a peer may be sent. A witness gets none that is not durable here: a
    /// leader could send one, crash before its own disk has it, and leave the witness with the
    /// longer log, without data, voting for nobody. The group would be stuck. So it would be when we
    /// leave, and only a witness has what nobody else has who stays.
    fn last_for(&self, to: NodeId, heirs: Option<Index>) -> Index {
        if self.configuration.witnesses.contains(&to) {
            self.log.durable().min(heirs.unwrap_or(self.log.last()))
        } else {
            self.log.last()
        }
    }

    /// Of a leader that is leaving: how much of the log those have who could lead when it has left.
    fn heirs(&self) -> Option<Index> {
        let Role::Leader(leader) = &self.role else {
            return None;
        };
        if !leader.is_leaving || self.configuration.witnesses.is_empty() {
            return None;
        }
        let (_, next) = self.pending_configuration()?;
        let heirs = leader.peers.iter().filter(|(id, _)| next.may_lead(**id));
        Some(
            heirs
                .map(|(_, peer)| peer.matched)
                .max()
                .unwrap_or_default(),
        )
    }

    /// One append from the peer's next index on, or a snapshot. False when nothing was sent.
    fn send_append(
        &mut self,
        to: NodeId,
        peer: &mut Progress,
        wanted: Wanted,
        heirs: Option<Index>,
        source: &mut dyn Source,
    ) -> bool {
        if peer.is_paused() {
            return false;
        }
        let prev_index = peer.next.prev();
        let (Some(prev_term), None) = (self.log.term(prev_index), peer.state_missing) else {
            return self.send_snapshot(to, peer, source);
        };
        let last = self.last_for(to, heirs);
        let mut blocks = Vec::new();
        if peer.next <= last && !peer.is_full(self.limits.window) {
            let bytes = self.limits.append_bytes;
            match self.log.blocks(peer.next, last, bytes, source) {
                Ok(found) => blocks = found,
                Err(error) => {
                    tracing::error!(group = %self.id, %to, %error, "cannot read entries to send");
                    return false;
                }
            }
        }
        if blocks.is_empty() && wanted < Wanted::Append {
            return false;
        }
        if self.configuration.witnesses.contains(&to) {
            blocks = blocks.iter().map(Block::headers_only).collect();
        }
        let bytes = blocks.iter().map(|b| b.bytes().len()).sum();
        let commit = self.log.commit();
        let last = blocks.last().map(Block::last);
        peer.on_sent(last, bytes, commit, self.limits.window);
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

    /// The peer lacks entries that are compacted, or the state before them. One that is silent gets
    /// nothing: a snapshot is too much to be sent into the void. A witness keeps no state: the
    /// message alone lets its log go on, and when it is lost the next probe shows it.
    fn send_snapshot(&mut self, to: NodeId, peer: &mut Progress, source: &mut dyn Source) -> bool {
        if !peer.recent_active {
            return false;
        }
        let begin = self.log.first().prev();
        // Who joined has to have one from behind that: before, it may have been a member, and left.
        let joined = self.membership.index;
        let from = peer
            .state_missing
            .map_or(begin, |from| from.max(begin).max(joined));
        // One from before the peer joined says that it is no member: it would refuse it.
        let has_peer = |s: &Snapshot| s.membership.configuration().contains(to);
        let found = source.snapshot(from).filter(has_peer);
        let found = found.or_else(|| source.snapshot(from.max(self.membership.index)));
        let Some(snapshot) = found else {
            tracing::debug!(group = %self.id, %to, "the peer needs a snapshot, there is none yet");
            return false;
        };
        peer.become_snapshot(snapshot.index);
        if self.configuration.witnesses.contains(&to) {
            peer.on_snapshot_ended(SnapshotOutcome::Sent);
        }
        self.send(to, Message::InstallSnapshot { snapshot });
        true
    }

    /// The snapshot's files have reached the peer, or have not.
    pub(super) fn on_snapshot_sent(&mut self, to: NodeId, outcome: SnapshotOutcome) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if let Some(peer) = leader.peers.get_mut(&to) {
            peer.on_snapshot_ended(outcome);
        }
    }
}
