//! Runs simulated clusters, seed after seed, and shows what broke.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use multiraft_tests::sim::{self, Counters, Failure, Fault, FaultSet, Options, Plan};

/// Runs whole clusters in simulated time: the real core, shards, log and wire codec over simulated
/// disks, network and clocks, all drawn from one seed. Checks every promise on the way.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Run only this seed, with a trace; or begin with it if --seeds is given too.
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes, 3 to 7; drawn for each seed if it is not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..=7))]
    nodes: Option<u32>,
    /// Groups, 1 to 64; drawn for each seed if it is not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    groups: Option<u32>,
    /// Ticks with faults.
    #[arg(long, default_value_t = 20_000)]
    ticks: u64,
    /// Kinds of faults to draw from, separated by commas; `all` or `none`.
    #[arg(long, default_value = "all", value_parser = FaultSet::parse)]
    faults: FaultSet,
    /// Threads; the number of cores if it is not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Stop after this many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// Look for a shorter run that still fails.
    #[arg(long)]
    shrink: bool,
    /// Print each seed's hash of all that happened.
    #[arg(long)]
    print_hash: bool,
    /// Where traces of failures go.
    #[arg(long, default_value = "target/simulate")]
    out: PathBuf,
}

/// What the threads add up.
#[derive(Default)]
struct Sum {
    seeds: u64,
    committed: u64,
    acknowledged: u64,
    longest_heal: u64,
    counters: Counters,
    hashes: Vec<(u64, u64)>,
    failed: Option<(Plan, Box<Failure>)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| ())); // a broken rule is shown by us, with its seed
    let options = Options {
        nodes: arguments.nodes,
        groups: arguments.groups,
        ticks: arguments.ticks,
        faults: arguments.faults,
        traces: false,
    };
    let first = arguments.seed.unwrap_or(0);
    let is_single = arguments.seed.is_some() && std::env::args().all(|a| !a.starts_with("--seeds"));
    let count = if is_single { 1 } else { arguments.seeds };
    let sum = run_all(&arguments, &options, first, count);
    report(&arguments, &options, &sum)
}

fn lock(sum: &Mutex<Sum>) -> MutexGuard<'_, Sum> {
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_all(arguments: &Arguments, options: &Options, first: u64, count: u64) -> Sum {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = arguments.jobs.unwrap_or(cores).max(1);
    let deadline = arguments
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds {per_sec} {eta}") {
        bar.set_style(style);
    }
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let sum = Mutex::new(Sum::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) && deadline.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            let plan = Plan::draw(seed, options);
            let outcome = sim::run(&plan, false);
            bar.inc(1);
            let mut sum = lock(&sum);
            sum.seeds += 1;
            match outcome {
                Ok(outcome) => {
                    sum.committed += outcome.committed;
                    sum.acknowledged += outcome.acknowledged;
                    sum.longest_heal = sum.longest_heal.max(outcome.healed_ticks);
                    sum.counters.add(&outcome.counters);
                    sum.hashes.push((seed, outcome.hash));
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    if sum.failed.as_ref().is_none_or(|(plan, _)| seed < plan.seed) {
                        sum.failed = Some((plan, failure));
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn report(arguments: &Arguments, options: &Options, sum: &Sum) -> ExitCode {
    if arguments.print_hash {
        let mut hashes = sum.hashes.clone();
        hashes.sort_unstable();
        for (seed, hash) in hashes {
            println!("seed {seed} hash {hash:016x}");
        }
    }
    println!(
        "{} seeds of {} ticks: {} entries committed, {} operations acknowledged, settled after at \
         most {} ticks",
        sum.seeds, arguments.ticks, sum.committed, sum.acknowledged, sum.longest_heal
    );
    for fault in options.faults.iter() {
        println!("  {:>16} {}", fault.to_string(), sum.counters.of(fault));
    }
    if let Some((plan, failure)) = &sum.failed {
        return fail(arguments, options, plan, failure);
    }
    let silent: Vec<Fault> = options
        .faults
        .iter()
        .filter(|&fault| sum.counters.of(fault) == 0)
        .collect();
    if !silent.is_empty() && sum.seeds >= 20 {
        println!("rejected: these faults never happened: {silent:?}");
        return ExitCode::FAILURE;
    }
    println!("all rules held");
    ExitCode::SUCCESS
}

fn fail(arguments: &Arguments, options: &Options, plan: &Plan, failure: &Failure) -> ExitCode {
    println!("\nseed {} failed: {}", plan.seed, failure.what);
    println!("replay: {}", replay(options, plan));
    let mut plan = plan.clone();
    if arguments.shrink {
        plan = sim::shrink(&plan);
        let faults: Vec<String> = plan.faults.iter().map(|f| f.to_string()).collect();
        println!(
            "shrunk to {} ticks, {} nodes, {} groups, faults {}",
            plan.ticks,
            plan.nodes,
            plan.groups,
            faults.join(",")
        );
    }
    if let Err(traced) = sim::run(&plan, true)
        && let Err(error) = write_trace(&arguments.out, &plan, &traced)
    {
        println!("the trace could not be written: {error}");
    }
    ExitCode::FAILURE
}

fn replay(options: &Options, plan: &Plan) -> String {
    let faults: Vec<String> = options.faults.iter().map(|f| f.to_string()).collect();
    let given = |name: &str, value: Option<u32>| {
        value.map_or(String::new(), |value| format!(" --{name} {value}"))
    };
    format!(
        "cargo run --release -p multiraft-tests --bin simulate -- --seed {} --ticks {}{}{} --faults {}",
        plan.seed,
        plan.ticks,
        given("nodes", options.nodes),
        given("groups", options.groups),
        faults.join(",")
    )
}

fn write_trace(out: &Path, plan: &Plan, failure: &Failure) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    let name = |end: &str| out.join(format!("seed-{}.{end}", plan.seed));
    let title = format!("seed {}: {}", plan.seed, failure.what);
    std::fs::write(name("txt"), format!("{title}\n{}", failure.trace.text()))?;
    std::fs::write(name("html"), failure.trace.html(&title, plan.nodes))?;
    println!(
        "traces: {} and {}",
        name("txt").display(),
        name("html").display()
    );
    Ok(())
}
