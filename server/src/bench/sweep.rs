//! The append workload for many numbers of threads and groups, a short time each.

use indicatif::{ProgressBar, ProgressStyle};

use super::append::{self, Plan};
use super::measure::{Spent, count_f64};
use super::raw::Raw;
use super::report::AppendReport;
use super::store::Store;
use super::work_dir::{MARGIN_BYTES, WorkDir};
use super::{BenchError, Stop, append_to_log};
use crate::cli::AppendBenchArgs;

/// What a bare file takes from so many threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawCell {
    pub(super) writers: u32,
    pub(super) appends_per_s: f64,
}

/// All that was measured.
pub(super) struct Sweep {
    /// By groups, then by threads.
    pub(super) cells: Vec<AppendReport>,
    /// By threads; empty if it was not measured.
    pub(super) raw: Vec<RawCell>,
}

impl Sweep {
    /// The numbers of groups, rising.
    pub(super) fn groups(&self) -> Vec<u32> {
        let mut groups: Vec<u32> = self.cells.iter().map(|cell| cell.groups).collect();
        groups.dedup();
        groups
    }

    /// The numbers of threads, rising.
    pub(super) fn writers(&self) -> Vec<u32> {
        let mut writers: Vec<u32> = self.cells.iter().map(|cell| cell.writers).collect();
        writers.sort_unstable();
        writers.dedup();
        writers
    }

    /// The cells with so many groups, by threads.
    pub(super) fn row(&self, groups: u32) -> impl Iterator<Item = &AppendReport> {
        self.cells.iter().filter(move |cell| cell.groups == groups)
    }
}

/// The numbers of groups and threads to measure: a group always has the same thread, so there are
/// never more threads than groups.
pub(super) fn cells(args: &AppendBenchArgs) -> Vec<(u32, u32)> {
    let rising = |numbers: &[u32]| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let (groups, writers) = (rising(&args.sweep_groups), rising(&args.sweep_writers));
    let all = groups
        .iter()
        .flat_map(|groups| writers.iter().map(move |writers| (*groups, *writers)));
    let depth = u64::from(args.depth);
    all.filter(|(groups, writers)| u64::from(*writers) * depth <= u64::from(*groups))
        .collect()
}

/// Measures every cell on a new log, and the bare file for every number of threads.
pub(super) fn run(args: &AppendBenchArgs, plan: &Plan, stop: &Stop) -> Result<Sweep, BenchError> {
    let cells = cells(args);
    let most_groups = cells.iter().map(|cell| cell.0).max().unwrap_or(1);
    let raw_bytes = args.raw_file_mib << 20;
    let work = WorkDir::create(&args.place.dir, raw_bytes + MARGIN_BYTES, args.place.keep)?;
    let bar = progress_bar(cells.len());
    let mut sweep = Sweep {
        cells: Vec::new(),
        raw: Vec::new(),
    };
    for (groups, writers) in cells {
        bar.set_message(format!("{writers} writers, {groups} groups"));
        let plan = Plan {
            groups,
            writers,
            ..*plan
        };
        let cell = WorkDir::create(work.path(), MARGIN_BYTES, args.place.keep)?;
        sweep
            .cells
            .push(append_to_log(args, &plan, &cell, stop, &bar)?.0);
        bar.inc(1);
    }
    if !args.no_raw {
        let path = work.path().join("raw.log");
        let raw = Raw::create(&path, raw_bytes, args.payload, stop)?;
        for writers in sweep.writers() {
            bar.set_message(format!("{writers} writers, a bare file"));
            let plan = Plan {
                groups: most_groups,
                writers,
                ..*plan
            };
            let seen = append::run(&raw, &plan, stop, &bar, || {
                Spent::now(work.path(), raw.syncs())
            })?;
            sweep.raw.push(RawCell {
                writers,
                appends_per_s: count_f64(seen.appends) / plan.seconds.as_secs_f64(),
            });
        }
    }
    bar.finish_and_clear();
    Ok(sweep)
}

fn progress_bar(cells: usize) -> ProgressBar {
    let bar = ProgressBar::new(cells as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    bar
}
