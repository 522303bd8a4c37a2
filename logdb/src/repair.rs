//! Repairing the log of a stopped node: groups that may have lost something are given up, by name, so that the
//! node starts with the others.
//!
//! ```text
//! find    walk over all segments ─▶ places that do not verify, and the batches that were there
//! judge   read the log without them ─▶ which groups cannot be proven whole
//! do      copy the damaged segments ─ durable ─▶ write REPAIR ─ durable: holes and groups in one rename
//! ```
//! Which groups are hurt:
//! - Where a batch's items verify and a block does not: the groups that still need that block. The items say
//!   what every other group got.
//! - Where the items do not verify, or no header tells where they are: every group, unless all that it has is
//!   newer than the lost batch, and an append after it says where its log ends. A list of items that does not
//!   verify proves nothing, also not whom it leaves out: a flipped bit may be in a group's id.
//! - A group whose entries have a gap then, or that has no description.
//!
//! Nothing is changed before all of that is known, and nothing is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use multiraft_engine::types::GroupId;
use serde::Serialize;

use crate::directory;
use crate::disk::{Access, Disk, FsDisk};
use crate::error::Error;
use crate::format::{Damage, Header, Item, PAGE_BYTES};
use crate::index::Index;
use crate::inspect::Problem;
use crate::recover::{Found, Loaded, Scanner};
use crate::repairs::{GivenUp, Hole, Loss, Repair, Repairs};
use crate::segment::SegmentId;

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What is damaged in a log, and what a repair would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepairPlan {
    /// The damaged places, in order; none: there is nothing to do. The groups are those that are named there,
    /// by bytes that may be damaged themselves.
    pub problems: Vec<Problem>,
    /// The groups that may have lost something. All of them have to be quarantined.
    pub hurt: Vec<u32>,
    /// The groups that are whole.
    pub whole: Vec<u32>,
    /// What is lost may have been all that this log had of some group, so that nothing here tells of it.
    pub may_hide_groups: bool,
    /// The segments with damage: the files that are copied.
    pub segments: Vec<SegmentId>,
}

/// Turns the last description of a group, if there is one, into that of one that was given up.
pub type Describe<'a> = &'a dyn Fn(GroupId, Option<&[u8]>) -> Bytes;

/// Looks what is damaged, and changes nothing.
///
/// # Errors
/// [`Error::Locked`] while a node runs; a segment that is missing; IO errors. Damage is in the plan.
pub fn plan_repair(dir: &Path) -> Result<RepairPlan, Error> {
    let (_lock, _, incarnation) = directory::open_existing(dir)?;
    let disk = FsDisk::new(dir, Access::ReadOnly);
    Ok(Survey::new(&disk, incarnation, Access::ReadOnly)?.plan())
}

/// Copies the damaged segments into `copies`, a directory that is made for it, and gives `groups` up, so that
/// the log opens with all others. Does nothing if nothing is damaged. After a crash it is as before or done;
/// calling again is safe.
///
/// `describe` makes the descriptions that the log holds of these groups from then on, beside the newest hard
/// state that could be read.
///
/// # Errors
/// As [`plan_repair`]; [`Error::NotNamed`] and [`Error::NotHurt`] if these are not the hurt groups. Groups of
/// which the log knows nothing may be named beside them if the plan says that it may hide some.
pub fn repair(
    dir: &Path,
    copies: &Path,
    groups: &BTreeSet<GroupId>,
    describe: Describe<'_>,
) -> Result<RepairPlan, Error> {
    let (_lock, _, incarnation) = directory::open_existing(dir)?;
    let disk = FsDisk::new(dir, Access::ReadWrite);
    let survey = Survey::new(&disk, incarnation, Access::ReadWrite)?;
    survey.check(groups)?;
    if !survey.holes.is_empty() {
        directory::create_dir(copies).map_err(Error::io("making the directory for copies"))?;
        let copies = FsDisk::new(copies, Access::ReadWrite);
        survey.repair(&copies, groups, describe)?;
    }
    Ok(survey.plan())
}

/// A damaged place that was not given up before.
struct Place {
    hole: Hole,
    damage: Damage,
}

/// What readable batches say of a group: the last one that pins where its log ends, or that it is gone.
#[derive(Debug, Default, Clone, Copy)]
struct Evidence {
    appended_in: u64,
    removed_in: u64,
}

/// All that is known of a damaged log.
pub(crate) struct Survey<'a> {
    scanner: Scanner<'a>,
    known: Repairs,
    holes: Vec<Place>,
    hurt: BTreeSet<GroupId>,
    whole: BTreeSet<GroupId>,
    index: Index,
    /// The last batch, and the segment that it lies in.
    end: (u64, SegmentId),
    oldest: SegmentId,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, incarnation: u64, access: Access) -> Result<Self, Error> {
        let scanner = Scanner {
            disk,
            incarnation,
            access,
        };
        let known = Repairs::load(disk, incarnation)?;
        let walk = Walk::new(&scanner, &known)?.run()?;
        let mut all = known.clone();
        let repair = Repair {
            through: walk.end,
            segment: 0,
            oldest: walk.oldest.0,
            holes: walk.places.iter().map(|place| place.hole.clone()).collect(),
            groups: Vec::new(),
        };
        if !walk.places.is_empty() {
            all.list.push(repair);
        }
        let scan = scanner.scan_with(all)?;
        let last_segment = scan.table.iter().last().map_or(SegmentId(1), |s| s.id);
        let mut survey = Self {
            scanner,
            known,
            holes: walk.places,
            hurt: BTreeSet::new(),
            whole: BTreeSet::new(),
            index: scan.index,
            end: (scan.last_sequence, last_segment),
            oldest: scan.oldest,
        };
        survey.judge(&walk.evidence, &walk.sequences);
        Ok(survey)
    }

    /// Sorts the groups; `sequences` are those of the batches with damaged blocks, by place.
    fn judge(
        &mut self,
        evidence: &BTreeMap<GroupId, Evidence>,
        sequences: &BTreeMap<(u64, u64), u64>,
    ) {
        let lost = self.holes.iter().filter_map(|place| match place.hole.loss {
            Loss::Bytes { next_sequence, .. } => Some(next_sequence - 1),
            Loss::Blocks { .. } => None,
        });
        let last_lost = lost.max();
        let mut blocks = BTreeSet::new();
        for Place { hole, .. } in &self.holes {
            if let Loss::Blocks { offsets } = &hole.loss {
                let sequence = sequences[&(hole.segment, hole.offset)];
                blocks.extend(offsets.iter().map(|&offset| (sequence, offset)));
            }
        }
        for (id, group) in self.index.groups_from(GroupId(0)) {
            let seen = evidence.get(&id).copied().unwrap_or_default();
            let is_past = |lost| group.is_newer_than(lost) && seen.appended_in > lost;
            let needs_damaged = |s: &crate::index::Span| {
                let at = (s.at.sequence, s.at.offset);
                blocks.contains(&at)
            };
            let is_whole = last_lost.is_none_or(is_past)
                && !group.spans().any(needs_damaged)
                && group.gap().is_none()
                && !group.state.meta.is_empty();
            let set = if is_whole {
                &mut self.whole
            } else {
                &mut self.hurt
            };
            set.insert(id);
        }
        let named = self
            .holes
            .iter()
            .filter(|place| place.damage.blocks.is_empty());
        for id in named.flat_map(|place| &place.damage.groups) {
            let removed_in = evidence.get(id).map_or(0, |seen| seen.removed_in);
            let is_gone = last_lost.is_some_and(|lost| lost < removed_in);
            if self.index.group(*id).is_none() && !is_gone {
                self.hurt.insert(*id);
            }
        }
    }

    fn may_hide_groups(&self) -> bool {
        let is_bytes = |place: &Place| matches!(place.hole.loss, Loss::Bytes { .. });
        self.holes.iter().any(is_bytes)
    }

    fn segments(&self) -> BTreeSet<SegmentId> {
        let segments = self.holes.iter().map(|place| SegmentId(place.hole.segment));
        segments.collect()
    }

    pub(crate) fn plan(&self) -> RepairPlan {
        let problem = |place: &Place| Problem {
            segment: SegmentId(place.hole.segment),
            offset: place.hole.offset,
            what: place.damage.what.to_owned(),
            groups: place.damage.groups.iter().map(|group| group.0).collect(),
        };
        let ids = |groups: &BTreeSet<GroupId>| groups.iter().map(|group| group.0).collect();
        RepairPlan {
            problems: self.holes.iter().map(problem).collect(),
            hurt: ids(&self.hurt),
            whole: ids(&self.whole),
            may_hide_groups: self.may_hide_groups(),
            segments: self.segments().into_iter().collect(),
        }
    }

    /// Whether these are the groups to give up.
    pub(crate) fn check(&self, groups: &BTreeSet<GroupId>) -> Result<(), Error> {
        let missing: Vec<_> = self.hurt.difference(groups).copied().collect();
        if !missing.is_empty() {
            return Err(Error::NotNamed { groups: missing });
        }
        let is_unknown = |id: &GroupId| self.index.group(*id).is_none() && self.may_hide_groups();
        let extra = groups.difference(&self.hurt).copied();
        let extra: Vec<_> = extra.filter(|id| !is_unknown(id)).collect();
        match extra.is_empty() || self.holes.is_empty() {
            true => Ok(()),
            false => Err(Error::NotHurt { groups: extra }),
        }
    }

    /// Copies, then puts the repair into effect.
    pub(crate) fn repair(
        &self,
        copies: &dyn Disk,
        groups: &BTreeSet<GroupId>,
        describe: Describe<'_>,
    ) -> Result<(), Error> {
        let give_up = |id: &GroupId| {
            let state = self.index.group(*id).map(|group| &group.state);
            let last = state
                .map(|state| &*state.meta)
                .filter(|meta| !meta.is_empty());
            let hard_state = state.map(|state| state.hard_state).unwrap_or_default();
            GivenUp::new(*id, &describe(*id, last), hard_state)
        };
        let mut all = self.known.clone();
        all.list.push(Repair {
            through: self.end.0,
            segment: self.end.1.0,
            oldest: self.oldest.0,
            holes: self.holes.iter().map(|place| place.hole.clone()).collect(),
            groups: groups.iter().map(give_up).collect(),
        });
        let repaired = self.scanner.scan_with(all.clone())?;
        let gap = repaired.index.check_gapless();
        gap.map_err(|(group, index)| Error::Gap { group, index })?;
        let disk = self.scanner.disk;
        for segment in self.segments() {
            copy(disk, copies, &segment.file_name())
                .map_err(Error::io("copying a damaged segment"))?;
        }
        copies
            .sync_dir()
            .map_err(Error::io("copying a damaged segment"))?;
        all.store(disk, self.scanner.incarnation)
    }
}

fn copy(from: &dyn Disk, to: &dyn Disk, name: &str) -> std::io::Result<()> {
    let source = from.open(name)?;
    let target = to.create_growing(name)?;
    let length = source.len()?;
    let mut at = 0;
    while at < length {
        let count = COPY_BYTES.min(length - at);
        let mut chunk = vec![0; usize::try_from(count).expect("a MiB at most")];
        source.read_exact_at(&mut chunk, at)?;
        target.write_all_at(&chunk, at)?;
        at += count;
    }
    target.sync_data()
}

/// A header that verifies, and where.
#[derive(Clone, Copy)]
struct Seen {
    segment: SegmentId,
    offset: u64,
    header: Header,
}

/// The way over all segments, from damage to damage.
struct Walk<'a> {
    scanner: &'a Scanner<'a>,
    known: &'a Repairs,
    /// The segments that are needed, in order.
    ids: Vec<SegmentId>,
    /// Every header that verifies, in order.
    headers: Vec<Seen>,
    /// All batches up to this one were promised.
    promised: u64,
    /// The last batch so far.
    last: Option<u64>,
    findings: Findings,
}

/// What came of the way.
#[derive(Default)]
struct Findings {
    oldest: SegmentId,
    /// The last batch; 0 without batches.
    end: u64,
    places: Vec<Place>,
    evidence: BTreeMap<GroupId, Evidence>,
    /// Of the batches with damaged blocks, by segment and offset.
    sequences: BTreeMap<(u64, u64), u64>,
}

impl<'a> Walk<'a> {
    fn new(scanner: &'a Scanner<'a>, known: &'a Repairs) -> Result<Self, Error> {
        let all = scanner.segment_ids()?;
        let mut headers = Vec::new();
        for &id in &all {
            headers.append(&mut headers_of(&scanner.load(id)?));
        }
        let oldest = headers.iter().map(|seen| seen.header.oldest);
        let oldest = oldest.max().unwrap_or_default().max(known.oldest());
        let ids: Vec<_> = all.into_iter().filter(|id| *id >= oldest).collect();
        for (id, expected) in ids.iter().zip(oldest.0.max(1)..) {
            if id.0 != expected && !headers.is_empty() {
                let segment = SegmentId(expected);
                return Err(Error::MissingSegment { segment });
            }
        }
        let promised = headers.iter().map(|seen| seen.header.synced_through);
        let promised = promised.max().unwrap_or(0).max(known.through());
        headers.retain(|seen| seen.segment >= oldest);
        Ok(Self {
            scanner,
            known,
            ids,
            headers,
            promised,
            last: None,
            findings: Findings {
                oldest,
                ..Findings::default()
            },
        })
    }

    fn run(mut self) -> Result<Findings, Error> {
        for id in self.ids.clone() {
            let loaded = self.scanner.load(id)?;
            let mut offset = 0;
            while offset < loaded.len() {
                let Some(next) = self.step(&loaded, offset)? else {
                    break;
                };
                offset = next;
            }
        }
        self.findings.end = self.last.unwrap_or_default();
        Ok(self.findings)
    }

    /// What is at a place, and where to go on in this segment; `None`: the segment ends here.
    fn step(&mut self, loaded: &Loaded, offset: u64) -> Result<Option<u64>, Error> {
        let segment = loaded.generation.segment;
        let found = loaded.find_at(offset, self.known);
        let is_next = |sequence| self.last.is_none_or(|last| sequence == last + 1);
        let damage = match found {
            Ok(Found::Batch(batch)) if is_next(batch.header.sequence) => {
                let sequence = batch.header.sequence;
                for record in &batch.records {
                    let seen = self.findings.evidence.entry(record.group).or_default();
                    match record.item {
                        Item::Append(_) => seen.appended_in = sequence,
                        Item::Remove => seen.removed_in = sequence,
                        Item::Meta(_)
                        | Item::CompactTo { .. }
                        | Item::TruncateFrom(_)
                        | Item::HardState(_)
                        | Item::Checkpoint(_)
                        | Item::Moved(_) => {}
                    }
                }
                self.last = Some(sequence);
                return Ok(Some(offset + batch.header.padded_bytes()));
            }
            Ok(Found::Hole { first, next, end }) if is_next(first) => {
                self.last = Some(next - 1);
                return Ok(Some(end));
            }
            Ok(_) => Damage::new("batches before this one are missing"),
            Err(damage) => damage,
        };
        if self.last.is_some_and(|last| last >= self.promised) || self.headers.is_empty() {
            return Ok(None); // the end of the log, perhaps torn
        }
        let here = (segment, offset);
        let expected = self.last.map(|last| last + 1);
        let next = self.headers.iter().find(|seen| {
            (seen.segment, seen.offset) >= here && Some(seen.header.sequence) >= expected
        });
        let next = next.copied();
        let Some((loss, end)) = self.loss(loaded, offset, &damage, next)? else {
            return Ok(None);
        };
        self.last = match (&loss, next) {
            (Loss::Bytes { next_sequence, .. }, _) => Some(next_sequence - 1),
            (Loss::Blocks { .. }, Some(seen)) => {
                let sequence = seen.header.sequence;
                self.findings
                    .sequences
                    .insert((segment.0, offset), sequence);
                Some(sequence)
            }
            (Loss::Blocks { .. }, None) => self.last,
        };
        let hole = Hole {
            segment: segment.0,
            offset,
            loss,
        };
        self.findings.places.push(Place { hole, damage });
        Ok(Some(end))
    }

    /// What is lost from `offset` on, and where something readable follows; `None`: nothing is, the log goes on
    /// in the next segment. `next` is the next header.
    fn loss(
        &self,
        loaded: &Loaded,
        offset: u64,
        damage: &Damage,
        next: Option<Seen>,
    ) -> Result<Option<(Loss, u64)>, Error> {
        let segment = loaded.generation.segment;
        let length = loaded.len();
        let Some(Seen {
            segment: next_segment,
            offset: next_offset,
            header,
        }) = next
        else {
            // Only an earlier repair knows that there was more.
            let first_sequence = self.last.map_or(1, |last| last + 1);
            let loss = Loss::Bytes {
                end: length,
                first_sequence,
                next_sequence: self.promised + 1,
            };
            return Ok(Some((loss, length)));
        };
        let first_sequence = self.last.map_or(header.sequence, |last| last + 1);
        let bytes = |end, next_sequence| {
            let loss = Loss::Bytes {
                end,
                first_sequence,
                next_sequence,
            };
            Ok(Some((loss, end)))
        };
        if next_segment == segment {
            let batch_end = (offset + header.padded_bytes()).min(length);
            return match (next_offset == offset, header.sequence == first_sequence) {
                (true, true) if damage.blocks.is_empty() => bytes(batch_end, first_sequence + 1),
                (true, true) => {
                    let mut offsets = damage.blocks.clone();
                    if let Some(Loss::Blocks { offsets: known }) =
                        self.known.loss_at(segment, offset)
                    {
                        offsets.extend(known);
                    }
                    Ok(Some((Loss::Blocks { offsets }, batch_end)))
                }
                // Batches are missing, and no bytes in which they could have been.
                (true, false) => Err(Error::Corrupt {
                    segment,
                    offset,
                    groups: damage.groups.clone(),
                }),
                (false, _) => bytes(next_offset, header.sequence),
            };
        }
        let is_neighbour = next_segment == segment.next() && next_offset == 0;
        match (is_neighbour, header.sequence == first_sequence) {
            (true, true) if offset > 0 => Ok(None),
            (true, _) => bytes(length, header.sequence),
            // What is missing was at the beginning of the next segment, as far as anybody can tell.
            (false, _) if offset > 0 => Ok(None),
            (false, _) => bytes(length, first_sequence),
        }
    }
}

fn headers_of(loaded: &Loaded) -> Vec<Seen> {
    let segment = loaded.generation.segment;
    let pages = (0..loaded.len()).step_by(usize::try_from(PAGE_BYTES).expect("4096"));
    let seen = pages.filter_map(|offset| {
        Some(Seen {
            segment,
            offset,
            header: loaded.header_at(offset)?,
        })
    });
    seen.collect()
}
