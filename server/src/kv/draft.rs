//! What one apply call changes, before it is one batch of the store.
//!
//! Entries of one call see each other's changes: each lookup asks the draft first, then the store
//! as it was at the start of the call. Nothing reaches the store before [`Draft::commit`].
//!
//! Invariant: a refused request leaves the draft as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::block::{Entry, EntryKind};
use multiraft_engine::types::{GroupId, Term};
use multiraft_proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseHeader,
};
use multiraft_proto::mvccpb::KeyValue;

use super::check::{check_delete, check_put};
use super::command::{Change, decode};
use super::error::{KvError, Refusal, StoreError};
use super::machine::Response;
use super::read::api_revision;
use super::rows::{GroupRow, GroupState, KeyRow, Revision, RevisionRow, key_key, key_of};
use super::store::{Span, Store, View};

/// The changes of one apply call.
pub(super) struct Draft<'a> {
    store: &'a Store,
    view: View,
    groups: BTreeMap<GroupId, GroupState>,
    /// By whole row key.
    keys: BTreeMap<Vec<u8>, KeyRow>,
    revisions: BTreeMap<(GroupId, Revision), RevisionRow>,
}

impl<'a> Draft<'a> {
    /// Nothing changed yet. The caller lets no other draft of the same groups exist.
    pub fn new(store: &'a Arc<Store>) -> Self {
        Self {
            store,
            view: store.view(),
            groups: BTreeMap::new(),
            keys: BTreeMap::new(),
            revisions: BTreeMap::new(),
        }
    }

    /// Applies one entry. An outer error ends the call, an inner one is the entry's result.
    pub fn apply(
        &mut self,
        group: GroupId,
        entry: &Entry,
    ) -> Result<Result<Response, Refusal>, KvError> {
        let applied = self.group(group)?.applied;
        if entry.index <= applied {
            return Ok(Ok(Response::Skipped));
        }
        if entry.index != applied.next() {
            let index = entry.index;
            return Err(KvError::Gap {
                group,
                applied,
                index,
            });
        }
        let result = match entry.kind {
            EntryKind::Noop | EntryKind::ConfChange => Ok(Response::None),
            EntryKind::Normal => match self.change(group, entry) {
                Ok(response) => Ok(response),
                Err(KvError::Refused(refusal)) => Err(refusal),
                Err(error) => return Err(error),
            },
        };
        let state = self.group_mut(group)?;
        state.applied = entry.index;
        state.term = entry.term;
        Ok(result)
    }

    /// Makes all changes take effect at once, the applied indexes among them.
    pub fn commit(self) -> Result<(), StoreError> {
        let mut batch = self.store.batch();
        for ((group, revision), row) in &self.revisions {
            batch.put_revision(*group, *revision, row);
        }
        for (row_key, row) in self.keys {
            batch.put_key(row_key, row);
        }
        for (group, state) in self.groups {
            batch.put_group(group, GroupRow::Present(state));
        }
        batch.commit()
    }

    fn change(&mut self, group: GroupId, entry: &Entry) -> Result<Response, KvError> {
        let index = entry.index;
        let change = decode(entry.payload.clone()).inspect_err(|_| {
            let bytes = entry.payload.len();
            tracing::warn!(%group, %index, bytes, "an entry that is no command changes nothing");
        })?;
        match change {
            Some(Change::Put(request)) => self.put(group, entry.term, &request).map(Response::Put),
            Some(Change::DeleteRange(request)) => self
                .delete_range(group, entry.term, &request)
                .map(Response::DeleteRange),
            None => Err(KvError::UnknownCommand { group, index }),
        }
    }

    fn put(
        &mut self,
        group: GroupId,
        term: Term,
        request: &PutRequest,
    ) -> Result<PutResponse, KvError> {
        check_put(request)?;
        if request.lease != 0 {
            return Err(Refusal::LeaseNotFound.into()); // there are no leases yet
        }
        let row = self.key(group, &request.key)?;
        let live = row.filter(|row| row.is_live());
        let keeps = request.ignore_value || request.ignore_lease;
        let before = match live {
            Some(row) if keeps || request.prev_kv => Some(self.revision(group, row.modified)?.kv),
            None if keeps => return Err(Refusal::KeyNotFound.into()),
            Some(_) | None => None,
        };
        let kept = before.as_ref();
        let value = kept.filter(|_| request.ignore_value);
        let lease = kept.filter(|_| request.ignore_lease);
        let main = self.group(group)?.revision + 1;
        let created = live.map_or(main, |row| row.created);
        let version = live.map_or(1, |row| row.version + 1);
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: api_revision(created),
            mod_revision: api_revision(main),
            version: api_revision(version),
            value: value.map_or_else(|| request.value.clone(), |kv| kv.value.clone()),
            lease: lease.map_or(request.lease, |kv| kv.lease),
        };
        let new_row = KeyRow {
            modified: Revision { main, sub: 0 },
            created,
            version,
        };
        self.record(group, row, new_row, kv);
        self.group_mut(group)?.revision = main;
        Ok(PutResponse {
            header: Some(header(main, term)),
            prev_kv: before.filter(|_| request.prev_kv),
        })
    }

    fn delete_range(
        &mut self,
        group: GroupId,
        term: Term,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, KvError> {
        check_delete(request)?;
        let doomed = self.live_keys(group, &Span::new(&request.key, &request.range_end))?;
        let mut revision = self.group(group)?.revision;
        if !doomed.is_empty() {
            revision += 1;
        }
        let mut response = DeleteRangeResponse {
            header: Some(header(revision, term)),
            ..DeleteRangeResponse::default()
        };
        for (sub, (key, row)) in (0..).zip(doomed) {
            if request.prev_kv {
                let before = self.revision(group, row.modified)?.kv;
                response.prev_kvs.push(before);
            }
            let kv = KeyValue {
                key,
                mod_revision: api_revision(revision),
                ..KeyValue::default()
            };
            let main = revision;
            let new_row = KeyRow::deleted(Revision { main, sub });
            self.record(group, Some(row), new_row, kv);
            response.deleted += 1;
        }
        self.group_mut(group)?.revision = revision;
        Ok(response)
    }

    /// Notes a change of a key: its row, and the revision that remembers the one before.
    fn record(&mut self, group: GroupId, row: Option<KeyRow>, new_row: KeyRow, kv: KeyValue) {
        let previous = row.map_or_else(Revision::default, |row| row.modified);
        self.keys.insert(key_key(group, &kv.key), new_row);
        self.revisions
            .insert((group, new_row.modified), RevisionRow { previous, kv });
    }

    fn group(&mut self, group: GroupId) -> Result<GroupState, KvError> {
        self.group_mut(group).copied()
    }

    fn group_mut(&mut self, group: GroupId) -> Result<&mut GroupState, KvError> {
        use std::collections::btree_map::Entry;
        match self.groups.entry(group) {
            Entry::Occupied(state) => Ok(state.into_mut()),
            Entry::Vacant(place) => match self.view.group(group)? {
                Some(GroupRow::Present(state)) => Ok(place.insert(state)),
                None | Some(GroupRow::Emptied) => Ok(place.insert(GroupState::EMPTY)),
                Some(GroupRow::Removing) => Err(KvError::BeingRemoved(group)),
                Some(GroupRow::Restoring) => Err(KvError::BeingRestored(group)),
            },
        }
    }

    fn key(&self, group: GroupId, key: &[u8]) -> Result<Option<KeyRow>, StoreError> {
        match self.keys.get(&key_key(group, key)) {
            Some(row) => Ok(Some(*row)),
            None => self.view.key(group, key),
        }
    }

    fn revision(&self, group: GroupId, revision: Revision) -> Result<RevisionRow, StoreError> {
        match self.revisions.get(&(group, revision)) {
            Some(row) => Ok(row.clone()),
            None => self.view.revision(group, revision),
        }
    }

    /// The keys of a span that are there now, in order.
    fn live_keys(&self, group: GroupId, span: &Span) -> Result<Vec<(Bytes, KeyRow)>, StoreError> {
        let Some(bounds) = span.bounds(group) else {
            return Ok(Vec::new());
        };
        let mut rows: BTreeMap<Bytes, KeyRow> =
            self.view.keys(group, span).collect::<Result<_, _>>()?;
        for (row_key, row) in self.keys.range(bounds) {
            rows.insert(key_of(row_key), *row);
        }
        Ok(rows.into_iter().filter(|(_, row)| row.is_live()).collect())
    }
}

fn header(revision: u64, term: Term) -> ResponseHeader {
    ResponseHeader {
        revision: api_revision(revision),
        raft_term: term.0,
        ..ResponseHeader::default()
    }
}
