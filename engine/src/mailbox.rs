//! A queue into a thread: many put in, one takes all, and one wake-up serves a whole batch.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// See the module's documentation.
#[derive(Debug)]
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    /// Weight of what waits, by lane: clients' requests, peers' messages.
    weights: [usize; 2],
    closed: bool,
}

/// What an item counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Refused when full.
    Requests = 0,
    /// Dropped when full.
    Messages = 1,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let state = State {
            items: Vec::new(),
            weights: [0; 2],
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
        }
    }
}

impl<T> Mailbox<T> {
    /// Puts in what must not be lost. Gives it back when the mailbox is closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(item);
        }
        self.put(&mut state, item);
        Ok(())
    }

    /// Puts in one item of some weight, unless its lane would hold more than `limit`; gives it back
    /// then, with whether the mailbox is closed.
    pub fn push_bounded(
        &self,
        item: T,
        lane: Lane,
        weight: usize,
        limit: usize,
    ) -> Result<(), (T, bool)> {
        let mut state = self.state.lock();
        if state.closed || state.weights[lane as usize] + weight > limit {
            return Err((item, state.closed));
        }
        state.weights[lane as usize] += weight;
        self.put(&mut state, item);
        Ok(())
    }

    fn put(&self, state: &mut State<T>, item: T) {
        state.items.push(item);
        if state.items.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// Swaps all that waits into `items`, which must be empty; waits for something until
    /// `deadline`. Returns false once the mailbox is closed and empty.
    pub fn take(&self, items: &mut Vec<T>, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.closed {
            match deadline {
                None => self.wake.wait(&mut state),
                Some(at) => {
                    if self.wake.wait_until(&mut state, at).timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::swap(&mut state.items, items);
        state.weights = [0; 2];
        !state.closed || !items.is_empty()
    }

    /// Waits for one item and moves it into `items`, which must be empty: for several threads that
    /// share the work. Returns false once the mailbox is closed; what waits then is dropped.
    pub fn take_one(&self, items: &mut Vec<T>) -> bool {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.closed {
            self.wake.wait(&mut state);
        }
        if state.closed {
            return false;
        }
        items.push(state.items.remove(0));
        if !state.items.is_empty() {
            self.wake.notify_one();
        }
        true
    }

    /// Takes nothing new; what waits can still be taken.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }
}
