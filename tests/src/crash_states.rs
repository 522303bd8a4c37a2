//! Crash states of the log: histories of several groups, cut at every operation of the disk.
//!
//! ```text
//! seed ─▶ history: appends, truncations, compactions, removals, hard states, turns of the writer
//!         run to the disk's operation `cut` ─▶ power fails: what was not synced is drawn
//!         ─▶ recovery, which may be cut too ─▶ second recovery ─▶ the log goes on
//! ```
//! The rules: what was acknowledged is there; what is there was written, and is one of the states
//! since the last acknowledged one, so nothing truncated comes back; who recovers twice finds the
//! same; and what is written then is found as well.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a panic is the finding"
)]

use std::fmt;
use std::sync::Arc;

use arbitrary::Unstructured;
use multiraft_engine::traits::{GroupWrite, Log, WriteBatch};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{LogDb, Turn, Writer};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::caught::caught;
use crate::log_model::{Model, contents, draw_write, open};
use crate::sim::node::Marks;

/// Crashes that are drawn for each cut.
pub const DRAWS: u64 = 2;
/// Bytes that a history is drawn from; more than it takes.
const HISTORY_BYTES: usize = 16 << 10;
/// Steps of the longest history: enough to fill a few segments and to give them back.
const MAX_STEPS: usize = 64;
/// Operations of a recovery that may be cut, about all of them.
const RECOVERY_OPERATIONS: u64 = 16;

/// One crash: which history, where, and what the disk keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashState {
    /// Of the history.
    pub seed: u64,
    /// The first operation of the disk that fails.
    pub cut: u64,
    /// Which of the crashes there.
    pub draw: u64,
}

/// What a run added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Crash states checked.
    pub states: u64,
    /// Histories that they come from.
    pub histories: u64,
    /// States in which something was found that had not been acknowledged.
    pub kept_unacknowledged: u64,
    /// States in which something that had been written was lost, rightly.
    pub lost_unacknowledged: u64,
    /// States whose first recovery was cut too.
    pub cut_recoveries: u64,
    /// Histories in which a segment was given back.
    pub recycled: u64,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Where.
    pub state: CrashState,
    /// In words.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CrashState { seed, cut, draw } = self.state;
        writeln!(
            f,
            "seed {seed}, cut {cut}, draw {draw} failed: {}",
            self.what
        )?;
        write!(
            f,
            "replay: cargo run --release -p multiraft-tests --bin crashstates -- --seed {seed} \
             --cut {cut} --draw {draw}"
        )
    }
}

/// Checks so many states, of this history and those after it.
///
/// # Errors
/// The first rule that was broken.
pub fn check_many(
    first_seed: u64,
    states: u64,
    mut on_state: impl FnMut(),
) -> Result<Summary, Box<Broken>> {
    let mut summary = Summary::default();
    for seed in first_seed.. {
        let history = History::draw(seed);
        summary.histories += 1;
        summary.recycled += u64::from(history.recycles);
        for cut in 0..history.operations {
            for draw in 0..DRAWS {
                if summary.states == states {
                    return Ok(summary);
                }
                let state = CrashState { seed, cut, draw };
                check_in(&history, state, &mut summary)?;
                on_state();
            }
        }
    }
    unreachable!("there are more seeds than anybody checks states")
}

/// Checks one state.
///
/// # Errors
/// The rule that was broken.
pub fn check_one(state: CrashState) -> Result<Summary, Box<Broken>> {
    let mut summary = Summary::default();
    check_in(&History::draw(state.seed), state, &mut summary)?;
    Ok(summary)
}

fn check_in(
    history: &History,
    state: CrashState,
    summary: &mut Summary,
) -> Result<(), Box<Broken>> {
    summary.states += 1;
    let checked = caught(|| history.check(state, summary));
    checked.map_err(|what| Box::new(Broken { state, what }))
}

enum Step {
    Append(GroupWrite),
    Turn,
}

/// What is done, and what the log holds after each append.
struct History {
    steps: Vec<Step>,
    /// The first is the empty log.
    models: Vec<Model>,
    /// The log is shut down in the end.
    closes: bool,
    /// Of the disk, when nothing fails.
    operations: u64,
    recycles: bool,
}

impl History {
    fn draw(seed: u64) -> Self {
        let bytes = random_bytes(&mut SmallRng::seed_from_u64(seed), HISTORY_BYTES);
        let mut input = Unstructured::new(&bytes);
        let mut model = Model::new();
        let (mut steps, mut models) = (Vec::new(), vec![model.clone()]);
        for _ in 0..input.int_in_range(MAX_STEPS / 4..=MAX_STEPS).unwrap() {
            if input.ratio(1, 3).unwrap() {
                steps.push(Step::Turn);
                continue;
            }
            let write = draw_write(&mut model, &mut input);
            models.push(model.clone());
            steps.push(Step::Append(write));
        }
        let mut history = Self {
            steps,
            models,
            closes: input.arbitrary().unwrap(),
            operations: 0,
            recycles: false,
        };
        let disk = SimDisk::new();
        let acknowledged = history.run(&disk);
        assert_eq!(acknowledged + 1, history.models.len(), "nothing failed");
        history.operations = disk.operations();
        let first = multiraft_logdb::SegmentId(1).file_name();
        history.recycles = !disk.names().contains(&first);
        history
    }

    /// Runs until the end or until power fails; returns how many appends were acknowledged.
    fn run(&self, disk: &Arc<SimDisk>) -> usize {
        let Ok((log, mut writer)) = open(disk) else {
            return 0;
        };
        let marks = Arc::new(Marks::default());
        log.set_observer(Arc::<Marks>::clone(&marks));
        let mut ticket = 0;
        for step in &self.steps {
            let goes_on = match step {
                Step::Append(write) => {
                    ticket += 1;
                    append(&log, ticket, write.clone())
                }
                Step::Turn => turn(&log, &mut writer) == Turn::Worked,
            };
            if !goes_on && disk.is_off() {
                break;
            }
        }
        while turn(&log, &mut writer) == Turn::Worked {}
        if self.closes {
            writer.finish();
        }
        let durable = marks.take_durable();
        let last = durable.last().map_or(0, |(_, ticket)| *ticket);
        usize::try_from(last).unwrap()
    }

    fn check(&self, state: CrashState, summary: &mut Summary) {
        let CrashState { seed, cut, draw } = state;
        let mut rng = SmallRng::seed_from_u64(seed ^ (cut << 32) ^ (draw << 56));
        let disk = SimDisk::new();
        disk.fail_from(cut);
        let acknowledged = self.run(&disk);
        crash(&disk, &mut rng);
        let seen = recover_in_part(&disk, &mut rng, summary);
        let (log, writer) = open(&disk).expect("a crash is no damage");
        let found = contents(&log);
        drop((log, writer));
        let candidates = &self.models[acknowledged..];
        let place = candidates.iter().position(|model| *model == found);
        let place = place.unwrap_or_else(|| {
            panic!(
                "found {found:?}\nacknowledged {:?}\nof {} written since",
                self.models[acknowledged],
                candidates.len() - 1
            )
        });
        if let Some(seen) = seen {
            assert_eq!(seen, found, "a recovery found what the next one does not");
        }
        summary.kept_unacknowledged += u64::from(place > 0);
        summary.lost_unacknowledged += u64::from(place + 1 < candidates.len());
        crash(&disk, &mut rng);
        go_on(&disk, found, &mut rng);
    }
}

/// A second recovery finds the same, and one more write is there after one more crash.
fn go_on(disk: &Arc<SimDisk>, mut model: Model, rng: &mut SmallRng) {
    let (log, mut writer) = open(disk).expect("a crash is no damage");
    assert_eq!(contents(&log), model, "the second recovery");
    let bytes = random_bytes(rng, 64);
    let write = draw_write(&mut model, &mut Unstructured::new(&bytes));
    assert!(append(&log, 1, write), "an open log takes writes");
    while turn(&log, &mut writer) == Turn::Worked {}
    if rng.random() {
        writer.finish();
    }
    drop((log, writer));
    crash(disk, rng);
    let (log, _writer) = open(disk).expect("a crash is no damage");
    assert_eq!(contents(&log), model, "what was written after the recovery");
}

/// Half of the time: a recovery during which power fails too. What it found, if it came to an end.
fn recover_in_part(
    disk: &Arc<SimDisk>,
    rng: &mut SmallRng,
    summary: &mut Summary,
) -> Option<Model> {
    if rng.random() {
        return None;
    }
    summary.cut_recoveries += 1;
    disk.fail_from(disk.operations() + rng.random_range(0..RECOVERY_OPERATIONS));
    let opened = open(disk).ok();
    let seen = opened.map(|(log, _writer)| contents(&log));
    crash(disk, rng);
    seen
}

/// Power fails and comes back; or, now and then, only the process ends, and the disk still has what
/// was not synced in its cache.
fn crash(disk: &SimDisk, rng: &mut SmallRng) {
    if rng.random_ratio(1, 8) {
        disk.mend();
    } else {
        disk.crash(rng.random());
    }
}

fn append(log: &LogDb, ticket: u64, write: GroupWrite) -> bool {
    let batch = WriteBatch {
        shard: 0,
        ticket,
        writes: vec![write],
    };
    log.append(batch).is_ok()
}

/// A turn of the writer and of the background.
fn turn(log: &LogDb, writer: &mut Writer) -> Turn {
    let turn = writer.turn();
    // Power may fail in the background too: the writer then finds out by itself.
    match log.prepare() {
        Ok(()) => turn,
        Err(_) => writer.turn(),
    }
}

fn random_bytes(rng: &mut SmallRng, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    rng.fill_bytes(&mut bytes);
    bytes
}
