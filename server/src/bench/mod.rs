//! `multiraft bench log`: what the log does on a disk, beside what the disk itself can do.
//!
//! ```text
//! append            threads ─▶ store.rs ─▶ log_store.rs (the log) or raw.rs (a bare file, the ceiling)
//! recover, read,    a child process loads ─▶ stored.rs measures
//! compact
//! --sweep           append in many cells ─▶ table and curves (sweep.rs, plot.rs), a page (page.rs)
//! ```
//! The workloads, flags and fields are those of the stores that the log is compared with, so that
//! one script runs all of them.
//!
//! Invariant: a benchmark works in a directory of its own (`work_dir.rs`) and leaves nothing of it,
//! also when it is stopped or fails.

mod append;
mod error;
mod log_store;
mod measure;
mod page;
mod payload;
mod plot;
mod raw;
mod report;
mod stop;
mod store;
mod stored;
mod sweep;
mod sync_counter;
mod work_dir;

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{
    AppendBenchArgs, BenchArgs, BenchCommand, Failure, LogWorkload, Variant, print_line,
};

pub use error::BenchError;
pub use measure::{Figure, Latency};
pub use payload::MAX_PAYLOAD_BYTES;
pub use report::{
    AppendReport, CompactReport, LoadFields, RawAppend, RawRecovery, ReadReport, RecoverReport,
};
pub use stop::Stop;

use append::{Compaction, Plan};
use log_store::LogStore;
use measure::{Spent, disk_usage, max_rss_mib};
use raw::Raw;
use report::Process;
use store::Store;
use sync_counter::NEW_LOG_SYNCS;
use work_dir::{MARGIN_BYTES, WorkDir};

const WHAT: &str = "bench log";

/// Runs a benchmark until it is done or told to stop: SIGINT or SIGTERM.
pub async fn run(args: BenchArgs) -> Result<(), Failure> {
    let BenchCommand::Log(args) = args.command;
    check(&args.workload)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Stop::default();
    let mut work = {
        let stop = stop.clone();
        tokio::task::spawn_blocking(move || work(&args.workload, &stop))
    };
    tokio::select! {
        done = &mut work => return done.map_err(|error| Failure::node(WHAT, error))?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    stop.set();
    work.await.map_err(|error| Failure::node(WHAT, error))?
}

/// What clap cannot see.
fn check(workload: &LogWorkload) -> Result<(), Failure> {
    let refused = |message: &str| {
        let message = message.to_owned();
        Err(Failure::Usage { message })
    };
    let load = match workload {
        LogWorkload::Append(args) if args.sweep => {
            if sweep::cells(args).is_empty() {
                return refused("no number of groups is as large as a number of writers");
            }
            if let Some(path) = args.html.as_ref().filter(|path| path.exists()) {
                let path = path.display();
                return refused(&format!(
                    "{path} is there already: remove it or name another"
                ));
            }
            return Ok(());
        }
        LogWorkload::Append(args) => {
            if u64::from(args.groups) < u64::from(args.writers) * u64::from(args.depth) {
                return refused(
                    "--groups must be at least --writers times --depth: a group always has the \
                     same writer",
                );
            }
            return Ok(());
        }
        LogWorkload::Recover(args) => &args.load,
        LogWorkload::Read(args) => &args.load,
        LogWorkload::Compact(args) => &args.load,
        LogWorkload::Load(args) => &args.load,
    };
    if load.entries < u64::from(load.groups) {
        return refused("--entries must be at least --groups");
    }
    Ok(())
}

fn work(workload: &LogWorkload, stop: &Stop) -> Result<(), Failure> {
    let failed = |error: BenchError| Failure::node(WHAT, error);
    match workload {
        LogWorkload::Append(args) if args.sweep => append_sweep(args, stop),
        LogWorkload::Append(args) => {
            let report = append_once(args, stop).map_err(failed)?;
            print(&report, &report.summary(), true)
        }
        LogWorkload::Load(args) => stored::load(args, stop).map_err(failed),
        LogWorkload::Recover(args) => {
            let report = stored::recover(args, stop).map_err(failed)?;
            print(&report, &report.summary(), report.ok)
        }
        LogWorkload::Read(args) => {
            let report = stored::read(args, stop).map_err(failed)?;
            print(&report, &report.summary(), report.ok)
        }
        LogWorkload::Compact(args) => {
            let report = stored::compact(args, stop).map_err(failed)?;
            print(&report, &report.summary(), report.ok)
        }
    }
}

/// The JSON for programs, a line for people; fails if what was read is not what was written.
fn print(report: &impl Serialize, summary: &str, is_ok: bool) -> Result<(), Failure> {
    let json = serde_json::to_string(report);
    print_line(&json.map_err(|source| Failure::Json { what: WHAT, source })?)?;
    eprintln!("{summary}");
    if is_ok {
        return Ok(());
    }
    Err(Failure::Refused {
        what: WHAT,
        message: "the log does not hold what was written".to_owned(),
    })
}

fn plan(args: &AppendBenchArgs, warmup: Duration, seconds: Duration) -> Plan {
    Plan {
        groups: args.groups,
        writers: args.writers,
        batch: args.batch,
        depth: args.depth,
        warmup: args.warmup.unwrap_or(warmup),
        seconds: args.seconds.unwrap_or(seconds),
        compaction: match args.variant {
            Variant::Default => Compaction::Never,
            Variant::Steady => Compaction::Steady,
        },
    }
}

/// The append workload on a new log, and then on a bare file in the same directory.
fn append_once(args: &AppendBenchArgs, stop: &Stop) -> Result<AppendReport, BenchError> {
    let plan = plan(args, Duration::from_secs(1), Duration::from_secs(5));
    let raw_bytes = args.raw_file_mib << 20;
    let work = WorkDir::create(&args.place.dir, raw_bytes + MARGIN_BYTES, args.place.keep)?;
    let bar = spinner(&format!("{} writers, {} groups", plan.writers, plan.groups));
    let (mut report, mut syncs) = append_to_log(args, &plan, &work, stop, &bar)?;
    if !args.no_raw {
        let path = work.path().join("raw.log");
        let raw = Raw::create(&path, raw_bytes, args.payload, stop)?;
        let seen = append::run(&raw, &plan, stop, &bar, || {
            Spent::now(work.path(), raw.syncs())
        })?;
        report.compare(&seen);
        syncs += raw.syncs();
    }
    bar.finish_and_clear();
    report.fsyncs_of_run = syncs;
    Ok(report)
}

/// Many cells: a table and curves on standard output, and a page if one is asked for.
fn append_sweep(args: &AppendBenchArgs, stop: &Stop) -> Result<(), Failure> {
    let failed = |error: BenchError| Failure::node(WHAT, error);
    let plan = plan(args, Duration::from_millis(200), Duration::from_secs(1));
    let sweep = sweep::run(args, &plan, stop).map_err(failed)?;
    print_line(&plot::text(&sweep))?;
    if let Some(path) = &args.html {
        let page = page::page(&sweep).map_err(failed)?;
        let file = File::create_new(path).and_then(|mut file| file.write_all(page.as_bytes()));
        file.map_err(|source| Failure::File {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The report, and the sync calls of the log's whole life.
fn append_to_log(
    args: &AppendBenchArgs,
    plan: &Plan,
    work: &WorkDir,
    stop: &Stop,
    bar: &ProgressBar,
) -> Result<(AppendReport, u64), BenchError> {
    let store = LogStore::open(
        &work.path().join("log"),
        args.writes.into(),
        args.payload,
        stop,
    )?;
    let log_bytes = std::cell::Cell::new((0, 0));
    let seen = append::run(&store, plan, stop, bar, || {
        let (_, last) = log_bytes.get();
        log_bytes.set((last, store.metrics().written_bytes.get()));
        Spent::now(work.path(), store.syncs())
    })?;
    let wrong = seen.bounds.iter();
    let wrong = wrong.filter(|(group, first, last)| !store.has_bounds(*group, *first, *last));
    let wrong = wrong.count() as u64;
    if wrong > 0 {
        return Err(BenchError::Wrong {
            what: "groups",
            wrong,
            of: seen.bounds.len() as u64,
        });
    }
    let process = Process {
        max_rss_mib: max_rss_mib(),
        file_bytes: disk_usage(work.path()),
        log_bytes: log_bytes.get().1 - log_bytes.get().0,
    };
    store.close();
    let report = AppendReport::new(plan, args.payload, &seen, &process);
    Ok((report, store.syncs() + NEW_LOG_SYNCS))
}

/// Shows on a terminal that it works, and on what.
fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(message.to_owned());
    bar
}
