#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
//! One test for each rule of etcd that the machine keeps, and for what a crash may leave behind.

use std::path::Path;

use bytes::Bytes;
use multiraft_engine::block::EntryKind;
use multiraft_engine::types::Term;
use multiraft_proto::etcdserverpb::DeleteRangeRequest;
use multiraft_proto::etcdserverpb::PutRequest;
use multiraft_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use multiraft_proto::mvccpb::KeyValue;

use super::*;
use crate::kv::check::{MAX_KEY_BYTES, MAX_REQUEST_BYTES};
use crate::kv::command::{Change, encode_command};

const GROUP: GroupId = GroupId(7);
const OTHER: GroupId = GroupId(8);
const TERM: Term = Term(3);

/// A machine in a directory of its own, and the next index of its log.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
    pub machine: Arc<KvMachine>,
    pub next: Index,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = open(dir.path());
        Self {
            dir,
            machine,
            next: Index(1),
        }
    }

    /// Makes an entry of the next index.
    pub fn entry(&mut self, kind: EntryKind, payload: Bytes) -> (GroupId, Entry) {
        let index = self.next;
        self.next = index.next();
        let term = TERM;
        let entry = Entry {
            index,
            term,
            kind,
            payload,
        };
        (GROUP, entry)
    }

    pub fn change(&mut self, change: Change) -> Result<Response, Refusal> {
        let entry = self.entry(EntryKind::Normal, encode_command(change).unwrap());
        self.machine.apply(&[entry]).unwrap().remove(0).result
    }

    pub fn put(&mut self, request: PutRequest) -> Result<PutResponse, Refusal> {
        match self.change(Change::Put(request))? {
            Response::Put(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        match self.change(Change::DeleteRange(request))? {
            Response::DeleteRange(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, key: &'static str, value: &'static str) -> i64 {
        let header = self.put(put(key, value)).unwrap().header.unwrap();
        assert_eq!(header.raft_term, TERM.0);
        header.revision
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        self.machine.range(GROUP, request).unwrap()
    }

    /// Keys of an answer, each with `more` and the count.
    fn keys(&self, request: &RangeRequest) -> (Vec<Bytes>, bool, i64) {
        let response = self.range(request);
        let keys = response.kvs.into_iter().map(|kv| kv.key).collect();
        (keys, response.more, response.count)
    }
}

fn open(dir: &Path) -> Arc<KvMachine> {
    let cache_bytes = 1 << 20;
    KvMachine::open(dir, KvConfig { cache_bytes }).unwrap()
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn delete(key: &'static str, end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv: true,
    }
}

fn range(key: &'static str, end: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..RangeRequest::default()
    }
}

fn kv(key: &'static str, value: &'static str, revisions: (i64, i64, i64)) -> KeyValue {
    let (create_revision, mod_revision, version) = revisions;
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision,
        mod_revision,
        version,
        lease: 0,
    }
}

#[test]
fn an_empty_store_is_at_revision_one() {
    let bench = Bench::new();
    let response = bench.range(&range("a", "\0"));
    assert_eq!(response.header.unwrap().revision, 1);
    assert_eq!((response.kvs, response.count), (vec![], 0));
}

#[test]
fn a_put_counts_versions_and_a_deletion_starts_them_anew() {
    let mut bench = Bench::new();
    assert_eq!(bench.set("k", "1"), 2);
    assert_eq!(bench.set("k", "2"), 3);
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "2", (2, 3, 2))]);
    let deleted = bench.delete(delete("k", "")).unwrap();
    assert_eq!(deleted.header.unwrap().revision, 4);
    assert_eq!(deleted.prev_kvs, [kv("k", "2", (2, 3, 2))]);
    assert_eq!(bench.range(&range("k", "")).kvs, []);
    assert_eq!(bench.set("k", "3"), 5);
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "3", (5, 5, 1))]);
}

#[test]
fn put_returns_the_key_before_when_asked() {
    let mut bench = Bench::new();
    let request = PutRequest {
        prev_kv: true,
        ..put("k", "1")
    };
    assert_eq!(bench.put(request.clone()).unwrap().prev_kv, None);
    let before = bench.put(request).unwrap().prev_kv;
    assert_eq!(before, Some(kv("k", "1", (2, 2, 1))));
    assert_eq!(bench.put(put("k", "2")).unwrap().prev_kv, None);
}

#[test]
fn ignore_value_and_ignore_lease_need_the_key() {
    let mut bench = Bench::new();
    let keep_value = PutRequest {
        ignore_value: true,
        ..put("k", "")
    };
    let keep_lease = PutRequest {
        ignore_lease: true,
        ..put("k", "2")
    };
    assert_eq!(bench.put(keep_value.clone()), Err(Refusal::KeyNotFound));
    assert_eq!(bench.put(keep_lease.clone()), Err(Refusal::KeyNotFound));
    assert_eq!(bench.set("k", "1"), 2); // refused puts took no revision
    assert_eq!(bench.put(keep_value).unwrap().prev_kv, None);
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "1", (2, 3, 2))]);
    bench.put(keep_lease).unwrap();
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "2", (2, 4, 3))]);
}

#[test]
fn what_no_gate_let_through_is_refused_when_applied() {
    let mut bench = Bench::new();
    let long = Bytes::from(vec![b'k'; MAX_KEY_BYTES + 1]);
    let with = |change: fn(&mut PutRequest)| {
        let mut request = put("k", "v");
        change(&mut request);
        request
    };
    for (request, want) in [
        (with(|r| r.key.clear()), Refusal::EmptyKey),
        (with(|r| r.ignore_value = true), Refusal::ValueProvided),
        (with(|r| r.lease = 9), Refusal::LeaseNotFound),
        (
            with(|r| (r.lease, r.ignore_lease) = (9, true)),
            Refusal::LeaseProvided,
        ),
        (
            PutRequest {
                key: long.clone(),
                ..PutRequest::default()
            },
            Refusal::KeyTooLong,
        ),
    ] {
        assert_eq!(bench.put(request), Err(want));
    }
    assert_eq!(bench.delete(delete("", "")), Err(Refusal::EmptyKey));
    let to_long = DeleteRangeRequest {
        range_end: long.slice(..),
        ..delete("k", "")
    };
    assert_eq!(bench.delete(to_long), Err(Refusal::KeyTooLong));
    assert_eq!(bench.set("k", "v"), 2);
}

#[test]
fn the_longest_key_is_stored_and_read() {
    let mut bench = Bench::new();
    let key = Bytes::from(vec![0xff; MAX_KEY_BYTES]);
    let request = PutRequest {
        key: key.clone(),
        ..PutRequest::default()
    };
    bench.put(request).unwrap();
    let request = RangeRequest {
        key: key.clone(),
        range_end: "\0".into(),
        ..RangeRequest::default()
    };
    assert_eq!(bench.keys(&request), (vec![key], false, 1));
}

#[test]
fn commands_up_to_the_limit_encode() {
    let with_value = |bytes| {
        let value = Bytes::from(vec![0; bytes]);
        encode_command(Change::Put(PutRequest {
            value,
            ..put("k", "")
        }))
    };
    let overhead = with_value(MAX_REQUEST_BYTES / 2).unwrap().len() - MAX_REQUEST_BYTES / 2;
    let room = MAX_REQUEST_BYTES - overhead;
    assert_eq!(with_value(room).unwrap().len(), MAX_REQUEST_BYTES);
    assert_eq!(with_value(room + 1), Err(Refusal::TooLarge));
}

#[test]
fn a_deletion_of_nothing_takes_no_revision() {
    let mut bench = Bench::new();
    bench.set("b", "1");
    for (key, end) in [("a", ""), ("c", "\0"), ("b", "b"), ("c", "a")] {
        let response = bench.delete(delete(key, end)).unwrap();
        assert_eq!(response.deleted, 0, "{key} {end}");
        assert_eq!(response.header.unwrap().revision, 2, "{key} {end}");
    }
}

#[test]
fn a_deletion_of_many_keys_is_one_revision() {
    let mut bench = Bench::new();
    for key in ["a", "ba", "bb", "c"] {
        bench.set(key, "1");
    }
    let response = bench.delete(delete("b", "c")).unwrap();
    assert_eq!(
        (response.deleted, response.header.unwrap().revision),
        (2, 6)
    );
    let before = [kv("ba", "1", (3, 3, 1)), kv("bb", "1", (4, 4, 1))];
    assert_eq!(response.prev_kvs, before);
    let response = bench.delete(delete("b", "\0")).unwrap();
    assert_eq!(
        (response.deleted, response.header.unwrap().revision),
        (1, 7)
    );
    assert_eq!(bench.keys(&range("\0", "\0")).0, ["a"]);
    assert_eq!(bench.set("d", "1"), 8);
}

#[test]
fn the_past_stays_readable_and_the_future_is_refused() {
    let mut bench = Bench::new();
    bench.set("k", "1"); // 2
    bench.set("l", "1"); // 3
    bench.set("k", "2"); // 4
    bench.delete(delete("k", "m")).unwrap(); // 5
    bench.set("k", "3"); // 6
    let at = |revision| RangeRequest {
        revision,
        ..range("k", "m")
    };
    let (k1, l1) = (kv("k", "1", (2, 2, 1)), kv("l", "1", (3, 3, 1)));
    let (k2, k3) = (kv("k", "2", (2, 4, 2)), kv("k", "3", (6, 6, 1)));
    for (revision, want) in [
        (1, vec![]),
        (2, vec![k1.clone()]),
        (3, vec![k1, l1.clone()]),
        (4, vec![k2, l1]),
        (5, vec![]),
        (6, vec![k3.clone()]),
        (0, vec![k3.clone()]),
        (-1, vec![k3]),
    ] {
        let response = bench.range(&at(revision));
        assert_eq!(response.header.unwrap().revision, 6, "the newest, always");
        assert_eq!(response.count, i64::try_from(want.len()).unwrap());
        assert_eq!(response.kvs, want, "revision {revision}");
    }
    let error = bench.machine.range(GROUP, &at(7)).unwrap_err();
    assert!(matches!(error, KvError::Refused(Refusal::FutureRevision)));
}

#[test]
fn limit_count_and_more() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.set(key, "1");
    }
    for (limit, keys, more) in [(0, 3, false), (2, 2, true), (3, 3, false), (-1, 3, false)] {
        let request = RangeRequest {
            limit,
            ..range("a", "\0")
        };
        let (found, has_more, count) = bench.keys(&request);
        assert_eq!((found.len(), has_more, count), (keys, more, 3), "{limit}");
    }
    let request = RangeRequest {
        count_only: true,
        limit: 1,
        ..range("a", "\0")
    };
    assert_eq!(bench.keys(&request), (vec![], false, 3));
    let request = RangeRequest {
        keys_only: true,
        ..range("b", "")
    };
    assert_eq!(bench.range(&request).kvs, [kv("b", "", (3, 3, 1))]);
}

#[test]
fn sorts_by_each_target_both_ways_then_cuts() {
    let mut bench = Bench::new();
    bench.set("a", "y"); // created 2, modified 5, version 2, value z
    bench.set("b", "x"); // 3, 3, 1, x
    bench.set("c", "y"); // 4, 7, 3, y
    bench.set("a", "z");
    bench.set("c", "y");
    bench.set("c", "y");
    for (target, ascending) in [
        (SortTarget::Key, ["a", "b", "c"]),
        (SortTarget::Version, ["b", "a", "c"]),
        (SortTarget::Create, ["a", "b", "c"]),
        (SortTarget::Mod, ["b", "a", "c"]),
        (SortTarget::Value, ["b", "c", "a"]),
    ] {
        let mut descending = ascending;
        descending.reverse();
        for (order, want) in [
            (SortOrder::None, ascending),
            (SortOrder::Ascend, ascending),
            (SortOrder::Descend, descending),
        ] {
            let mut request = RangeRequest {
                sort_order: order as i32,
                sort_target: target as i32,
                ..range("a", "\0")
            };
            assert_eq!(bench.keys(&request).0, want, "{target:?} {order:?}");
            if order != SortOrder::None {
                request.limit = 2;
                let want = (vec![want[0].into(), want[1].into()], true, 3);
                assert_eq!(bench.keys(&request), want, "{target:?} {order:?}");
            }
        }
    }
    // As etcd: without an order, the limit cuts (one to spare) before the sort.
    let request = RangeRequest {
        limit: 1,
        sort_target: SortTarget::Value as i32,
        ..range("a", "\0")
    };
    assert_eq!(bench.keys(&request), (vec!["b".into()], true, 3));
    let request = RangeRequest {
        sort_order: 9,
        ..range("a", "")
    };
    let error = bench.machine.range(GROUP, &request).unwrap_err();
    assert!(matches!(
        error,
        KvError::Refused(Refusal::InvalidSortOption)
    ));
}

/// A filter, and the keys it leaves.
type Case = (fn(&mut RangeRequest), &'static [&'static str]);

#[test]
fn filters_leave_keys_out_but_not_out_of_the_count() {
    let mut bench = Bench::new();
    bench.set("a", "1"); // created 2, modified 5
    bench.set("b", "1"); // 3, 3
    bench.set("c", "1"); // 4, 4
    bench.set("a", "2");
    let filters: [Case; 6] = [
        (|r| r.min_mod_revision = 4, &["a", "c"]),
        (|r| r.max_mod_revision = 4, &["b", "c"]),
        (|r| r.min_create_revision = 3, &["b", "c"]),
        (|r| r.max_create_revision = 3, &["a", "b"]),
        (
            |r| (r.min_mod_revision, r.max_create_revision) = (4, 2),
            &["a"],
        ),
        (|r| (r.revision, r.max_mod_revision) = (4, 2), &["a"]),
    ];
    for (filter, want) in filters {
        let mut request = range("a", "\0");
        filter(&mut request);
        let (keys, _, count) = bench.keys(&request);
        assert_eq!((keys.as_slice(), count), (&to_bytes(want)[..], 3));
    }
}

fn to_bytes(keys: &[&'static str]) -> Vec<Bytes> {
    keys.iter().map(|key| Bytes::from(*key)).collect()
}

#[test]
fn groups_do_not_see_each_other() {
    let mut bench = Bench::new();
    for group in [GroupId(u32::MAX), OTHER] {
        let (_, entry) = bench.entry(EntryKind::Normal, payload(&put("k", "other")));
        bench.next = Index(1);
        bench.machine.apply(&[(group, entry)]).unwrap();
    }
    bench.set("k", "mine");
    bench.delete(delete("\0", "\0")).unwrap();
    for group in [GroupId(u32::MAX), OTHER] {
        let response = bench.machine.range(group, &range("\0", "\0")).unwrap();
        assert_eq!(response.kvs, [kv("k", "other", (2, 2, 1))]);
    }
    let groups = bench.machine.groups().unwrap();
    assert_eq!(groups, [GROUP, OTHER, GroupId(u32::MAX)]);
}

fn payload(request: &PutRequest) -> Bytes {
    encode_command(Change::Put(request.clone())).unwrap()
}

#[test]
fn entries_of_one_call_see_each_other() {
    let mut bench = Bench::new();
    let second = PutRequest {
        prev_kv: true,
        ..put("k", "2")
    };
    let entries = [
        bench.entry(EntryKind::Noop, Bytes::new()),
        bench.entry(EntryKind::Normal, payload(&put("k", "1"))),
        bench.entry(EntryKind::ConfChange, Bytes::from_static(b"?")),
        bench.entry(EntryKind::Normal, payload(&second)),
        bench.entry(
            EntryKind::Normal,
            encode_command(Change::DeleteRange(delete("a", "z"))).unwrap(),
        ),
    ];
    let outcomes = bench.machine.apply(&entries).unwrap();
    assert_eq!(outcomes[0].result, Ok(Response::None));
    assert_eq!(outcomes[2].result, Ok(Response::None));
    let Ok(Response::Put(response)) = &outcomes[3].result else {
        panic!("{outcomes:?}");
    };
    assert_eq!(response.prev_kv, Some(kv("k", "1", (2, 2, 1))));
    let Ok(Response::DeleteRange(response)) = &outcomes[4].result else {
        panic!("{outcomes:?}");
    };
    assert_eq!(response.prev_kvs, [kv("k", "2", (2, 3, 2))]);
    assert_eq!(bench.machine.applied(GROUP).unwrap(), Index(5));
    assert_eq!(bench.keys(&range("a", "\0")), (vec![], false, 0));
}

#[test]
fn applied_entries_are_skipped_and_gaps_refused() {
    let mut bench = Bench::new();
    let first = bench.entry(EntryKind::Normal, payload(&put("k", "1")));
    let second = bench.entry(EntryKind::Normal, payload(&put("k", "2")));
    let third = bench.entry(EntryKind::Normal, payload(&put("k", "3")));
    bench
        .machine
        .apply(&[first.clone(), second.clone()])
        .unwrap();
    let outcomes = bench.machine.apply(&[first, second]).unwrap();
    assert!(outcomes.iter().all(|o| o.result == Ok(Response::Skipped)));
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "2", (2, 3, 2))]);
    let gap = (OTHER, third.1.clone());
    let error = bench.machine.apply(&[third, gap]).unwrap_err();
    assert!(
        matches!(error, KvError::Gap { group: OTHER, .. }),
        "{error}"
    );
    // Nothing of the refused call took effect.
    assert_eq!(bench.machine.applied(GROUP).unwrap(), Index(2));
}

#[test]
fn a_payload_that_is_no_command_changes_nothing() {
    let mut bench = Bench::new();
    for payload in [&b""[..], b"\xff", b"\x0a\x7f", b"\x0a\x02\x0a\x09"] {
        let entry = bench.entry(EntryKind::Normal, Bytes::from_static(payload));
        let outcome = bench.machine.apply(&[entry]).unwrap().remove(0);
        assert_eq!(outcome.result, Err(Refusal::Undecodable), "{payload:?}");
    }
    assert_eq!(bench.machine.applied(GROUP).unwrap(), Index(4));
    assert_eq!(bench.set("k", "1"), 2);
}

#[test]
fn a_command_of_a_newer_version_stops_the_replica() {
    let mut bench = Bench::new();
    // Field 15, empty message: well formed, and no kind known here.
    let entry = bench.entry(EntryKind::Normal, Bytes::from_static(b"\x7a\x00"));
    let error = bench.machine.apply(&[entry]).unwrap_err();
    assert!(matches!(
        error,
        KvError::UnknownCommand { group: GROUP, .. }
    ));
    assert_eq!(bench.machine.applied(GROUP).unwrap(), Index::ZERO);
}

/// The files of a store as a power failure at this moment may leave them.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_replay_after_a_crash_gives_the_same_state() {
    let mut bench = Bench::new();
    let mut log = Vec::new();
    for i in 0..40_usize {
        let key = ["a", "b", "c", "d"][i % 4];
        let change = match i % 7 {
            6 => Change::DeleteRange(delete(key, "d")),
            _ => Change::Put(put(key, ["1", "2", "3"][i % 3])),
        };
        log.push(bench.entry(EntryKind::Normal, encode_command(change).unwrap()));
    }
    let crashed = tempfile::tempdir().unwrap();
    bench.machine.apply(&log[..17]).unwrap();
    copy_dir(bench.dir.path(), crashed.path());
    bench.machine.apply(&log[17..]).unwrap();

    let reopened = open(crashed.path());
    assert_eq!(reopened.applied(GROUP).unwrap(), Index(17));
    for entry in &log[10..] {
        reopened.apply(std::slice::from_ref(entry)).unwrap(); // other batches, some twice
    }
    let revision = bench.range(&range("a", "")).header.unwrap().revision;
    for revision in 1..=revision {
        let request = RangeRequest {
            revision,
            ..range("\0", "\0")
        };
        let again = reopened.range(GROUP, &request).unwrap();
        assert_eq!(again, bench.range(&request), "revision {revision}");
    }
}

#[test]
fn a_torn_newest_batch_is_lost_whole() {
    let mut bench = Bench::new();
    bench.set("k", "1");
    let copy = tempfile::tempdir().unwrap();
    copy_dir(bench.dir.path(), copy.path());
    bench.set("k", "2");
    let newer = tempfile::tempdir().unwrap();
    copy_dir(bench.dir.path(), newer.path());
    // Cut the journal in the middle of what the second put wrote.
    let journal = std::fs::read_dir(newer.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "jnl"))
        .unwrap();
    let bytes = std::fs::read(&journal).unwrap();
    let before = std::fs::read(copy.path().join(journal.file_name().unwrap())).unwrap();
    let start = bytes
        .iter()
        .zip(&before)
        .take_while(|(a, b)| a == b)
        .count();
    let start = start.min(before.len());
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&journal)
        .unwrap();
    file.set_len(u64::try_from(start + 40).unwrap()).unwrap();
    drop(file);
    let reopened = open(newer.path());
    assert_eq!(reopened.applied(GROUP).unwrap(), Index(1));
    let response = reopened.range(GROUP, &range("k", "")).unwrap();
    assert_eq!(response.kvs, [kv("k", "1", (2, 2, 1))]);
}

#[test]
fn a_removed_group_starts_anew_and_leaves_others() {
    let mut bench = Bench::new();
    let (_, entry) = bench.entry(EntryKind::Normal, payload(&put("k", "other")));
    bench.machine.apply(&[(OTHER, entry)]).unwrap();
    bench.next = Index(1);
    bench.set("k", "1");
    bench.set("k", "2");
    bench.machine.remove_group(GROUP).unwrap();
    bench.machine.remove_group(GROUP).unwrap(); // nothing left to remove
    assert_eq!(bench.machine.groups().unwrap(), [OTHER]);
    assert_eq!(bench.machine.applied(GROUP).unwrap(), Index::ZERO);
    bench.next = Index(1);
    assert_eq!(bench.set("k", "3"), 2);
    assert_eq!(bench.range(&range("k", "")).kvs, [kv("k", "3", (2, 2, 1))]);
    assert_eq!(
        bench.machine.range(OTHER, &range("k", "")).unwrap().count,
        1
    );
}

#[test]
fn a_removal_cut_short_is_finished_when_opened() {
    let mut bench = Bench::new();
    bench.set("k", "1");
    let mut batch = bench.machine.store.batch();
    batch.put_group(GROUP, GroupRow::Removing);
    batch.commit().unwrap();
    let error = bench.machine.range(GROUP, &range("k", "")).unwrap_err();
    assert!(matches!(error, KvError::BeingRemoved(GROUP)), "{error}");
    let Bench { dir, machine, .. } = bench;
    drop(machine);
    let machine = open(dir.path());
    assert_eq!(machine.groups().unwrap(), []);
    assert_eq!(machine.range(GROUP, &range("k", "")).unwrap().count, 0);
}
