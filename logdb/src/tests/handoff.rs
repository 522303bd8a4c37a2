//! The hand-over of batches, built over a scheduler that tries many orders of the threads: nobody sleeps for ever,
//! nobody is told too early, and nothing is left behind.
#![allow(
    clippy::duplicate_mod,
    clippy::module_inception,
    reason = "the same code over other threads"
)]

use std::collections::VecDeque;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::thread;

use handoff::{Desk, Handoff, Turn, Turns};

#[path = "../handoff.rs"]
mod handoff;
#[path = "../waiting.rs"]
mod waiting;

/// As `crate::sync`, over the scheduler's threads.
mod sync {
    use std::time::Duration;

    use shuttle::sync::MutexGuard;
    pub(crate) use shuttle::sync::atomic::Ordering;
    pub(crate) use shuttle::sync::{Condvar, Mutex};

    pub(crate) type Guard<'a, T> = MutexGuard<'a, T>;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Guard<'_, T> {
        mutex.lock().expect("no thread panics")
    }

    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: Guard<'a, T>) -> Guard<'a, T> {
        condvar.wait(guard).expect("no thread panics")
    }

    /// The time is over at once.
    pub(crate) fn rest<T>(_: &Condvar, guard: Guard<'_, T>, _: Duration) {
        drop(guard);
        shuttle::thread::yield_now();
    }

    /// A word and those that sleep on it, as the kernel does it.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicU32 {
        value: Mutex<u32>,
        changed: Condvar,
    }

    impl AtomicU32 {
        pub(crate) fn load(&self, _: Ordering) -> u32 {
            *lock(&self.value)
        }

        pub(crate) fn store(&self, value: u32, _: Ordering) {
            *lock(&self.value) = value;
        }

        pub(crate) fn fetch_or(&self, bits: u32, _: Ordering) {
            *lock(&self.value) |= bits;
        }
    }

    pub(crate) fn sleep_on(word: &AtomicU32, value: u32) {
        let guard = lock(&word.value);
        if *guard == value {
            drop(wait(&word.changed, guard));
        }
    }

    pub(crate) fn wake_all(word: &AtomicU32) {
        drop(lock(&word.value));
        word.changed.notify_all();
    }
}

/// The batches of a log, by their sequences alone.
#[derive(Default)]
struct Batches {
    is_led: bool,
    closing: bool,
    fenced: bool,
    /// Sequence, and whether it grows.
    pending: VecDeque<(u64, bool)>,
    next: u64,
    durable: u64,
    put: usize,
}

impl Batches {
    fn put(&mut self) -> Result<u64, ()> {
        if self.closing || self.fenced {
            return Err(());
        }
        self.put += 1;
        if let Some((sequence, true)) = self.pending.back() {
            return Ok(*sequence);
        }
        self.next += 1;
        self.pending.push_back((self.next, true));
        Ok(self.next)
    }
}

impl Desk for Batches {
    fn leader(&mut self) -> &mut bool {
        &mut self.is_led
    }

    fn has_work(&self) -> bool {
        !self.pending.is_empty()
    }

    fn is_closing(&self) -> bool {
        self.closing
    }

    fn is_durable(&self, sequence: u64) -> bool {
        sequence <= self.durable
    }
}

/// What goes wrong with the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// It fails at this batch.
    FailsAt(u64),
    /// It is full now and then.
    Full,
    /// It is full from this batch on.
    FullFrom(u64),
    /// The log is closed while callers append.
    Closed,
}

struct Model {
    handoff: Arc<Handoff<Batches>>,
    trouble: Trouble,
    is_finished: bool,
}

impl Turns for Model {
    fn turn(&mut self) -> Turn {
        self.commit_next()
    }

    fn commit_next(&mut self) -> Turn {
        let sequence = {
            let mut batches = self.handoff.lock();
            assert!(
                batches.is_led,
                "it is taken, so that nobody else waits for the writer"
            );
            if batches.fenced {
                return Turn::Fenced;
            }
            let Some((sequence, grows)) = batches.pending.front_mut() else {
                return Turn::Idle;
            };
            *grows = false;
            *sequence
        };
        let is_full = match self.trouble {
            Trouble::Full => thread_rng().gen_bool(0.2),
            Trouble::FullFrom(from) => sequence >= from,
            Trouble::None | Trouble::FailsAt(_) | Trouble::Closed => false,
        };
        if is_full {
            return Turn::Full;
        }
        self.handoff.lock().pending.pop_front();
        thread::yield_now(); // the disk works
        if self.trouble == Trouble::FailsAt(sequence) {
            self.handoff.lock().fenced = true;
            self.handoff.fence();
            return Turn::Fenced;
        }
        self.handoff.lock().durable = sequence;
        self.handoff.advance(sequence);
        Turn::Worked
    }

    fn finish(&mut self) {
        self.is_finished = true;
    }
}

const CALLERS: usize = 3;
const APPENDS: usize = 3;

fn callers_append(trouble: Trouble) {
    let handoff = Arc::new(Handoff::new(Batches::default(), 0));
    let writer = Arc::new(sync::Mutex::new(Model {
        handoff: Arc::clone(&handoff),
        trouble,
        is_finished: false,
    }));
    let thread = {
        let (handoff, writer) = (Arc::clone(&handoff), Arc::clone(&writer));
        thread::spawn(move || handoff.run(&*writer))
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (handoff, writer) = (Arc::clone(&handoff), Arc::clone(&writer));
            thread::spawn(move || {
                for _ in 0..APPENDS {
                    let mut own = 0;
                    let put = handoff.put_durable(Some(&*writer), |batches: &mut Batches| {
                        own = batches.put()?;
                        Ok::<_, ()>(own)
                    });
                    if matches!(put, Ok(Ok(()))) {
                        assert!(handoff.lock().durable >= own, "told too early");
                    } else {
                        let batches = handoff.lock();
                        assert!(
                            batches.fenced || batches.closing,
                            "refused without a reason"
                        );
                        assert!(batches.durable < own || own == 0, "it was durable");
                    }
                }
            })
        })
        .collect();
    // Nobody waits for these.
    for _ in 0..APPENDS {
        let put = handoff.put(|batches| batches.put().map(drop));
        assert!(put.is_ok() || handoff.lock().fenced);
    }
    let join = |callers: Vec<thread::JoinHandle<()>>| {
        for caller in callers {
            caller.join().expect("no panic");
        }
    };
    let close = || handoff.close(|batches| batches.closing = true);
    if matches!(trouble, Trouble::FullFrom(_) | Trouble::Closed) {
        close(); // else they wait for ever
        join(callers);
    } else {
        join(callers);
        close();
    }
    thread.join().expect("no panic");
    let batches = handoff.lock();
    if matches!(trouble, Trouble::None | Trouble::Full | Trouble::Closed) {
        assert!(batches.pending.is_empty() && batches.durable == batches.next);
        let all = (CALLERS + 1) * APPENDS;
        assert!(batches.put == all || trouble == Trouble::Closed);
        assert!(sync::lock(&writer).is_finished, "shut down without an end");
    }
}

fn try_orders(trouble: Trouble) {
    shuttle::check_random(move || callers_append(trouble), 1000);
    shuttle::check_pct(move || callers_append(trouble), 1000, 3);
}

#[test]
fn every_caller_is_told_and_everything_is_written() {
    try_orders(Trouble::None);
}

/// A log without trouble whose thread takes all turns.
fn log_thread() -> (Arc<Handoff<Batches>>, thread::JoinHandle<()>) {
    let handoff = Arc::new(Handoff::new(Batches::default(), 0));
    let writer = sync::Mutex::new(Model {
        handoff: Arc::clone(&handoff),
        trouble: Trouble::None,
        is_finished: false,
    });
    let thread = {
        let handoff = Arc::clone(&handoff);
        thread::spawn(move || handoff.run(&writer))
    };
    (handoff, thread)
}

#[test]
fn what_nobody_waits_for_is_written_too() {
    let put_alone = || {
        let (handoff, thread) = log_thread();
        for sequence in 1..=2 {
            let put = handoff.put(|batches| batches.put().map(drop));
            put.expect("it is open");
            while handoff.lock().durable < sequence {
                thread::yield_now();
            }
        }
        handoff.close(|batches| batches.closing = true);
        thread.join().expect("no panic");
    };
    shuttle::check_random(put_alone, 1000);
}

#[test]
fn every_caller_is_told_of_a_failed_disk() {
    for sequence in 1..=3 {
        try_orders(Trouble::FailsAt(sequence));
    }
}

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    try_orders(Trouble::Full);
}

/// Lets the other threads go on for a while.
fn idle() {
    for _ in 0..thread_rng().gen_range(0..12) {
        thread::yield_now();
    }
}

#[test]
fn what_was_put_in_before_the_log_closed_is_written() {
    try_orders(Trouble::Closed);
    // Few threads, so that they often meet where the log's thread has just found nothing to do.
    let close_soon = || {
        let (handoff, thread) = log_thread();
        let caller = {
            let handoff = Arc::clone(&handoff);
            thread::spawn(move || {
                idle();
                let nobody = None::<&sync::Mutex<Model>>;
                let put = handoff.put_durable(nobody, Batches::put);
                assert!(put.is_err() || put == Ok(Ok(())), "it was put in before");
            })
        };
        handoff
            .put(|batches| batches.put().map(drop))
            .expect("open");
        idle();
        handoff.close(|batches| batches.closing = true);
        caller.join().expect("no panic");
        thread.join().expect("no panic");
        assert!(handoff.lock().pending.is_empty());
    };
    shuttle::check_random(close_soon, 20_000);
}

#[test]
fn who_waits_for_a_full_disk_is_told_when_the_log_closes() {
    for from in 1..=3 {
        try_orders(Trouble::FullFrom(from));
    }
}
