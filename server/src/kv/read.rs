//! Reads of ranges, at any revision, as etcd reads them (`server/etcdserver/txn/range.go`).
//!
//! A read first finds which change of each key of the range is visible, from the small rows of
//! `keys`; filters, sorts and cuts; and only then fetches values. The cost of a read in the past is
//! one row for each later change of a key that changed since.

use std::cmp::Reverse;

use bytes::Bytes;
use multiraft_engine::types::GroupId;
use multiraft_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use multiraft_proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use multiraft_proto::mvccpb::KeyValue;

use super::check::check_range;
use super::error::{KvError, Refusal, StoreError};
use super::rows::{GroupRow, GroupState, KeyRow};
use super::store::{Span, View};

/// A revision or version as the API has it.
///
/// Panics beyond `i64::MAX`: at a billion changes a second that takes 292 years.
pub(super) fn api_revision(number: u64) -> i64 {
    i64::try_from(number).expect("fewer changes than i64::MAX")
}

/// Where a group stands, to read it; an empty store if nothing was applied. Refused if its rows mean
/// nothing, or are elsewhere.
pub(super) fn state(view: &View, group: GroupId) -> Result<GroupState, KvError> {
    match view.group(group)? {
        Some(GroupRow::Present(state)) => Ok(state),
        None => Ok(GroupState::EMPTY),
        Some(GroupRow::Removing) => Err(KvError::BeingRemoved(group)),
        Some(GroupRow::Restoring | GroupRow::Emptied) => Err(KvError::BeingRestored(group)),
    }
}

/// Answers a range request from one view. The header has the revision; the caller knows the rest.
pub(super) fn range(
    view: &View,
    group: GroupId,
    request: &RangeRequest,
) -> Result<RangeResponse, KvError> {
    check_range(request)?;
    let current = state(view, group)?.revision;
    let at = match u64::try_from(request.revision) {
        Ok(0) | Err(_) => current,
        Ok(revision) if revision > current => return Err(Refusal::FutureRevision.into()),
        Ok(revision) => revision,
    };
    let span = Span::new(&request.key, &request.range_end);
    let mut response = RangeResponse {
        header: Some(ResponseHeader {
            revision: api_revision(current),
            ..ResponseHeader::default()
        }),
        ..RangeResponse::default()
    };
    if request.count_only {
        for found in visible(view, group, &span, at) {
            found?;
            response.count += 1;
        }
        return Ok(response);
    }
    let selected = select(visible(view, group, &span, at), request)?;
    response.count = selected.count;
    let mut kvs = Vec::with_capacity(selected.found.len());
    if sort_target(request) == SortTarget::Value {
        kvs = fetch(view, group, &selected.found)?;
        sort_by_value(&mut kvs, request);
        response.more = cut(&mut kvs, request.limit);
    } else {
        let mut found = selected.found;
        sort(&mut found, request);
        response.more = cut(&mut found, request.limit);
        kvs.extend(fetch(view, group, &found)?);
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    response.kvs = kvs;
    Ok(response)
}

/// A key that is there at the revision read, and its row at that revision.
struct Found {
    key: Bytes,
    row: KeyRow,
}

/// The keys of `span` that are there at revision `at`, in order.
fn visible(
    view: &View,
    group: GroupId,
    span: &Span,
    at: u64,
) -> impl Iterator<Item = Result<Found, StoreError>> {
    view.keys(group, span).filter_map(move |row| {
        let found = row.and_then(|(key, row)| {
            let row = row_at(view, group, row, at)?;
            Ok(row.map(|row| Found { key, row }))
        });
        found.transpose()
    })
}

/// A key's row as it was at revision `at`: follows the changes back. `None`: not there.
fn row_at(
    view: &View,
    group: GroupId,
    newest: KeyRow,
    at: u64,
) -> Result<Option<KeyRow>, StoreError> {
    if newest.modified.main <= at {
        return Ok(Some(newest).filter(|row| row.is_live()));
    }
    let mut modified = newest.modified;
    while modified.main > at {
        modified = view.revision(group, modified)?.previous;
    }
    if modified.main == 0 {
        return Ok(None); // it came into being later
    }
    let row = view.revision(group, modified)?;
    let live = !row.is_tombstone();
    Ok(live.then(|| KeyRow {
        modified,
        created: row.kv.create_revision.unsigned_abs(),
        version: row.kv.version.unsigned_abs(),
    }))
}

/// The keys of a range that may be in the answer, and how many there are in all.
struct Selected {
    found: Vec<Found>,
    count: i64,
}

/// Keeps what passes the filters. As in etcd, a limit cuts at once, with one key to spare to know
/// of more, unless an order was asked for or a filter must see all.
fn select(
    visible: impl Iterator<Item = Result<Found, StoreError>>,
    request: &RangeRequest,
) -> Result<Selected, StoreError> {
    let sees_all = request.sort_order != SortOrder::None as i32
        || request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0;
    let room = match usize::try_from(request.limit) {
        Ok(limit) if limit > 0 && !sees_all => limit.saturating_add(1),
        Ok(_) | Err(_) => usize::MAX,
    };
    let mut selected = Selected {
        found: Vec::new(),
        count: 0,
    };
    for found in visible {
        let found = found?;
        selected.count += 1;
        if selected.found.len() < room && passes(found.row, request) {
            selected.found.push(found);
        }
    }
    Ok(selected)
}

/// The filters by revision; 0 is no filter.
fn passes(row: KeyRow, request: &RangeRequest) -> bool {
    let within = |revision: u64, min: i64, max: i64| {
        let revision = api_revision(revision);
        (min == 0 || revision >= min) && (max == 0 || revision <= max)
    };
    within(
        row.modified.main,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        row.created,
        request.min_create_revision,
        request.max_create_revision,
    )
}

fn sort_target(request: &RangeRequest) -> SortTarget {
    SortTarget::try_from(request.sort_target).expect("check_range refused others")
}

/// Sorts by anything but the value. Equal ones stay in the order of their keys, either way.
fn sort(found: &mut [Found], request: &RangeRequest) {
    let by = |found: &Found| match sort_target(request) {
        SortTarget::Version => found.row.version,
        SortTarget::Create => found.row.created,
        SortTarget::Mod => found.row.modified.main,
        SortTarget::Key | SortTarget::Value => 0,
    };
    if sort_target(request) == SortTarget::Key {
        // They come sorted by key.
        if descends(request) {
            found.reverse();
        }
    } else if descends(request) {
        found.sort_by_key(|found| Reverse(by(found)));
    } else {
        found.sort_by_key(by);
    }
}

fn sort_by_value(kvs: &mut [KeyValue], request: &RangeRequest) {
    if descends(request) {
        kvs.sort_by(|a, b| b.value.cmp(&a.value));
    } else {
        kvs.sort_by(|a, b| a.value.cmp(&b.value));
    }
}

fn descends(request: &RangeRequest) -> bool {
    request.sort_order == SortOrder::Descend as i32
}

/// Cuts at the limit; 0 or less is none. Returns whether something was cut off.
fn cut<T>(rows: &mut Vec<T>, limit: i64) -> bool {
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 && rows.len() > limit => {
            rows.truncate(limit);
            true
        }
        Ok(_) | Err(_) => false,
    }
}

fn fetch(view: &View, group: GroupId, found: &[Found]) -> Result<Vec<KeyValue>, StoreError> {
    let kv = |found: &Found| {
        let row = view.revision(group, found.row.modified)?;
        debug_assert_eq!(
            row.kv.key, found.key,
            "a key's row points to its own change"
        );
        Ok(row.kv)
    };
    found.iter().map(kv).collect()
}
