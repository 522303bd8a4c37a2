//! Entry blocks: the one encoding of log entries, on disk, on the wire and in memory.
//!
//! A leader encodes the entries it appends in one turn once, with one checksum; the same bytes go
//! to its log, to every peer and into every peer's log. A replica verifies, it never encodes again.
//!
//! ```text
//! 0        4        8            16           24       28        32
//! | crc32  | bytes  | first index | term       | count  | flags  | entries …
//!   of 4..   whole                                               each: u32 length, u8 kind, payload
//! ```
//! Little endian. All entries of a block have one term and rising, gapless indexes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{Index, Term};

/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 32;
/// Bytes before each payload.
pub const ENTRY_HEADER_BYTES: usize = 5;
/// The largest block that decodes, bytes. Longer lengths are refused before any allocation.
pub const MAX_BLOCK_BYTES: usize = 64 << 20;
const FLAG_HEADERS_ONLY: u32 = 1;
/// At least one entry is a configuration change: so that who takes a block over need not look at
/// each of its entries.
const FLAG_CONF_CHANGE: u32 = 2;

/// What an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A command of the state machine.
    Normal = 0,
    /// The empty entry that a new leader appends to commit its predecessors' (Raft §5.4.2, §8).
    Noop = 1,
    /// A configuration change (Raft §6).
    ConfChange = 2,
}

impl EntryKind {
    fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Normal),
            1 => Some(Self::Noop),
            2 => Some(Self::ConfChange),
            _ => None,
        }
    }
}

/// One log entry, its payload a slice of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log, from 1.
    pub index: Index,
    /// Term of the leader that appended it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// The command; empty for a witness and for [`EntryKind::Noop`].
    pub payload: Bytes,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Shorter than a header or than the header's length.
    #[error("block cut short")]
    Short,
    /// A header field out of range, or entries that do not fill the block exactly.
    #[error("block malformed")]
    Malformed,
    /// The checksum is not that of the bytes.
    #[error("block checksum mismatch")]
    Checksum,
}

/// A run of entries of one term, encoded and checksummed once. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    bytes: Bytes,
    first: Index,
    term: Term,
    count: u32,
}

impl Block {
    /// Encodes entries from index `first` on. Panics on no entries, on a payload of 4 GiB and on a
    /// block over [`MAX_BLOCK_BYTES`]: the caller bounds proposals.
    pub fn encode(first: Index, term: Term, entries: &[(EntryKind, Bytes)]) -> Self {
        Self::encode_with_flags(first, term, entries, 0)
    }

    fn encode_with_flags(
        first: Index,
        term: Term,
        entries: &[(EntryKind, Bytes)],
        flags: u32,
    ) -> Self {
        assert!(
            !entries.is_empty() && first > Index::ZERO,
            "a block has entries, from 1"
        );
        let payload: usize = entries
            .iter()
            .map(|(_, p)| p.len() + ENTRY_HEADER_BYTES)
            .sum();
        let total = HEADER_BYTES + payload;
        assert!(total <= MAX_BLOCK_BYTES, "block of {total} bytes");
        let count = u32::try_from(entries.len()).expect("fewer entries than bytes");
        let mut bytes = BytesMut::with_capacity(total);
        bytes.put_u32_le(0);
        bytes.put_u32_le(u32::try_from(total).expect("bounded above"));
        bytes.put_u64_le(first.0);
        bytes.put_u64_le(term.0);
        bytes.put_u32_le(count);
        bytes.put_u32_le(flags | conf_change_flag(entries.iter().map(|(kind, _)| *kind)));
        for (kind, payload) in entries {
            bytes.put_u32_le(u32::try_from(payload.len()).expect("bounded above"));
            bytes.put_u8(*kind as u8);
            bytes.put_slice(payload);
        }
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        Self {
            bytes: bytes.freeze(),
            first,
            term,
            count,
        }
    }

    /// Checks and takes over bytes from a disk or a peer: checksum, lengths, kinds, indexes.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "it keeps a share of the bytes"
    )]
    pub fn decode(bytes: Bytes) -> Result<Self, BlockError> {
        let length = Self::length_of(&bytes)?;
        if bytes.len() < length {
            return Err(BlockError::Short);
        }
        let bytes = bytes.slice(..length);
        if u32_at(&bytes, 0) != crc32fast::hash(&bytes[4..]) {
            return Err(BlockError::Checksum);
        }
        let first = Index(u64_at(&bytes, 8));
        let count = u32_at(&bytes, 24);
        let end = first
            .0
            .checked_add(u64::from(count))
            .ok_or(BlockError::Malformed)?;
        if first == Index::ZERO || count == 0 || end == u64::MAX {
            return Err(BlockError::Malformed);
        }
        let mut at = HEADER_BYTES;
        let mut flag = 0;
        for _ in 0..count {
            let header = bytes
                .get(at..at + ENTRY_HEADER_BYTES)
                .ok_or(BlockError::Malformed)?;
            let kind = EntryKind::from_u8(header[4]).ok_or(BlockError::Malformed)?;
            flag |= conf_change_flag(std::iter::once(kind));
            at += ENTRY_HEADER_BYTES + u32_at(header, 0) as usize;
        }
        if at != bytes.len() || u32_at(&bytes, 28) & !FLAG_HEADERS_ONLY != flag {
            return Err(BlockError::Malformed);
        }
        let term = Term(u64_at(&bytes, 16));
        Ok(Self {
            bytes,
            first,
            term,
            count,
        })
    }

    /// The whole length that a block's first bytes announce, before anything else is believed.
    pub fn length_of(bytes: &[u8]) -> Result<usize, BlockError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BlockError::Short);
        }
        let length = u32_at(bytes, 4) as usize;
        if !(HEADER_BYTES + ENTRY_HEADER_BYTES..=MAX_BLOCK_BYTES).contains(&length) {
            return Err(BlockError::Malformed);
        }
        Ok(length)
    }

    /// The encoded bytes, to be stored and sent as they are.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The block's own checksum, its first four bytes.
    pub fn checksum(&self) -> u32 {
        u32_at(&self.bytes, 0)
    }

    /// Index of the first entry.
    pub fn first(&self) -> Index {
        self.first
    }

    /// Index of the last entry.
    pub fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }

    /// The term of all entries.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether an entry in it changes the configuration.
    pub fn has_conf_change(&self) -> bool {
        u32_at(&self.bytes, 28) & FLAG_CONF_CHANGE != 0
    }

    /// How many entries.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The entries in index order; payloads share the block's bytes.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let mut at = HEADER_BYTES;
        (0..u64::from(self.count)).map(move |i| {
            let length = u32_at(&self.bytes, at) as usize;
            let kind = EntryKind::from_u8(self.bytes[at + 4]).expect("checked by decode");
            let start = at + ENTRY_HEADER_BYTES;
            at = start + length;
            Entry {
                index: Index(self.first.0 + i),
                term: self.term,
                kind,
                payload: self.bytes.slice(start..at),
            }
        })
    }

    /// The part of the block from index `first` to `last`, both inside, encoded anew unless it is
    /// the whole block. Rare: after a conflict or at a compaction point in the middle of a block.
    #[must_use]
    pub fn slice(&self, first: Index, last: Index) -> Self {
        assert!(
            self.first <= first && first <= last && last <= self.last(),
            "slice inside"
        );
        if (first, last) == (self.first, self.last()) {
            return self.clone();
        }
        let part = self.entries().filter(|e| (first..=last).contains(&e.index));
        let entries: Vec<_> = part.map(|e| (e.kind, e.payload)).collect();
        let flags = u32_at(&self.bytes, 28) & FLAG_HEADERS_ONLY;
        Self::encode_with_flags(first, self.term, &entries, flags)
    }

    /// The block as a witness stores it: payloads only of configuration changes.
    #[must_use]
    pub fn headers_only(&self) -> Self {
        let entries: Vec<_> = self
            .entries()
            .map(|e| match e.kind {
                EntryKind::Normal | EntryKind::Noop => (e.kind, Bytes::new()),
                EntryKind::ConfChange => (e.kind, e.payload),
            })
            .collect();
        Self::encode_with_flags(self.first, self.term, &entries, FLAG_HEADERS_ONLY)
    }
}

fn conf_change_flag(mut kinds: impl Iterator<Item = EntryKind>) -> u32 {
    if kinds.any(|kind| kind == EntryKind::ConfChange) {
        FLAG_CONF_CHANGE
    } else {
        0
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
