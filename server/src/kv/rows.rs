//! The bytes of rows; the only file that knows them.
//!
//! ```text
//! keyspace   key (big endian: sorted)              value (little endian)
//! groups     group u32                             state u8 = 1, applied u64, term u64, revision u64
//!                                                  or state u8 = 2: being removed, 3: being
//!                                                  restored, 4: emptied
//! keys       group u32, key                        main u64, sub u32, created u64, version u64
//! revisions  group u32, main u64, sub u32          kind u8, previous main u64, sub u32, KeyValue
//! ```
//! A key's row points to its newest revision; each revision points to the one before of the same
//! key, zero at the first. A deleted key keeps its row, with version 0, and its last revision is a
//! tombstone of kind 2, so that the past stays readable.
//!
//! A snapshot carries the rows of `keys` and `revisions` as they are here, without the group in front:
//! a change of their bytes is a new version of `snapshot.rs` too.

use bytes::{BufMut, Bytes};
use multiraft_engine::block::MAX_BLOCK_BYTES;
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_proto::mvccpb::KeyValue;
use prost::Message;

use super::check::MAX_KEY_BYTES;

const STATE_PRESENT: u8 = 1;
const STATE_REMOVING: u8 = 2;
const STATE_RESTORING: u8 = 3;
const STATE_EMPTIED: u8 = 4;
const KIND_PUT: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;

/// Bytes of a revision row before its `KeyValue`.
const REVISION_HEADER_BYTES: usize = 13;
/// Bytes of a key's row.
const KEY_ROW_BYTES: usize = 28;
/// Bytes of a present group's row.
const GROUP_ROW_BYTES: usize = 25;
/// Bytes of the key of a row of `revisions`, without the group.
const REVISION_BYTES: usize = 12;

/// The longest value of a row, bytes: a row comes of one log entry, and adds a few numbers to it.
pub(super) const MAX_ROW_VALUE_BYTES: usize = MAX_BLOCK_BYTES + 1024;

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
    /// Its other rows are being deleted, and mean nothing. So will this one be.
    Removing,
    /// Its other rows are being replaced by those of a snapshot, and mean nothing until then.
    Restoring,
    /// It has no other rows, for the snapshot that was to bring them was not taken over. Nothing is
    /// applied; but what the group knew is elsewhere, so that reading it as empty would be wrong.
    Emptied,
}

impl GroupRow {
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Removing => vec![STATE_REMOVING],
            Self::Restoring => vec![STATE_RESTORING],
            Self::Emptied => vec![STATE_EMPTIED],
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
            (&STATE_RESTORING, 1) => Some(Self::Restoring),
            (&STATE_EMPTIED, 1) => Some(Self::Emptied),
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

/// The rows that a group's state is made of, by their keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RowKind {
    /// Of `keys`: a [`KeyRow`].
    Key,
    /// Of `revisions`: a [`RevisionRow`].
    Revision,
}

impl RowKind {
    /// All of them, in the order of a snapshot.
    pub const ALL: [Self; 2] = [Self::Key, Self::Revision];

    /// Whether a row decodes, and fits a group whose newest revision is `newest`. `key` is without
    /// the group. What it points to is not looked up.
    pub fn is_sound(self, key: &[u8], value: &[u8], newest: u64) -> bool {
        let is_past = |main| FIRST_REVISION < main && main <= newest;
        match self {
            Self::Key => KeyRow::decode(value).is_some_and(|row| {
                (1..=MAX_KEY_BYTES).contains(&key.len())
                    && is_past(row.modified.main)
                    && row.created <= row.modified.main
                    && row.is_live() == (row.created > 0)
            }),
            Self::Revision => revision_of(key).is_some_and(|revision| {
                is_past(revision.main)
                    && RevisionRow::decode(value).is_some_and(|row| {
                        row.previous < revision
                            && row.kv.mod_revision.unsigned_abs() == revision.main
                    })
            }),
        }
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

/// A row's whole key, of the group and what follows it.
pub(super) fn row_key(group: GroupId, key: &[u8]) -> Vec<u8> {
    [&group_key(group), key].concat()
}

/// What follows the group in a row's whole key.
pub(super) fn without_group(row_key: &[u8]) -> &[u8] {
    row_key.get(4..).unwrap_or_default()
}

/// The key of a row of `keys`.
pub(super) fn key_key(group: GroupId, key: &[u8]) -> Vec<u8> {
    row_key(group, key)
}

/// The client's key within a row of `keys`.
pub(super) fn key_of(row_key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(without_group(row_key))
}

/// The key of a row of `revisions`.
pub(super) fn revision_key(group: GroupId, revision: Revision) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&group_key(group));
    key[4..12].copy_from_slice(&revision.main.to_be_bytes());
    key[12..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

/// The revision of a row of `revisions`, from its key without the group.
fn revision_of(key: &[u8]) -> Option<Revision> {
    let bytes: [u8; REVISION_BYTES] = key.try_into().ok()?;
    let (main, sub) = bytes.split_at(8);
    Some(Revision {
        main: u64::from_be_bytes(main.try_into().ok()?),
        sub: u32::from_be_bytes(sub.try_into().ok()?),
    })
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
        for row in [
            GroupRow::Removing,
            GroupRow::Restoring,
            GroupRow::Emptied,
            GroupRow::Present(state),
        ] {
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
        for bytes in [
            &[][..],
            &[5],
            &[STATE_PRESENT, 1],
            &[STATE_REMOVING, 0],
            &[STATE_RESTORING, 0],
            &[STATE_EMPTIED, 0],
        ] {
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
    fn sound_rows_fit_their_group() {
        let key_row = |main, created, version| {
            let modified = Revision { main, sub: 0 };
            KeyRow {
                modified,
                created,
                version,
            }
            .encode()
        };
        let long = vec![b'k'; MAX_KEY_BYTES + 1];
        let row = key_row(7, 5, 2);
        for (key, value, want) in [
            (&b"k"[..], &row[..], true),
            (&long[1..], &row, true),
            (&long, &row, false),
            (b"", &row, false),
            (b"k", &row[1..], false),
            (b"k", &key_row(8, 5, 2), false), // newer than the group
            (b"k", &key_row(FIRST_REVISION, 0, 0), false), // older than any change
            (b"k", &key_row(7, 8, 1), false), // created later than changed
            (b"k", &key_row(7, 0, 0), true),  // a deleted key
            (b"k", &key_row(7, 0, 1), false),
            (b"k", &key_row(7, 7, 0), false),
        ] {
            assert_eq!(RowKind::Key.is_sound(key, value, 7), want, "{value:?}");
        }
        let key = |main, sub| revision_key(GroupId(0), Revision { main, sub })[4..].to_vec();
        let revision_row = |previous, mod_revision| {
            let kv = KeyValue {
                mod_revision,
                ..KeyValue::default()
            };
            RevisionRow { previous, kv }.encode()
        };
        let previous = Revision { main: 6, sub: 4 };
        let row = revision_row(previous, 7);
        for (key, value, want) in [
            (&key(7, 0)[..], &row[..], true),
            (&key(7, 0)[1..], &row, false),
            (&key(8, 0), &revision_row(previous, 8), false), // newer than the group
            (&key(6, 5), &row, false),                       // another revision
            (&key(6, 5), &revision_row(previous, 6), true),
            (&key(6, 4), &revision_row(previous, 6), false), // points to itself
            (&key(7, 0), &row[..12], false),
        ] {
            assert_eq!(RowKind::Revision.is_sound(key, value, 7), want, "{value:?}");
        }
    }

    #[test]
    fn revisions_sort_by_main_then_sub() {
        let key = |main, sub| revision_key(GroupId(1), Revision { main, sub });
        assert!(key(1, 256) < key(256, 0) && key(256, 0) < key(256, 1));
        assert!(key(u64::MAX, u32::MAX) < revision_key(GroupId(2), Revision::default()));
    }
}
