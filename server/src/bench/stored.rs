//! The workloads on data that is there: loading it, and recovering, reading and compacting it.
//!
//! The data is loaded by a child process, so that the one that measures starts out empty.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use multiraft_logdb::Writes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::log_store::LogStore;
use super::measure::{
    Figure, MIB, Spent, count_f64, disk_usage, drop_cache, max_rss_mib, sync_file_system,
};
use super::report::{CompactReport, LoadFields, RawRecovery, ReadReport, RecoverReport};
use super::store::{Append, Store};
use super::work_dir::{MARGIN_BYTES, WorkDir};
use super::{BenchError, Stop, raw};
use crate::cli::{CompactBenchArgs, LoadArgs, LoadBenchArgs, ReadBenchArgs, RecoverBenchArgs};

const LOG: &str = "log";
const RAW: &str = "raw.log";
/// What an entry takes beside its payload, at most, when each is appended alone.
const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// One part in so many is kept by a compaction.
const KEPT_SHARE: u64 = 10;
/// The files are said to change no more when they did not for so long.
const SETTLED: Duration = Duration::from_secs(1);
/// The longest wait for that.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Index of the last entry of a group.
fn expected_last(args: &LoadArgs, group: u32) -> u64 {
    let groups = u64::from(args.groups);
    args.entries / groups + u64::from(u64::from(group - 1) < args.entries % groups)
}

/// All that is loaded, write by write: groups interleaved, a few entries of a group at a time.
fn rounds(args: &LoadArgs) -> impl Iterator<Item = Vec<Append>> {
    let passes = expected_last(args, 1).div_ceil(args.batch);
    let appends = (0..passes).flat_map(|pass| (1..=args.groups).map(move |group| (pass, group)));
    let mut appends = appends.filter_map(|(pass, group)| {
        let first = pass * args.batch + 1;
        let left = (expected_last(args, group) + 1).saturating_sub(first);
        (left > 0).then_some(Append {
            group,
            first,
            count: args.batch.min(left),
            compact_to: None,
        })
    });
    std::iter::from_fn(move || {
        let round: Vec<Append> = appends.by_ref().take(args.load_groups.into()).collect();
        (!round.is_empty()).then_some(round)
    })
}

/// What the data takes on the disk, and some room.
fn needed_bytes(args: &LoadArgs) -> u64 {
    let entry = u64::from(args.payload) + ENTRY_OVERHEAD_BYTES;
    args.entries.saturating_mul(entry) + MARGIN_BYTES
}

fn payload_bytes(args: &LoadArgs) -> f64 {
    count_f64(args.entries) * f64::from(args.payload)
}

/// Writes all entries; durable when it returns. Prints the seconds that it took.
pub(super) fn load(args: &LoadBenchArgs, stop: &Stop) -> Result<(), BenchError> {
    let own = match &args.into {
        Some(_) => None,
        None => Some(WorkDir::create(
            &args.place.dir,
            needed_bytes(&args.load),
            true,
        )?),
    };
    let dir = args.into.as_deref();
    let dir = dir
        .or(own.as_ref().map(WorkDir::path))
        .expect("one is there");
    let started = Instant::now();
    let bar = ProgressBar::new(args.load.entries);
    let store = LogStore::open(&dir.join(LOG), Writes::default(), args.load.payload, stop)?;
    store.load(rounds(&args.load), |entries| bar.inc(entries))?;
    if !args.crash {
        store.close();
    }
    bar.finish_and_clear();
    println!("{}", started.elapsed().as_secs_f64());
    if args.with_raw {
        raw::load(&dir.join(RAW), rounds(&args.load), args.load.payload, stop)?;
    }
    if args.crash {
        std::process::exit(0); // not a word to the log
    }
    Ok(())
}

/// What a child loads beside the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    RawFile,
}

/// How a child ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Crashed,
}

/// Loads in a child process; returns the seconds that it took.
fn load_in_child(
    args: &LoadArgs,
    dir: &Path,
    (beside, end): (Beside, End),
    stop: &Stop,
) -> Result<f64, BenchError> {
    let program = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let mut command = Command::new(program);
    command.args(["bench", "log", "load", "--dir"]).arg(dir);
    command.arg("--into").arg(dir);
    for (flag, value) in [
        ("--groups", u64::from(args.groups)),
        ("--entries", args.entries),
        ("--payload", u64::from(args.payload)),
        ("--batch", args.batch),
        ("--load-groups", args.load_groups.into()),
    ] {
        command.args([flag, &value.to_string()]);
    }
    command.args((beside == Beside::RawFile).then_some("--with-raw"));
    command.args((end == End::Crashed).then_some("--crash"));
    let child = command.stdout(Stdio::piped()).spawn();
    let child = child.map_err(BenchError::io("starting the child that loads"))?;
    let output = wait_for(child, stop)?;
    sync_file_system(dir)?;
    Ok(output.trim().parse().unwrap_or(f64::NAN))
}

/// What a child printed. It ends when everything is to stop.
fn wait_for(mut child: Child, stop: &Stop) -> Result<String, BenchError> {
    let waiting = BenchError::io("waiting for the child that loads");
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Err(waiting(error)),
        }
        if let Err(stopped) = stop.check() {
            child.kill().and_then(|()| child.wait()).map_err(waiting)?;
            return Err(stopped);
        }
        std::thread::sleep(POLL);
    };
    stop.check()?;
    if !status.success() {
        return Err(BenchError::Child(status));
    }
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut output).map_err(waiting)?;
    }
    Ok(output)
}

fn fields(args: &LoadArgs, bench: &'static str, is_cold: bool, load_s: f64) -> LoadFields {
    LoadFields {
        bench,
        backend: super::report::BACKEND,
        variant: super::report::DEFAULT_VARIANT,
        groups: args.groups,
        entries: args.entries,
        payload: args.payload,
        batch: args.batch,
        cold: is_cold,
        load_s: Figure(load_s),
    }
}

/// Opens the log again and asks it for the last index of each group.
pub(super) fn recover(args: &RecoverBenchArgs, stop: &Stop) -> Result<RecoverReport, BenchError> {
    let load = &args.load;
    let beside = if args.no_raw {
        Beside::Nothing
    } else {
        Beside::RawFile
    };
    let needed = needed_bytes(load) * if args.no_raw { 1 } else { 2 };
    let work = WorkDir::create(&args.place.dir, needed, args.place.keep)?;
    let end = if args.crash {
        End::Crashed
    } else {
        End::Closed
    };
    let load_s = load_in_child(load, work.path(), (beside, end), stop)?;
    if args.cold {
        drop_cache(work.path())?;
    }
    let log = work.path().join(LOG);
    let (allocated, apparent) = disk_usage(&log);
    let before = Spent::now(work.path(), 0);
    let started = Instant::now();
    let store = LogStore::open(&log, Writes::default(), load.payload, stop)?;
    let bounds = store.stored_bounds();
    let wrong = (1..=load.groups).filter(|group| {
        let found = bounds.get(group).map_or(0, |bounds| bounds.1);
        found != expected_last(load, *group)
    });
    let groups_wrong = wrong.count() as u64;
    let seconds = started.elapsed().as_secs_f64();
    let spent = Spent::now(work.path(), 0).since(&before);
    let max_rss_mib = max_rss_mib();
    store.close();
    let raw = match beside {
        Beside::Nothing => None,
        Beside::RawFile => Some(recover_raw(load, &work, seconds)?),
    };
    Ok(RecoverReport {
        load: fields(load, "recover", args.cold, load_s),
        crash: args.crash,
        recovery_s: Figure(seconds),
        mib_per_s: Figure(payload_bytes(load) / seconds / MIB),
        file_mib_per_s: Figure(count_f64(apparent) / seconds / MIB),
        entries_per_s: Figure(count_f64(load.entries) / seconds),
        cpu_s: Figure(spent.cpu_s),
        max_rss_mib: Figure(max_rss_mib),
        file_bytes_on_disk: allocated,
        file_bytes_apparent: apparent,
        groups_wrong,
        ok: groups_wrong == 0,
        raw,
    })
}

/// The same entries from a bare file, checked from front to end.
fn recover_raw(args: &LoadArgs, work: &WorkDir, log_s: f64) -> Result<RawRecovery, BenchError> {
    let started = Instant::now();
    let entries = raw::scan(&work.path().join(RAW))?;
    let seconds = started.elapsed().as_secs_f64();
    if entries != args.entries {
        return Err(BenchError::Wrong {
            what: "entries of the raw file",
            wrong: args.entries.abs_diff(entries),
            of: args.entries,
        });
    }
    Ok(RawRecovery {
        recovery_s: Figure(seconds),
        mib_per_s: Figure(payload_bytes(args) / seconds / MIB),
        raw_time_per_log_time: Figure(seconds / log_s),
    })
}

/// What the threads that read have read.
#[derive(Default)]
struct Read {
    groups: u64,
    entries: u64,
    wrong: u64,
}

/// Threads read random groups from their first to their last entry, and check every entry.
pub(super) fn read(args: &ReadBenchArgs, stop: &Stop) -> Result<ReadReport, BenchError> {
    let load = &args.load;
    let work = WorkDir::create(&args.place.dir, needed_bytes(load), args.place.keep)?;
    let load_s = load_in_child(load, work.path(), (Beside::Nothing, End::Closed), stop)?;
    if args.cold {
        drop_cache(work.path())?;
    }
    let store = LogStore::open(
        &work.path().join(LOG),
        Writes::default(),
        load.payload,
        stop,
    )?;
    let before = Spent::now(work.path(), 0);
    let started = Instant::now();
    let is_over = AtomicBool::new(false);
    let sum = std::thread::scope(|scope| {
        let (store, is_over) = (&store, &is_over);
        let threads: Vec<_> = (0..args.readers)
            .map(|number| scope.spawn(move || read_until(store, args, number, is_over)))
            .collect();
        let slept = stop.sleep_until(started + args.seconds, || Ok(()));
        is_over.store(true, Ordering::Relaxed);
        let mut sum = Read::default();
        for thread in threads {
            let read = thread.join().expect("a thread that reads does not panic")?;
            sum.groups += read.groups;
            sum.entries += read.entries;
            sum.wrong += read.wrong;
        }
        slept.map(|()| sum)
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let spent = Spent::now(work.path(), 0).since(&before);
    store.close();
    let entries = count_f64(sum.entries);
    Ok(ReadReport {
        load: fields(load, "read", args.cold, load_s),
        readers: args.readers,
        groups_read: sum.groups,
        entries_read: sum.entries,
        entries_per_s: Figure(entries / seconds),
        mib_per_s: Figure(entries * f64::from(load.payload) / seconds / MIB),
        cpu_s_per_million_entries: Figure(spent.cpu_s / entries * 1e6),
        max_rss_mib: Figure(max_rss_mib()),
        entries_wrong: sum.wrong,
        ok: sum.wrong == 0,
    })
}

fn read_until(
    store: &LogStore,
    args: &ReadBenchArgs,
    number: u32,
    is_over: &AtomicBool,
) -> Result<Read, BenchError> {
    let mut rng = SmallRng::seed_from_u64(number.into());
    let mut read = Read::default();
    let max_bytes = usize::try_from(args.read_mib << 20).unwrap_or(usize::MAX);
    while !is_over.load(Ordering::Relaxed) {
        let group = rng.random_range(1..=args.load.groups);
        let last = expected_last(&args.load, group);
        read.wrong += store.read_checked(group, (1, last), max_bytes)?;
        read.entries += last;
        read.groups += 1;
    }
    Ok(read)
}

/// Compacts each group to its last tenth and waits until the log has given the space back.
pub(super) fn compact(args: &CompactBenchArgs, stop: &Stop) -> Result<CompactReport, BenchError> {
    let load = &args.load;
    let work = WorkDir::create(&args.place.dir, needed_bytes(load), args.place.keep)?;
    let load_s = load_in_child(load, work.path(), (Beside::Nothing, End::Closed), stop)?;
    let log = work.path().join(LOG);
    let store = LogStore::open(&log, Writes::default(), load.payload, stop)?;
    let before_files = disk_usage(&log);
    let before = Spent::now(work.path(), store.syncs());
    let started = Instant::now();
    // First and last entry that stay.
    let kept = |group: u32| {
        let last = expected_last(load, group);
        (last - (last / KEPT_SHARE).max(1) + 1, last)
    };
    let compact_to: Vec<_> = (1..=load.groups)
        .map(|group| (group, kept(group).0 - 1))
        .collect();
    store.compact(&compact_to)?;
    let truncate_s = started.elapsed().as_secs_f64();
    let mut compact_s = truncate_s;
    let (mut after_files, mut still) = (disk_usage(&log), Instant::now());
    let limit = Instant::now() + SETTLE_LIMIT;
    while still.elapsed() < SETTLED && Instant::now() < limit {
        stop.sleep_until(Instant::now() + POLL, || store.check())?;
        let now = disk_usage(&log);
        if now != after_files {
            (after_files, still) = (now, Instant::now());
            compact_s = started.elapsed().as_secs_f64();
        }
    }
    let spent = Spent::now(work.path(), store.syncs()).since(&before);
    let wrong = (1..=load.groups).filter(|group| {
        let (first, last) = kept(*group);
        !store.has_bounds(*group, first, last)
    });
    let groups_wrong = wrong.count() as u64;
    let live: u64 = (1..=load.groups).map(|g| kept(g).1 - kept(g).0 + 1).sum();
    let max_rss_mib = max_rss_mib();
    store.close();
    Ok(CompactReport {
        load: fields(load, "compact", false, load_s),
        compact_s: Figure(compact_s),
        truncate_s: Figure(truncate_s),
        reclaim_s: Figure(compact_s - truncate_s),
        disk_bytes_before: before_files.0,
        disk_bytes_after: after_files.0,
        disk_bytes_reclaimed: before_files.0.saturating_sub(after_files.0),
        apparent_bytes_before: before_files.1,
        apparent_bytes_after: after_files.1,
        live_payload_bytes: live * u64::from(load.payload),
        write_bytes: spent.write_bytes,
        fsyncs: spent.syncs,
        cpu_s: Figure(spent.cpu_s),
        max_rss_mib: Figure(max_rss_mib),
        groups_wrong,
        ok: groups_wrong == 0,
    })
}
