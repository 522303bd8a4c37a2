//! Threads that wait until their append is durable, woken many at a time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

use super::{BenchError, Stop};

/// Neighbours that one system call wakes. More wakes some too early, fewer costs more calls.
const TICKETS_A_WORD: u64 = 16;
/// Far more than what waits at a time divided by the above: a collision only wakes too early.
const WORDS: u64 = 256;
/// How long a thread sleeps before it looks whether it should stop.
const NAP: Duration = Duration::from_millis(100);

/// The tickets of one shard, durable in order.
pub(super) struct Tickets {
    durable: AtomicU64,
    words: Vec<AtomicU32>,
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            durable: AtomicU64::new(0),
            words: (0..WORDS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl Tickets {
    fn word(&self, word: u64) -> &AtomicU32 {
        &self.words[usize::try_from(word % WORDS).expect("a small number")]
    }

    /// All tickets up to this one are durable.
    pub(super) fn advance(&self, ticket: u64) {
        let before = self.durable.swap(ticket, Ordering::SeqCst);
        let (first, last) = ((before + 1) / TICKETS_A_WORD, ticket / TICKETS_A_WORD);
        for word in first..=last.min(first + WORDS - 1) {
            wake_all(self.word(word));
        }
    }

    /// Waits until `ticket` is durable.
    pub(super) fn wait(&self, ticket: u64, stop: &Stop) -> Result<(), BenchError> {
        let word = self.word(ticket / TICKETS_A_WORD);
        loop {
            let seen = word.load(Ordering::SeqCst);
            if self.durable.load(Ordering::SeqCst) >= ticket {
                return Ok(());
            }
            stop.check()?;
            sleep_while(word, seen)?;
        }
    }
}

/// Changes the word and wakes who sleeps on it.
pub(super) fn wake_all(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
    wake(word);
}

/// Wakes who sleeps on a word that was changed.
pub(super) fn wake(word: &AtomicU32) {
    futex::wake(word, futex::Flags::PRIVATE, i32::MAX.cast_unsigned())
        .expect("a futex of this process can be woken");
}

/// Sleeps until the word is changed, at most for a moment.
pub(super) fn sleep_while(word: &AtomicU32, seen: u32) -> Result<(), BenchError> {
    use rustix::io::Errno;
    let nap = Timespec::try_from(NAP).expect("a short time");
    match futex::wait(word, futex::Flags::PRIVATE, seen, Some(&nap)) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
        Err(error) => Err(BenchError::io("waiting")(error.into())),
    }
}
