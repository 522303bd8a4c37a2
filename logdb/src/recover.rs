//! Opening a log: reads every segment, believes what its checksums prove, cuts a torn tail, refuses
//! damage to what was promised.
//!
//! A bad batch is a torn tail, unless something later shows that it had been synced: a good batch
//! whose `synced_through` covers it. Then bytes that were promised are gone, and to go on would be
//! to forget votes and acknowledged entries. So: tail, cut; promised, refuse and change nothing.
//!
//! What follows the cut is overwritten with zeros and synced before the log is used. Otherwise: 1. of
//! three unsynced batches the second is torn; 2. a restart cuts there and writes a new second batch
//! of the same length; 3. at the next restart the old third batch follows it as if it belonged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::types::{GroupId, Index};

use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, Item, SECTOR_BYTES, SEGMENT_HEADER_BYTES, batch_header,
    segment_name, segment_of,
};
use crate::index::{GroupIndex, LogIndex, Place, block_ref};

/// A segment in use.
#[derive(Clone)]
pub struct Segment {
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Its size, bytes.
    pub bytes: u64,
    /// Batches end here.
    pub end: u64,
    /// How many batches.
    pub batches: u64,
}

/// What a log holds.
pub struct Recovered {
    /// All groups.
    pub index: LogIndex,
    /// The segments, by id.
    pub segments: BTreeMap<u64, Segment>,
    /// The sequence of the last batch.
    pub sequence: u64,
    /// Bytes after the last batch of the last segment that are not zero: a torn tail.
    pub torn_bytes: u64,
}

/// Reads all segments; changes nothing.
pub fn read(disk: &dyn Disk) -> Result<Recovered, Error> {
    let mut ids: Vec<u64> = disk
        .list()
        .map_err(Error::io("."))?
        .iter()
        .filter_map(|name| segment_of(name))
        .collect();
    ids.sort_unstable();
    let mut recovered = Recovered {
        index: LogIndex::default(),
        segments: BTreeMap::new(),
        sequence: 0,
        torn_bytes: 0,
    };
    for id in ids {
        recovered.read_segment(disk, id)?;
    }
    recovered.check_groups()?;
    Ok(recovered)
}

/// Overwrites a torn tail, so that nothing of it can ever be taken for part of the log, and syncs
/// what was read: it may have been in the page cache only.
pub fn cut_tail(recovered: &Recovered) -> Result<(), Error> {
    let Some((id, segment)) = recovered.segments.last_key_value() else {
        return Ok(());
    };
    if recovered.torn_bytes > 0 {
        tracing::warn!(segment = id, offset = segment.end, "cut a torn tail");
        let mut offset = segment.end;
        let zeros = vec![0; 1 << 20];
        while offset < segment.bytes {
            let part = usize::try_from(segment.bytes - offset)
                .unwrap_or(zeros.len())
                .min(zeros.len());
            segment
                .file
                .write_at(&zeros[..part], offset)
                .map_err(Error::io(segment_name(*id)))?;
            offset += part as u64;
        }
    }
    segment.file.sync().map_err(Error::io(segment_name(*id)))
}

fn load(disk: &dyn Disk, id: u64) -> Result<(Arc<dyn DiskFile>, Bytes), Error> {
    let failed = || Error::io(segment_name(id));
    let file = disk.open(&segment_name(id)).map_err(failed())?;
    let size = file.size().map_err(failed())?;
    let mut bytes = vec![0; usize::try_from(size).expect("segments fit into memory")];
    file.read_at(&mut bytes, 0).map_err(failed())?;
    Ok((file.into(), bytes.into()))
}

impl Recovered {
    fn read_segment(&mut self, disk: &dyn Disk, id: u64) -> Result<(), Error> {
        let (file, bytes) = load(disk, id)?;
        self.check_follows(&bytes, id)?;
        let mut at = SEGMENT_HEADER_BYTES;
        let mut batches = 0;
        while let Some(next) = self.read_batch(&bytes, id, at)? {
            at = next;
            batches += 1;
        }
        if proof_after(&bytes, id, at).is_some_and(|proof| proof > self.sequence) {
            return Err(Error::Corrupt {
                segment: id,
                offset: at,
                sequence: self.sequence + 1,
            });
        }
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        self.torn_bytes = rest.iter().filter(|&&byte| byte != 0).count() as u64;
        let size = bytes.len() as u64;
        self.segments.insert(
            id,
            Segment {
                file,
                bytes: size,
                end: at.min(size),
                batches,
            },
        );
        Ok(())
    }

    /// A segment is begun only when the one before is synced: what it begins with proves how far
    /// that one went.
    fn check_follows(&self, bytes: &Bytes, id: u64) -> Result<(), Error> {
        let Some((&segment, before)) = self.segments.last_key_value() else {
            return Ok(());
        };
        let begins = proof_after(bytes, id, SEGMENT_HEADER_BYTES);
        if begins.is_some_and(|_| first_sequence(bytes, id) > Some(self.sequence + 1)) {
            let sequence = self.sequence + 1;
            return Err(Error::Corrupt {
                segment,
                offset: before.end,
                sequence,
            });
        }
        Ok(())
    }

    /// Takes over the batch at `at`; `None` if none is there.
    fn read_batch(&mut self, bytes: &Bytes, id: u64, at: u64) -> Result<Option<u64>, Error> {
        let start = usize::try_from(at).expect("inside a file in memory");
        if start + BATCH_HEADER_BYTES > bytes.len() {
            return Ok(None);
        }
        let Some(header) = batch_header(&bytes[start..], id) else {
            return Ok(None);
        };
        if self.sequence == 0 && header.sequence > 0 {
            self.sequence = header.sequence - 1; // earlier segments were freed
        }
        if header.sequence != self.sequence + 1 {
            return Ok(None);
        }
        let Some(items) = header.items(&bytes.slice(start..)) else {
            return Ok(None);
        };
        for (group, item, offset) in items {
            let place = Place {
                segment: id,
                offset: at + offset as u64,
            };
            self.index.replay(group, item, place)?;
        }
        self.sequence = header.sequence;
        Ok(Some(at + header.padded_bytes()))
    }

    /// Every group must be whole: described, and without a gap.
    fn check_groups(&self) -> Result<(), Error> {
        for (&group, index) in &self.index.groups {
            let mut next = index.compacted.0.next();
            for block in &index.blocks {
                if block.first != next {
                    return Err(Error::Gap { group, index: next });
                }
                next = block.last.next();
            }
            if index.meta.is_none() {
                return Err(Error::Gap {
                    group,
                    index: Index::ZERO,
                });
            }
        }
        Ok(())
    }
}

/// The headers of good batches of a segment, from a place on.
fn headers(bytes: &Bytes, id: u64, from: u64) -> impl Iterator<Item = BatchHeader> + '_ {
    let from = usize::try_from(from).unwrap_or(bytes.len());
    let sectors = (from..bytes.len()).step_by(SECTOR_BYTES);
    sectors.filter_map(move |at| batch_header(&bytes[at..], id))
}

/// The highest sequence that batches after a bad place prove to have been synced.
fn proof_after(bytes: &Bytes, id: u64, from: u64) -> Option<u64> {
    headers(bytes, id, from)
        .map(|header| header.synced_through)
        .max()
}

fn first_sequence(bytes: &Bytes, id: u64) -> Option<u64> {
    headers(bytes, id, SEGMENT_HEADER_BYTES)
        .map(|header| header.sequence)
        .next()
}

impl LogIndex {
    /// One item of a batch, in the order of the log.
    fn replay(&mut self, group: GroupId, item: Item, place: Place) -> Result<(), Error> {
        match item {
            Item::Remove => self.remove(group),
            Item::Meta(meta) => {
                let entry = self.group(group);
                entry.meta = Some(meta);
                entry.state_segments[0] = place.segment;
            }
            Item::HardState(hard_state) => {
                let entry = self.group(group);
                entry.hard_state = hard_state;
                entry.state_segments[1] = place.segment;
            }
            Item::Compact(index, term) => {
                self.compact(group, index, term);
                self.group(group).state_segments[2] = place.segment;
            }
            Item::Truncate(from) => self.truncate(group, from),
            Item::Block(block) => {
                let entry = self.group(group);
                let follows = entry
                    .blocks
                    .back()
                    .is_none_or(|b| b.last.next() == block.first());
                if !follows {
                    return Err(Error::Gap {
                        group,
                        index: block.first(),
                    });
                }
                let mut reference = block_ref(block, Some(place));
                reference.cached = None;
                *self.live.entry(place.segment).or_default() += reference.bytes as u64;
                self.group(group).blocks.push_back(reference);
            }
            Item::MovedBlock(block) => {
                let entry = self.group(group);
                if block.last() <= entry.compacted.0 {
                    return Ok(());
                }
                if covers(entry, block.first()) {
                    self.move_block(group, &block, place);
                    return Ok(());
                }
                let mut reference = block_ref(block, Some(place));
                reference.cached = None;
                let at = entry.blocks.partition_point(|b| b.last < reference.first);
                *self.live.entry(place.segment).or_default() += reference.bytes as u64;
                self.group(group).blocks.insert(at, reference);
            }
        }
        Ok(())
    }
}

fn covers(entry: &GroupIndex, index: Index) -> bool {
    let at = entry.blocks.partition_point(|b| b.last < index);
    entry.blocks.get(at).is_some_and(|b| b.first <= index)
}
