//! Callers that wait for a batch: asleep on one word, woken once when that batch is durable.

use super::sync::{AtomicU32, Ordering, sleep_on, wake_all};

/// The newest durable batch, for threads that wait for one.
///
/// Who waits for batch n is not woken for batch n - 1: those are the callers that wait for the batch under way
/// while the next one fills, half of all. So batches of even and of odd sequence have a word each: twice the
/// newest sequence of that kind, plus one when no more will become durable.
#[derive(Debug, Default)]
pub(crate) struct DurableSignal {
    words: [AtomicU32; 2],
}

/// The log is fenced: the batch will not become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fenced;

impl DurableSignal {
    /// A log whose newest durable batch is this one.
    pub(crate) fn new(durable: u64) -> Self {
        let signal = Self::default();
        for sequence in [durable.saturating_sub(1), durable] {
            let (word, value) = signal.word(sequence);
            word.store(value, Ordering::Relaxed);
        }
        signal
    }

    /// The word of a batch, and its value when that batch is the newest. Sequences wrap round after 2^31:
    /// nobody sleeps for so many batches.
    fn word(&self, sequence: u64) -> (&AtomicU32, u32) {
        let low = u32::try_from(sequence & 0x7fff_ffff).expect("31 bits");
        (&self.words[(sequence & 1) as usize], low << 1)
    }

    /// This batch is durable.
    pub(crate) fn advance(&self, sequence: u64) {
        let (word, value) = self.word(sequence);
        word.store(value, Ordering::Release);
        wake_all(word);
    }

    /// Nothing will become durable any more.
    pub(crate) fn fence(&self) {
        for word in &self.words {
            word.fetch_or(1, Ordering::Release);
            wake_all(word);
        }
    }

    /// Returns when this batch is durable.
    pub(crate) fn wait(&self, sequence: u64) -> Result<(), Fenced> {
        let (word, wanted) = self.word(sequence);
        loop {
            let value = word.load(Ordering::Acquire);
            let behind = wanted.wrapping_sub(value & !1);
            if behind == 0 || behind > u32::MAX / 2 {
                return Ok(());
            }
            if value & 1 == 1 {
                return Err(Fenced);
            }
            sleep_on(word, value);
        }
    }
}
