//! Opening: what the segments say, a torn tail told from damage.
//!
//! ```text
//! segments  … | 5 full ▏end | 6 batch batch ▏torn      | 7 prepared, empty |
//!               next begins with 6's first batch:        no later header promises it: cut
//!               nothing is missing
//! ```
//! Rules:
//! - Sequences are gapless. The first batch that does not verify ends its segment; the next
//!   segment must go on with exactly the next sequence.
//! - The end is a **torn tail** only if no header after it, which verifies, says that it was synced.
//!   Since a header says that of all batches before it, any later batch is proof; so one flipped
//!   bit in the middle never silently shortens the log (FAST'18 PAR). Then it is **damage**:
//!   refused, named, and not a byte of the directory changed.
//! - The last batch of all has no later one. If it does not verify, it is cut; a clean shutdown
//!   ends with an empty batch for that reason.
//! - Files are synced, and the page cache dropped, before they are read: 1. a process dies between
//!   write and sync, or after a failed sync; 2. the next one reads the batch from the page cache
//!   and counts on it; 3. power fails, and it never was on the disk.
//! - A segment with an outline is not read: the outline says what it holds. A log that was shut down ends where
//!   its last outline says, and what prepared segments hold after it was never part of the log.
//! - What is cut is overwritten with zeros and synced before the log is used: 1. a half batch
//!   with sequence n is cut; 2. a shorter one takes its place; 3. no later recovery must see the
//!   old one's rest. Opening twice finds the same.

use std::sync::Arc;

use multiraft_engine::planted;
use multiraft_engine::types::GroupId;

use crate::disk::{Access, Disk, DiskFile};
use crate::error::Error;
use crate::format::{Batch, Damage, Generation, Header, PAGE_BYTES};
use crate::index::Index;
use crate::loaded::{Found, Loaded};
use crate::outline::{Ending, Outline, Stored};
use crate::repairs::Repairs;
use crate::segment::{Segment, SegmentId, SegmentTable};

/// What the files of a directory say.
pub(crate) struct Scan {
    pub(crate) index: Index,
    /// The segments in use, the active one last; empty in a new directory.
    pub(crate) table: SegmentTable,
    pub(crate) last_sequence: u64,
    pub(crate) oldest: SegmentId,
    /// The last batch has items, and no later batch proves that it was durable.
    pub(crate) is_tail_unproven: bool,
    /// Segments that the last batch no longer needs.
    pub(crate) dead: Vec<SegmentId>,
    /// Segments after the active one, all empty.
    pub(crate) empty: Vec<SegmentId>,
    /// What was given up before, and how much of it was met.
    pub(crate) repairs: Repairs,
    repairs_met: usize,
    /// The log was shut down: nothing is torn at its end.
    pub(crate) is_closed: bool,
    /// Of each segment in use, oldest first; empty if some of their bytes were given up.
    pub(crate) outlines: Vec<Outlined>,
    makes_outlines: bool,
}

/// What is known of a segment in use.
pub(crate) struct Outlined {
    pub(crate) segment: SegmentId,
    pub(crate) outline: Outline,
    /// It was found as an outline, and the segment was not read.
    pub(crate) is_stored: bool,
}

/// Outlines of segments that were read which are kept to be written; others of them are read again at the next start.
const MOST_OUTLINES: usize = 8;

impl Scan {
    /// The next segment. Of the one before the outline is not needed, if there is one on the disk.
    fn begin(&mut self, next: Outlined) {
        if let Some(last) = self.outlines.last_mut()
            && last.is_stored
        {
            last.outline = Outline::default();
        }
        if let Some(too_many) = self.outlines.len().checked_sub(MOST_OUTLINES) {
            self.outlines[too_many].outline = Outline::default();
        }
        self.outlines.push(next);
    }
}

/// Reads segments; changes nothing.
pub(crate) struct Scanner<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) incarnation: u64,
    pub(crate) access: Access,
    /// Whether outlines are read in place of their segments. Who checks every byte does without.
    pub(crate) outlines: Outlines,
}

/// See [`Scanner::outlines`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlines {
    Used,
    Ignored,
}

/// Where the valid batches end, as known so far.
struct End {
    segment: SegmentId,
    offset: u64,
    damage: Damage,
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("it is within a file that is in memory")
}

impl Scanner<'_> {
    /// The ids of all segment files, in order.
    pub(crate) fn segment_ids(&self) -> Result<Vec<SegmentId>, Error> {
        let names = self.disk.list().map_err(Error::io("listing segments"))?;
        let ids = names.iter().filter_map(|n| SegmentId::from_file_name(n));
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(crate) fn load(&self, id: SegmentId) -> Result<Loaded, Error> {
        let file = self.disk.open(&id.file_name());
        let file = file.map_err(Error::io("opening a segment"))?;
        if self.access == Access::ReadWrite && !planted!("unsynced-tail") {
            file.sync_data().map_err(Error::io("syncing a segment"))?;
            file.drop_cache().map_err(Error::io("reading a segment"))?;
        }
        let generation = self.generation(id);
        let loaded = Loaded::new(file, generation).map_err(Error::io("reading a segment"))?;
        loaded.check_length()?;
        Ok(loaded)
    }

    /// Whether a batch begins where the segment does, as far as its header says. Reads one page of it.
    fn begins_with_header(&self, id: SegmentId) -> Result<bool, Error> {
        self.has_header_at(id, 0)
    }

    fn has_header_at(&self, id: SegmentId, offset: u64) -> Result<bool, Error> {
        let mut page = vec![0; place(PAGE_BYTES)];
        let read = self.disk.open(&id.file_name()).and_then(|file| {
            let is_there = file.len()? >= offset + PAGE_BYTES;
            if is_there {
                file.read_exact_at(&mut page, offset)?;
            }
            Ok(is_there)
        });
        let is_there = read.map_err(Error::io("reading a segment"))?;
        Ok(is_there && Header::decode(&page, self.generation(id)).is_some())
    }

    /// Reads everything, and refuses damage that was not given up.
    pub(crate) fn scan(&self) -> Result<Scan, Error> {
        let scan = self.scan_with(Repairs::load(self.disk, self.incarnation)?)?;
        let gap = scan.index.check_gapless();
        gap.map_err(|(group, index)| Error::Gap { group, index })?;
        Ok(scan)
    }

    /// The same, if this was given up; groups may have gaps.
    pub(crate) fn scan_with(&self, repairs: Repairs) -> Result<Scan, Error> {
        let ids = self.segment_ids()?;
        let (oldest, mut newest) = self.oldest_needed(&ids, &repairs)?;
        let makes_outlines = self.outlines == Outlines::Used && repairs.list.is_empty();
        let mut scan = Scan {
            makes_outlines,
            index: Index::default(),
            table: SegmentTable::default(),
            last_sequence: 0,
            oldest: oldest.unwrap_or(SegmentId(1)),
            is_tail_unproven: false,
            dead: Vec::new(),
            empty: Vec::new(),
            repairs,
            repairs_met: 0,
            is_closed: false,
            outlines: Vec::new(),
        };
        let mut end: Option<End> = None;
        let mut expected_id = scan.oldest;
        for id in ids {
            if id < scan.oldest {
                scan.dead.push(id);
                continue;
            }
            if id != expected_id {
                return Err(Error::MissingSegment {
                    segment: expected_id,
                });
            }
            expected_id = id.next();
            if scan.is_closed {
                if !self.begins_with_header(id)? {
                    scan.empty.push(id);
                    continue;
                }
                scan.is_closed = false; // the log went on, whoever let the outline say otherwise
            }
            let is_first = end.is_none();
            if let Some(stored) = self.outline(id, &scan.repairs)
                && scan.empty.is_empty()
                && is_next(&scan, stored.outline.first_sequence(), is_first)
                && !self.has_header_at(id, stored.outline.end())?
            {
                end = Some(self.apply_outline(&mut scan, id, stored)?);
                continue;
            }
            let newest = newest.take_if(|newest| newest.generation.segment == id);
            let loaded = newest.map_or_else(|| self.load(id), Ok)?;
            match self.scan_segment(&mut scan, &loaded, end)? {
                (next_end, true) => end = Some(next_end),
                (last_end, false) if is_first && oldest.is_some() => {
                    return Err(corrupt(last_end)); // it is needed, and nothing in it verifies
                }
                (last_end, false) => end = Some(last_end),
            }
        }
        if oldest.is_some() && expected_id == scan.oldest {
            return Err(Error::MissingSegment {
                segment: expected_id,
            });
        }
        if scan.last_sequence < scan.repairs.through()
            && let Some(end) = end
        {
            return Err(corrupt(end)); // it was all there when it was repaired
        }
        if !scan.repairs.list.is_empty() {
            scan.outlines.clear();
        }
        Ok(scan)
    }

    /// The outline of a segment, if it is to be used and nothing was given up.
    fn outline(&self, id: SegmentId, repairs: &Repairs) -> Option<Stored> {
        let is_used = self.outlines == Outlines::Used && repairs.list.is_empty();
        is_used.then(|| Outline::load(self.disk, self.generation(id)))?
    }

    fn generation(&self, segment: SegmentId) -> Generation {
        Generation {
            incarnation: self.incarnation,
            segment,
        }
    }

    /// Takes what an outline tells into account; tells where its batches end.
    fn apply_outline(&self, scan: &mut Scan, id: SegmentId, stored: Stored) -> Result<End, Error> {
        let file = self.disk.open(&id.file_name());
        let file = file.map_err(Error::io("opening a segment"))?;
        let bytes = file.len().map_err(Error::io("reading a segment"))?;
        if bytes != stored.file_bytes {
            return Err(Error::WrongLength {
                segment: id,
                bytes,
                expected: Some(stored.file_bytes),
            });
        }
        let first = stored.outline.first_sequence();
        scan.table.push(Segment::new(id, file, bytes, first));
        for batch in &stored.batches {
            apply_batch(scan, batch);
        }
        scan.is_closed = stored.ending == Ending::Closed;
        let offset = stored.outline.end();
        scan.begin(Outlined {
            segment: id,
            outline: stored.outline,
            is_stored: true,
        });
        Ok(End {
            segment: id,
            offset,
            damage: Damage::new("the segment ends"),
        })
    }

    /// What the last batch of all says is the oldest segment it needs; `None` without batches. And the segment that
    /// it was found in, if that one was read.
    fn oldest_needed(
        &self,
        ids: &[SegmentId],
        repairs: &Repairs,
    ) -> Result<(Option<SegmentId>, Option<Loaded>), Error> {
        for id in ids.iter().rev() {
            if let Some(stored) = self.outline(*id, repairs) {
                return Ok((Some(stored.outline.oldest()), None));
            }
            let is_lost = repairs.loss_at(*id, 0).is_some();
            if !is_lost && !self.begins_with_header(*id)? {
                continue; // nothing in it can be read
            }
            let loaded = self.load(*id)?;
            let mut offset = 0;
            let mut oldest = None;
            while offset < loaded.len()
                && let Ok(found) = loaded.find_at(offset, repairs)
            {
                offset = match found {
                    Found::Batch(batch) => {
                        oldest = Some(batch.header.oldest);
                        offset + batch.header.padded_bytes()
                    }
                    Found::Hole { end, .. } => end,
                };
            }
            loaded.check_read()?;
            if let Some(oldest) = oldest {
                return Ok((Some(oldest.max(repairs.oldest())), Some(loaded)));
            }
        }
        let is_known = !repairs.list.is_empty();
        Ok((is_known.then(|| repairs.oldest()), None))
    }

    /// Applies a segment's batches; tells where the log ends now, and whether it is in here.
    fn scan_segment(
        &self,
        scan: &mut Scan,
        loaded: &Loaded,
        before: Option<End>,
    ) -> Result<(End, bool), Error> {
        debug_assert_eq!(loaded.generation.incarnation, self.incarnation);
        let id = loaded.generation.segment;
        let mut offset = 0;
        let damage = loop {
            if offset >= loaded.len() {
                break Damage::new("the segment is full");
            }
            let found = match loaded.find_at(offset, &scan.repairs) {
                Ok(found) => found,
                Err(damage) => break damage,
            };
            let is_first = before.is_none() && offset == 0;
            if !is_next(scan, found.first_sequence(), is_first) {
                break Damage::new("batch out of sequence");
            }
            if offset == 0 && !scan.empty.is_empty() {
                return Err(corrupt(before.expect("there are segments before")));
            }
            if is_first {
                let first = found.first_sequence();
                let list = scan.repairs.list.iter();
                // The segments of these are given back, and newer batches say what counts.
                scan.repairs_met = list.take_while(|repair| repair.through < first).count();
            }
            offset = apply(scan, loaded, &found, offset);
            give_up(scan);
        };
        let here = End {
            segment: id,
            offset,
            damage,
        };
        let is_promised = loaded.promises(scan.last_sequence + 1, offset) && !planted!("B10");
        loaded.check_read()?;
        match (before, offset) {
            (Some(before), 0) if is_promised => Err(corrupt(before)),
            (_, _) if is_promised => Err(corrupt(here)),
            (Some(before), 0) => {
                scan.empty.push(id);
                Ok((before, true))
            }
            (None, 0) => {
                scan.table.push(new_segment(loaded, 1));
                Ok((here, false))
            }
            (_, _) => Ok((here, true)),
        }
    }
}

fn corrupt(end: End) -> Error {
    Error::Corrupt {
        segment: end.segment,
        offset: end.offset,
        groups: end.damage.groups,
    }
}

/// The first batch of all may have any sequence; the ones before it are recycled.
fn is_next(scan: &Scan, sequence: u64, is_first: bool) -> bool {
    is_first || sequence == scan.last_sequence + 1 || planted!("B11")
}

fn new_segment(loaded: &Loaded, first_sequence: u64) -> Segment {
    let file = Arc::clone(&loaded.file);
    let id = loaded.generation.segment;
    Segment::new(id, file, loaded.len(), first_sequence)
}

/// Takes what lies at `offset` into account; returns where the next batch begins.
fn apply(scan: &mut Scan, loaded: &Loaded, found: &Found, offset: u64) -> u64 {
    if offset == 0 {
        let segment = new_segment(loaded, found.first_sequence());
        scan.begin(Outlined {
            segment: segment.id,
            outline: Outline::default(),
            is_stored: false,
        });
        scan.table.push(segment);
    }
    let batch = match found {
        Found::Batch(batch) => batch,
        &Found::Hole { first, next, end } => {
            scan.table.skip(first..next, end);
            scan.last_sequence = next - 1;
            return end;
        }
    };
    apply_batch(scan, batch);
    if scan.makes_outlines {
        let outlined = scan.outlines.last_mut().expect("the segment has begun");
        outlined.outline.push(&batch.header, &batch.items);
    }
    offset + batch.header.padded_bytes()
}

fn apply_batch(scan: &mut Scan, batch: &Batch) {
    let header = &batch.header;
    scan.table.place(header.sequence, header.padded_bytes());
    for record in &batch.records {
        let place = (header.sequence, record.offset);
        let table = &mut scan.table;
        scan.index.apply(record.group, &record.item, place, table);
    }
    scan.last_sequence = header.sequence;
    scan.is_tail_unproven = header.item_count > 0;
}

/// Applies the repairs that were made when the log ended here.
fn give_up(scan: &mut Scan) {
    while let Some(repair) = scan.repairs.list.get(scan.repairs_met)
        && repair.through <= scan.last_sequence
    {
        scan.repairs_met += 1;
        for given_up in &repair.groups {
            let group = GroupId(given_up.group);
            for item in given_up.items() {
                let place = (repair.through, 0);
                scan.index.apply(group, &item, place, &mut scan.table);
            }
        }
    }
}

/// Overwrites what is left of a torn tail, and syncs. Dead batches of an earlier use of the file
/// go with it.
pub(crate) fn scrub(file: &dyn DiskFile, from: u64, to: u64) -> Result<(), Error> {
    const CHUNK_BYTES: u64 = 256 << 10;
    let failed = "clearing the end of the log";
    let mut at = from;
    let mut chunk = vec![0; place(CHUNK_BYTES)];
    while at < to {
        let count = CHUNK_BYTES.min(to - at);
        let part = &mut chunk[..place(count)];
        file.read_exact_at(part, at).map_err(Error::io(failed))?;
        if part.iter().any(|byte| *byte != 0) {
            part.fill(0);
            file.write_all_at(part, at).map_err(Error::io(failed))?;
        }
        at += count;
    }
    file.sync_data().map_err(Error::io(failed))
}
