//! Cuts the power of a real file system under a log, again and again.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use multiraft_tests::power_cuts::{append_until_killed, cut_many};

/// Threads append to a log on ext4 in a file; the file system is shut down under them as if power failed, mounted
/// again, and everything that was acknowledged has to be there. Needs root, `mkfs.ext4` (e2fsprogs) and `xfs_io`
/// (xfsprogs); says so and does nothing where one is missing.
#[derive(Parser)]
struct Arguments {
    /// How many power cuts.
    #[arg(long, default_value_t = 500)]
    cycles: u64,
    /// What the times and the writes are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Be the process that appends, to the log in this directory.
    #[arg(long, hide = true)]
    append_to: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(dir) = arguments.append_to {
        append_until_killed(&dir, arguments.seed);
        return ExitCode::SUCCESS;
    }
    let bar = ProgressBar::new(arguments.cycles);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} power cuts {eta}") {
        bar.set_style(style);
    }
    let program = std::env::current_exe().expect("this program has a path");
    let child = |dir: &Path, seed: u64| {
        let mut command = Command::new(&program);
        command
            .arg("--append-to")
            .arg(dir)
            .args(["--seed", &seed.to_string()]);
        command
    };
    let done = cut_many(arguments.cycles, arguments.seed, child, || bar.inc(1));
    bar.finish_and_clear();
    match done {
        Ok(summary) => println!(
            "{} power cuts, {} before there was a log: {} acknowledged appends are all there, and {} entries that \
             nobody was told of",
            summary.cycles,
            summary.before_the_log,
            summary.acknowledged,
            summary.kept_unacknowledged
        ),
        Err(impossible) => println!("skipped, no power can be cut here: {impossible}"),
    }
    ExitCode::SUCCESS
}
