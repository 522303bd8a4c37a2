//! Frames: many groups' messages under one header and one checksum.
//!
//! ```text
//! header: u32 meta bytes | u32 block bytes | u32 crc32 of the lengths and the meta | u32 version
//! meta:   u32 heartbeats  × {u32 group, u64 term, u64 commit, u64 read round}     28 bytes each
//!         u32 responses   × {u32 group, u64 term, u64 read round}                 20 bytes each
//!         u32 messages    × see [`crate::codec`]
//! blocks: back to back, verbatim; their own checksums cover them, so no byte is summed twice
//! ```
//! A frame without anything is a ping.

use bytes::{BufMut, Bytes, BytesMut};
use multiraft_engine::block::MAX_BLOCK_BYTES;
use multiraft_engine::raft::message::Message;
use multiraft_engine::types::{GroupId, Index, Term};

use crate::codec::{self, Item};
use crate::error::Error;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;
/// The most bytes a frame's messages may have.
pub const MAX_META_BYTES: usize = 8 << 20;
/// The most bytes a frame's blocks may have: one block of the largest kind, and a full frame.
pub const MAX_BLOCKS_BYTES: usize = MAX_BLOCK_BYTES + MAX_META_BYTES;
const VERSION: u32 = 1;

/// A frame's lengths, checked against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the lists and messages.
    pub meta_bytes: usize,
    /// Bytes of the blocks after them.
    pub block_bytes: usize,
    crc: u32,
}

/// Messages on their way into one frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    heartbeats: BytesMut,
    heartbeat_count: u32,
    responses: BytesMut,
    response_count: u32,
    messages: BytesMut,
    message_count: u32,
    blocks: Vec<Bytes>,
    block_bytes: usize,
}

impl FrameBuilder {
    /// Adds one message: heartbeats and their answers to the lists, all else in order.
    pub fn push(&mut self, item: &Item) {
        match item.message {
            Message::Heartbeat { commit, read_round } => {
                self.heartbeats.put_u32_le(item.group.0);
                for number in [item.term.0, commit.0, read_round] {
                    self.heartbeats.put_u64_le(number);
                }
                self.heartbeat_count += 1;
            }
            Message::HeartbeatResponse { read_round } => {
                self.responses.put_u32_le(item.group.0);
                for number in [item.term.0, read_round] {
                    self.responses.put_u64_le(number);
                }
                self.response_count += 1;
            }
            _ => {
                let before = self.blocks.len();
                codec::encode(item, &mut self.messages, &mut self.blocks);
                self.block_bytes += self.blocks[before..].iter().map(Bytes::len).sum::<usize>();
                self.message_count += 1;
            }
        }
    }

    /// Bytes so far, without the header.
    pub fn bytes(&self) -> usize {
        self.heartbeats.len() + self.responses.len() + self.messages.len() + self.block_bytes
    }

    /// The frame in the pieces to be written, in order: header and meta, then each block.
    pub fn finish(self) -> Vec<Bytes> {
        let meta_bytes = 12 + self.heartbeats.len() + self.responses.len() + self.messages.len();
        let mut frame = BytesMut::with_capacity(HEADER_BYTES + meta_bytes);
        frame.put_u32_le(u32::try_from(meta_bytes).expect("bounded by the configuration"));
        frame.put_u32_le(u32::try_from(self.block_bytes).expect("bounded by the configuration"));
        frame.put_u32_le(0);
        frame.put_u32_le(VERSION);
        for (count, list) in [
            (self.heartbeat_count, self.heartbeats),
            (self.response_count, self.responses),
            (self.message_count, self.messages),
        ] {
            frame.put_u32_le(count);
            frame.put_slice(&list);
        }
        let crc = checksum(&frame[0..8], &frame[HEADER_BYTES..]);
        frame[8..12].copy_from_slice(&crc.to_le_bytes());
        let mut pieces = vec![frame.freeze()];
        pieces.extend(self.blocks);
        pieces
    }
}

/// Checks a header; nothing is allocated for lengths beyond the limits.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Error> {
    let mut fields = Bytes::copy_from_slice(bytes);
    let meta_bytes = codec::u32(&mut fields)? as usize;
    let block_bytes = codec::u32(&mut fields)? as usize;
    let crc = codec::u32(&mut fields)?;
    if codec::u32(&mut fields)? != VERSION {
        return Err(Error::Malformed("unknown frame version"));
    }
    if meta_bytes > MAX_META_BYTES || block_bytes > MAX_BLOCKS_BYTES {
        return Err(Error::Malformed("a frame beyond the limit"));
    }
    Ok(Header {
        meta_bytes,
        block_bytes,
        crc,
    })
}

/// The messages of a frame's body: meta and blocks, as long as the header says.
pub fn decode_body(header: Header, mut body: Bytes) -> Result<Vec<Item>, Error> {
    if body.len() != header.meta_bytes + header.block_bytes {
        return Err(Error::Malformed("cut short"));
    }
    let mut meta = body.split_to(header.meta_bytes);
    let mut lengths = BytesMut::new();
    lengths.put_u32_le(u32::try_from(header.meta_bytes).map_err(|_| Error::Checksum)?);
    lengths.put_u32_le(u32::try_from(header.block_bytes).map_err(|_| Error::Checksum)?);
    if checksum(&lengths, &meta) != header.crc {
        return Err(Error::Checksum);
    }
    let mut items = Vec::new();
    for _ in 0..codec::counted(&mut meta, 28)? {
        let (group, term) = (
            GroupId(codec::u32(&mut meta)?),
            Term(codec::u64(&mut meta)?),
        );
        let commit = Index(codec::u64(&mut meta)?);
        let message = Message::Heartbeat {
            commit,
            read_round: codec::u64(&mut meta)?,
        };
        items.push(Item {
            group,
            term,
            message,
        });
    }
    for _ in 0..codec::counted(&mut meta, 20)? {
        let (group, term) = (
            GroupId(codec::u32(&mut meta)?),
            Term(codec::u64(&mut meta)?),
        );
        let message = Message::HeartbeatResponse {
            read_round: codec::u64(&mut meta)?,
        };
        items.push(Item {
            group,
            term,
            message,
        });
    }
    for _ in 0..codec::counted(&mut meta, 13)? {
        items.push(codec::decode(&mut meta, &mut body)?);
    }
    if meta.is_empty() && body.is_empty() {
        Ok(items)
    } else {
        Err(Error::Malformed("bytes after the last message"))
    }
}

fn checksum(lengths: &[u8], meta: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(lengths);
    hasher.update(meta);
    hasher.finalize()
}
