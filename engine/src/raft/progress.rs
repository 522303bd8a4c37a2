//! What a leader knows of one peer (Raft §5.3 `nextIndex` and `matchIndex`), and how much it may send.
//!
//! ```text
//!   Probe ── accepted ──▶ Replicate       Probe: one append, then wait for word.
//!     ▲                      │            Replicate: optimistic, a window of appends in flight.
//!     └─ rejected, unreachable
//! ```

use std::collections::VecDeque;

use crate::types::Index;

/// How the leader sends to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// Where the logs agree is not known: one append at a time.
    Probe,
    /// They agree up to `matched`: pipelined.
    Replicate,
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
    /// The highest commit index told in an append.
    pub sent_commit: Index,
    /// A probe is out: send nothing until word comes.
    pub probe_sent: bool,
    /// An empty append is wanted, to find out whether appends were lost.
    pub ask: bool,
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
            sent_commit: Index::ZERO,
            probe_sent: false,
            ask: false,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// Whether nothing may be sent now.
    pub fn is_paused(&self, window: Window) -> bool {
        match self.state {
            ProgressState::Probe => self.probe_sent,
            ProgressState::Replicate => {
                self.inflight.len() >= window.messages || self.inflight_bytes >= window.bytes
            }
        }
    }

    /// An append up to `last` with `bytes` of blocks left.
    pub fn on_sent(&mut self, last: Index, bytes: usize, commit: Index) {
        self.sent_commit = self.sent_commit.max(commit);
        self.ask = false;
        match self.state {
            ProgressState::Probe => self.probe_sent = true,
            ProgressState::Replicate if last >= self.next => {
                self.next = last.next();
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
            }
            ProgressState::Replicate => {}
        }
    }

    /// The peer holds everything up to `last`. Returns whether that was news.
    pub fn on_accepted(&mut self, last: Index) -> bool {
        let news = last > self.matched;
        self.matched = self.matched.max(last);
        self.next = self.next.max(self.matched.next());
        match self.state {
            ProgressState::Probe => self.become_replicate(),
            ProgressState::Replicate => {
                while self
                    .inflight
                    .front()
                    .is_some_and(|&(index, _)| index <= last)
                {
                    self.free_first();
                }
            }
        }
        news
    }

    /// The peer refused an append after `prev`; its log may agree up to `hint`. Returns whether
    /// the answer was to something still open.
    pub fn on_rejected(&mut self, prev: Index, hint: Index) -> bool {
        match self.state {
            ProgressState::Replicate => {
                if prev <= self.matched {
                    return false; // from before the match: stale
                }
                self.become_probe();
            }
            ProgressState::Probe => {
                if prev != self.next.prev() {
                    return false; // not the probe that is out
                }
                self.next = prev.min(hint.next()).max(self.matched.next());
                self.probe_sent = false;
            }
        }
        true
    }

    /// The peer is alive: a lost probe or a window of lost appends may be asked about.
    pub fn on_heartbeat_response(&mut self, last: Index, window: Window) {
        self.probe_sent = false;
        if self.state == ProgressState::Replicate && self.is_paused(window) {
            self.free_first();
        }
        self.ask = self.matched < last;
    }

    /// Appends in flight are lost, or may be.
    pub fn on_unreachable(&mut self) {
        if self.state == ProgressState::Replicate {
            self.become_probe();
        }
        self.probe_sent = false;
    }

    fn become_probe(&mut self) {
        self.state = ProgressState::Probe;
        self.next = self.matched.next();
        self.probe_sent = false;
        self.inflight = VecDeque::new();
        self.inflight_bytes = 0;
    }

    fn become_replicate(&mut self) {
        self.state = ProgressState::Replicate;
        self.next = self.matched.next();
        self.probe_sent = false;
    }

    fn free_first(&mut self) {
        if let Some((_, bytes)) = self.inflight.pop_front() {
            self.inflight_bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window {
        messages: 2,
        bytes: 100,
    };

    #[test]
    fn a_probe_waits_for_word_and_a_window_for_room() {
        let mut peer = Progress::new(Index(5));
        peer.on_sent(Index(5), 10, Index(0));
        assert!(peer.is_paused(WINDOW));
        assert!(peer.on_accepted(Index(5)));
        assert_eq!(
            (peer.state, peer.next),
            (ProgressState::Replicate, Index(6))
        );
        peer.on_sent(Index(6), 10, Index(5));
        assert!(!peer.is_paused(WINDOW));
        peer.on_sent(Index(7), 10, Index(5));
        assert!(peer.is_paused(WINDOW), "two messages are the window");
        peer.on_accepted(Index(6));
        assert!(!peer.is_paused(WINDOW));
        peer.on_sent(Index(8), 200, Index(5));
        peer.on_accepted(Index(7));
        assert!(peer.is_paused(WINDOW), "its bytes fill the window");
    }

    #[test]
    fn stale_rejections_change_nothing() {
        let mut peer = Progress::new(Index(9));
        assert!(
            !peer.on_rejected(Index(3), Index(2)),
            "not the probe that is out"
        );
        assert!(peer.on_rejected(Index(9), Index(4)));
        assert_eq!(peer.next, Index(5));
        peer.on_accepted(Index(4));
        assert!(
            !peer.on_rejected(Index(4), Index(1)),
            "from before the match"
        );
        assert!(peer.on_rejected(Index(7), Index(4)));
        assert_eq!((peer.state, peer.next), (ProgressState::Probe, Index(5)));
    }
}
