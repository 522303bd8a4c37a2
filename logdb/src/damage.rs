//! Finding damage: the way over all segments, from one place that does not verify to the next that does.
//!
//! ```text
//! segment 5  | 7 batch | 8 ?????????? | 9 header, block damaged | 10 batch | zeros
//!                        ▲ bytes up to the next header            ▲ only that block
//! segment 6  | 11 ????? | 12 batch | torn
//!                         ▲ sequences tell how many batches were in between
//! ```
//! A header verifies alone, and is seeded with the segment's id and the directory's secret: wherever one is
//! found, a batch began. Up to the last batch that a header says was synced, everything has to be there; what
//! comes after it may be torn.

use std::collections::BTreeMap;

use multiraft_engine::types::GroupId;

use crate::error::Error;
use crate::format::{Damage, Header, Item, PAGE_BYTES};
use crate::loaded::{Found, Loaded};
use crate::recover::Scanner;
use crate::repairs::{Hole, Loss, Repairs};
use crate::segment::SegmentId;

/// A damaged place that was not given up before.
pub(crate) struct Place {
    pub(crate) hole: Hole,
    pub(crate) damage: Damage,
}

/// What readable batches say of a group: the last one that pins where its log ends, or that it is gone.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Evidence {
    pub(crate) appended_in: u64,
    pub(crate) removed_in: u64,
}

/// A header that verifies, and where.
#[derive(Clone, Copy)]
struct Seen {
    segment: SegmentId,
    offset: u64,
    header: Header,
}

/// The way over all segments, from damage to damage.
pub(crate) struct Walk<'a> {
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
pub(crate) struct Findings {
    pub(crate) oldest: SegmentId,
    /// The last batch; 0 without batches.
    pub(crate) end: u64,
    pub(crate) places: Vec<Place>,
    pub(crate) evidence: BTreeMap<GroupId, Evidence>,
    /// Of the batches with damaged blocks, by segment and offset.
    pub(crate) sequences: BTreeMap<(u64, u64), u64>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(scanner: &'a Scanner<'a>, known: &'a Repairs) -> Result<Self, Error> {
        let all = scanner.segment_ids()?;
        let mut headers = Vec::new();
        for &id in &all {
            let loaded = scanner.load(id)?;
            headers.append(&mut headers_of(&loaded));
            loaded.check_read()?;
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

    /// Goes it.
    pub(crate) fn run(mut self) -> Result<Findings, Error> {
        for id in self.ids.clone() {
            let loaded = self.scanner.load(id)?;
            let mut offset = 0;
            while offset < loaded.len() {
                let next = self.step(&loaded, offset);
                loaded.check_read()?;
                let Some(next) = next? else {
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
        let here = (segment, offset);
        let expected = self.last.map(|last| last + 1);
        let next = self.headers.iter().find(|seen| {
            (seen.segment, seen.offset) >= here && Some(seen.header.sequence) >= expected
        });
        let next = next.copied();
        let first_lost = expected.or_else(|| {
            let seen = next?;
            let is_here = (seen.segment, seen.offset) == here;
            Some(seen.header.sequence - u64::from(!is_here))
        });
        if first_lost.is_none_or(|first| first > self.promised) {
            return Ok(None); // the end of the log, perhaps torn
        }
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
        if offset > 0 && (!is_neighbour || header.sequence == first_sequence) {
            // It ends here. What is missing, if anything, was at the beginning of the next one, as far as
            // anybody can tell.
            return Ok(None);
        }
        let next_sequence = if is_neighbour {
            header.sequence
        } else {
            first_sequence
        };
        bytes(length, next_sequence)
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
