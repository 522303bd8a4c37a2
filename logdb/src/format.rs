//! The bytes of a segment. No other file knows them.
//!
//! ```text
//! segment: | batch | batch | … | zeros, or a dead batch of an earlier use of the file |
//! batch, from a 4 KiB page boundary to the next, little endian:
//! 0       4            8           12      16         24        32               40       48       52      56
//! | magic | header crc | batch crc | items | sequence | segment | synced through | oldest | bodies | items | file bytes
//! |                                  count                                         segment  bytes    bytes   to 64
//! | bodies: entry blocks, as their leader encoded them or compressed | items | zeros to the page's end |
//! item: | u8 kind | u32 group | fields of the kind |
//! ```
//! - Both checksums are seeded with the log's incarnation and the segment's id. The id rises with
//!   each use of a file, so what an earlier use left behind never verifies; and since the
//!   incarnation is a secret of the directory, no payload can pose as a batch.
//! - The header's checksum makes its lengths trustworthy before they are used, and a header alone
//!   is proof of what it says about earlier batches.
//! - Each header tells the length of its segment's file: one that was cut short is found by its first
//!   header, also if all that it promised is gone with its end.
//! - The batch checksum covers header and items. A block's item repeats the block's own checksum,
//!   so the bodies are covered without being summed a second time.
//! - Bodies come first: a block's offset is known while the batch still grows.
//! - Batches begin on a page: no write ever touches a page that holds promised bytes, so a torn
//!   write cannot damage them. The page cache writes whole pages anyway: the padding is free.

use bytes::Bytes;
use crc32fast::Hasher;
use multiraft_engine::block::{Block, HEADER_BYTES as BLOCK_HEADER_BYTES, MAX_BLOCK_BYTES};
use multiraft_engine::planted;
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};

use crate::buffer::PageBuffer;
use crate::pack;
use crate::segment::SegmentId;

/// The version of this format, stored in the identity file.
pub const FORMAT_VERSION: u32 = 1;
/// Batches begin at multiples of this.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes before a batch's bodies.
pub(crate) const HEADER_BYTES: usize = 64;
/// Where a header tells its segment.
const SEGMENT_AT: usize = 24;
const MAGIC: u32 = 0x4c52_4d31;

/// One use of one file: what seeds the checksums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generation {
    pub(crate) incarnation: u64,
    pub(crate) segment: SegmentId,
}

impl Generation {
    fn hasher(self) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(&self.incarnation.to_le_bytes());
        if !planted!("B11") {
            hasher.update(&self.segment.0.to_le_bytes());
        }
        hasher
    }

    /// The checksum of bytes that belong to this use of the file, but are not in it.
    pub(crate) fn sum(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What a batch says about itself and about the log before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Rising by one from batch to batch, over all segments, from 1.
    pub(crate) sequence: u64,
    /// All batches up to this sequence were durable before this one was written.
    pub(crate) synced_through: u64,
    /// The oldest segment that holds anything alive; older ones may be gone.
    pub(crate) oldest: SegmentId,
    pub(crate) item_count: u32,
    pub(crate) bodies_bytes: u32,
    pub(crate) items_bytes: u32,
    /// The length of the segment's file.
    pub(crate) file_bytes: u64,
}

impl Header {
    /// From the batch's first byte to the next batch's.
    pub(crate) fn padded_bytes(&self) -> u64 {
        self.unpadded_bytes().next_multiple_of(PAGE_BYTES)
    }

    /// Without the padding.
    pub(crate) fn unpadded_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.bodies_bytes) + u64::from(self.items_bytes)
    }

    /// Reads and checks the header at the start of `bytes`, if it was written to another segment than `generation`
    /// says, by its own word.
    pub(crate) fn decode_misplaced(bytes: &[u8], generation: Generation) -> Option<Self> {
        let segment = SegmentId(Fields(bytes.get(SEGMENT_AT..HEADER_BYTES)?).u64()?);
        let claimed = Generation {
            segment,
            ..generation
        };
        let is_elsewhere = segment != generation.segment;
        is_elsewhere.then(|| Self::decode(bytes, claimed)).flatten()
    }

    /// Reads and checks the header at the start of `bytes`; `None` if there is none of this
    /// generation.
    pub(crate) fn decode(bytes: &[u8], generation: Generation) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let mut fields = Fields(bytes);
        if fields.u32()? != MAGIC || fields.u32()? != header_crc(bytes, generation) {
            return None;
        }
        fields.u32()?; // the batch's checksum
        let item_count = fields.u32()?;
        let sequence = fields.u64()?;
        if fields.u64()? != generation.segment.0 {
            return None;
        }
        Some(Self {
            sequence,
            synced_through: fields.u64()?,
            oldest: SegmentId(fields.u64()?),
            item_count,
            bodies_bytes: fields.u32()?,
            items_bytes: fields.u32()?,
            file_bytes: fields.u64()?,
        })
    }
}

fn header_crc(header: &[u8], generation: Generation) -> u32 {
    let mut hasher = generation.hasher();
    hasher.update(&header[8..HEADER_BYTES]);
    hasher.finalize()
}

fn batch_crc(header: &[u8], items: &[u8], generation: Generation) -> u32 {
    let mut hasher = generation.hasher();
    hasher.update(&header[12..HEADER_BYTES]);
    hasher.update(items);
    hasher.finalize()
}

/// Finishes a batch: `buffer` holds room for the header and the bodies, and gets the rest.
pub(crate) fn seal(buffer: &mut PageBuffer, items: &[u8], header: &Header, generation: Generation) {
    assert!(
        (buffer.len() + items.len()) as u64 == header.unpadded_bytes(),
        "the header tells the lengths"
    );
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend_from_slice(&MAGIC.to_le_bytes());
    head.extend_from_slice(&[0; 8]); // the two checksums
    head.extend_from_slice(&header.item_count.to_le_bytes());
    head.extend_from_slice(&header.sequence.to_le_bytes());
    head.extend_from_slice(&generation.segment.0.to_le_bytes());
    head.extend_from_slice(&header.synced_through.to_le_bytes());
    head.extend_from_slice(&header.oldest.0.to_le_bytes());
    head.extend_from_slice(&header.bodies_bytes.to_le_bytes());
    head.extend_from_slice(&header.items_bytes.to_le_bytes());
    head.extend_from_slice(&header.file_bytes.to_le_bytes());
    let crc = batch_crc(&head, items, generation);
    head[8..12].copy_from_slice(&crc.to_le_bytes());
    let crc = header_crc(&head, generation);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    buffer[..HEADER_BYTES].copy_from_slice(&head);
    buffer.extend_from_slice(items);
    let padded = usize::try_from(header.padded_bytes()).expect("it is in memory");
    buffer.resize(padded);
}

/// What an item says of a block; the block itself is among the bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockItem {
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) term: Term,
    /// As it is stored.
    pub(crate) bytes: u32,
    /// Of the block itself; the same unless it is stored compressed.
    pub(crate) block_bytes: u32,
    pub(crate) checksum: u32,
}

impl BlockItem {
    /// Of a block that is stored as it is.
    pub(crate) fn of(block: &Block) -> Self {
        let bytes = u32::try_from(block.bytes().len()).expect("a block is at most 64 MiB");
        Self {
            first: block.first(),
            last: block.last(),
            term: block.term(),
            bytes,
            block_bytes: bytes,
            checksum: block.checksum(),
        }
    }

    /// Its block is shorter in the log.
    fn is_compressed(&self) -> bool {
        self.bytes < self.block_bytes
    }
}

/// One change of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// Nothing of the group is left.
    Remove,
    /// The group's description.
    Meta(Bytes),
    /// Entries up to `index`, which was of `term` (zero: not known), are gone.
    CompactTo { index: Index, term: Term },
    /// Entries from `index` on are gone.
    TruncateFrom(Index),
    /// Entries follow; what was stored from their first index on is gone.
    Append(BlockItem),
    /// The group's hard state.
    HardState(HardState),
    /// The group's small state, written again so that its old segment can be recycled.
    Checkpoint(Checkpoint),
    /// Entries written again so that their old segment can be recycled; others stay.
    Moved(BlockItem),
}

/// All of a group but its entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    pub(crate) meta: Bytes,
    pub(crate) hard_state: HardState,
    pub(crate) compacted: (Index, Term),
}

impl Item {
    fn kind(&self) -> u8 {
        match self {
            Self::Remove => 1,
            Self::Meta(_) => 2,
            Self::CompactTo { .. } => 3,
            Self::TruncateFrom(_) => 4,
            Self::Append(block) if block.is_compressed() => 9,
            Self::Append(_) => 5,
            Self::HardState(_) => 6,
            Self::Checkpoint(_) => 7,
            Self::Moved(block) if block.is_compressed() => 10,
            Self::Moved(_) => 8,
        }
    }

    /// The block this item is about, if it is about one.
    pub(crate) fn block(&self) -> Option<BlockItem> {
        match self {
            Self::Append(block) | Self::Moved(block) => Some(*block),
            Self::Remove
            | Self::Meta(_)
            | Self::CompactTo { .. }
            | Self::TruncateFrom(_)
            | Self::HardState(_)
            | Self::Checkpoint(_) => None,
        }
    }

    /// Appends the item's bytes.
    pub(crate) fn encode(&self, group: GroupId, out: &mut Vec<u8>) {
        out.push(self.kind());
        put_u32(out, group.0);
        match self {
            Self::Remove => {}
            Self::Meta(meta) => put_bytes(out, meta),
            Self::CompactTo { index, term } => {
                put_u64(out, index.0);
                put_u64(out, term.0);
            }
            Self::TruncateFrom(index) => put_u64(out, index.0),
            Self::Append(block) | Self::Moved(block) => {
                put_u64(out, block.first.0);
                put_u64(out, block.last.0);
                put_u64(out, block.term.0);
                put_u32(out, block.bytes);
                put_u32(out, block.checksum);
                if block.is_compressed() {
                    put_u32(out, block.block_bytes);
                }
            }
            Self::HardState(state) => put_hard_state(out, *state),
            Self::Checkpoint(checkpoint) => {
                put_hard_state(out, checkpoint.hard_state);
                put_u64(out, checkpoint.compacted.0.0);
                put_u64(out, checkpoint.compacted.1.0);
                put_bytes(out, &checkpoint.meta);
            }
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Option<(GroupId, Self)> {
        let kind = fields.u8()?;
        let group = GroupId(fields.u32()?);
        let item = match kind {
            1 => Self::Remove,
            2 => Self::Meta(fields.bytes()?),
            3 => Self::CompactTo {
                index: Index(fields.u64()?),
                term: Term(fields.u64()?),
            },
            4 => Self::TruncateFrom(Index(fields.u64()?)),
            5 => Self::Append(fields.block()?),
            6 => Self::HardState(fields.hard_state()?),
            7 => Self::Checkpoint(Checkpoint {
                hard_state: fields.hard_state()?,
                compacted: (Index(fields.u64()?), Term(fields.u64()?)),
                meta: fields.bytes()?,
            }),
            8 => Self::Moved(fields.block()?),
            9 => Self::Append(fields.compressed_block()?),
            10 => Self::Moved(fields.compressed_block()?),
            _ => return None,
        };
        Some((group, item))
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(
        out,
        u32::try_from(bytes.len()).expect("a group's description is small"),
    );
    out.extend_from_slice(bytes);
}

fn put_hard_state(out: &mut Vec<u8>, state: HardState) {
    put_u64(out, state.term.0);
    put_u32(out, state.vote.map_or(0, NodeId::get));
    put_u64(out, state.commit.0);
}

/// Bytes that are read from the front, never past their end.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?.try_into().expect("four bytes");
        Some(u32::from_le_bytes(bytes))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let bytes = self.take(8)?.try_into().expect("eight bytes");
        Some(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let count = self.u32()? as usize;
        self.take(count).map(Bytes::copy_from_slice) // checked before it allocates
    }

    fn hard_state(&mut self) -> Option<HardState> {
        Some(HardState {
            term: Term(self.u64()?),
            vote: NodeId::new(self.u32()?),
            commit: Index(self.u64()?),
        })
    }

    fn block(&mut self) -> Option<BlockItem> {
        let block = self.any_block()?;
        (block.bytes as usize > BLOCK_HEADER_BYTES).then_some(block)
    }

    fn compressed_block(&mut self) -> Option<BlockItem> {
        let mut block = self.any_block()?;
        block.block_bytes = self.u32()?;
        let is_block =
            (BLOCK_HEADER_BYTES + 1..=MAX_BLOCK_BYTES).contains(&(block.block_bytes as usize));
        (is_block && block.is_compressed()).then_some(block)
    }

    fn any_block(&mut self) -> Option<BlockItem> {
        let (first, last, term) = (Index(self.u64()?), Index(self.u64()?), Term(self.u64()?));
        let bytes = self.u32()?;
        let block = BlockItem {
            first,
            last,
            term,
            bytes,
            block_bytes: bytes,
            checksum: self.u32()?,
        };
        let ordered = Index::ZERO < block.first && block.first <= block.last;
        (ordered && block.last.0 < u64::MAX).then_some(block)
    }
}

/// An item as found in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) group: GroupId,
    pub(crate) item: Item,
    /// Of the block from the batch's first byte; 0 for items without a block.
    pub(crate) offset: u32,
}

/// A batch that verified, every byte of it but the padding.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) header: Header,
    pub(crate) records: Vec<Record>,
    /// The items as they are stored.
    pub(crate) items: Bytes,
}

/// Bytes that are not a batch of this generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// What is wrong, for people.
    pub(crate) what: &'static str,
    /// The groups hurt, as far as the bytes tell.
    pub(crate) groups: Vec<GroupId>,
    /// Header and items verify, and only the blocks at these offsets do not; else empty.
    pub(crate) blocks: Vec<u32>,
}

impl Damage {
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            groups: Vec::new(),
            blocks: Vec::new(),
        }
    }
}

impl Batch {
    /// Reads and checks the batch at the start of `bytes`: both checksums and every block's.
    pub(crate) fn decode(bytes: &Bytes, generation: Generation) -> Result<Self, Damage> {
        Self::decode_without(bytes, generation, &[])
    }

    /// The same, but the blocks at these offsets are not looked at.
    pub(crate) fn decode_without(
        bytes: &Bytes,
        generation: Generation,
        given_up: &[u32],
    ) -> Result<Self, Damage> {
        let header = Header::decode(bytes, generation).ok_or(Damage::new("no batch header"))?;
        let whole = usize::try_from(header.unpadded_bytes()).ok();
        let Some(content) = whole.and_then(|n| bytes.get(..n)) else {
            return Err(Damage::new("batch longer than its segment"));
        };
        let items = &content[HEADER_BYTES + header.bodies_bytes as usize..];
        let records = decode_records(items, &header);
        if Fields(&content[8..]).u32() != Some(batch_crc(content, items, generation)) {
            return Err(Damage {
                groups: groups_of(records.unwrap_or_default().iter()),
                ..Damage::new("batch checksum mismatch")
            });
        }
        let records = records.ok_or(Damage::new("items malformed"))?;
        let is_damaged = |r: &&Record| !given_up.contains(&r.offset) && !is_body_intact(r, bytes);
        let damaged: Vec<&Record> = records.iter().filter(is_damaged).collect();
        if !damaged.is_empty() && !planted!("B9") {
            return Err(Damage {
                what: "block checksum mismatch",
                groups: groups_of(damaged.iter().copied()),
                blocks: damaged.iter().map(|r| r.offset).collect(),
            });
        }
        let items = bytes.slice_ref(items);
        Ok(Self {
            header,
            records,
            items,
        })
    }
}

fn groups_of<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<GroupId> {
    let mut groups: Vec<_> = records.map(|r| r.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

pub(crate) fn decode_records(items: &[u8], header: &Header) -> Option<Vec<Record>> {
    let mut fields = Fields(items);
    let mut records = Vec::new(); // grows with the bytes that are there, not with the count
    let mut body_end = 0u32;
    for _ in 0..header.item_count {
        let (group, item) = Item::decode(&mut fields)?;
        let mut offset = 0;
        if let Some(block) = item.block() {
            offset = body_end.checked_add(u32::try_from(HEADER_BYTES).expect("64"))?;
            body_end = body_end.checked_add(block.bytes)?;
            if body_end > header.bodies_bytes {
                return None;
            }
        }
        records.push(Record {
            group,
            item,
            offset,
        });
    }
    (fields.0.is_empty() && body_end == header.bodies_bytes).then_some(records)
}

fn is_body_intact(record: &Record, batch: &Bytes) -> bool {
    let Some(item) = record.item.block() else {
        return true;
    };
    let start = record.offset as usize;
    let body = batch.slice(start..start + item.bytes as usize);
    pack::unpack(body, item.block_bytes).is_ok_and(|block| {
        let found = BlockItem {
            bytes: item.bytes,
            ..BlockItem::of(&block)
        };
        found == item
    })
}
