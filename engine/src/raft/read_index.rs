//! Linearizable reads without a log entry (thesis §6.4).
//!
//! A leader that answers a read must still be the leader when the read began. It notes its commit
//! index, sends a round of heartbeats that carry the round's number, and answers when a quorum
//! has echoed it. Reads that come while a round is out wait for the next: one round serves all.
//! A round's number is never used twice, so an answer held up by a pause proves nothing new.

use std::collections::BTreeSet;

use crate::types::{Index, NodeId};

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// The asking node; ourselves for a local client.
    pub from: NodeId,
    /// Its number for the read.
    pub request: u64,
}

/// The open reads of a leader.
#[derive(Debug, Default)]
pub struct ReadRounds {
    round: u64,
    open: Option<OpenRound>,
    waiting: Vec<Reader>,
}

#[derive(Debug)]
struct OpenRound {
    index: Index,
    readers: Vec<Reader>,
    acks: BTreeSet<NodeId>,
}

impl ReadRounds {
    /// One more read, for the next round.
    pub fn push(&mut self, reader: Reader) {
        self.waiting.push(reader);
    }

    /// The round that heartbeats carry; 0 when none is out.
    pub fn current(&self) -> u64 {
        if self.open.is_some() { self.round } else { 0 }
    }

    /// Starts a round if reads wait and none is out. `commit` is the leader's commit index, with
    /// an entry of its own term committed (thesis §6.4 step 1).
    pub fn start(&mut self, commit: Index) -> bool {
        if self.open.is_some() || self.waiting.is_empty() {
            return false;
        }
        self.round += 1;
        let readers = std::mem::take(&mut self.waiting);
        self.open = Some(OpenRound {
            index: commit,
            readers,
            acks: BTreeSet::new(),
        });
        true
    }

    /// A peer echoed `round`; an older round proves nothing for this one.
    pub fn on_ack(&mut self, from: NodeId, round: u64) {
        if let Some(open) = self.open.as_mut().filter(|_| round == self.round) {
            open.acks.insert(from);
        }
    }

    /// The round's readers and index once `is_quorum` says so of its acknowledgements.
    pub fn take_confirmed(
        &mut self,
        is_quorum: impl Fn(&BTreeSet<NodeId>) -> bool,
    ) -> Option<(Vec<Reader>, Index)> {
        let open = self.open.take_if(|open| is_quorum(&open.acks))?;
        Some((open.readers, open.index))
    }

    /// All readers, unanswered: the leader is none any more.
    pub fn take_all(&mut self) -> Vec<Reader> {
        let mut readers = self.open.take().map(|o| o.readers).unwrap_or_default();
        readers.append(&mut self.waiting);
        readers
    }
}
