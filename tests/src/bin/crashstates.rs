//! Cuts the power at every operation of drawn histories of the log, and looks what is left.

use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use multiraft_tests::crash_states::{Broken, CrashState, Summary, check_many, check_one};

/// Writes, truncations, compactions and removals of several groups on a simulated disk; power fails
/// at every write, sync and change of a name, and unsynced sectors are kept, lost or torn as drawn.
/// Exit code 1 when something acknowledged is gone, something is there that should not be, or a
/// second recovery finds something else.
#[derive(Parser)]
struct Arguments {
    /// How many crash states to check.
    #[arg(long, default_value_t = 50_000)]
    states: u64,
    /// The first history.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Check one state only: the operation of that history at which power fails.
    #[arg(long)]
    cut: Option<u64>,
    /// And which of the crashes that are drawn there.
    #[arg(long, default_value_t = 0, requires = "cut")]
    draw: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| ())); // a broken rule is shown by us, with its seed
    match check(&arguments) {
        Ok(summary) => {
            println!(
                "{} crash states of {} histories, {} of which gave segments back: unacknowledged \
                 writes were found in {} and lost in {}, {} recoveries were cut too",
                summary.states,
                summary.histories,
                summary.recycled,
                summary.kept_unacknowledged,
                summary.lost_unacknowledged,
                summary.cut_recoveries
            );
            println!("all rules held");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            println!("{broken}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: &Arguments) -> Result<Summary, Box<Broken>> {
    let seed = arguments.seed;
    if let Some(cut) = arguments.cut {
        let draw = arguments.draw;
        return check_one(CrashState { seed, cut, draw });
    }
    let bar = ProgressBar::new(arguments.states);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} states {per_sec} {eta}") {
        bar.set_style(style);
    }
    let checked = check_many(seed, arguments.states, || bar.inc(1));
    bar.finish_and_clear();
    checked
}
