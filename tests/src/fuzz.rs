//! What the fuzzers run: a function of bytes for each target, that panics when something is wrong.
//!
//! They are here, and not beside libFuzzer, so that `cargo test` replays with them what was found.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a panic is the finding"
)]

mod bytes;
mod config;
mod kv;
mod raft_input;
mod records;
mod snapshots;

use arbitrary::Unstructured;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::sim::{self, Fault, FaultSet, Plan};

pub use self::bytes::{message_decode, wire_frame};
pub use self::config::config_file;
pub use self::kv::kv_ops;
pub use self::raft_input::raft_input;
pub use self::records::{log_image, logdb_ops, logdb_recover};
pub use self::snapshots::{snapshot_chunks, transfer_bytes};

/// A target's function.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("raft_step", raft_step),
    ("raft_input", raft_input),
    ("wire_frame", wire_frame),
    ("message_decode", message_decode),
    ("logdb_recover", logdb_recover),
    ("logdb_ops", logdb_ops),
    ("snapshot_chunks", snapshot_chunks),
    ("kv_ops", kv_ops),
    ("config_file", config_file),
];

/// The bytes of a random input, at most so many, by its number.
pub fn random_input(seed: u64, max_bytes: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; rng.random_range(0..=max_bytes)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Bytes that steer a cluster for one tick, about.
const BYTES_PER_TICK: usize = 24;

/// A small cluster whose every chance the bytes decide: what is lost, who crashes, who asks what.
/// All rules of the simulator are checked.
pub fn raft_step(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let faults: u32 = input.arbitrary().unwrap_or(0);
    let nodes = input.int_in_range(3..=5).unwrap_or(3);
    let groups = input.int_in_range(1..=2).unwrap_or(1);
    let bytes = input.take_rest();
    let is_in = |fault: &Fault| faults & (1 << *fault as u32) != 0;
    let faults: Vec<Fault> = FaultSet::all().iter().filter(is_in).collect();
    let plan = Plan {
        seed: 1,
        nodes,
        groups,
        ticks: 60 + (bytes.len() / BYTES_PER_TICK) as u64,
        faults: FaultSet::of(&faults),
    };
    sim::run_on_bytes(&plan, bytes);
}
