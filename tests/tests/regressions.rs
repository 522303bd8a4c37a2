//! What fuzzing found, and what it began with: `fuzz/regressions` and `fuzz/seeds`, a directory for
//! each target, replayed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::path::Path;

use multiraft_tests::fuzz::{TARGETS, Target, logdb_ops, random_input};

fn replay(dir: &Path, target: Target) -> usize {
    let Ok(files) = std::fs::read_dir(dir) else {
        return 0;
    };
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        println!("{}", path.display()); // the last one shown is the one that fails
        target(&std::fs::read(path).unwrap());
        count += 1;
    }
    count
}

#[test]
fn what_was_found_stays_mended() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, target) in TARGETS {
        assert!(
            replay(&fuzz.join("seeds").join(name), target) > 0,
            "no seeds for {name}"
        );
        replay(&fuzz.join("regressions").join(name), target);
    }
}

/// Histories long enough that segments are given back, which the inputs above are not.
#[test]
fn random_histories_of_the_log_hold() {
    for (seeds, max_bytes) in [(0..400, 2_000), (400..440, 20_000)] {
        for seed in seeds {
            println!("seed {seed} of {max_bytes} bytes"); // the last one shown is the one that fails
            logdb_ops(&random_input(seed, max_bytes));
        }
    }
}

#[test]
fn every_target_has_its_file_and_every_file_is_a_target() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let files = std::fs::read_dir(dir).unwrap();
    let name = |file: std::io::Result<std::fs::DirEntry>| {
        let path = file.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    };
    let mut files: Vec<String> = files.map(name).collect();
    files.sort();
    let mut names = TARGETS.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(files, names);
}
