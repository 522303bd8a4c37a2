//! The embedded store: one database a node, three keyspaces that all groups share.
//!
//! Writes are batches, atomic over keyspaces and handed to the operating system without a sync: a
//! killed process loses nothing, a power failure loses the newest batches whole. [`Store::flush`]
//! makes all durable. Batches are kept in their order: what a crash leaves is all of them up to one.
//! Reads go through a [`View`], which no later batch changes.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{
    Database, Iter, Keyspace, KeyspaceCreateOptions, KvPair, OwnedWriteBatch, PersistMode,
    Readable, Snapshot, UserKey,
};
use multiraft_engine::types::GroupId;

use super::error::StoreError;
use super::rows::{
    GroupRow, KeyRow, Revision, RevisionRow, RowKind, group_key, group_of, key_key, key_of,
    revision_key, row_key,
};

const GROUPS: &str = "groups";
const KEYS: &str = "keys";
const REVISIONS: &str = "revisions";

/// Where a batch of many rows is full: the journal is locked while it is written, and other groups'
/// applies wait for it.
const FULL_ROWS: usize = 4096;
/// As [`FULL_ROWS`], in bytes of keys and values.
const FULL_BYTES: usize = 1 << 20;

/// First and last row of a span, by whole row key.
type RowBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Which keys a request means (etcd's `key` and `range_end`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Span {
    /// One key.
    One(Bytes),
    /// A key and all after it.
    From(Bytes),
    /// From the first up to but without the second.
    Between(Bytes, Bytes),
}

impl Span {
    /// The span of a request: no `range_end` is one key, a single zero byte is no end.
    pub fn new(key: &Bytes, range_end: &Bytes) -> Self {
        match range_end.as_ref() {
            [] => Self::One(key.clone()),
            [0] => Self::From(key.clone()),
            _ => Self::Between(key.clone(), range_end.clone()),
        }
    }

    /// The rows of the span in `keys`, as bounds; `None` if the span is empty.
    pub fn bounds(&self, group: GroupId) -> Option<RowBounds> {
        let (start, end) = match self {
            Self::One(key) => {
                let row = key_key(group, key);
                return Some((Bound::Included(row.clone()), Bound::Included(row)));
            }
            Self::From(key) => (key, after_group(group)),
            Self::Between(key, end) if key < end => (key, Bound::Excluded(key_key(group, end))),
            Self::Between(..) => return None,
        };
        Some((Bound::Included(key_key(group, start)), end))
    }
}

/// The end of a group's rows.
fn after_group(group: GroupId) -> Bound<Vec<u8>> {
    match group.0.checked_add(1) {
        Some(next) => Bound::Excluded(group_key(GroupId(next)).to_vec()),
        None => Bound::Unbounded,
    }
}

/// The open database.
pub(super) struct Store {
    database: Database,
    groups: Keyspace,
    keys: Keyspace,
    revisions: Keyspace,
}

impl Store {
    /// Opens or creates the database in `dir`. `cache_bytes` bounds the cache of blocks.
    ///
    /// A new one gets its name when it is complete: of one that is half made, since the process was killed
    /// in its first start, fjall would make nothing more.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        if is_absent(dir)? {
            let half_made = dir.with_extension("new");
            if half_made.exists() {
                fs::remove_dir_all(&half_made)?;
            }
            Self::open_in(&half_made, cache_bytes)?.flush()?;
            fs::rename(&half_made, dir)?;
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Self::open_in(dir, cache_bytes)
    }

    fn open_in(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let database = Database::builder(dir).cache_size(cache_bytes).open()?;
        let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            groups: keyspace(GROUPS)?,
            keys: keyspace(KEYS)?,
            revisions: keyspace(REVISIONS)?,
            database,
        })
    }

    /// The store as it is now.
    pub fn view(self: &Arc<Self>) -> View {
        View {
            store: Arc::clone(self),
            snapshot: self.database.snapshot(),
        }
    }

    /// Changes that take effect together.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            store: self,
            inner: self.database.batch(),
            bytes: 0,
        }
    }

    /// Makes all committed batches durable: one sync.
    pub fn flush(&self) -> Result<(), StoreError> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Moves all rows from the journal into tables and merges them, as happens by itself in time.
    #[cfg(test)]
    pub fn compact(&self) -> Result<(), StoreError> {
        for keyspace in [&self.groups, &self.keys, &self.revisions] {
            keyspace.rotate_memtable_and_wait()?;
            keyspace.major_compact()?;
        }
        Ok(())
    }

    fn keyspace(&self, kind: RowKind) -> &Keyspace {
        match kind {
            RowKind::Key => &self.keys,
            RowKind::Revision => &self.revisions,
        }
    }
}

/// Whether there is nothing at this path, or an empty directory.
fn is_absent(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut files) => Ok(files.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The store at one moment. Keeps the database open, and what it shows on disk.
pub(super) struct View {
    store: Arc<Store>,
    snapshot: Snapshot,
}

impl View {
    /// A group's row, if it has one.
    pub fn group(&self, group: GroupId) -> Result<Option<GroupRow>, StoreError> {
        let row = self.snapshot.get(&self.store.groups, group_key(group))?;
        row.map(|bytes| GroupRow::decode(&bytes).ok_or(damaged(group, GROUPS)))
            .transpose()
    }

    /// All groups that have a row, by id.
    pub fn groups(&self) -> Result<Vec<(GroupId, GroupRow)>, StoreError> {
        let rows = self.snapshot.iter(&self.store.groups);
        rows.map(|row| {
            let (key, value) = row.into_inner()?;
            let group = group_of(&key).ok_or(damaged(GroupId(0), GROUPS))?;
            let row = GroupRow::decode(&value).ok_or(damaged(group, GROUPS))?;
            Ok((group, row))
        })
        .collect()
    }

    /// Where a key stands, if it was ever put.
    pub fn key(&self, group: GroupId, key: &[u8]) -> Result<Option<KeyRow>, StoreError> {
        let row = self.snapshot.get(&self.store.keys, key_key(group, key))?;
        row.map(|bytes| KeyRow::decode(&bytes).ok_or(damaged(group, KEYS)))
            .transpose()
    }

    /// The keys of a span that were ever put, in order. One key is a point read, which a filter
    /// can answer, not a seek.
    pub fn keys(&self, group: GroupId, span: &Span) -> KeyRows {
        if let Span::One(key) = span {
            let row = self.key(group, key).transpose();
            return KeyRows::One(row.map(|row| Ok((key.clone(), row?))));
        }
        match span.bounds(group) {
            Some(bounds) => KeyRows::Many(group, self.snapshot.range(&self.store.keys, bounds)),
            None => KeyRows::One(None),
        }
    }

    /// A change that a row points to.
    pub fn revision(&self, group: GroupId, revision: Revision) -> Result<RevisionRow, StoreError> {
        let row_key = revision_key(group, revision);
        let row = self.snapshot.get(&self.store.revisions, row_key)?;
        row.and_then(|bytes| RevisionRow::decode(&bytes))
            .ok_or(damaged(group, REVISIONS))
    }

    /// All rows of a group of one kind, by key, as they are stored.
    pub fn rows(
        &self,
        group: GroupId,
        kind: RowKind,
    ) -> impl Iterator<Item = Result<KvPair, StoreError>> {
        let keyspace = self.store.keyspace(kind);
        let rows = self.snapshot.prefix(keyspace, group_key(group));
        rows.map(|row| Ok(row.into_inner()?))
    }
}

/// A key, and where it stands.
type KeyAndRow = Result<(Bytes, KeyRow), StoreError>;

/// Iterates over rows of `keys`.
pub(super) enum KeyRows {
    /// One row, or none.
    One(Option<KeyAndRow>),
    /// A group's rows as the store gives them.
    Many(GroupId, Iter),
}

impl Iterator for KeyRows {
    type Item = KeyAndRow;

    fn next(&mut self) -> Option<Self::Item> {
        let (group, rows) = match self {
            Self::One(row) => return row.take(),
            Self::Many(group, rows) => (*group, rows),
        };
        let decode = |(key, value): KvPair| {
            let row = KeyRow::decode(&value).ok_or(damaged(group, KEYS))?;
            Ok((key_of(&key), row))
        };
        let row = rows.next()?.into_inner();
        Some(row.map_err(StoreError::from).and_then(decode))
    }
}

/// Changes of rows that take effect together, or not at all.
#[must_use = "a dropped batch changes nothing"]
pub(super) struct Batch<'a> {
    store: &'a Store,
    inner: OwnedWriteBatch,
    /// Of the rows that go in whole.
    bytes: usize,
}

impl Batch<'_> {
    /// Writes a group's row.
    pub fn put_group(&mut self, group: GroupId, row: GroupRow) {
        self.inner
            .insert(&self.store.groups, group_key(group), row.encode());
    }

    /// Deletes a group's row.
    pub fn remove_group(&mut self, group: GroupId) {
        self.inner.remove(&self.store.groups, group_key(group));
    }

    /// Writes a row of `keys` by its whole row key.
    pub fn put_key(&mut self, row_key: Vec<u8>, row: KeyRow) {
        self.inner.insert(&self.store.keys, row_key, row.encode());
    }

    /// Writes a row of `revisions`.
    pub fn put_revision(&mut self, group: GroupId, revision: Revision, row: &RevisionRow) {
        let row_key = revision_key(group, revision);
        self.inner
            .insert(&self.store.revisions, row_key, row.encode());
    }

    /// Writes a row of a group as another store had it; `key` is without the group.
    pub fn put_row(&mut self, group: GroupId, kind: RowKind, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        let keyspace = self.store.keyspace(kind);
        self.inner.insert(keyspace, row_key(group, key), value);
    }

    /// Deletes a row by its whole key.
    pub fn remove_row(&mut self, kind: RowKind, row_key: UserKey) {
        self.bytes += row_key.len();
        self.inner.remove(self.store.keyspace(kind), row_key);
    }

    /// Whether it holds as many whole rows as one batch should.
    pub fn is_full(&self) -> bool {
        self.inner.len() >= FULL_ROWS || self.bytes >= FULL_BYTES
    }

    /// Makes the batch take effect, without a sync.
    pub fn commit(self) -> Result<(), StoreError> {
        Ok(self.inner.commit()?)
    }
}

/// A row that does not decode or does not fit its group.
pub(super) fn damaged_row(group: GroupId, kind: RowKind) -> StoreError {
    damaged(
        group,
        match kind {
            RowKind::Key => KEYS,
            RowKind::Revision => REVISIONS,
        },
    )
}

fn damaged(group: GroupId, keyspace: &'static str) -> StoreError {
    StoreError::Damaged { group, keyspace }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
    use super::*;

    #[test]
    fn a_batch_is_full_by_rows_or_by_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let mut batch = store.batch();
        for row in 0..FULL_ROWS {
            assert!(!batch.is_full(), "{row} rows");
            batch.put_row(GroupId(1), RowKind::Key, b"", b"");
        }
        assert!(batch.is_full());
        let mut batch = store.batch();
        batch.put_row(GroupId(1), RowKind::Key, b"k", &vec![0; FULL_BYTES - 2]);
        assert!(!batch.is_full());
        batch.remove_row(RowKind::Key, b"k".into());
        assert!(batch.is_full());
    }
}
