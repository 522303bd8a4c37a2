//! Runs a fuzz target on random bytes, seed after seed: without libFuzzer, and repeatable by number.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use indicatif::ProgressBar;
use multiraft_tests::caught::caught;
use multiraft_tests::fuzz::{TARGETS, Target, random_input};

/// No input may make a target allocate more at once: lengths are believed only as far as bytes have
/// come. It is far above what a target needs, and far below what four bytes can claim.
const MAX_ALLOCATED_BYTES: u64 = 128 << 20;

/// Characters of a failure that are shown.
const MAX_WORDS: usize = 400;

/// Runs one fuzz target on random inputs. Exit code 1 when one of them breaks a rule.
#[derive(Parser)]
struct Arguments {
    /// Which target.
    #[arg(long, default_value = "logdb_ops", value_parser = PossibleValuesParser::new(TARGETS.map(|t| t.0)))]
    target: String,
    /// How many inputs.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Bytes of the longest input.
    #[arg(long, default_value_t = 2_000)]
    max_bytes: usize,
    /// Write the first input that breaks a rule to this file, such as one in `fuzz/regressions`.
    #[arg(long)]
    save: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let found = TARGETS.iter().find(|target| target.0 == arguments.target);
    let (name, target) = *found.expect("the parser knows the targets");
    std::panic::set_hook(Box::new(|_| ())); // shown below, with its seed
    let bar = ProgressBar::new(arguments.seeds);
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let bytes = random_input(seed, arguments.max_bytes);
        if let Err(what) = try_input(target, &bytes) {
            bar.finish_and_clear();
            println!("seed {seed} failed: {what}");
            let bytes_flag = arguments.max_bytes;
            println!(
                "replay: histories --target {name} --seed {seed} --seeds 1 --max-bytes {bytes_flag}"
            );
            if let Some(path) = &arguments.save
                && let Err(error) = std::fs::write(path, &bytes)
            {
                println!("{}: {error}", path.display());
            }
            return ExitCode::FAILURE;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{} inputs of {name}: all rules held", arguments.seeds);
    ExitCode::SUCCESS
}

/// Runs the target on one input; the rule that was broken, in words.
fn try_input(target: Target, bytes: &[u8]) -> Result<(), String> {
    let mut result = Ok(());
    let memory = allocation_counter::measure(|| result = caught(|| target(bytes)));
    result.map_err(|what| what.chars().take(MAX_WORDS).collect::<String>())?;
    let most = memory.bytes_max;
    if most > MAX_ALLOCATED_BYTES {
        let length = bytes.len();
        return Err(format!(
            "{most} bytes allocated at once, for an input of {length}"
        ));
    }
    Ok(())
}
