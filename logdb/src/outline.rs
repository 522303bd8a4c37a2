//! A segment without its entries: what recovery needs of a segment that nobody writes to any more.
//!
//! ```text
//! 0…05.idx: | magic | crc | segment | first sequence | end | oldest | file bytes | batches | closed |
//! | item count | bodies bytes | items bytes | items |  for each batch
//! ```
//! An outline is written when its segment is full and durable, by the background; and of the active segment by a
//! clean shutdown, which says with it that the log ends there. So a start reads the outlines, and entries only of
//! the segments without one: after a crash the active segment, after a clean shutdown none.
//!
//! Invariants:
//! - **An outline is an aid and never a promise.** One that is missing, torn or damaged costs the time to read its
//!   segment, no more. It tells of durable batches only.
//! - **The active segment has none while it is written to.** Else: 1. a clean shutdown writes one; 2. the next
//!   process appends and crashes; 3. the one after ends the log where the outline does.
//! - Its checksum is seeded like that of its segment, so one of an earlier directory never counts.
//!
//! What entries say is checked when they are read, against the checksum that their item tells (`index::Position`);
//! after a crash also in the background (`scrub`).

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::format::{self, Batch, Fields, Generation, Header};
use crate::segment::SegmentId;

const MAGIC: u32 = 0x314c_544f;
const HEAD_BYTES: usize = 56;

/// What is told of the batches of one segment, from its first on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outline {
    first_sequence: u64,
    batches: u32,
    /// Where the batch after the last one begins.
    end: u64,
    /// As the last batch says.
    oldest: SegmentId,
    /// Counts and items of each batch.
    told: Vec<u8>,
}

/// Whether more batches may follow in the same segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The log went on in the next segment.
    Sealed,
    /// The log was shut down after the last batch, which proves the one before it.
    Closed,
}

/// An outline as found.
pub(crate) struct Stored {
    pub(crate) outline: Outline,
    pub(crate) batches: Vec<Batch>,
    pub(crate) ending: Ending,
    pub(crate) file_bytes: u64,
}

/// The name of a segment's outline.
pub(crate) fn file_name(segment: SegmentId) -> String {
    format!("{segment}.idx")
}

/// The segment whose outline has this name; `None` for other files.
pub(crate) fn segment_of(name: &str) -> Option<SegmentId> {
    let stem = name.strip_suffix(".idx")?;
    SegmentId::from_file_name(&format!("{stem}.seg"))
}

impl Outline {
    /// Adds the next batch.
    pub(crate) fn push(&mut self, header: &Header, items: &[u8]) {
        if self.batches == 0 {
            self.first_sequence = header.sequence;
        }
        self.batches += 1;
        self.end += header.padded_bytes();
        self.oldest = header.oldest;
        for count in [header.item_count, header.bodies_bytes, header.items_bytes] {
            self.told.extend_from_slice(&count.to_le_bytes());
        }
        self.told.extend_from_slice(items);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches == 0
    }

    pub(crate) fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Where the last batch ends.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The oldest segment needed, as the last batch says.
    pub(crate) fn oldest(&self) -> SegmentId {
        self.oldest
    }

    fn encode(&self, generation: Generation, file_bytes: u64, ending: Ending) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.told.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[0; 4]); // the checksum
        let segment = generation.segment.0;
        for field in [
            segment,
            self.first_sequence,
            self.end,
            self.oldest.0,
            file_bytes,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.batches.to_le_bytes());
        out.extend_from_slice(&u32::from(ending == Ending::Closed).to_le_bytes());
        out.extend_from_slice(&self.told);
        let crc = generation.sum(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], generation: Generation) -> Option<Stored> {
        let mut fields = Fields(bytes);
        if fields.u32()? != MAGIC || fields.u32()? != generation.sum(bytes.get(8..)?) {
            return None;
        }
        if fields.u64()? != generation.segment.0 {
            return None;
        }
        let mut outline = Self {
            first_sequence: fields.u64()?,
            end: fields.u64()?,
            oldest: SegmentId(fields.u64()?),
            ..Self::default()
        };
        let file_bytes = fields.u64()?;
        outline.batches = fields.u32()?;
        let ending = match fields.u32()? {
            0 => Ending::Sealed,
            1 => Ending::Closed,
            _ => return None,
        };
        outline.told = fields.0.to_vec();
        let mut batches = Vec::new(); // grows with the bytes that are there, not with the count
        let mut end = 0;
        for sequence in (outline.first_sequence..).take(outline.batches as usize) {
            let header = Header {
                sequence,
                synced_through: sequence.checked_sub(1)?,
                oldest: outline.oldest,
                item_count: fields.u32()?,
                bodies_bytes: fields.u32()?,
                items_bytes: fields.u32()?,
                file_bytes,
            };
            let items = Bytes::copy_from_slice(fields.take(header.items_bytes as usize)?);
            let records = format::decode_records(&items, &header)?;
            end += header.padded_bytes();
            batches.push(Batch {
                header,
                records,
                items,
            });
        }
        let is_whole = fields.0.is_empty() && end == outline.end && end <= file_bytes;
        (is_whole && !batches.is_empty()).then_some(Stored {
            outline,
            batches,
            ending,
            file_bytes,
        })
    }

    /// Writes it; durable but for its name.
    pub(crate) fn store(
        &self,
        disk: &dyn Disk,
        generation: Generation,
        file_bytes: u64,
        ending: Ending,
    ) -> std::io::Result<()> {
        let name = file_name(generation.segment);
        let file = disk.create_growing(&name)?;
        let bytes = self.encode(generation, file_bytes, ending);
        let written = file.write_all_at(&bytes, 0).and_then(|()| file.sync_data());
        if written.is_err() {
            disk.remove(&name)?; // half of it is of no use
        }
        written
    }

    /// The outline of a segment, if there is one that verifies.
    pub(crate) fn load(disk: &dyn Disk, generation: Generation) -> Option<Stored> {
        let file = disk.open(&file_name(generation.segment)).ok()?;
        let read = read_whole(&file);
        let stored = read.ok().and_then(|b| Self::decode(&b, generation));
        if stored.is_none() {
            let segment = generation.segment;
            tracing::warn!(%segment, "the outline of a log segment is damaged: the segment is read instead");
        }
        stored
    }
}

fn read_whole(file: &Arc<dyn DiskFile>) -> std::io::Result<Vec<u8>> {
    let bytes = usize::try_from(file.len()?).map_err(std::io::Error::other)?;
    let mut read = vec![0; bytes];
    file.read_exact_at(&mut read, 0)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimDisk;

    fn header(sequence: u64, bodies_bytes: u32) -> Header {
        Header {
            sequence,
            synced_through: sequence - 1,
            oldest: SegmentId(2),
            item_count: 0,
            bodies_bytes,
            items_bytes: 0,
            file_bytes: 1 << 16,
        }
    }

    #[test]
    fn what_is_stored_is_found_and_a_flipped_bit_or_another_generation_is_not() {
        let mut outline = Outline::default();
        outline.push(&header(7, 0), &[]);
        outline.push(&header(8, 0), &[]);
        let generation = Generation {
            incarnation: 5,
            segment: SegmentId(3),
        };
        let disk = SimDisk::new();
        outline
            .store(&*disk, generation, 1 << 16, Ending::Closed)
            .expect("stored");
        let found = Outline::load(&*disk, generation).expect("found");
        assert_eq!(found.outline.end(), 8192);
        assert_eq!(found.outline.first_sequence(), 7);
        assert_eq!(found.outline.oldest(), SegmentId(2));
        assert_eq!((found.ending, found.file_bytes), (Ending::Closed, 1 << 16));
        let sequences = found.batches.iter().map(|batch| batch.header.sequence);
        assert_eq!(sequences.collect::<Vec<_>>(), [7, 8]);
        let bytes = outline.encode(generation, 1 << 16, Ending::Closed);
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 4;
            assert!(Outline::decode(&rotten, generation).is_none(), "{at}");
            assert!(Outline::decode(&bytes[..at], generation).is_none(), "{at}");
        }
        let other = Generation {
            incarnation: 6,
            ..generation
        };
        assert!(Outline::decode(&bytes, other).is_none());
        // Bodies that are claimed by no item, and an end beyond the file.
        let mut claims = Outline::default();
        claims.push(&header(7, 9), &[]);
        assert!(
            Outline::decode(
                &claims.encode(generation, 1 << 16, Ending::Sealed),
                generation
            )
            .is_none()
        );
        let short = outline.encode(generation, 4096, Ending::Sealed);
        assert!(Outline::decode(&short, generation).is_none());
    }

    #[test]
    fn only_names_of_outlines_are_taken_for_outlines() {
        let name = file_name(SegmentId(0x1f));
        assert_eq!(name, "000000000000001f.idx");
        assert_eq!(segment_of(&name), Some(SegmentId(0x1f)));
        for name in ["1f.idx", "spare-1.seg", "000000000000001f.seg", "x.idx"] {
            assert_eq!(segment_of(name), None, "{name}");
        }
    }
}
