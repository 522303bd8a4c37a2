//! Bounded runs of the simulator: rules hold, and a seed is a run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use multiraft_tests::sim::{self, Counters, FaultSet, Options, Plan};

fn run(seed: u64, options: &Options) -> sim::Outcome {
    let plan = Plan::draw(seed, options);
    sim::run(&plan, false).unwrap_or_else(|failure| {
        panic!(
            "{}\nreplay: cargo run --release -p multiraft-tests --bin simulate -- --seed {seed} \
             --ticks {}",
            failure.what, options.ticks
        )
    })
}

#[test]
fn every_rule_holds_under_every_fault() {
    let options = Options {
        ticks: 1_000,
        ..Options::default()
    };
    let mut counters = Counters::default();
    let mut committed = 0;
    for seed in 0..60 {
        let outcome = run(seed, &options);
        counters.add(&outcome.counters);
        committed += outcome.committed;
    }
    assert!(committed > 5_000, "little happened: {committed} entries");
    for fault in FaultSet::all().iter() {
        assert!(counters.of(fault) > 0, "{fault} never happened");
    }
}

/// Runs of debug and release builds are compared by `--print-hash`; two runs of one build here.
#[test]
fn a_seed_is_a_run() {
    let options = Options {
        ticks: 600,
        ..Options::default()
    };
    for seed in 0..20 {
        let (one, two) = (run(seed, &options), run(seed, &options));
        assert_eq!(one.hash, two.hash, "seed {seed}");
    }
}

#[test]
fn the_program_counts_prints_hashes_and_refuses_unknown_faults() {
    let simulate = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_simulate"))
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (
            output.status.code(),
            text,
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let arguments = [
        "--seeds",
        "2",
        "--ticks",
        "200",
        "--faults",
        "crash,drop",
        "--print-hash",
    ];
    let (code, text, _) = simulate(&arguments);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("seed 1 hash ") && text.contains("all rules held"),
        "{text}"
    );
    let (code, _, error) = simulate(&["--faults", "earthquake"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("known are crash"), "{error}");
}
