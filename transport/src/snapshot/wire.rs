//! The frames on a connection for snapshots; the only file that knows their bytes.
//!
//! ```text
//! frame:   u32 crc32 of all that follows | u32 body bytes | u8 kind | 3 zero bytes | body
//!
//! sender   1 Offer    u64 file bytes | u32 file checksum | the message, see [`crate::codec`]
//!          2 Chunk    u64 offset | bytes of the file
//! receiver 3 Resume   u64 offset             go on from there
//!          4 Ack      u64 offset             all before it is taken
//!          5 Done     -                      the file is whole and durable
//!          6 Refuse   u8 reason              the end, or "come again"
//!          7 Alive    -                      nothing new: a disk is at work
//! ```
//! Little endian. A chunk's checksum is that of its frame: it covers the offset too.

use bytes::{BufMut, Bytes, BytesMut};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

use crate::codec::{self, Item};
use crate::error::Error;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 12;
/// The most bytes of the file in one chunk, whatever the sender's configuration says.
pub const MAX_CHUNK_BYTES: usize = 8 << 20;
/// The most bytes of an offer: all names of the largest membership fit many times.
pub const MAX_OFFER_BYTES: usize = 1 << 20;
/// Bytes before those of the file in a chunk's frame.
const CHUNK_HEAD_BYTES: usize = HEADER_BYTES + 8;

const OFFER: u8 = 1;
const CHUNK: u8 = 2;
const RESUME: u8 = 3;
const ACK: u8 = 4;
const DONE: u8 = 5;
const REFUSE: u8 = 6;
const ALIVE: u8 = 7;

/// What the two ends of a transfer say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Sender: will you have this?
    Offer(Offer),
    /// Sender: the bytes that follow.
    Chunk {
        /// Where in the file they belong: right behind the last ones.
        offset: u64,
        /// At least one.
        bytes: Bytes,
    },
    /// Receiver, to an offer: send from here on.
    Resume {
        /// Bytes that are here already.
        offset: u64,
    },
    /// Receiver: a chunk is taken.
    Ack {
        /// Bytes that are here.
        offset: u64,
    },
    /// Receiver: the file is whole, checked and durable, now or since long ago.
    Done,
    /// Receiver: not this one, or not now.
    Refuse(Refusal),
    /// Receiver: still there, nothing else to say.
    Alive,
}

/// A snapshot, its file, and the message that arrives with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Whose.
    pub group: GroupId,
    /// The leader's term.
    pub term: Term,
    /// What it stands for.
    pub snapshot: Snapshot,
    /// Length of the file.
    pub bytes: u64,
    /// CRC-32 of the file.
    pub checksum: u32,
}

/// Why a receiver does not take a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Come again: too many at once, or this one is being worked on for an earlier connection.
    #[error("busy")]
    Busy,
    /// Its disk is full.
    #[error("no room for the file")]
    NoRoom,
    /// The whole file is not what was offered; nothing is kept of it.
    #[error("the file is damaged")]
    Damaged,
    /// Its disk fails.
    #[error("the file cannot be written there")]
    Failed,
}

impl Offer {
    /// The message, as it is delivered at node `to`.
    pub fn envelope(&self, from: NodeId, to: NodeId, incarnation: u64) -> Envelope {
        Envelope {
            group: self.group,
            from,
            to,
            term: self.term,
            incarnation,
            message: Message::InstallSnapshot {
                snapshot: self.snapshot.clone(),
            },
        }
    }

    /// Whether both are of the same file, in whatever term they were sent.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.group == other.group
            && self.snapshot == other.snapshot
            && self.bytes == other.bytes
            && self.checksum == other.checksum
    }
}

/// What can be made of the bytes that have come so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A frame; its bytes are gone from the buffer.
    Frame(Frame),
    /// Nothing yet: there must be so many bytes, which is within the limits.
    Needs(usize),
}

/// Takes one frame off the front of a stream. The length is checked before the rest is waited for.
pub fn take(buffer: &mut BytesMut) -> Result<Taken, Error> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(Taken::Needs(HEADER_BYTES));
    };
    let whole = HEADER_BYTES + check_header(header)?;
    if buffer.len() < whole {
        return Ok(Taken::Needs(whole));
    }
    decode(buffer.split_to(whole).freeze()).map(Taken::Frame)
}

/// Reads a frame that is here as a whole.
pub fn decode(mut frame: Bytes) -> Result<Frame, Error> {
    let header = frame.first_chunk::<HEADER_BYTES>();
    let header = header.ok_or(Error::Malformed("cut short"))?;
    let (body_bytes, kind) = (check_header(header)?, header[8]);
    if frame.len() != HEADER_BYTES + body_bytes {
        return Err(Error::Malformed("a frame of another length"));
    }
    if codec::u32(&mut frame)? != crc32fast::hash(&frame) {
        return Err(Error::Checksum);
    }
    let mut body = frame.split_off(HEADER_BYTES - 4);
    let frame = match kind {
        OFFER => Frame::Offer(take_offer(&mut body)?),
        CHUNK => Frame::Chunk {
            offset: codec::u64(&mut body)?,
            bytes: body.split_off(0),
        },
        RESUME => Frame::Resume {
            offset: codec::u64(&mut body)?,
        },
        ACK => Frame::Ack {
            offset: codec::u64(&mut body)?,
        },
        DONE => Frame::Done,
        REFUSE => Frame::Refuse(take_refusal(&body.split_off(0))?),
        ALIVE => Frame::Alive,
        _ => return Err(Error::Malformed("unknown kind of frame")),
    };
    if body.is_empty() {
        Ok(frame)
    } else {
        Err(Error::Malformed("bytes after the frame"))
    }
}

/// The length of the body, if a frame of this kind may have it.
fn check_header(header: &[u8; HEADER_BYTES]) -> Result<usize, Error> {
    let mut fields = Bytes::copy_from_slice(&header[4..]);
    let body_bytes = codec::u32(&mut fields)? as usize;
    let (least, most) = match header[8] {
        OFFER => (12, MAX_OFFER_BYTES),
        CHUNK => (8 + 1, 8 + MAX_CHUNK_BYTES),
        RESUME | ACK => (8, 8),
        DONE | ALIVE => (0, 0),
        REFUSE => (1, 1),
        _ => return Err(Error::Malformed("unknown kind of frame")),
    };
    if header[9..] != [0; 3] {
        return Err(Error::Malformed("reserved bytes that are not zero"));
    }
    if (least..=most).contains(&body_bytes) {
        Ok(body_bytes)
    } else {
        Err(Error::Malformed("a frame beyond the limits"))
    }
}

/// The bytes of a frame. An offer longer than [`MAX_OFFER_BYTES`] would not be taken.
pub fn encode(frame: &Frame) -> Bytes {
    let mut out = BytesMut::zeroed(HEADER_BYTES);
    let kind = match frame {
        Frame::Offer(offer) => {
            put_offer(&mut out, offer);
            OFFER
        }
        Frame::Chunk { offset, bytes } => {
            out.put_u64_le(*offset);
            out.put_slice(bytes);
            CHUNK
        }
        Frame::Resume { offset } => {
            out.put_u64_le(*offset);
            RESUME
        }
        Frame::Ack { offset } => {
            out.put_u64_le(*offset);
            ACK
        }
        Frame::Done => DONE,
        Frame::Refuse(refusal) => {
            out.put_u8(match refusal {
                Refusal::Busy => 1,
                Refusal::NoRoom => 2,
                Refusal::Damaged => 3,
                Refusal::Failed => 4,
            });
            REFUSE
        }
        Frame::Alive => ALIVE,
    };
    seal(out, kind)
}

/// A chunk's frame whose `bytes` bytes are filled in place: no copy between file and socket.
///
/// # Errors
/// What `fill` said.
pub fn encode_chunk(
    offset: u64,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]) -> std::io::Result<()>,
) -> std::io::Result<Bytes> {
    let mut out = BytesMut::zeroed(CHUNK_HEAD_BYTES + bytes);
    out[HEADER_BYTES..CHUNK_HEAD_BYTES].copy_from_slice(&offset.to_le_bytes());
    fill(&mut out[CHUNK_HEAD_BYTES..])?;
    Ok(seal(out, CHUNK))
}

fn seal(mut out: BytesMut, kind: u8) -> Bytes {
    let body_bytes = u32::try_from(out.len() - HEADER_BYTES).expect("a few MiB at most");
    out[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    out[8] = kind;
    let crc = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

fn put_offer(out: &mut BytesMut, offer: &Offer) {
    out.put_u64_le(offer.bytes);
    out.put_u32_le(offer.checksum);
    let item = Item {
        group: offer.group,
        term: offer.term,
        message: Message::InstallSnapshot {
            snapshot: offer.snapshot.clone(),
        },
    };
    codec::encode(&item, out, &mut Vec::new());
}

fn take_offer(body: &mut Bytes) -> Result<Offer, Error> {
    let (bytes, checksum) = (codec::u64(body)?, codec::u32(body)?);
    let item = codec::decode(body, &mut Bytes::new())?;
    let Message::InstallSnapshot { snapshot } = item.message else {
        return Err(Error::Malformed("an offer of something else"));
    };
    if item.group == GroupId(0) || snapshot.index == Index::ZERO {
        return Err(Error::Malformed("an offer of no group's snapshot"));
    }
    Ok(Offer {
        group: item.group,
        term: item.term,
        snapshot,
        bytes,
        checksum,
    })
}

fn take_refusal(body: &[u8]) -> Result<Refusal, Error> {
    match body {
        [1] => Ok(Refusal::Busy),
        [2] => Ok(Refusal::NoRoom),
        [3] => Ok(Refusal::Damaged),
        [4] => Ok(Refusal::Failed),
        _ => Err(Error::Malformed("unknown refusal")),
    }
}
