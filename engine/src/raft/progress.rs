//! What a leader knows of one peer (Raft §5.3 `nextIndex` and `matchIndex`), and how much it may send.
//!
//! ```text
//!   ┌─ rejected, unreachable ──────────┐     Probe: one append, then wait for word.
//!   ▼                                  │     Replicate: optimistic, a window of appends in flight.
//! Probe ── accepted ──────────▶ Replicate    Snapshot: wait for the state that replaces entries
//!   │ ▲                                ▲               that the leader no longer has.
//!   │ └─ sent, failed ─┐               │
//!   └─ entry compacted ┴▶ Snapshot ────┘ accepted from where our log begins
//! ```

use std::collections::VecDeque;

use super::effects::SnapshotOutcome;
use crate::planted;
use crate::types::Index;

/// How the leader sends to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// Where the logs agree is not known: one append at a time.
    Probe,
    /// They agree up to `matched`: pipelined.
    Replicate,
    /// It needs the snapshot whose last entry this is.
    Snapshot(Index),
}

/// What the leader wants to tell a peer when messages are composed next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Wanted {
    /// Nothing.
    #[default]
    Nothing,
    /// Entries, if it lacks some.
    Entries,
    /// An append in any case: it tells the commit index, or asks where the logs agree.
    Append,
}

/// The leader's view of one peer's log.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Known to be on the peer's stable storage.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// How to send.
    pub state: ProgressState,
    /// Word came since the last check of the quorum (thesis §6.2).
    pub recent_active: bool,
    /// What to tell it next.
    pub wanted: Wanted,
    /// It has lost the state before this entry, and needs a snapshot although its log is fine.
    pub state_missing: Option<Index>,
    /// The highest commit index on its way to the peer.
    sent_commit: Index,
    /// A probe is out, or the window is full: send nothing until word comes.
    paused: bool,
    /// Last index and bytes of each append in flight.
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
}

/// Limits of one peer's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Appends in flight at most.
    pub messages: usize,
    /// Bytes of blocks in flight at most; a single larger append still goes.
    pub bytes: usize,
}

impl Progress {
    /// What a new leader assumes: nothing, and that the logs agree to the end (Raft §5.3).
    pub fn new(last: Index) -> Self {
        Self {
            matched: Index::ZERO,
            next: last.next(),
            state: ProgressState::Probe,
            recent_active: false,
            wanted: Wanted::Nothing,
            state_missing: None,
            sent_commit: Index::ZERO,
            paused: false,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// A peer that just joined. It counts as alive at first: the check of the quorum must not end a
    /// leadership before the newcomer could speak.
    pub fn joined(last: Index) -> Self {
        Self {
            next: last.max(Index(1)),
            recent_active: true,
            ..Self::new(last)
        }
    }

    /// Whether nothing may be sent now.
    pub fn is_paused(&self) -> bool {
        self.paused || matches!(self.state, ProgressState::Snapshot(_))
    }

    /// Whether the window takes no more entries; an empty append may still ask.
    pub fn is_full(&self, window: Window) -> bool {
        self.state == ProgressState::Replicate
            && (self.inflight.len() >= window.messages || self.inflight_bytes >= window.bytes)
    }

    /// Asks for more to be told at the next occasion.
    pub fn want(&mut self, wanted: Wanted) {
        self.wanted = self.wanted.max(wanted);
    }

    /// An append with entries up to `last` left; `None` for one without entries.
    pub fn on_sent(&mut self, last: Option<Index>, bytes: usize, commit: Index, window: Window) {
        self.sent_commit = commit;
        match self.state {
            ProgressState::Probe => self.paused |= last.is_some(),
            ProgressState::Replicate => {
                if let Some(last) = last {
                    self.next = last.next();
                    self.inflight.push_back((last, bytes));
                    self.inflight_bytes += bytes;
                }
                self.paused = self.is_full(window);
            }
            ProgressState::Snapshot(_) => {}
        }
    }

    /// A heartbeat told this commit index.
    pub fn on_commit_sent(&mut self, commit: Index) {
        self.sent_commit = commit;
    }

    /// Whether telling `commit` moves the peer's commit index within what it was sent.
    pub fn can_bump_commit(&self, commit: Index) -> bool {
        commit > self.sent_commit && self.sent_commit < self.next.prev()
    }

    /// The peer holds everything up to `last`; our log begins at `first`. Returns whether that
    /// changed anything.
    pub fn on_accepted(&mut self, last: Index, first: Index) -> bool {
        let is_news = last > self.matched;
        if is_news {
            self.matched = last;
            self.next = self.next.max(last.next());
            self.paused = false;
        }
        match self.state {
            ProgressState::Probe if is_news || self.matched == last => self.become_replicate(),
            ProgressState::Snapshot(_) if is_news && self.matched.next() >= first => {
                // However it got there: it can go on from our log.
                self.become_replicate();
            }
            ProgressState::Replicate if is_news => {
                while self.inflight.front().is_some_and(|part| part.0 <= last) {
                    self.free_first();
                }
            }
            ProgressState::Probe | ProgressState::Snapshot(_) | ProgressState::Replicate => {
                return is_news;
            }
        }
        true
    }

    /// The peer refused an append after `prev`; its log may agree up to `hint`. Returns whether
    /// the answer was to something still open.
    pub fn on_rejected(&mut self, prev: Index, hint: Index) -> bool {
        if self.state == ProgressState::Replicate {
            if prev <= self.matched {
                return false; // from before the match: stale
            }
            self.become_probe();
            return true;
        }
        if prev != self.next.prev() {
            return false; // not the probe that is out
        }
        self.next = prev.min(hint.next()).max(self.matched.next());
        self.lower_sent_commit();
        self.paused = false;
        true
    }

    /// The peer is alive: a lost probe or a window of lost appends may be asked about.
    pub fn on_heartbeat_response(&mut self, last: Index) {
        self.paused &= planted!("B19");
        if self.matched < last || self.state == ProgressState::Probe {
            self.want(Wanted::Append);
        }
    }

    /// Appends in flight are lost, or may be.
    pub fn on_unreachable(&mut self) {
        if self.state == ProgressState::Replicate {
            self.become_probe();
        }
    }

    /// It needs a snapshot that covers `from`, whatever its log holds; one that is on its way will
    /// do, or it asks again. From zero on: it left and came back, and has nothing more of what it
    /// acknowledged before.
    pub fn on_state_missing(&mut self, from: Index) {
        if !matches!(self.state, ProgressState::Snapshot(_)) {
            self.state_missing = Some(from);
            if from == Index::ZERO {
                self.matched = Index::ZERO;
            }
            self.want(Wanted::Append);
        }
    }

    /// It gets the snapshot that ends at `index`.
    pub fn become_snapshot(&mut self, index: Index) {
        self.state_missing = None;
        self.reset(ProgressState::Snapshot(index));
        self.next = index.next();
        self.sent_commit = index;
    }

    /// Sending the snapshot has ended: wait for word of the peer, or for a heartbeat.
    pub fn on_snapshot_ended(&mut self, outcome: SnapshotOutcome) {
        if !matches!(self.state, ProgressState::Snapshot(_)) {
            return;
        }
        match outcome {
            SnapshotOutcome::Sent => {}
            SnapshotOutcome::Failed => self.state = ProgressState::Probe, // from the match again
        }
        self.become_probe();
        self.paused = true;
    }

    fn become_probe(&mut self) {
        self.next = match self.state {
            ProgressState::Snapshot(index) => self.matched.max(index).next(),
            ProgressState::Probe | ProgressState::Replicate => self.matched.next(),
        };
        self.reset(ProgressState::Probe);
        self.lower_sent_commit();
    }

    fn become_replicate(&mut self) {
        self.reset(ProgressState::Replicate);
        self.next = self.matched.next();
    }

    fn reset(&mut self, state: ProgressState) {
        self.state = state;
        self.paused = false;
        self.inflight = VecDeque::new();
        self.inflight_bytes = 0;
    }

    /// What may be lost was perhaps never heard.
    fn lower_sent_commit(&mut self) {
        self.sent_commit = self.sent_commit.min(self.next.prev());
    }

    fn free_first(&mut self) {
        if let Some((_, bytes)) = self.inflight.pop_front() {
            self.inflight_bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests;
