//! Repairing the log of a stopped node: groups that may have lost something are given up, by name, so that the
//! node starts with the others.
//!
//! ```text
//! find    `damage`: walk over all segments ─▶ places that do not verify, and the batches that were there
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

use crate::damage::{Evidence, Place, Walk};
use crate::directory;
use crate::disk::{Access, Disk, FsDisk};
use crate::error::Error;
use crate::index::{Index, Span};
use crate::inspect::Problem;
use crate::recover::{Outlines, Scanner};
use crate::repairs::{GivenUp, Loss, Repair, Repairs};
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
            outlines: Outlines::Ignored,
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
            let needs_damaged = |s: &Span| {
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
        if extra.is_empty() || self.holes.is_empty() {
            Ok(())
        } else {
            Err(Error::NotHurt { groups: extra })
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
