//! The bytes of a snapshot's file. No other file knows them.
//!
//! ```text
//! file    = header | chunk … | trailer                                    all numbers little endian
//! header  = | u64 magic | u32 version | u32 group | u64 index | u64 term | u32 length | u32 crc | membership |
//! chunk   = | u32 length | u8 kind | u32 crc | bytes |    kind 1: bytes of the state, or of the file begun last
//!                                                         kind 2: the name of a file that begins here
//! trailer = a chunk of kind 3: | u64 bytes of the whole file | u64 chunks before this one | u32 crc of all before it |
//! ```
//! - The header's checksum covers all of it but itself. The layout of the first 40 bytes and this
//!   checksum stay as they are in all versions: so a newer file is told from a damaged one.
//! - A chunk's checksum begins with group, index, term and the chunk's number: a chunk that is
//!   right in another place or in another snapshot is wrong here. The trailer is such a chunk. Files
//!   of different states at one entry, which must not exist, are told apart by the whole sum alone.
//! - The file is the same for all nodes, byte by byte, and travels as it is.
//! - *The checksum of a file* is the CRC-32 of all its bytes, the trailer's too. Who writes it sums
//!   while writing; who opens it goes on from the trailer's sum over the trailer's own bytes, and
//!   needs to read nothing else. The sum in the trailer must not directly follow what it sums: the
//!   CRC-32 of any bytes with their own CRC-32 behind them is one and the same number.

use bytes::Buf;
use crc32fast::Hasher;
use multiraft_engine::planted;
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::types::{GroupId, Index, Term};

/// The version of a snapshot's file, in its header.
pub const SNAPSHOT_FORMAT_VERSION: u32 = 1;
/// The most bytes in one chunk: what a reader has to hold in memory.
pub(crate) const MAX_CHUNK_BYTES: usize = 1 << 20;
/// The longest name of a file beside the state, bytes.
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// The longest encoded membership. That of 64 members with host names of 255 bytes, in both halves
/// of a change, has 34 KiB.
pub(crate) const MAX_MEMBERSHIP_BYTES: usize = 1 << 20;
/// Bytes of the header before the membership.
pub(crate) const HEADER_BYTES: usize = 40;
/// Bytes of a chunk before its content.
pub(crate) const CHUNK_HEAD_BYTES: usize = 9;
/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: usize = CHUNK_HEAD_BYTES + TRAILER_CONTENT_BYTES;
const TRAILER_CONTENT_BYTES: usize = 20;
/// The carriage return shows a copy in text mode.
const MAGIC: u64 = u64::from_le_bytes(*b"MRSNAP\r\n");
/// Where the header's checksum is.
const CRC_AT: usize = 36;

/// Why bytes are not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// What is wrong, for people.
    Damaged(&'static str),
    /// Whole, as far as one can tell, but written by a newer program.
    Newer(u32),
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) group: GroupId,
    pub(crate) snapshot: Snapshot,
}

impl Header {
    /// The header's bytes; `None` if the membership is too long for it.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let membership = self.snapshot.membership.encode();
        if MAX_MEMBERSHIP_BYTES < membership.len() {
            return None;
        }
        let length = u32::try_from(membership.len()).expect("checked: at most 1 MiB");
        let mut out = Vec::with_capacity(HEADER_BYTES + membership.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&SNAPSHOT_FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&self.snapshot.index.0.to_le_bytes());
        out.extend_from_slice(&self.snapshot.term.0.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        let crc = header_crc(&out, &membership);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&membership);
        Some(out)
    }

    /// The length of the membership that the first bytes tell, within its limit. Not proven yet:
    /// [`Header::decode`] does that.
    pub(crate) fn membership_bytes(head: &[u8; HEADER_BYTES]) -> Result<usize, Flaw> {
        if (&head[..]).get_u64_le() != MAGIC {
            return Err(Flaw::Damaged("it does not begin like a snapshot"));
        }
        let length = (&head[CRC_AT - 4..]).get_u32_le();
        let length = usize::try_from(length).ok();
        let length = length.filter(|length| *length <= MAX_MEMBERSHIP_BYTES);
        length.ok_or(Flaw::Damaged("its membership is too long"))
    }

    /// Reads and checks a whole header.
    pub(crate) fn decode(head: &[u8; HEADER_BYTES], membership: &[u8]) -> Result<Self, Flaw> {
        if (&head[CRC_AT..]).get_u32_le() != header_crc(&head[..CRC_AT], membership) {
            return Err(Flaw::Damaged("header checksum mismatch"));
        }
        let mut fields = &head[8..];
        let version = fields.get_u32_le();
        if SNAPSHOT_FORMAT_VERSION < version {
            return Err(Flaw::Newer(version));
        }
        let group = GroupId(fields.get_u32_le());
        let (index, term) = (Index(fields.get_u64_le()), Term(fields.get_u64_le()));
        if version == 0 || group.0 == 0 || index == Index::ZERO {
            return Err(Flaw::Damaged("its header makes no sense"));
        }
        let membership = Membership::decode(membership)
            .map_err(|_| Flaw::Damaged("its membership does not decode"))?;
        let snapshot = Snapshot {
            index,
            term,
            membership,
        };
        Ok(Self { group, snapshot })
    }

    /// What begins the checksums of this file's chunks.
    pub(crate) fn seed(&self) -> Seed {
        Seed {
            group: self.group,
            index: self.snapshot.index,
            term: self.snapshot.term,
        }
    }
}

fn header_crc(head: &[u8], membership: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(head);
    hasher.update(membership);
    hasher.finalize()
}

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of the state, or of the file that began last.
    Bytes,
    /// The name of a file that begins here.
    File,
    /// The trailer.
    End,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Bytes => 1,
            Self::File => 2,
            Self::End => 3,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Bytes, Self::File, Self::End]
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    /// Whether content of this length may follow.
    fn allows(self, length: usize) -> bool {
        match self {
            Self::Bytes => 0 < length && length <= MAX_CHUNK_BYTES,
            Self::File => length <= MAX_NAME_BYTES,
            Self::End => length == TRAILER_CONTENT_BYTES,
        }
    }
}

/// Which snapshot a chunk belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    group: GroupId,
    index: Index,
    term: Term,
}

impl Seed {
    fn crc(self, number: u64, kind: Kind, content: &[u8]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&self.group.0.to_le_bytes());
        hasher.update(&self.index.0.to_le_bytes());
        hasher.update(&self.term.0.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(&(content.len() as u64).to_le_bytes());
        hasher.update(&[kind.number()]);
        hasher.update(content);
        hasher.finalize()
    }

    /// Writes a chunk's head before its content: `chunk` has room for it in front.
    pub(crate) fn seal(self, number: u64, kind: Kind, chunk: &mut [u8]) {
        let (head, content) = chunk.split_at_mut(CHUNK_HEAD_BYTES);
        assert!(kind.allows(content.len()), "the limits of a chunk");
        let length = u32::try_from(content.len()).expect("within the limits of a chunk");
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4] = kind.number();
        head[5..].copy_from_slice(&self.crc(number, kind, content).to_le_bytes());
    }
}

/// What a chunk says of itself, before its content is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkHead {
    pub(crate) length: usize,
    pub(crate) kind: Kind,
    crc: u32,
}

impl ChunkHead {
    /// Reads a head and checks its length against the limit of its kind.
    pub(crate) fn decode(head: [u8; CHUNK_HEAD_BYTES]) -> Result<Self, Flaw> {
        let mut fields = &head[..];
        let length = usize::try_from(fields.get_u32_le());
        let kind = Kind::from_number(fields.get_u8());
        let (Ok(length), Some(kind)) = (length, kind) else {
            return Err(Flaw::Damaged("a chunk of no kind"));
        };
        if !kind.allows(length) {
            return Err(Flaw::Damaged("a chunk of a wrong length"));
        }
        let crc = fields.get_u32_le();
        Ok(Self { length, kind, crc })
    }

    /// Checks the content.
    pub(crate) fn check(self, seed: Seed, number: u64, content: &[u8]) -> Result<(), Flaw> {
        let is_right = self.crc == seed.crc(number, self.kind, content) || planted!("B21");
        if content.len() == self.length && is_right {
            return Ok(());
        }
        Err(Flaw::Damaged("chunk checksum mismatch"))
    }
}

/// The end of a file: what it says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Bytes of the file, header and trailer included.
    pub(crate) bytes: u64,
    /// Chunks, without the trailer itself.
    pub(crate) chunks: u64,
    /// CRC-32 of all bytes before the trailer.
    pub(crate) crc: u32,
}

impl Trailer {
    /// The trailer's bytes.
    pub(crate) fn encode(self, seed: Seed) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        let content = &mut out[CHUNK_HEAD_BYTES..];
        content[..8].copy_from_slice(&self.bytes.to_le_bytes());
        content[8..16].copy_from_slice(&self.chunks.to_le_bytes());
        content[16..].copy_from_slice(&self.crc.to_le_bytes());
        seed.seal(self.chunks, Kind::End, &mut out);
        out
    }

    /// Reads and checks the trailer of a file of `file_bytes` bytes.
    pub(crate) fn decode(
        trailer: &[u8; TRAILER_BYTES],
        seed: Seed,
        file_bytes: u64,
    ) -> Result<Self, Flaw> {
        let (head, content) = trailer.split_at(CHUNK_HEAD_BYTES);
        let head = ChunkHead::decode(head.try_into().expect("nine bytes"))?;
        if head.kind != Kind::End {
            return Err(Flaw::Damaged("it has no end"));
        }
        let mut fields = content;
        let trailer = Self {
            bytes: fields.get_u64_le(),
            chunks: fields.get_u64_le(),
            crc: fields.get_u32_le(),
        };
        head.check(seed, trailer.chunks, content)?;
        if trailer.bytes == file_bytes {
            Ok(trailer)
        } else {
            Err(Flaw::Damaged("its length is not what its end says"))
        }
    }

    /// The checksum of the whole file: from the sum before the trailer on over its bytes.
    pub(crate) fn checksum(self, seed: Seed) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.crc);
        hasher.update(&self.encode(seed));
        hasher.finalize()
    }
}
