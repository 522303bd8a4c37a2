//! Damages the files of closed logs, one at a time, and looks whether a start notices.

use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use multiraft_tests::corruptions::check_many;

/// One damage to one file of a closed log: a bit, a sector of garbage, a page of zeros, a file cut
/// short, two pages in each other's place. The start or a read must refuse, or everything must be there.
/// Exit code 1 when something is missing or wrong and nobody says so.
#[derive(Parser)]
struct Arguments {
    /// How many corruptions to try.
    #[arg(long, default_value_t = 10_000)]
    cases: u64,
    /// The number of the first one.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| ())); // what was silent is shown by us, with its number
    let bar = ProgressBar::new(arguments.cases);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} cases {per_sec} {eta}") {
        bar.set_style(style);
    }
    let checked = check_many(arguments.seed, arguments.cases, || bar.inc(1));
    bar.finish_and_clear();
    match checked {
        Ok(summary) => {
            println!(
                "{} corruptions: {} refused at the start, {} when read, {} harmless, {} looked at by verify too",
                summary.cases(),
                summary.refused,
                summary.unreadable,
                summary.harmless,
                summary.verified
            );
            println!("none went unnoticed");
            ExitCode::SUCCESS
        }
        Err(silent) => {
            println!("{silent}");
            ExitCode::FAILURE
        }
    }
}
