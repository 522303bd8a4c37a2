//! Power cuts of a real file system: a process appends to a log on ext4, the file system is shut down under it as if
//! power failed, mounted again, and what was acknowledged has to be there.
//!
//! ```text
//! image file ─ loop mount ─▶ child: threads append, each acknowledged append is a line on its output
//!    ▲                       after a drawn while: shutdown, nothing more reaches the image ─▶ child killed
//!    └──── unmount, mount (the journal is replayed), open the log, compare ◀────────────────┘
//! ```
//! The shutdown is ext4's own (`xfs_io -x -c shutdown`): what was not synced is gone, the journal stays as it was.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a panic is the finding"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::{Identity, LogDb, Options};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Each has a thread that appends.
const GROUPS: u32 = 8;
/// Entries of one append, at most.
const MAX_ENTRIES: u64 = 4;
const MAX_PAYLOAD_BYTES: u64 = 12_000;
/// Entries that a group keeps, about.
const KEPT_ENTRIES: u64 = 40;
const IMAGE_BYTES: u64 = 160 << 20;
/// Milliseconds from a child's start to the cut.
const CUT_AFTER_MS: std::ops::Range<u64> = 5..400;
/// One cycle in so many begins without a log, and is cut while it is made.
const NEW_LOG_SHARE: u32 = 8;
const NEW_LOG_MS: std::ops::Range<u64> = 1..40;
const TERM: Term = Term(3);

/// Why there can be no power cuts here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible(String);

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    last: u64,
    compacted: u64,
}

/// What came of the cuts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Power cuts.
    pub cycles: u64,
    /// Appends that were acknowledged, and found.
    pub acknowledged: u64,
    /// Entries that were found though nobody was told that they are durable.
    pub kept_unacknowledged: u64,
    /// Cuts before the log was there.
    pub before_the_log: u64,
}

/// A file system in a file, mounted while this lives.
struct Mounted<'a> {
    image: &'a Path,
    at: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Impossible> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| Impossible(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Impossible(format!("{program}: {}", error.trim())))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

impl<'a> Mounted<'a> {
    fn new(image: &'a Path, at: &Path) -> Result<Self, Impossible> {
        run("mount", &["-o", "loop", text(image), text(at)])?;
        let at = at.to_owned();
        Ok(Self { image, at })
    }

    /// Power fails.
    fn cut(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.at)]).expect("it worked before");
    }

    /// Power is back.
    fn again(self) -> Self {
        let (image, at) = (self.image, self.at.clone());
        drop(self);
        Self::new(image, &at).expect("it worked before")
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        for _ in 0..100 {
            if run("umount", &[text(&self.at)]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50)); // a killed process may hold it for a moment
        }
        eprintln!("{} is still mounted", self.at.display());
    }
}

/// Cuts the power so many times. `child` makes a command of a program that calls [`append_until_killed`].
///
/// # Errors
/// Who is not root, or lacks `mkfs.ext4` or `xfs_io`, cannot.
pub fn cut_many(
    cycles: u64,
    seed: u64,
    child: impl Fn(&Path, u64) -> Command,
    mut on_cycle: impl FnMut(),
) -> Result<Summary, Impossible> {
    let dir = tempfile::tempdir().map_err(|error| Impossible(error.to_string()))?;
    let (image, at) = (dir.path().join("image"), dir.path().join("mounted"));
    std::fs::create_dir(&at).unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(IMAGE_BYTES)
        .unwrap();
    run("mkfs.ext4", &["-q", "-F", text(&image)])?;
    run("xfs_io", &["-V"])?;
    let mut mounted = Mounted::new(&image, &at)?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut known: BTreeMap<u32, Known> = BTreeMap::new();
    let mut summary = Summary::default();
    for cycle in 0..cycles {
        let log = at.join("log");
        let mut cut_after = CUT_AFTER_MS;
        if rng.random_ratio(1, NEW_LOG_SHARE) && log.exists() {
            std::fs::remove_dir_all(&log).unwrap();
            std::fs::File::open(&at).unwrap().sync_all().unwrap();
            known.clear();
            cut_after = NEW_LOG_MS;
        }
        let process = child(&log, seed ^ cycle << 32)
            .stdout(Stdio::piped())
            .spawn();
        let mut process = process.expect("this program runs");
        std::thread::sleep(Duration::from_millis(rng.random_range(cut_after)));
        mounted.cut();
        let acknowledged = acknowledged(&mut process);
        mounted = mounted.again();
        summary.cycles += 1;
        summary.acknowledged += acknowledged.len() as u64;
        for (group, now) in acknowledged {
            let before = known.entry(group).or_default();
            assert!(
                now.last > before.last,
                "cycle {cycle}: group {group} goes back"
            );
            *before = now;
        }
        if known.is_empty() && !log.join("IDENTITY").exists() {
            summary.before_the_log += 1;
        } else {
            summary.kept_unacknowledged += check(&log, &mut known, cycle);
        }
        on_cycle();
    }
    Ok(summary)
}

/// Ends the process; all that it told, in order.
fn acknowledged(process: &mut Child) -> Vec<(u32, Known)> {
    // It may have ended by itself: its log is fenced.
    process.kill().unwrap();
    let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
    let parse = |line: String| {
        let mut numbers = line.split(' ').map(|n| n.parse::<u64>().unwrap());
        let mut next = || numbers.next().unwrap();
        let group = u32::try_from(next()).unwrap();
        let (last, compacted) = (next(), next());
        (group, Known { last, compacted })
    };
    // The last line may be torn.
    let mut lines: Vec<String> = lines.map_while(Result::ok).collect();
    lines.retain(|line| line.ends_with(" ."));
    let parsed = lines
        .into_iter()
        .map(|line| parse(line[..line.len() - 2].to_owned()));
    let parsed = parsed.collect();
    process.wait().unwrap();
    parsed
}

/// Compares, and takes over what is there; returns how many entries are there that nobody was told of.
fn check(dir: &Path, known: &mut BTreeMap<u32, Known>, cycle: u64) -> u64 {
    let log = LogDb::open(options(dir));
    let log = log.unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
    let stored = log.take_stored_groups();
    for (group, known) in &*known {
        let is_there = stored.iter().any(|stored| stored.group.0 == *group);
        assert!(
            is_there,
            "cycle {cycle}: group {group} is gone, with {known:?}"
        );
    }
    let mut unacknowledged = 0;
    for stored in stored {
        let group = stored.group.0;
        let before = known.entry(group).or_default();
        let last = stored
            .terms
            .last()
            .map_or(stored.compacted.0.0, |run| run.1.0);
        let compacted = stored.compacted.0.0;
        let what = format!(
            "cycle {cycle}, group {group}: {before:?} acknowledged, {compacted}..{last} found"
        );
        assert!(
            (before.last..=before.last + MAX_ENTRIES).contains(&last),
            "{what}"
        );
        assert!((before.compacted..=last).contains(&compacted), "{what}");
        assert!(
            stored.hard_state.commit.0 <= last,
            "{what}: {:?}",
            stored.hard_state
        );
        unacknowledged += last - before.last;
        let blocks = log.read(
            GroupId(group),
            Index(compacted + 1),
            Index(last),
            usize::MAX,
        );
        let mut next = compacted;
        for entry in blocks
            .unwrap_or_else(|error| panic!("{what}: {error}"))
            .iter()
            .flat_map(Block::entries)
        {
            next += 1;
            assert!(
                entry.index.0 == next && entry.payload == payload(group, next),
                "{what}: {next}"
            );
        }
        assert!(next == last, "{what}");
        *before = Known { last, compacted };
    }
    log.close();
    unacknowledged
}

/// What the child does, until it is killed or its log is fenced.
pub fn append_until_killed(dir: &Path, seed: u64) {
    let Ok(log) = LogDb::open(options(dir)) else {
        return; // power failed while it began
    };
    let stored = log.take_stored_groups();
    std::thread::scope(|scope| {
        for group in 1..=GROUPS {
            let stored = stored.iter().find(|stored| stored.group.0 == group);
            let last = stored.map_or(0, |s| s.terms.last().map_or(s.compacted.0.0, |run| run.1.0));
            let compacted = stored.map_or(0, |s| s.compacted.0.0);
            let log = &log;
            let rng = SmallRng::seed_from_u64(seed ^ u64::from(group));
            scope.spawn(move || append(log, group, Known { last, compacted }, rng));
        }
    });
}

fn append(log: &LogDb, group: u32, mut known: Known, mut rng: SmallRng) {
    loop {
        let count = rng.random_range(1..=MAX_ENTRIES);
        let indexes = known.last + 1..=known.last + count;
        let entries: Vec<_> = indexes
            .map(|index| (EntryKind::Normal, payload(group, index)))
            .collect();
        let first = Index(known.last + 1);
        let compacts = rng.random_ratio(1, 8) && known.last > known.compacted + KEPT_ENTRIES;
        if compacts {
            known.compacted = known.last - KEPT_ENTRIES;
        }
        known.last += count;
        let write = GroupWrite {
            meta: (first == Index(1)).then(|| Bytes::from_static(b"a group")),
            compact_to: compacts.then_some(Index(known.compacted)),
            blocks: vec![Block::encode(first, TERM, &entries)],
            hard_state: Some(HardState {
                term: TERM,
                vote: NodeId::new(1),
                commit: first.prev(),
            }),
            ..GroupWrite::new(GroupId(group))
        };
        if log.append_durable(&[write]).is_err() {
            return; // power has failed
        }
        let line = format!("{group} {} {} .\n", known.last, known.compacted);
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

/// Every entry has bytes of its own.
fn payload(group: u32, index: u64) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(index << 8 | u64::from(group));
    let length = if rng.random_ratio(1, 4) {
        rng.random_range(0..MAX_PAYLOAD_BYTES)
    } else {
        rng.random_range(0..200)
    };
    let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
    bytes.into()
}

fn options(dir: &Path) -> Options {
    let identity = Identity {
        cluster_id: 7,
        node: NodeId::new(1).unwrap(),
    };
    Options {
        segment_bytes: 1 << 20,
        batch_bytes: 64 << 10,
        min_free_bytes: 1,
        ..Options::new(dir, identity)
    }
}
