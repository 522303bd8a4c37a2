//! Linearizable reads without a log entry (thesis §6.4), and with a lease (thesis §6.4.1).
//!
//! A leader that answers a read must still be the leader when the read began. It notes its commit
//! index, sends a round of heartbeats, and answers when a quorum has echoed that round or a later
//! one. Reads that come while a round is waited for wait for the next: one round serves all.
//! Rounds are numbered through a leadership and no number is used twice, so an answer held up by a
//! pause proves nothing new.
//!
//! With [`ReadMode::Lease`] the last round that a quorum echoed is a lease: whoever echoed votes for
//! nobody else within an election timeout of its own clock. The leader counts from when it *sent*
//! that round, and ends `drift_ticks` early. Stated bound: while one node's clock ticks
//! `election_ticks` times, no other node's ticks less than `election_ticks - drift_ticks` times.

use std::collections::{BTreeMap, VecDeque};

use super::effects::{ReadOutcome, Refusal};
use super::message::Message;
use super::quorum::joint_index;
use super::{Group, Role};
use crate::planted;
use crate::types::{Index, NodeId};

/// How a leader makes sure that it still is one before it serves a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// By a round of heartbeats: safe with any clocks.
    #[default]
    Index,
    /// By a lease: no round, but wrong answers if a clock runs faster than stated. Needs
    /// `check_quorum`. Evidence of a leader's death does not shorten an election in this mode, and
    /// a restarted replica votes for nobody for one election timeout.
    Lease {
        /// Ticks by which the lease ends early.
        drift_ticks: u32,
    },
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The asking node; ourselves for a local client.
    pub from: NodeId,
    /// Its number for the read.
    pub request: u64,
}

/// The rounds of heartbeats of a leadership, and the reads that wait for them.
#[derive(Debug, Default)]
pub struct ReadRounds {
    /// The last round sent.
    sent: u64,
    /// When the last rounds were sent, by the leader's count of ticks.
    sent_at: VecDeque<(u64, u64)>,
    /// The newest round that each peer echoed.
    echoed: BTreeMap<NodeId, u64>,
    open: Option<OpenRound>,
    waiting: Vec<Reader>,
}

#[derive(Debug)]
struct OpenRound {
    /// This round or a later one must be echoed.
    round: u64,
    index: Index,
    readers: Vec<Reader>,
}

impl ReadRounds {
    /// One more read, for the next round.
    pub fn push(&mut self, reader: Reader) {
        self.waiting.push(reader);
    }

    /// The number of the heartbeats sent now, at `tick`; forgets rounds older than `keep_ticks`.
    pub fn next_round(&mut self, tick: u64, keep_ticks: u32) -> u64 {
        self.sent += 1;
        let oldest = tick.saturating_sub(u64::from(keep_ticks));
        while self.sent_at.front().is_some_and(|sent| sent.1 < oldest) {
            self.sent_at.pop_front();
        }
        self.sent_at.push_back((self.sent, tick));
        self.sent
    }

    /// Waits for the next round if reads wait and none is waited for. `commit` is the leader's
    /// commit index, with an entry of its own term committed (thesis §6.4 step 1). True: send it.
    pub fn start(&mut self, commit: Index) -> bool {
        if self.open.is_some() || self.waiting.is_empty() {
            return false;
        }
        self.open = Some(OpenRound {
            round: self.sent + 1,
            index: commit,
            readers: std::mem::take(&mut self.waiting),
        });
        true
    }

    /// A peer echoed `round`; one that was never sent proves nothing.
    pub fn on_echo(&mut self, from: NodeId, round: u64) {
        if round <= self.sent {
            let newest = self.echoed.entry(from).or_default();
            *newest = round.max(*newest);
            if planted!("B2") {
                *newest = u64::MAX / 2;
            }
        }
    }

    /// The newest round that this node has echoed; of the leader itself, the last one sent.
    fn echoed_by(&self, id: NodeId, leader: NodeId) -> Index {
        let echoed = self.echoed.get(&id).copied().unwrap_or(0);
        Index(if id == leader { self.sent } else { echoed })
    }

    /// The waiting round's readers and index once a quorum has echoed `confirmed`.
    fn take_confirmed(&mut self, confirmed: u64) -> Option<(Vec<Reader>, Index)> {
        let open = self.open.take_if(|open| open.round <= confirmed)?;
        Some((open.readers, open.index))
    }

    /// All readers, unanswered: the leader is none any more.
    pub fn take_all(&mut self) -> Vec<Reader> {
        let mut readers = self.open.take().map(|o| o.readers).unwrap_or_default();
        readers.append(&mut self.waiting);
        readers
    }
}

impl Group {
    /// A client here reads.
    pub(super) fn on_read(&mut self, request: u64) {
        if matches!(self.role, Role::Leader(_)) {
            let from = self.node;
            self.read_at_leader(Reader { from, request });
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
        if matches!(self.role, Role::Leader(_)) {
            self.read_at_leader(Reader { from, request });
        } else {
            let index = None;
            self.send(from, Message::ReadIndexResponse { request, index });
        }
    }

    fn read_at_leader(&mut self, reader: Reader) {
        let has_lease = self.has_lease() || planted!("B1");
        if has_lease && self.has_committed_in_term() {
            self.answer_read(reader, Ok(self.log.commit()));
        } else if let Role::Leader(leader) = &mut self.role {
            leader.reads.push(reader);
            self.advance_reads();
        }
    }

    /// Whether nobody else can have been elected yet, by the clocks' stated bound.
    fn has_lease(&self) -> bool {
        let (Role::Leader(leader), ReadMode::Lease { drift_ticks }) =
            (&self.role, self.limits.reads)
        else {
            return false;
        };
        if leader.timeout_now_sent {
            return false; // somebody may campaign whatever the others promised us
        }
        let confirmed = self.confirmed_round();
        let sent_at = leader.reads.sent_at.iter().find(|sent| sent.0 == confirmed);
        let mut length = self.limits.election_ticks.saturating_sub(drift_ticks);
        if planted!("B3") {
            length *= 4;
        }
        sent_at.is_some_and(|sent| leader.ticks < sent.1 + u64::from(length))
    }

    /// The newest round that a quorum has echoed.
    fn confirmed_round(&self) -> u64 {
        let Role::Leader(leader) = &self.role else {
            return 0;
        };
        let echoed = |id| leader.reads.echoed_by(id, self.node);
        joint_index(self.configuration.halves(), echoed).map_or(0, |round| round.0)
    }

    /// Starts a round for waiting reads, and answers a round that a quorum has echoed.
    pub(super) fn advance_reads(&mut self) {
        // The commit index of a new leader may lag behind what earlier leaders committed.
        if !self.has_committed_in_term() {
            return;
        }
        loop {
            let commit = self.log.commit();
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            if leader.reads.start(commit) {
                self.send_heartbeats();
            }
            let confirmed = self.confirmed_round();
            let Role::Leader(leader) = &mut self.role else {
                return;
            };
            let Some((readers, index)) = leader.reads.take_confirmed(confirmed) else {
                return;
            };
            for reader in readers {
                self.answer_read(reader, Ok(index));
            }
        }
    }

    /// Tells a reader its index, here or over there.
    pub(super) fn answer_read(&mut self, reader: Reader, index: Result<Index, Refusal>) {
        let Reader { from, request } = reader;
        if from == self.node {
            self.effects.reads.push(ReadOutcome { request, index });
        } else {
            let index = index.ok();
            self.send(from, Message::ReadIndexResponse { request, index });
        }
    }
}
