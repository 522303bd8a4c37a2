//! Shows that the tests would find the bugs they are there for: builds each bug in on purpose, and
//! counts the seeds or scenarios until it is caught.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use indicatif::ProgressBar;

/// Builds bugs in on purpose and counts the seeds or scenarios until they are caught.
#[derive(Parser)]
struct Arguments {
    /// Seeds to try for each bug.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Ticks of each seed.
    #[arg(long, default_value_t = 3_000)]
    ticks: u64,
    /// Only these bugs, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// The bugs by name, as in the list of classes that the project guards against.
const BUGS: [(&str, &str); 26] = [
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
    ("B9", "the rest of a torn tail is not cleared"),
    ("B10", "damage in the middle is taken for the end"),
    ("B11", "what an earlier use of a file left behind counts"),
    ("B12", "a cut tail comes back after a restart"),
    ("B13", "a change is logged while another is not applied"),
    ("B14", "a joint configuration decides by its incoming half"),
    ("B15", "a removed leader leads on"),
    ("B16", "who is behind in term is not told"),
    ("B18", "a snapshot keeps a tail that contradicts it"),
    (
        "B19",
        "a peer that was probed in vain is never probed again",
    ),
    ("B20", "an old write's completion speaks for newer entries"),
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
];

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
        missed += usize::from(caught.is_none());
        let (after, by) = caught.unwrap_or_else(|| ("never".to_owned(), "nothing".to_owned()));
        table.add_row([(*name).to_owned(), (*what).to_owned(), after, by]);
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{table}");
    if missed == 0 {
        println!("all are caught");
        ExitCode::SUCCESS
    } else {
        println!("{missed} are not caught");
        ExitCode::FAILURE
    }
}

fn run(program: PathBuf, bug: &str, arguments: &[String]) -> Option<Output> {
    let command = Command::new(program)
        .args(arguments)
        .env("MULTIRAFT_PLANTED", bug)
        .output();
    command.ok()
}

/// The first scenario that no longer holds.
fn by_scenario(target: &Path, bug: &str) -> Option<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    for (nth, file) in files.iter().enumerate() {
        let arguments = ["run".to_owned(), file.display().to_string()];
        let output = run(target.join("release/raftscript"), bug, &arguments)?;
        if !output.status.success() {
            let name = file.file_stem()?.to_string_lossy().into_owned();
            return Some((format!("{} scenarios", nth + 1), name));
        }
    }
    None
}

/// The first random input of the log's fuzz targets that breaks a rule.
fn by_history(target: &Path, bug: &str, arguments: &Arguments) -> Option<(String, String)> {
    ["logdb_ops", "logdb_recover"].iter().find_map(|fuzz| {
        let flags = [
            format!("--seeds={}", arguments.seeds),
            format!("--target={fuzz}"),
        ];
        let output = run(target.join("release/histories"), bug, &flags)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (seed, _) = failure(&text)?;
        Some((format!("{} histories", seed + 1), (*fuzz).to_owned()))
    })
}

/// Seed and rule of the line that tells a failure.
fn failure(text: &str) -> Option<(u64, String)> {
    let line = text.lines().find(|line| line.contains(" failed: "))?;
    let (seed, rule) = line.strip_prefix("seed ")?.split_once(" failed: ")?;
    Some((seed.parse().ok()?, rule.chars().take(60).collect()))
}

/// The first seed that breaks a rule, and the rule.
fn by_seed(target: &Path, bug: &str, arguments: &Arguments) -> Option<(String, String)> {
    let flags = [
        format!("--seeds={}", arguments.seeds),
        format!("--ticks={}", arguments.ticks),
        format!("--out={}", target.join("traces").display()),
    ];
    let output = run(target.join("release/simulate"), bug, &flags)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (seed, rule) = failure(&text)?;
    Some((format!("{} seeds", seed + 1), rule))
}
