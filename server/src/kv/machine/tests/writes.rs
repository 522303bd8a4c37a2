//! What puts and deletions do, as etcd does it.

use super::*;
use crate::kv::check::{MAX_KEY_BYTES, MAX_REQUEST_BYTES};

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
