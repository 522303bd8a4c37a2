//! Whole clusters in one thread, drawn from one seed: the real core, shard loop, log, wire codec and
//! apply stage; only clock, disk and network are simulated.
//!
//! ```text
//! seed ─▶ plan (nodes, groups, roles, which faults) ─▶ world: ticks
//!   each tick  frames arrive ─ nodes turn ─ writers sync ─ machines apply ─ clients ask
//!              and every promise on the wire is held against the disks (invariants)
//!   then everything heals: leaders, progress and equal states within a bound
//! ```
//! Equal seeds give equal runs, to the byte: no clock, no thread and no unordered map is in here. An
//! [`Outcome`] carries a hash of all that happened. A broken rule panics with words; [`run`] turns
//! that into a [`Failure`].

mod client;
mod dice;
mod faults;
mod invariants;
mod machine;
mod network;
pub(crate) mod node;
mod trace;
pub(crate) mod transfers;
mod world;

use multiraft_transport::codec::Item;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::caught::caught;

use self::dice::Dice;
pub use self::faults::{Counters, Fault, FaultSet};
pub use self::trace::Trace;
use self::world::World;

/// What a run is drawn from, besides its seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes; drawn if `None`.
    pub nodes: Option<u32>,
    /// How many groups; drawn if `None`.
    pub groups: Option<u32>,
    /// Ticks with faults.
    pub ticks: u64,
    /// The faults to draw from.
    pub faults: FaultSet,
    /// Whether to keep a trace.
    pub traces: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: None,
            groups: None,
            ticks: 20_000,
            faults: FaultSet::all(),
            traces: false,
        }
    }
}

/// What a seed makes of the options.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: u32,
    /// Groups.
    pub groups: u32,
    /// Ticks with faults.
    pub ticks: u64,
    /// The faults of this run: a random part of those allowed (swarm testing).
    pub faults: FaultSet,
}

impl Plan {
    /// Draws it.
    pub fn draw(seed: u64, options: &Options) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed_5eed);
        let nodes = *[3, 3, 3, 4, 5, 5, 6, 7]
            .get(rng.random_range(0..8))
            .expect("in range");
        let groups = *[1, 1, 1, 2, 2, 3, 5, 8, 16, 64]
            .get(rng.random_range(0..10))
            .expect("in range");
        Self {
            seed,
            nodes: options.nodes.unwrap_or(nodes),
            groups: options.groups.unwrap_or(groups),
            ticks: options.ticks,
            faults: options.faults.draw(&mut rng),
        }
    }
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Of all that happened, in order.
    pub hash: u64,
    /// How often each fault happened.
    pub counters: Counters,
    /// Entries committed, over all groups.
    pub committed: u64,
    /// Operations of clients that were acknowledged.
    pub acknowledged: u64,
    /// Ticks from the heal until everything was settled.
    pub healed_ticks: u64,
}

/// A rule was broken.
#[derive(Debug, Clone)]
pub struct Failure {
    /// In words.
    pub what: String,
    /// What led to it, if traces were kept.
    pub trace: Trace,
}

/// Runs one plan.
///
/// # Errors
/// The rule that was broken.
pub fn run(plan: &Plan, traces: bool) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(plan, traces);
    let result = caught(|| world.run());
    result.map_err(|what| {
        Box::new(Failure {
            what,
            trace: world.take_trace(),
        })
    })
}

/// Runs a plan whose chances come from bytes. Panics when a rule is broken.
pub fn run_on_bytes(plan: &Plan, bytes: &[u8]) -> Outcome {
    World::with_dice(plan, Dice::with_bytes(plan.seed, bytes.to_vec()), false).run()
}

/// Runs a plan and gives what was said in it, by turns.
pub fn listen(plan: &Plan) -> Vec<Vec<Item>> {
    World::new(plan, false).run_and_listen()
}

/// Looks for a shorter plan that still fails: fewer ticks, then fewer faults, groups and nodes.
pub fn shrink(plan: &Plan) -> Plan {
    let fails = |plan: &Plan| run(plan, false).is_err();
    let mut best = plan.clone();
    loop {
        let mut candidates = Vec::new();
        for ticks in [best.ticks / 2, best.ticks * 3 / 4, best.ticks * 9 / 10] {
            candidates.push(Plan {
                ticks,
                ..best.clone()
            });
        }
        for fault in best.faults.iter() {
            candidates.push(Plan {
                faults: best.faults.without(fault),
                ..best.clone()
            });
        }
        candidates.push(Plan {
            groups: (best.groups / 2).max(1),
            ..best.clone()
        });
        candidates.push(Plan {
            nodes: (best.nodes - 1).max(3),
            ..best.clone()
        });
        let is_smaller = |p: &Plan| {
            (p.ticks, p.faults.len(), p.groups, p.nodes)
                != (best.ticks, best.faults.len(), best.groups, best.nodes)
                && p.ticks > 0
        };
        match candidates.into_iter().find(|p| is_smaller(p) && fails(p)) {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}
