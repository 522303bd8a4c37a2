//! Shows that the tests would find the bugs they are there for: builds each bug in on purpose, and
//! counts the seeds or scenarios until it is caught. Where chance has a part in it, the median of
//! several tries counts.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use indicatif::ProgressBar;

/// Builds bugs in on purpose and counts the seeds or scenarios until they are caught.
#[derive(Parser)]
struct Arguments {
    /// Seeds of one try.
    #[arg(long, default_value_t = 400)]
    seeds: u64,
    /// Tries, each with other seeds.
    #[arg(long, default_value_t = 5)]
    tries: u64,
    /// Ticks of each seed.
    #[arg(long, default_value_t = 3_000)]
    ticks: u64,
    /// Only these bugs, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// The bugs by name, as in the list of classes that the project guards against.
const BUGS: [(&str, &str); 36] = [
    ("canary", "a rule that is always broken: must fail"),
    (
        "B1",
        "the leader serves a read without asking whether it still leads",
    ),
    ("B2", "an old echo confirms a new read"),
    ("B3", "a lease lasts longer than an election takes"),
    ("B4", "a vote is told before it is durable"),
    ("B5", "an append is acknowledged before it is durable"),
    ("B6", "entries are applied before the own disk has them"),
    ("B7", "the log goes on after a failed sync"),
    ("B8", "the name of a new segment is not synced"),
    ("B9", "a torn batch is taken for whole"),
    ("B10", "damage in the middle is taken for the end"),
    ("B11", "what an earlier use of a file left behind counts"),
    ("B12", "a cut tail comes back after a restart"),
    ("B13", "a change is logged while another is not applied"),
    ("B14", "a joint configuration decides by its incoming half"),
    ("B15", "a removed leader leads on"),
    ("B16", "who is behind in term is not told"),
    (
        "B17",
        "who hears a leader votes for others: leaders churn for ever",
    ),
    ("B18", "a snapshot keeps a tail that contradicts it"),
    (
        "B19",
        "a peer that was probed in vain is never probed again",
    ),
    ("B20", "an old write's completion speaks for newer entries"),
    ("B21", "a snapshot's checksums are not looked at"),
    ("B23", "a wiped node votes under its old id"),
    ("B24", "a length is believed before the bytes are there"),
    (
        "own-vote",
        "a term is led in that the own disk does not have yet",
    ),
    ("late-vote", "a vote for a lost log counts for the next"),
    ("old-term", "entries of old terms are committed by counting"),
    (
        "self-count",
        "the leader counts what its disk does not have yet",
    ),
    ("quorum", "half is taken for a majority"),
    (
        "early-free",
        "a segment is freed before what killed it is durable",
    ),
    (
        "unsynced-tail",
        "what was found in the page cache is taken for durable",
    ),
    ("unsynced-name", "the name of a new snapshot is not synced"),
    ("early-saved", "a snapshot is told of before it is durable"),
    (
        "early-compact",
        "the log is compacted before the snapshot is durable",
    ),
    ("lost-state", "a damaged snapshot counts as taken over"),
    (
        "lost-speaks",
        "a replica that was given up votes and acknowledges at once",
    ),
];

/// The name of no bug.
const NONE: &str = "none";
/// Bytes of the longest history: some bugs need a full segment or two.
const HISTORY_BYTES: usize = 20_000;
/// More seeds than this, in the median, are too many.
const MAX_MEDIAN: u64 = 200;

/// What caught a bug, and after how much.
struct Catch {
    after: String,
    by: String,
    is_soon: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = root.join("target/planted");
    println!("building with the bugs compiled in…");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "-p", "multiraft-tests"])
        .args([
            "--features",
            "planted",
            "--bin",
            "simulate",
            "--bin",
            "raftscript",
            "--bin",
            "histories",
        ])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&root)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("the build failed");
        return ExitCode::FAILURE;
    }
    // What fails without a bug catches every bug.
    let few = Arguments {
        seeds: arguments.seeds.min(50),
        only: Vec::new(),
        ..arguments
    };
    let alarm = by_scenario(&target, NONE)
        .or_else(|| by_history(&target, NONE, &arguments))
        .or_else(|| by_seed(&target, NONE, &few));
    if let Some(Catch { after, by, .. }) = alarm {
        println!("without any bug {by} fails after {after}: mend that first");
        return ExitCode::FAILURE;
    }
    let is_wanted = |bug: &&(&str, &str)| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| name == bug.0)
    };
    let bugs: Vec<_> = BUGS.iter().filter(is_wanted).collect();
    let bar = ProgressBar::new(bugs.len() as u64);
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(["BUG", "WHAT IT DOES", "CAUGHT AFTER", "BY"]);
    let mut missed = 0;
    for (name, what) in bugs {
        let caught = by_scenario(&target, name)
            .or_else(|| by_history(&target, name, &arguments))
            .or_else(|| by_seed(&target, name, &arguments));
        missed += usize::from(!caught.as_ref().is_some_and(|caught| caught.is_soon));
        let (after, by) = caught.map_or(("never".to_owned(), "nothing".to_owned()), |caught| {
            (caught.after, caught.by)
        });
        table.add_row([(*name).to_owned(), (*what).to_owned(), after, by]);
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{table}");
    if missed == 0 {
        println!("all are caught");
        ExitCode::SUCCESS
    } else {
        println!("{missed} are not caught, or too late");
        ExitCode::FAILURE
    }
}

fn run(program: &Path, bug: &str, arguments: &[String]) -> Option<Output> {
    let command = Command::new(program)
        .args(arguments)
        .env("MULTIRAFT_PLANTED", bug)
        .output();
    command.ok()
}

/// The first scenario that no longer holds.
fn by_scenario(target: &Path, bug: &str) -> Option<Catch> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    let program = target.join("release/raftscript");
    for (nth, file) in files.iter().enumerate() {
        let arguments = ["run".to_owned(), file.display().to_string()];
        let output = run(&program, bug, &arguments)?;
        if !output.status.success() {
            return Some(Catch {
                after: format!("{} scenarios", nth + 1),
                by: file.file_stem()?.to_string_lossy().into_owned(),
                is_soon: true,
            });
        }
    }
    None
}

/// Random inputs of the fuzz targets of the log and the wire.
fn by_history(target: &Path, bug: &str, arguments: &Arguments) -> Option<Catch> {
    ["logdb_ops", "logdb_recover", "message_decode"]
        .iter()
        .find_map(|fuzz| {
            let flags = [
                format!("--target={fuzz}"),
                format!("--max-bytes={HISTORY_BYTES}"),
            ];
            let program = target.join("release/histories");
            first_failure(&program, bug, &flags, 0, arguments.seeds)?;
            let (counts, _) = tries(&program, bug, &flags, arguments)?;
            Some(caught(&counts, "histories", (*fuzz).to_owned()))
        })
}

/// Random clusters.
fn by_seed(target: &Path, bug: &str, arguments: &Arguments) -> Option<Catch> {
    let flags = [
        format!("--ticks={}", arguments.ticks),
        format!("--out={}", target.join("traces").display()),
    ];
    let program = target.join("release/simulate");
    let (counts, rule) = tries(&program, bug, &flags, arguments)?;
    Some(caught(&counts, "seeds", rule))
}

/// How many seeds each try took, `None` if that many were not enough, and the first rule that was
/// broken.
fn tries(
    program: &Path,
    bug: &str,
    flags: &[String],
    arguments: &Arguments,
) -> Option<(Vec<Option<u64>>, String)> {
    let failure = |nth: u64| {
        let first = nth * arguments.seeds;
        let (seed, rule) = first_failure(program, bug, flags, first, arguments.seeds)?;
        Some((seed - first + 1, rule))
    };
    let failures: Vec<_> = (0..arguments.tries).map(failure).collect();
    let rule = failures.iter().flatten().next()?.1.clone();
    let counts = failures.into_iter().map(|found| Some(found?.0));
    Some((counts.collect(), rule))
}

/// The median of all tries, and each of them.
fn caught(counts: &[Option<u64>], unit: &str, by: String) -> Catch {
    let mut sorted: Vec<u64> = counts.iter().map(|n| n.unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    let shown = |count: &u64| match *count {
        u64::MAX => "never".to_owned(),
        count => count.to_string(),
    };
    let median = sorted[sorted.len() / 2];
    let all: Vec<String> = sorted.iter().map(shown).collect();
    Catch {
        after: format!("{} {unit} ({})", shown(&median), all.join(", ")),
        by,
        is_soon: median <= MAX_MEDIAN,
    }
}

/// The first seed of a range that breaks a rule, and the rule.
fn first_failure(
    program: &Path,
    bug: &str,
    flags: &[String],
    first: u64,
    count: u64,
) -> Option<(u64, String)> {
    let mut flags = flags.to_vec();
    flags.extend([format!("--seed={first}"), format!("--seeds={count}")]);
    let output = run(program, bug, &flags)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(" failed: "))?;
    let (seed, rule) = line.strip_prefix("seed ")?.split_once(" failed: ")?;
    Some((seed.parse().ok()?, rule.chars().take(60).collect()))
}
