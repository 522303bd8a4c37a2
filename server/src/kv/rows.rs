//! The bytes of rows; the only file that knows them.
//!
//! ```text
//! keyspace   key (big endian: sorted)              value (little endian)
//! groups     group u32                             state u8 = 1, applied u64, term u64, revision u64
//!                                                  or state u8 = 2: being removed
//! keys       group u32, key                        main u64, sub u32, created u64, version u64
//! revisions  group u32, main u64, sub u32          kind u8, previous main u64, sub u32, KeyValue
//! ```
//! A key's row points to its newest revision; each revision points to the one before of the same
//! key, zero at the first. A deleted key keeps its row, with version 0, and its last revision is a
//! tombstone of kind 2, so that the past stays readable.

use bytes::{BufMut, Bytes};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_proto::mvccpb::KeyValue;
use prost::Message;

const STATE_PRESENT: u8 = 1;
const STATE_REMOVING: u8 = 2;
const KIND_PUT: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;

/// Bytes of a revision row before its `KeyValue`.
const REVISION_HEADER_BYTES: usize = 13;
/// Bytes of a key's row.
const KEY_ROW_BYTES: usize = 28;
/// Bytes of a present group's row.
const GROUP_ROW_BYTES: usize = 25;

/// The revision of a store that nothing was ever written to, as in etcd.
pub(super) const FIRST_REVISION: u64 = 1;

/// One change: the request's revision, and the place of the change within the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Revision {
    /// Rises by one for each request that changes something.
    pub main: u64,
    /// From 0 within the request.
    pub sub: u32,
}

/// How far a group is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupState {
    /// The last entry applied.
    pub applied: Index,
    /// Its term.
    pub term: Term,
    /// The newest revision.
    pub revision: u64,
}

impl GroupState {
    /// A group that nothing was applied to.
    pub const EMPTY: Self = Self {
        applied: Index::ZERO,
        term: Term::ZERO,
        revision: FIRST_REVISION,
    };
}

/// A row of `groups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupRow {
    /// The group is here.
    Present(GroupState),
    /// Its other rows are being deleted, and mean nothing.
    Removing,
}

impl GroupRow {
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Removing => vec![STATE_REMOVING],
            Self::Present(state) => {
                let mut bytes = Vec::with_capacity(GROUP_ROW_BYTES);
                bytes.put_u8(STATE_PRESENT);
                bytes.put_u64_le(state.applied.0);
                bytes.put_u64_le(state.term.0);
                bytes.put_u64_le(state.revision);
                bytes
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match (bytes.first()?, bytes.len()) {
            (&STATE_REMOVING, 1) => Some(Self::Removing),
            (&STATE_PRESENT, GROUP_ROW_BYTES) => Some(Self::Present(GroupState {
                applied: Index(u64_at(bytes, 1)?),
                term: Term(u64_at(bytes, 9)?),
                revision: u64_at(bytes, 17)?,
            })),
            _ => None,
        }
    }
}

/// A row of `keys`: where a key stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyRow {
    /// Its newest change, perhaps its deletion.
    pub modified: Revision,
    /// The main revision at which it came into being; 0 if deleted.
    pub created: u64,
    /// Puts since then; 0 if deleted.
    pub version: u64,
}

impl KeyRow {
    /// A key deleted at `modified`.
    pub fn deleted(modified: Revision) -> Self {
        Self {
            modified,
            created: 0,
            version: 0,
        }
    }

    pub fn is_live(self) -> bool {
        self.version > 0
    }

    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(KEY_ROW_BYTES);
        bytes.put_u64_le(self.modified.main);
        bytes.put_u32_le(self.modified.sub);
        bytes.put_u64_le(self.created);
        bytes.put_u64_le(self.version);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_ROW_BYTES {
            return None;
        }
        Some(Self {
            modified: Revision {
                main: u64_at(bytes, 0)?,
                sub: u32_at(bytes, 8)?,
            },
            created: u64_at(bytes, 12)?,
            version: u64_at(bytes, 20)?,
        })
    }
}

/// A row of `revisions`: a change, and the way to the one before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RevisionRow {
    /// The change before of the same key; zero if this is the first.
    pub previous: Revision,
    /// The key after the change; after a deletion only key and `mod_revision`, as in etcd's events.
    pub kv: KeyValue,
}

impl RevisionRow {
    /// Whether the change is a deletion. A put has version 1 at least.
    pub fn is_tombstone(&self) -> bool {
        self.kv.version == 0
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REVISION_HEADER_BYTES + self.kv.encoded_len());
        bytes.put_u8(if self.is_tombstone() {
            KIND_TOMBSTONE
        } else {
            KIND_PUT
        });
        bytes.put_u64_le(self.previous.main);
        bytes.put_u32_le(self.previous.sub);
        self.kv.encode_raw(&mut bytes);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let row = Self {
            previous: Revision {
                main: u64_at(bytes, 1)?,
                sub: u32_at(bytes, 9)?,
            },
            kv: KeyValue::decode(bytes.get(REVISION_HEADER_BYTES..)?).ok()?,
        };
        let kind = if row.is_tombstone() {
            KIND_TOMBSTONE
        } else {
            KIND_PUT
        };
        (bytes[0] == kind).then_some(row)
    }
}

/// The prefix of all rows of a group, in each keyspace; whole in `groups`.
pub(super) fn group_key(group: GroupId) -> [u8; 4] {
    group.0.to_be_bytes()
}

/// The group of a row, of any keyspace.
pub(super) fn group_of(row_key: &[u8]) -> Option<GroupId> {
    let bytes = row_key.get(..4)?.try_into().ok()?;
    Some(GroupId(u32::from_be_bytes(bytes)))
}

/// The key of a row of `keys`.
pub(super) fn key_key(group: GroupId, key: &[u8]) -> Vec<u8> {
    [&group_key(group), key].concat()
}

/// The client's key within a row of `keys`.
pub(super) fn key_of(row_key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(row_key.get(4..).unwrap_or_default())
}

/// The key of a row of `revisions`.
pub(super) fn revision_key(group: GroupId, revision: Revision) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&group_key(group));
    key[4..12].copy_from_slice(&revision.main.to_be_bytes());
    key[12..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let modified = Revision { main: 7, sub: 3 };
        let state = GroupState {
            applied: Index(9),
            term: Term(2),
            revision: 7,
        };
        for row in [GroupRow::Removing, GroupRow::Present(state)] {
            assert_eq!(GroupRow::decode(&row.encode()), Some(row));
        }
        let key = KeyRow {
            modified,
            created: 5,
            version: 2,
        };
        assert_eq!(KeyRow::decode(&key.encode()), Some(key));
        for version in [0, 2] {
            let row = RevisionRow {
                previous: modified,
                kv: KeyValue {
                    key: Bytes::from_static(b"k"),
                    version,
                    mod_revision: 8,
                    ..KeyValue::default()
                },
            };
            assert_eq!(RevisionRow::decode(&row.encode()), Some(row));
        }
    }

    #[test]
    fn damaged_rows_do_not_decode() {
        for bytes in [&[][..], &[3], &[STATE_PRESENT, 1], &[STATE_REMOVING, 0]] {
            assert_eq!(GroupRow::decode(bytes), None, "{bytes:?}");
            assert_eq!(KeyRow::decode(bytes), None, "{bytes:?}");
            assert_eq!(RevisionRow::decode(bytes), None, "{bytes:?}");
        }
        // A kind that contradicts the version.
        let mut bytes = vec![KIND_PUT];
        bytes.extend([0; 12]);
        assert_eq!(RevisionRow::decode(&bytes), None);
    }

    #[test]
    fn revisions_sort_by_main_then_sub() {
        let key = |main, sub| revision_key(GroupId(1), Revision { main, sub });
        assert!(key(1, 256) < key(256, 0) && key(256, 0) < key(256, 1));
        assert!(key(u64::MAX, u32::MAX) < revision_key(GroupId(2), Revision::default()));
    }
}
