//! Looking at a stopped node's log. Changes nothing; refuses while a node holds the lock.

use std::collections::BTreeMap;
use std::path::Path;

use multiraft_engine::traits::StoredGroup;
use multiraft_engine::types::{GroupId, NodeId};
use serde::Serialize;

use crate::directory;
use crate::disk::{Access, Disk, FsDisk};
use crate::error::Error;
use crate::format::{PAGE_BYTES, Record};
use crate::index::Group;
use crate::loaded::Loaded;
use crate::recover::{Outlines, Scanner};
use crate::repairs::Repairs;
use crate::reserve::spare_number;
use crate::segment::{Segment, SegmentId};

/// What a log holds.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The cluster it belongs to.
    pub cluster_id: u64,
    /// The node it belongs to.
    pub node: u32,
    /// The directory's incarnation.
    pub incarnation: u64,
    /// Sequence of the last batch; 0 without batches.
    pub last_sequence: u64,
    /// The segments in use, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Segments and spares that hold nothing.
    pub empty_files: usize,
    /// The groups, in order of their ids.
    pub groups: Vec<GroupReport>,
}

/// One segment.
#[derive(Debug, Clone, Serialize)]
pub struct SegmentReport {
    /// Its id.
    pub id: SegmentId,
    /// Length of the file.
    pub file_bytes: u64,
    /// From its start to the end of its last batch.
    pub used_bytes: u64,
    /// Bytes of items that still count.
    pub live_bytes: u64,
    /// Batches in it.
    pub batches: usize,
    /// Groups that need something of it.
    pub groups: usize,
    /// The one that needs most. Only the oldest segment is ever given back, and only whole.
    pub pinned_by: Option<Pin>,
}

/// What a group needs of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// The group.
    pub group: u32,
    /// Bytes of its items in the segment.
    pub bytes: u64,
}

/// One group.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    /// Its id.
    pub group: u32,
    /// Bytes of its description.
    pub meta_bytes: usize,
    /// The newest term it has seen.
    pub term: u64,
    /// Its vote in that term; 0 for none.
    pub vote: u32,
    /// Its commit index, as last written.
    pub commit: u64,
    /// Index and term of the entry that was compacted last.
    pub compacted: (u64, u64),
    /// Its first entry; 0 without entries.
    pub first: u64,
    /// Its last entry; 0 without entries.
    pub last: u64,
    /// Bytes of its items that count, in all segments.
    pub live_bytes: u64,
    /// The oldest segment that it needs.
    pub oldest_segment: Option<SegmentId>,
    /// First index, last index and term of each run of entries.
    pub terms: Vec<(u64, u64, u64)>,
}

/// What a check of every byte found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Segment files checked.
    pub segments: usize,
    /// Batches that verify.
    pub batches: u64,
    /// Entry blocks that verify.
    pub blocks: u64,
    /// Bytes of all batches that verify.
    pub bytes: u64,
    /// Bytes of the segments in which no batch is: not yet used, or left from an earlier use.
    pub unused_bytes: u64,
    /// Damage to promised bytes: the log does not open, or what was hit cannot be read.
    pub problems: Vec<Problem>,
    /// The same, but given up by a repair: what counts does not need it.
    pub given_up: Vec<Problem>,
    /// A batch that was being written when the node died: normal, the next start cuts it.
    pub torn_tail: Option<Problem>,
}

/// A place that does not verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The segment.
    pub segment: SegmentId,
    /// From the segment's first byte.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// The groups hurt, as far as the bytes tell.
    pub groups: Vec<u32>,
}

/// Lists segments and groups.
///
/// # Errors
/// [`Error::Locked`] while a node runs; [`Error::Corrupt`] and the like as the node's start would.
pub fn inspect(dir: &Path) -> Result<Report, Error> {
    let (_lock, identity, incarnation) = directory::open_existing(dir)?;
    let disk = FsDisk::new(dir, Access::ReadOnly);
    let scanner = scanner(&disk, incarnation);
    let scan = scanner.scan()?;
    let files = disk.list().map_err(Error::io("listing segments"))?;
    let is_file = |n: &str| SegmentId::from_file_name(n).is_some() || spare_number(n).is_some();
    let files = files.iter().filter(|name| is_file(name)).count();
    let mut segments: Vec<_> = scan.table.iter().map(segment_report).collect();
    let last_sequences: Vec<u64> = scan.table.iter().map(Segment::last_sequence).collect();
    let mut groups = Vec::new();
    let stored = scan.index.stored_groups();
    for (stored, (_, group)) in stored.iter().zip(scan.index.groups_from(GroupId(0))) {
        let needs = needs(group, &last_sequences);
        for (at, bytes) in &needs {
            pin(&mut segments[*at], stored.group, *bytes);
        }
        groups.push(GroupReport {
            live_bytes: needs.values().sum(),
            oldest_segment: needs.keys().next().map(|at| segments[*at].id),
            ..group_report(stored)
        });
    }
    Ok(Report {
        cluster_id: identity.cluster_id,
        node: identity.node.get(),
        incarnation,
        last_sequence: scan.last_sequence,
        empty_files: files - segments.len(),
        segments,
        groups,
    })
}

fn segment_report(segment: &Segment) -> SegmentReport {
    SegmentReport {
        id: segment.id,
        file_bytes: segment.file_bytes,
        used_bytes: segment.end,
        live_bytes: segment.live_bytes,
        batches: segment.batches(),
        groups: 0,
        pinned_by: None,
    }
}

/// Bytes that a group needs of each segment, which is named by its place.
fn needs(group: &Group, last_sequences: &[u64]) -> BTreeMap<usize, u64> {
    let mut needs = BTreeMap::new();
    for (sequence, bytes) in group.held() {
        let at = last_sequences.partition_point(|last| *last < sequence);
        *needs.entry(at).or_default() += bytes;
    }
    needs
}

fn pin(segment: &mut SegmentReport, group: GroupId, bytes: u64) {
    segment.groups += 1;
    if segment.pinned_by.is_none_or(|most| most.bytes < bytes) {
        let group = group.0;
        segment.pinned_by = Some(Pin { group, bytes });
    }
}

fn group_report(stored: &StoredGroup) -> GroupReport {
    let terms = stored.terms.iter().map(|(f, l, t)| (f.0, l.0, t.0));
    GroupReport {
        group: stored.group.0,
        meta_bytes: stored.meta.len(),
        term: stored.hard_state.term.0,
        vote: stored.hard_state.vote.map_or(0, NodeId::get),
        commit: stored.hard_state.commit.0,
        compacted: (stored.compacted.0.0, stored.compacted.1.0),
        first: stored.terms.first().map_or(0, |run| run.0.0),
        last: stored.terms.last().map_or(0, |run| run.1.0),
        live_bytes: 0,
        oldest_segment: None,
        terms: terms.collect(),
    }
}

/// Checks every byte of every batch, and goes on after damage.
///
/// # Errors
/// [`Error::Locked`] while a node runs; IO errors. Damage is in the report.
pub fn verify(dir: &Path) -> Result<VerifyReport, Error> {
    let (_lock, _, incarnation) = directory::open_existing(dir)?;
    let disk = FsDisk::new(dir, Access::ReadOnly);
    let scanner = scanner(&disk, incarnation);
    let mut check = Check::default();
    for id in scanner.segment_ids()? {
        match scanner.load(id) {
            Ok(loaded) => {
                check.segment(&loaded);
                loaded.check_read()?;
            }
            Err(error @ Error::WrongLength { bytes, .. }) => check.wrong_length(id, bytes, &error),
            Err(error) => return Err(error),
        }
    }
    let mut report = check.finish();
    let repairs = Repairs::load(&disk, incarnation)?;
    let is_given_up = |p: &mut Problem| repairs.explains(p.segment, p.offset);
    report.given_up = report.problems.extract_if(.., is_given_up).collect();
    // What only shows in the whole: missing files, entries that do not add up.
    if report.problems.is_empty() {
        match scanner.scan() {
            Ok(_) => {}
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => report.problems.push(Problem {
                segment: SegmentId(0),
                offset: 0,
                what: error.to_string(),
                groups: Vec::new(),
            }),
        }
    }
    Ok(report)
}

pub(crate) fn scanner(disk: &FsDisk, incarnation: u64) -> Scanner<'_> {
    Scanner {
        disk,
        incarnation,
        access: Access::ReadOnly,
        outlines: Outlines::Ignored,
    }
}

#[derive(Default)]
struct Check {
    report: VerifyReport,
    /// The highest sequence that a header says was synced.
    promised: u64,
    /// The last batch that verified.
    last_sequence: Option<u64>,
    /// Places with a batch's header that do not verify, with the batch's sequence.
    suspects: Vec<(u64, Problem)>,
}

impl Check {
    fn segment(&mut self, loaded: &Loaded) {
        self.report.segments += 1;
        let mut offset = 0;
        while offset < loaded.len() {
            offset += self.page(loaded, offset);
        }
    }

    /// What is left of a file that was cut short cannot be told from what was never there.
    fn wrong_length(&mut self, segment: SegmentId, offset: u64, error: &Error) {
        self.report.segments += 1;
        self.report.problems.push(Problem {
            segment,
            offset,
            what: error.to_string(),
            groups: Vec::new(),
        });
    }

    /// Checks what begins at a page; returns the bytes to skip.
    fn page(&mut self, loaded: &Loaded, offset: u64) -> u64 {
        let Some(header) = loaded.header_at(offset) else {
            self.report.unused_bytes += PAGE_BYTES.min(loaded.len() - offset);
            return PAGE_BYTES;
        };
        self.promised = self.promised.max(header.synced_through);
        let problem = |what: &str, groups: Vec<u32>| Problem {
            segment: loaded.generation.segment,
            offset,
            what: what.to_owned(),
            groups,
        };
        let batch = match loaded.batch_at(offset) {
            Ok(batch) => batch,
            Err(damage) => {
                let groups = damage.groups.iter().map(|g| g.0).collect();
                let problem = problem(damage.what, groups);
                self.suspects.push((header.sequence, problem));
                return PAGE_BYTES;
            }
        };
        if self
            .last_sequence
            .is_some_and(|last| last + 1 < header.sequence)
            && self.suspects.is_empty()
        {
            let problem = problem("batches before this one are missing", Vec::new());
            self.report.problems.push(problem);
        }
        if !is_padding_zero(
            loaded,
            offset,
            header.unpadded_bytes(),
            header.padded_bytes(),
        ) {
            let problem = problem("padding is not zero", Vec::new());
            self.report.problems.push(problem);
        }
        self.last_sequence = Some(header.sequence);
        self.report.batches += 1;
        self.report.bytes += header.padded_bytes();
        let blocks = batch.records.iter().filter(|r| is_block(r)).count();
        self.report.blocks += blocks as u64;
        header.padded_bytes()
    }

    fn finish(mut self) -> VerifyReport {
        for (sequence, problem) in self.suspects {
            if sequence <= self.promised {
                self.report.problems.push(problem);
            } else {
                self.report.torn_tail = Some(problem);
            }
        }
        self.report
    }
}

fn is_block(record: &Record) -> bool {
    record.item.block().is_some()
}

fn is_padding_zero(loaded: &Loaded, offset: u64, unpadded: u64, padded: u64) -> bool {
    let place = |at: u64| usize::try_from(at).expect("it is in memory");
    let batch = loaded.view(offset, padded);
    let padding = batch.get(place(unpadded)..place(padded));
    padding.is_none_or(|padding| padding.iter().all(|byte| *byte == 0))
}
