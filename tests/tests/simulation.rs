//! Bounded runs of the simulator: rules hold, and a seed is a run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

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
    const SEEDS: u64 = 300;
    let options = Options {
        ticks: 1_000,
        ..Options::default()
    };
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Counters::default(), 0));
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let outcome = run(seed, &options);
                    let mut sum = sum.lock().unwrap();
                    sum.0.add(&outcome.counters);
                    sum.1 += outcome.committed;
                }
            });
        }
    });
    let (counters, committed) = sum.into_inner().unwrap();
    assert!(committed > 25_000, "little happened: {committed} entries");
    for fault in FaultSet::all().iter() {
        assert!(counters.of(fault) > 0, "{fault} never happened");
    }
}

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

/// What this build does, and what one with optimizations and without checks of overflow does.
#[test]
fn debug_and_release_builds_do_the_same() {
    let options = Options {
        ticks: 600,
        ..Options::default()
    };
    let output = Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--locked",
            "--release",
            "-p",
            "multiraft-tests",
        ])
        .args(["--bin", "simulate", "--", "--print-hash", "--seeds", "20"])
        .args(["--ticks", "600"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for seed in 0..20 {
        let line = format!("seed {seed} hash {:016x}", run(seed, &options).hash);
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in\n{text}"
        );
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
