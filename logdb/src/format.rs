//! The bytes of segments and batches: the only file that knows them. Little endian.
//!
//! ```text
//! segment header (4096, zero padded)
//!   "MRLOGSEG" | u32 format | u32 crc32 of what follows | u64 segment id
//! batch header (64)
//!   u32 magic | u32 crc32 of 8..64 | u64 sequence | u64 segment id | u64 synced_through
//!   u32 item bytes | u32 item count | u32 crc32 of the items | 20 zero bytes
//! item
//!   u8 kind | 3 zero bytes | u32 group | u32 bytes | body
//! ```
//! A block's body bytes are covered by the block's own checksum, which its leader made; the items'
//! checksum covers that checksum in their place, so payloads are summed once in their life.
//! Batches start at multiples of 512: no sector holds bytes of two batches, so a torn write of one
//! cannot hurt another. The segment id in each batch makes a recycled segment's old batches void.

use bytes::{BufMut, Bytes};
use multiraft_engine::block::{Block, HEADER_BYTES as BLOCK_HEADER_BYTES};
use multiraft_engine::traits::GroupWrite;
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Bytes of a batch's header.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Batches start at multiples of this: the unit that a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
const SEGMENT_MAGIC: &[u8; 8] = b"MRLOGSEG";
const BATCH_MAGIC: u32 = 0x4254_524d;
const FORMAT: u32 = 1;
const ITEM_HEADER_BYTES: usize = 12;

const REMOVE: u8 = 1;
const META: u8 = 2;
const COMPACT: u8 = 3;
const TRUNCATE: u8 = 4;
const BLOCK: u8 = 5;
const HARD_STATE: u8 = 6;
const MOVED_BLOCK: u8 = 7;

/// One step in a group's life, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Everything of the group is gone.
    Remove,
    /// The group's description.
    Meta(Bytes),
    /// Entries up to here, the last of this term, are no longer needed.
    Compact(Index, Term),
    /// Entries from here on never happened.
    Truncate(Index),
    /// Appended after the last entry.
    Block(Block),
    /// The hard state.
    HardState(HardState),
    /// A block again, from a segment that is to be freed.
    MovedBlock(Block),
}

/// A batch header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Rises by one from batch to batch, over all segments.
    pub sequence: u64,
    /// The segment it was written to.
    pub segment: u64,
    /// Batches up to this sequence were durable when this one was written.
    pub synced_through: u64,
    /// Bytes of the items.
    pub item_bytes: u32,
    /// Number of items.
    pub item_count: u32,
    items_crc: u32,
}

/// Where a block's bytes lie in an encoded batch.
#[derive(Debug, Clone)]
pub struct BlockPlace {
    /// Whose.
    pub group: GroupId,
    /// The block.
    pub block: Block,
    /// From the batch's start, bytes.
    pub offset: usize,
}

/// A batch being encoded at the end of a buffer: header space, then items.
pub struct BatchEncoder<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    count: u32,
    crc: crc32fast::Hasher,
}

impl<'a> BatchEncoder<'a> {
    /// Starts a batch at the buffer's end, which must be a multiple of [`SECTOR_BYTES`].
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        let start = buffer.len();
        assert!(
            start.is_multiple_of(SECTOR_BYTES),
            "batches start at sectors"
        );
        buffer.resize(start + BATCH_HEADER_BYTES, 0);
        Self {
            buffer,
            start,
            count: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// Adds all of a group's write; returns where each of its blocks begins. `compacted` is what
    /// `compact_to` means: the index and its entry's term.
    pub fn put_write(
        &mut self,
        write: &GroupWrite,
        compacted: Option<(Index, Term)>,
    ) -> Vec<usize> {
        let group = write.group;
        if write.remove {
            self.put(group, &Item::Remove);
        }
        if let Some(meta) = &write.meta {
            self.put(group, &Item::Meta(meta.clone()));
        }
        if let Some((index, term)) = compacted {
            self.put(group, &Item::Compact(index, term));
        }
        if let Some(from) = write.truncate_from {
            self.put(group, &Item::Truncate(from));
        }
        let blocks = write.blocks.iter();
        let offsets = blocks
            .map(|b| self.put(group, &Item::Block(b.clone())))
            .collect();
        if let Some(hard_state) = write.hard_state {
            self.put(group, &Item::HardState(hard_state));
        }
        offsets
    }

    /// Adds one item; returns where a block's bytes begin, from the batch's start.
    pub fn put(&mut self, group: GroupId, item: &Item) -> usize {
        let mut body = Vec::new();
        let kind = match item {
            Item::Remove => REMOVE,
            Item::Meta(meta) => {
                body.put_slice(meta);
                META
            }
            Item::Compact(index, term) => {
                body.put_u64_le(index.0);
                body.put_u64_le(term.0);
                COMPACT
            }
            Item::Truncate(from) => {
                body.put_u64_le(from.0);
                TRUNCATE
            }
            Item::HardState(state) => {
                body.put_u64_le(state.term.0);
                body.put_u32_le(state.vote.map_or(0, NodeId::get));
                body.put_u64_le(state.commit.0);
                HARD_STATE
            }
            Item::Block(block) => return self.put_block(BLOCK, group, block),
            Item::MovedBlock(block) => return self.put_block(MOVED_BLOCK, group, block),
        };
        let at = self.put_header(kind, group, body.len());
        self.crc.update(&body);
        self.buffer.put_slice(&body);
        at
    }

    fn put_block(&mut self, kind: u8, group: GroupId, block: &Block) -> usize {
        let at = self.put_header(kind, group, block.bytes().len());
        self.crc.update(&block.checksum().to_le_bytes());
        self.buffer.put_slice(block.bytes());
        at
    }

    fn put_header(&mut self, kind: u8, group: GroupId, bytes: usize) -> usize {
        let header = self.buffer.len();
        self.buffer.put_slice(&[kind, 0, 0, 0]);
        self.buffer.put_u32_le(group.0);
        self.buffer
            .put_u32_le(u32::try_from(bytes).expect("items are far below 4 GiB"));
        self.crc.update(&self.buffer[header..]);
        self.count += 1;
        self.buffer.len() - self.start
    }

    /// Pads to a sector; [`seal`] makes it a batch once its place is known.
    pub fn finish(self) -> usize {
        let item_bytes = self.buffer.len() - self.start - BATCH_HEADER_BYTES;
        let mut fields = &mut self.buffer[self.start + 32..self.start + 44];
        fields.put_u32_le(u32::try_from(item_bytes).expect("a turn's writes are below 4 GiB"));
        fields.put_u32_le(self.count);
        fields.put_u32_le(self.crc.finalize());
        let padded = self.buffer.len().next_multiple_of(SECTOR_BYTES);
        self.buffer.resize(padded, 0);
        padded - self.start
    }
}

/// Completes the header of an encoded batch.
pub fn seal(batch: &mut [u8], sequence: u64, segment: u64, synced_through: u64) {
    let mut fields = &mut batch[8..32];
    fields.put_u64_le(sequence);
    fields.put_u64_le(segment);
    fields.put_u64_le(synced_through);
    let crc = crc32fast::hash(&batch[8..BATCH_HEADER_BYTES]);
    let mut start = &mut batch[0..8];
    start.put_u32_le(BATCH_MAGIC);
    start.put_u32_le(crc);
}

/// A batch header at the start of `bytes`, if there is one of this segment.
pub fn batch_header(bytes: &[u8], segment: u64) -> Option<BatchHeader> {
    let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
    if u32_at(bytes, 0) != BATCH_MAGIC || u32_at(bytes, 4) != crc32fast::hash(&bytes[8..]) {
        return None;
    }
    let header = BatchHeader {
        sequence: u64_at(bytes, 8),
        segment: u64_at(bytes, 16),
        synced_through: u64_at(bytes, 24),
        item_bytes: u32_at(bytes, 32),
        item_count: u32_at(bytes, 36),
        items_crc: u32_at(bytes, 40),
    };
    (header.segment == segment).then_some(header)
}

impl BatchHeader {
    /// The batch's whole length with padding, bytes.
    pub fn padded_bytes(&self) -> u64 {
        (BATCH_HEADER_BYTES as u64 + u64::from(self.item_bytes))
            .next_multiple_of(SECTOR_BYTES as u64)
    }

    /// The items with each block's offset from the batch's start; `None` if any byte is wrong.
    pub fn items(&self, batch: &Bytes) -> Option<Vec<(GroupId, Item, usize)>> {
        let end = BATCH_HEADER_BYTES + self.item_bytes as usize;
        if batch.len() < end {
            return None;
        }
        let mut items = Vec::new();
        let mut crc = crc32fast::Hasher::new();
        let mut at = BATCH_HEADER_BYTES;
        for _ in 0..self.item_count {
            let header = batch.get(at..at + ITEM_HEADER_BYTES)?;
            crc.update(header);
            let (kind, group) = (header[0], GroupId(u32_at(header, 4)));
            at += ITEM_HEADER_BYTES;
            let body_end = at + u32_at(header, 8) as usize;
            if body_end > end {
                return None;
            }
            let body = batch.slice(at..body_end);
            if matches!(kind, BLOCK | MOVED_BLOCK) {
                if body.len() < BLOCK_HEADER_BYTES {
                    return None;
                }
                crc.update(&body[0..4]);
            } else {
                crc.update(&body);
            }
            items.push((group, item(kind, body)?, at));
            at = body_end;
        }
        (at == end && crc.finalize() == self.items_crc).then_some(items)
    }
}

fn item(kind: u8, body: Bytes) -> Option<Item> {
    let sized = |bytes| (body.len() == bytes).then_some(());
    Some(match kind {
        REMOVE => {
            sized(0)?;
            Item::Remove
        }
        META => Item::Meta(body),
        COMPACT => {
            sized(16)?;
            Item::Compact(Index(u64_at(&body, 0)), Term(u64_at(&body, 8)))
        }
        TRUNCATE => {
            sized(8)?;
            Item::Truncate(Index(u64_at(&body, 0)))
        }
        HARD_STATE => {
            sized(20)?;
            Item::HardState(HardState {
                term: Term(u64_at(&body, 0)),
                vote: NodeId::new(u32_at(&body, 8)),
                commit: Index(u64_at(&body, 12)),
            })
        }
        BLOCK => Item::Block(Block::decode(body).ok()?),
        MOVED_BLOCK => Item::MovedBlock(Block::decode(body).ok()?),
        _ => return None,
    })
}

/// A segment's header, for people and tools: batches prove by themselves where they belong.
pub fn segment_header(segment: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(24);
    header.put_slice(SEGMENT_MAGIC);
    header.put_u32_le(FORMAT);
    header.put_u32_le(crc32fast::hash(&segment.to_le_bytes()));
    header.put_u64_le(segment);
    header
}

/// A segment's file name.
pub fn segment_name(segment: u64) -> String {
    format!("{segment:016x}.seg")
}

/// The segment that a file name is for.
pub fn segment_of(name: &str) -> Option<u64> {
    let id = name.strip_suffix(".seg").filter(|id| id.len() == 16)?;
    u64::from_str_radix(id, 16).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
