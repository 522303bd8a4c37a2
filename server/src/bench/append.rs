//! The append workload: threads that append to their groups in turn, each waiting until its append
//! is durable. All concurrency comes from their number.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;

use super::measure::{Spent, new_histogram};
use super::store::{Append, Store, Writer};
use super::{BenchError, Stop};

/// Stack of a thread that appends: there may be many.
const STACK_BYTES: usize = 256 << 10;
/// From the first thread's start to its first append, and what each further thread adds.
const START_DELAY: Duration = Duration::from_millis(50);
const THREAD_DELAY: Duration = Duration::from_micros(50);
/// Groups that compact their logs do so at each of so many appends, and keep as many.
const COMPACT_EACH: u64 = 64;

/// Who appends how much, and how long it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) groups: u32,
    pub(super) writers: u32,
    /// Entries of an append.
    pub(super) batch: u64,
    /// Groups that a thread appends to at a time.
    pub(super) depth: u32,
    pub(super) warmup: Duration,
    pub(super) seconds: Duration,
    /// Whether groups compact their logs behind them.
    pub(super) compaction: Compaction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compaction {
    /// The log grows, as that of the peers that it is compared with.
    Never,
    /// The log stays small and its segments are used again, as in a running node.
    Steady,
}

/// What was seen in the time that counts.
pub(super) struct Seen {
    pub(super) appends: u64,
    /// Nanoseconds of an append.
    pub(super) latency: Histogram<u64>,
    pub(super) spent: Spent,
    /// First and last entry of each group that was appended to.
    pub(super) bounds: Vec<(u32, u64, u64)>,
}

/// A group, as the thread that appends to it knows it.
#[derive(Debug, Clone, Copy)]
struct Own {
    group: u32,
    appends: u64,
    last: u64,
    compacted: u64,
}

impl Own {
    fn next(&mut self, plan: &Plan) -> Append {
        self.appends += 1;
        let kept = COMPACT_EACH * plan.batch;
        let compacts = plan.compaction == Compaction::Steady
            && self.appends.is_multiple_of(COMPACT_EACH)
            && self.last > self.compacted + kept;
        if compacts {
            self.compacted = self.last - kept;
        }
        let append = Append {
            group: self.group,
            first: self.last + 1,
            count: plan.batch,
            compact_to: compacts.then_some(self.compacted),
        };
        self.last = append.last();
        append
    }
}

/// When what is measured begins and ends.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    to: Instant,
}

/// Runs the workload. `spent` is asked twice, when the time that counts begins and ends.
pub(super) fn run(
    store: &impl Store,
    plan: &Plan,
    stop: &Stop,
    bar: &ProgressBar,
    spent: impl Fn() -> Spent,
) -> Result<Seen, BenchError> {
    let start = Instant::now() + START_DELAY + THREAD_DELAY * plan.writers;
    let from = start + plan.warmup;
    let to = from + plan.seconds;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..plan.writers {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let work = move || {
                std::thread::sleep(start.saturating_duration_since(Instant::now()));
                let mut out = store.writer(number);
                let ended = append_until(&mut out, plan, number, Window { from, to }, stop);
                if ended.is_err() {
                    stop.set();
                }
                ended
            };
            match thread.spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    stop.set();
                    return Err(BenchError::io("starting a thread")(error));
                }
            }
        }
        let watch = || {
            bar.tick();
            store.check()
        };
        let ended = stop.sleep_until(from, watch).and_then(|()| {
            let before = spent();
            stop.sleep_until(to, watch)?;
            Ok(spent().since(&before))
        });
        if ended.is_err() {
            stop.set();
        }
        let mut seen = Seen {
            appends: 0,
            latency: new_histogram(),
            spent: Spent::default(),
            bounds: Vec::new(),
        };
        let mut failed = None;
        for thread in threads {
            match thread.join().expect("a thread that appends does not panic") {
                Ok((latency, own)) => {
                    seen.latency.add(latency).expect("equal histograms");
                    let own = own.iter().filter(|own| own.last > 0);
                    seen.bounds
                        .extend(own.map(|own| (own.group, own.compacted + 1, own.last)));
                }
                // The first cause counts; the others only stopped because of it.
                Err(BenchError::Stopped) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)?;
        seen.spent = ended?;
        seen.appends = seen.latency.len();
        Ok(seen)
    })
}

/// One thread's work: what its appends took, and its groups in the end.
fn append_until(
    out: &mut impl Writer,
    plan: &Plan,
    number: u32,
    window: Window,
    stop: &Stop,
) -> Result<(Histogram<u64>, Vec<Own>), BenchError> {
    let groups = (1..=plan.groups).filter(|group| (group - 1) % plan.writers == number);
    let mut own: Vec<Own> = groups
        .map(|group| Own {
            group,
            appends: 0,
            last: 0,
            compacted: 0,
        })
        .collect();
    let (mut next, mut latency) = (0, new_histogram());
    let mut round = Vec::with_capacity(plan.depth as usize);
    loop {
        stop.check()?;
        round.clear();
        for _ in 0..plan.depth {
            round.push(own[next].next(plan));
            next = (next + 1) % own.len();
        }
        let start = Instant::now();
        out.append(&round)?;
        let end = Instant::now();
        if window.from < end && end <= window.to {
            let nanoseconds = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
            let counted = latency.record_n(nanoseconds, plan.depth.into());
            counted.expect("it grows as needed");
        }
        if window.to < end {
            return Ok((latency, own));
        }
    }
}
