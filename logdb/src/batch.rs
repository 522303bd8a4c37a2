//! A batch that grows: what many appends of many groups want written by one write and one sync.

use bytes::Bytes;
use multiraft_engine::types::GroupId;

use crate::buffer::PageBuffer;
use crate::format::{self, Generation, HEADER_BYTES, Header, Item, PAGE_BYTES};
use crate::index::Position;
use crate::segment::SegmentId;

/// Items on their way to the writer.
#[derive(Debug)]
pub(crate) struct PendingBatch {
    pub(crate) sequence: u64,
    /// Room for the header, then the bodies.
    buffer: PageBuffer,
    items: Vec<u8>,
    item_count: u32,
    /// The newest ticket of each shard that is durable with this batch.
    pub(crate) acks: Vec<(u32, u64)>,
    /// How many appends it carries.
    pub(crate) appends: u32,
    /// Nothing is added any more: its length counts.
    pub(crate) is_closed: bool,
}

impl PendingBatch {
    /// An empty batch; `buffer` is one to use again.
    pub(crate) fn new(sequence: u64, mut buffer: PageBuffer) -> Self {
        buffer.clear();
        buffer.resize(HEADER_BYTES);
        Self {
            sequence,
            buffer,
            items: Vec::new(),
            item_count: 0,
            acks: Vec::new(),
            appends: 0,
            is_closed: false,
        }
    }

    /// Bytes so far, without padding.
    pub(crate) fn bytes(&self) -> u64 {
        (self.buffer.len() + self.items.len()) as u64
    }

    pub(crate) fn has_items(&self) -> bool {
        self.item_count > 0
    }

    /// Adds an item, with its block as it is stored if it is about one; returns the block's offset.
    pub(crate) fn push(&mut self, group: GroupId, item: &Item, block: Option<&Bytes>) -> u32 {
        let offset = u32::try_from(self.buffer.len()).expect("a batch of less than 4 GiB");
        if let Some(block) = block {
            self.buffer.extend_from_slice(block);
        }
        item.encode(group, &mut self.items);
        // The items join the bodies when the writer is waited for: no copy of everything then.
        let padding = usize::try_from(PAGE_BYTES).expect("4096");
        self.buffer.reserve(self.items.len() + padding);
        self.item_count += 1;
        offset
    }

    /// A copy of what lies at a place.
    pub(crate) fn get(&self, at: Position) -> Bytes {
        let start = at.offset as usize;
        Bytes::copy_from_slice(&self.buffer[start..start + at.bytes as usize])
    }

    /// Notes that the append `ticket` of `shard` is durable with this batch.
    pub(crate) fn acknowledge(&mut self, shard: u32, ticket: u64) {
        self.appends += 1;
        match self.acks.iter_mut().find(|(s, _)| *s == shard) {
            Some(ack) => ack.1 = ticket,
            None => self.acks.push((shard, ticket)),
        }
    }

    /// Bytes from its first to that of the next batch.
    pub(crate) fn padded_bytes(&self) -> u64 {
        self.header(0, SegmentId(0), 0).padded_bytes()
    }

    /// The header in a segment file of this length.
    pub(crate) fn header(&self, synced_through: u64, oldest: SegmentId, file_bytes: u64) -> Header {
        let bytes = |n: usize| u32::try_from(n).expect("a batch of less than 4 GiB");
        Header {
            sequence: self.sequence,
            synced_through,
            oldest,
            item_count: self.item_count,
            bodies_bytes: bytes(self.buffer.len() - HEADER_BYTES),
            items_bytes: bytes(self.items.len()),
            file_bytes,
        }
    }

    /// The items, encoded.
    pub(crate) fn items(&self) -> &[u8] {
        &self.items
    }

    /// The bytes to write.
    pub(crate) fn seal(&mut self, header: &Header, generation: Generation) -> PageBuffer {
        let mut buffer = std::mem::take(&mut self.buffer);
        format::seal(&mut buffer, &self.items, header, generation);
        buffer
    }
}
