//! Corruptions of a closed log: one damage to one of its files, and what a start makes of it.
//!
//! ```text
//! number ─▶ a log, closed, with everything in it promised ─▶ one damage
//!   refused   the start names what is wrong and changes nothing; or reads of the damaged block are refused
//!   harmless  everything is there: the damage hit nothing that counts
//!   silent    the log opens, and something is missing or wrong: the failure
//! ```
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a panic is the finding"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arbitrary::Unstructured;
use multiraft_engine::traits::{Log, LogError, WriteBatch};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Disk, Error, LogDb, PAGE_BYTES, Turn, verify};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::caught::caught;
use crate::log_model::{Model, contents, draw_write, options, try_contents};

/// Corruptions that are tried on one log.
const CASES_A_LOG: u64 = 50;
/// Appends of a log, enough for several segments; the last is the empty one that closes it.
const LAST_TICKET: u64 = 40;
const HISTORY_BYTES: usize = 16 << 10;
/// One case in so many is of the identity file.
const IDENTITY_SHARE: u32 = 16;
/// One case in so many is looked at by `verify` too.
const VERIFY_EACH: u64 = 10;
const IDENTITY: &str = "IDENTITY";
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// A bit is another.
    Bit {
        /// From the file's first byte.
        at: usize,
        /// From the lowest.
        bit: u32,
    },
    /// 512 bytes are garbage.
    Sector {
        /// From the file's first byte.
        at: usize,
    },
    /// 4 KiB are zeros.
    ZeroPage {
        /// From the file's first byte.
        at: usize,
    },
    /// The file ends here.
    Cut {
        /// Its bytes.
        length: usize,
    },
    /// 4 KiB are in the place of others, and those in theirs.
    Swap {
        /// From the file's first byte.
        at: usize,
        /// The other file.
        with: String,
        /// From the other file's first byte.
        with_at: usize,
    },
}

/// Which corruption of which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Its number; with it the log and the damage are drawn again.
    pub number: u64,
    /// The file.
    pub file: String,
    /// What happened to it.
    pub damage: Damage,
}

/// What came of all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// The start refuses.
    pub refused: u64,
    /// The log opens, and a read of what was damaged is refused.
    pub unreadable: u64,
    /// Nothing that counts was hit.
    pub harmless: u64,
    /// How many were looked at by `verify` too.
    pub verified: u64,
}

impl Summary {
    /// All.
    pub fn cases(&self) -> u64 {
        self.refused + self.unreadable + self.harmless
    }
}

/// Damage that nobody was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Which.
    pub corruption: Corruption,
    /// What is missing or wrong, in words.
    pub what: String,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Corruption {
            number,
            file,
            damage,
        } = &self.corruption;
        writeln!(
            f,
            "corruption {number}, {damage:?} of {file}: {}",
            self.what
        )?;
        write!(
            f,
            "replay: cargo run --release -p multiraft-tests --bin corrupt -- --seed {number} --cases 1"
        )
    }
}

/// Tries so many corruptions, from this number on.
///
/// # Errors
/// The first that was silent.
pub fn check_many(
    first: u64,
    cases: u64,
    mut on_case: impl FnMut(),
) -> Result<Summary, Box<Silent>> {
    let mut summary = Summary::default();
    let mut log: Option<ClosedLog> = None;
    for number in first..first + cases {
        let seed = number / CASES_A_LOG;
        let log = match &mut log {
            Some(log) if log.seed == seed => log,
            log => log.insert(ClosedLog::new(seed)),
        };
        let mut rng = SmallRng::seed_from_u64(number);
        let corruption = log.draw(number, &mut rng);
        let checked = caught(|| log.check(&corruption, &mut rng, &mut summary));
        checked.map_err(|what| Box::new(Silent { corruption, what }))?;
        on_case();
    }
    Ok(summary)
}

type Files = BTreeMap<String, Vec<u8>>;

/// A closed log: its files and what they hold.
struct ClosedLog {
    seed: u64,
    /// Lock and identity are here.
    dir: tempfile::TempDir,
    incarnation: u64,
    files: Files,
    identity: Vec<u8>,
    model: Model,
}

impl ClosedLog {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogDb::open(options(dir.path())).unwrap();
        let incarnation = log.incarnation();
        drop(log);
        let identity = std::fs::read(dir.path().join(IDENTITY)).unwrap();
        let disk = SimDisk::new();
        let model = write_log(&disk, incarnation, seed);
        let names = disk.names();
        let files: Files = names
            .iter()
            .map(|name| (name.clone(), disk.bytes(name)))
            .collect();
        write_files(dir.path(), &files);
        Self {
            seed,
            dir,
            incarnation,
            files,
            identity,
            model,
        }
    }

    fn draw(&self, number: u64, rng: &mut SmallRng) -> Corruption {
        if rng.random_ratio(1, IDENTITY_SHARE) {
            let file = IDENTITY.to_owned();
            let length = self.identity.len();
            let damage = match rng.random_range(0..3) {
                0 => Damage::Cut {
                    length: rng.random_range(0..length),
                },
                1 => Damage::Sector { at: 0 },
                _ => Damage::Bit {
                    at: rng.random_range(0..length),
                    bit: rng.random_range(0..8),
                },
            };
            return Corruption {
                number,
                file,
                damage,
            };
        }
        let file = self.draw_file(rng);
        let at = self.draw_place(&file, rng);
        let damage = match rng.random_range(0..5) {
            0 => Damage::Bit {
                at,
                bit: rng.random_range(0..8),
            },
            1 => Damage::Sector {
                at: at / SECTOR * SECTOR,
            },
            2 => Damage::ZeroPage {
                at: at / PAGE * PAGE,
            },
            3 => Damage::Cut { length: at },
            4 if !is_segment(&file) => Damage::ZeroPage { at: 0 },
            _ => {
                let with = loop {
                    let with = self.draw_file(rng);
                    if is_segment(&with) {
                        break with;
                    }
                };
                let with_at = self.draw_place(&with, rng) / PAGE * PAGE;
                Damage::Swap {
                    at: at / PAGE * PAGE,
                    with,
                    with_at,
                }
            }
        };
        Corruption {
            number,
            file,
            damage,
        }
    }

    fn draw_file(&self, rng: &mut SmallRng) -> String {
        let nth = rng.random_range(0..self.files.len());
        self.files.keys().nth(nth).unwrap().clone()
    }

    /// Mostly where something is.
    fn draw_place(&self, file: &str, rng: &mut SmallRng) -> usize {
        let bytes = &self.files[file];
        let used = used_bytes(bytes);
        let end = if used == 0 || rng.random_ratio(1, 8) {
            bytes.len()
        } else {
            used
        };
        rng.random_range(0..end)
    }

    fn check(&self, corruption: &Corruption, rng: &mut SmallRng, summary: &mut Summary) {
        if corruption.file == IDENTITY {
            let identity = damaged(self.identity.clone(), &corruption.damage, rng);
            return self.check_identity(&identity, summary);
        }
        let files = self.damaged_files(corruption, rng);
        let disk = disk_of(&files);
        let opened = self.open(&disk);
        let is_refused = !matches!(opened, Ok(Ok(_)));
        match opened {
            Err(Error::Io { what, source }) => panic!("{what}: {source}"),
            Err(_) => {
                summary.refused += 1;
                let left: Files = files.keys().map(|n| (n.clone(), disk.bytes(n))).collect();
                assert_eq!(left, files, "changed by a refused start");
            }
            Ok(Err(LogError::Damaged { .. })) => summary.unreadable += 1,
            Ok(Err(error)) => panic!("{error}"),
            Ok(Ok(found)) if found == self.model => summary.harmless += 1,
            Ok(Ok(found)) => panic!("found {found:?}\ninstead of {:?}", self.model),
        }
        if corruption.number.is_multiple_of(VERIFY_EACH) {
            summary.verified += 1;
            write_files(self.dir.path(), &files);
            let report = verify(self.dir.path()).unwrap();
            assert!(
                !is_refused || !report.problems.is_empty(),
                "refused is what verify finds whole: {report:?}"
            );
        }
    }

    /// On the real disk, where the identity is.
    fn check_identity(&self, identity: &[u8], summary: &mut Summary) {
        write_files(self.dir.path(), &self.files);
        let path = self.dir.path().join(IDENTITY);
        std::fs::write(&path, identity).unwrap();
        let opened = LogDb::open(options(self.dir.path()));
        let found = opened.map(|log| contents(&log));
        std::fs::write(&path, &self.identity).unwrap();
        match found {
            Err(Error::Io { what, source }) => panic!("{what}: {source}"),
            Err(_) => summary.refused += 1,
            Ok(found) => {
                assert_eq!(found, self.model, "opened under another identity");
                summary.harmless += 1;
            }
        }
    }

    fn open(&self, disk: &Arc<SimDisk>) -> Result<Result<Model, LogError>, Error> {
        let disk = Arc::<SimDisk>::clone(disk);
        let (log, _writer) = LogDb::open_on(disk, self.incarnation, options(Path::new("")))?;
        Ok(try_contents(&log))
    }

    fn damaged_files(&self, corruption: &Corruption, rng: &mut SmallRng) -> Files {
        let mut files = self.files.clone();
        let file = &corruption.file;
        if let Damage::Swap { at, with, with_at } = &corruption.damage {
            let one = files[file][*at..at + PAGE].to_vec();
            let other = files[with][*with_at..with_at + PAGE].to_vec();
            files.get_mut(file).unwrap()[*at..at + PAGE].copy_from_slice(&other);
            files.get_mut(with).unwrap()[*with_at..with_at + PAGE].copy_from_slice(&one);
        } else {
            let bytes = files.remove(file).unwrap();
            files.insert(file.clone(), damaged(bytes, &corruption.damage, rng));
        }
        files
    }
}

/// Outlines are of any length, often less than a page.
fn is_segment(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "seg")
}

/// Puts the segments into the real directory, in the place of what is there.
fn write_files(dir: &Path, files: &Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "seg" || e == "idx") {
            std::fs::remove_file(path).unwrap();
        }
    }
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Writes a drawn history and closes the log: its last batch is empty, and proves the one before. Every other log
/// is shut down as a node does it, which leaves an outline of the active segment too.
fn write_log(disk: &Arc<SimDisk>, incarnation: u64, seed: u64) -> Model {
    let mut bytes = vec![0; HISTORY_BYTES];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    let mut input = Unstructured::new(&bytes);
    let open_disk = Arc::<SimDisk>::clone(disk);
    let opened = LogDb::open_on(open_disk, incarnation, options(Path::new("")));
    let (log, mut writer) = opened.unwrap();
    let mut model = Model::new();
    for ticket in 1..=LAST_TICKET {
        let batch = WriteBatch {
            shard: 0,
            ticket,
            writes: match ticket {
                0..LAST_TICKET => vec![draw_write(&mut model, &mut input)],
                LAST_TICKET.. => Vec::new(),
            },
        };
        log.append(batch).unwrap();
        while writer.turn() == Turn::Worked {}
        log.prepare().unwrap();
    }
    if seed.is_multiple_of(2) {
        writer.finish();
    }
    drop((log, writer));
    model
}

fn disk_of(files: &Files) -> Arc<SimDisk> {
    let disk = SimDisk::new();
    for (name, bytes) in files {
        disk.create(name, bytes.len() as u64).unwrap();
        disk.set_bytes(name, bytes);
    }
    disk.sync_dir().unwrap();
    disk
}

/// From the start to the end of the last page that is not zeros.
fn used_bytes(bytes: &[u8]) -> usize {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    let page = usize::try_from(PAGE_BYTES).unwrap();
    let end = last.map_or(0, |last| (last + 1).next_multiple_of(page));
    end.min(bytes.len()) // an outline may end before
}

/// The bytes of one file after this.
fn damaged(mut bytes: Vec<u8>, damage: &Damage, rng: &mut SmallRng) -> Vec<u8> {
    let end = |at: usize, count: usize| bytes.len().min(at + count);
    match damage {
        Damage::Bit { at, bit } => bytes[*at] ^= 1_u8 << bit,
        Damage::Sector { at } => {
            let end = end(*at, SECTOR);
            rng.fill_bytes(&mut bytes[*at..end]);
        }
        Damage::ZeroPage { at } => {
            let end = end(*at, PAGE);
            bytes[*at..end].fill(0);
        }
        Damage::Cut { length } => bytes.truncate(*length),
        Damage::Swap { .. } => unreachable!("it is about two files"),
    }
    bytes
}
