//! A few power cuts of a real file system, where that is possible.
#![allow(missing_docs, reason = "a test")]

use std::path::Path;
use std::process::Command;

use multiraft_tests::power_cuts::cut_many;

#[test]
fn what_was_acknowledged_survives_power_cuts_of_ext4() {
    let child = |dir: &Path, seed: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_powercut"));
        command
            .arg("--append-to")
            .arg(dir)
            .args(["--seed", &seed.to_string()]);
        command
    };
    match cut_many(12, 1, child, || ()) {
        Ok(summary) => assert!(summary.acknowledged > 0, "{summary:?}"),
        Err(impossible) => println!("skipped: {impossible}"),
    }
}
