//! Who writes: the log's thread, or a caller that waits for its own append and found nobody at it.
//!
//! ```text
//! caller: put ─▶ nobody leads? lead: write until the own append is durable ─▶ give up ─┐
//! caller: put ─▶ somebody leads: sleep until told                                      │ if there is more
//! thread: sleep ──────────────────────────────────────────────────────── lead ◀────────┘
//! ```
//! Invariants:
//! - One leader at a time; whoever sets the mark takes it away.
//! - **Nobody gives up the lead while there is work without waking the thread**, and who puts something in while
//!   nobody leads either leads or wakes it. Else: 1. an append waits; 2. nobody writes; 3. its caller sleeps for ever.
//!
//! Knows nothing of the log, so that tests can build it over a scheduler that tries many orders
//! (`tests::handoff`).

use std::time::Duration;

use super::sync::{Condvar, Guard, Mutex, lock, rest, wait};
use super::waiting::{DurableSignal, Fenced};

/// How long the thread waits before it asks a full disk for a segment again.
const FULL_DISK_RETRY: Duration = Duration::from_millis(100);

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A batch became durable, or space was looked after; there may be more to do.
    Worked,
    /// Nothing to write.
    Idle,
    /// The batch waits for a segment: the disk is full. Nothing is lost; try again later.
    Full,
    /// A write or sync failed: nothing will become durable any more.
    Fenced,
}

/// What callers and the writer share.
pub(crate) trait Desk {
    /// The mark of a leader.
    fn leader(&mut self) -> &mut bool;
    /// Whether there is something for a turn.
    fn has_work(&self) -> bool;
    /// Whether nothing is put in any more.
    fn is_closing(&self) -> bool;
    /// Whether this batch is durable.
    fn is_durable(&self, sequence: u64) -> bool;
}

/// The work of who leads.
pub(crate) trait Turns {
    /// Makes the oldest pending batch durable, then does a bounded piece of other work.
    fn turn(&mut self) -> Turn;
    /// Makes the oldest pending batch durable.
    fn commit_next(&mut self) -> Turn;
    /// Ends a clean shutdown.
    fn finish(&mut self);
}

/// See the module's documentation.
pub(crate) struct Handoff<D> {
    desk: Mutex<D>,
    wake: Condvar,
    durable: DurableSignal,
}

impl<D: Desk> Handoff<D> {
    /// Of a log whose newest durable batch is this one.
    pub(crate) fn new(desk: D, durable: u64) -> Self {
        Self {
            desk: Mutex::new(desk),
            wake: Condvar::new(),
            durable: DurableSignal::new(durable),
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, D> {
        lock(&self.desk)
    }

    /// Puts something in for which nobody waits.
    pub(crate) fn put<E>(&self, put: impl FnOnce(&mut D) -> Result<(), E>) -> Result<(), E> {
        let mut desk = self.lock();
        put(&mut desk)?;
        let is_idle = !*desk.leader();
        drop(desk);
        if is_idle {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Puts something in, which tells its batch, and returns when that one is durable or never will be. Without a
    /// `writer` somebody else takes the turns.
    pub(crate) fn put_durable<E>(
        &self,
        writer: Option<&Mutex<impl Turns>>,
        put: impl FnOnce(&mut D) -> Result<u64, E>,
    ) -> Result<Result<(), Fenced>, E> {
        let (sequence, writer) = {
            let mut desk = self.lock();
            let sequence = put(&mut desk)?;
            let leader = desk.leader();
            let writer = writer.filter(|_| !*leader);
            *leader |= writer.is_some();
            (sequence, writer)
        };
        if let Some(writer) = writer {
            self.lead(&mut *lock(writer), sequence);
        }
        Ok(self.durable.wait(sequence))
    }

    /// A caller's turns, until its own batch is durable. The rest is left to the thread.
    fn lead(&self, writer: &mut impl Turns, sequence: u64) {
        while writer.commit_next() == Turn::Worked {
            if self.lock().is_durable(sequence) {
                break;
            }
        }
        self.give_up_lead();
    }

    /// Who took the writer's turns takes no more; the thread goes on if there is more to do.
    fn give_up_lead(&self) {
        let mut desk = self.lock();
        *desk.leader() = false;
        if desk.has_work() || desk.is_closing() {
            self.wake.notify_one();
        }
    }

    /// The thread: takes turns whenever nobody else does, until the log is closed and drained, or fenced.
    pub(crate) fn run(&self, writer: &Mutex<impl Turns>) {
        loop {
            // Known before the turns: then nothing was put in after them.
            let is_closing = {
                let mut desk = self.lock();
                while *desk.leader() || !(desk.has_work() || desk.is_closing()) {
                    desk = wait(&self.wake, desk);
                }
                *desk.leader() = true;
                desk.is_closing()
            };
            let turn = {
                let mut writer = lock(writer);
                let turns = std::iter::repeat_with(|| writer.turn());
                let mut rest = turns.skip_while(|turn| *turn == Turn::Worked);
                rest.next().expect("it goes on for ever")
            };
            match turn {
                Turn::Fenced => return,
                Turn::Full if is_closing => return self.durable.fence(), // what is pending is refused
                Turn::Idle if is_closing => return lock(writer).finish(),
                Turn::Worked | Turn::Idle => self.give_up_lead(),
                Turn::Full => {
                    let mut desk = self.lock();
                    *desk.leader() = false;
                    rest(&self.wake, desk, FULL_DISK_RETRY);
                }
            }
        }
    }

    /// The writer has made this batch durable.
    pub(crate) fn advance(&self, sequence: u64) {
        self.durable.advance(sequence);
    }

    /// Nothing will become durable any more.
    pub(crate) fn fence(&self) {
        self.durable.fence();
    }

    /// Nothing is put in after `close`; the thread ends when all is written.
    pub(crate) fn close(&self, close: impl FnOnce(&mut D)) {
        close(&mut self.lock());
        self.wake.notify_all();
    }
}
