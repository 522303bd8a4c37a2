//! What ranges answer, as etcd answers them.

use multiraft_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::*;

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
