#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
//! The machine against a model: the same random requests, the same answers, at each revision.

use bytes::Bytes;
use multiraft_engine::block::EntryKind;
use multiraft_proto::etcdserverpb::range_request::SortOrder;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest};
use proptest::prelude::*;

use super::tests::Bench;
use super::tests::restore::{restore, state_of};
use super::*;
use crate::kv::command::{Change, encode_command};
use crate::kv::model::Model;
use crate::kv::snapshot::tests::Source;

#[derive(Debug, Clone)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    /// The revision is a share of the revisions there are, and some more.
    Range(RangeRequest, f64),
    Reopen,
    /// Goes on with a group restored elsewhere from a snapshot.
    Move,
    /// Takes the group back to its own snapshot after changes that never were.
    Rewind(Vec<DeleteRangeRequest>),
}

/// Few keys that are prefixes of each other and end in extreme bytes, so that requests meet.
fn key() -> impl Strategy<Value = Bytes> {
    proptest::sample::select(vec![
        &b"\x00"[..],
        b"a",
        b"a\x00",
        b"a\xff",
        b"ab",
        b"b",
        b"\xff",
        b"\xff\xff",
    ])
    .prop_map(Bytes::from_static)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(Bytes::new()),
        Just(Bytes::from_static(b"\0")),
        key(),
        Just(Bytes::from_static(b"c")),
    ]
}

fn put() -> impl Strategy<Value = Step> {
    (key(), "[a-c]{0,2}", any::<bool>(), 0..4).prop_map(|(key, value, prev_kv, kind)| {
        let ignore_value = kind == 0;
        Step::Put(PutRequest {
            key,
            value: if ignore_value {
                Bytes::new()
            } else {
                value.into()
            },
            prev_kv,
            ignore_value,
            ..PutRequest::default()
        })
    })
}

fn delete() -> impl Strategy<Value = Step> {
    delete_request().prop_map(Step::Delete)
}

fn delete_request() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range() -> impl Strategy<Value = Step> {
    let options = (0..4_i64, 0..=4_i32, 0..4_i64, 0..6, 0.0..1.1);
    (key(), range_end(), options).prop_map(|(key, range_end, options)| {
        let (limit, sort_target, min_mod_revision, kind, share) = options;
        let request = RangeRequest {
            key,
            range_end,
            limit,
            sort_target,
            sort_order: SortOrder::Ascend as i32,
            min_mod_revision,
            count_only: kind == 0,
            ..RangeRequest::default()
        };
        Step::Range(request, share)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let rewind = proptest::collection::vec(delete_request(), 0..3).prop_map(Step::Rewind);
    prop_oneof![
        16 => put(),
        6 => delete(),
        12 => range(),
        2 => Just(Step::Reopen),
        1 => Just(Step::Move),
        1 => rewind,
    ]
}

fn check(bench: &mut Bench, model: &mut Model, step: Step) {
    match step {
        Step::Put(request) => {
            let got = bench.put(request.clone());
            let want = model.put(&request);
            let got = got.map(|r| (r.header.unwrap().revision, r.prev_kv)).ok();
            let want = want.map(|(revision, kv)| (revision, kv.filter(|_| request.prev_kv)));
            assert_eq!(got, want, "{request:?}");
        }
        Step::Delete(request) => {
            let got = bench.delete(request.clone()).unwrap();
            let (revision, doomed) = model.delete(&request);
            assert_eq!(got.header.unwrap().revision, revision, "{request:?}");
            assert_eq!(usize::try_from(got.deleted).unwrap(), doomed.len());
            let want = if request.prev_kv { doomed } else { Vec::new() };
            assert_eq!(got.prev_kvs, want, "{request:?}");
        }
        Step::Range(mut request, share) => {
            request.revision = scaled(model.revision(), share);
            let got = bench.machine.range(bench_group(), &request);
            let got = match got {
                Ok(r) => Some((r.kvs, r.more, r.count)),
                Err(KvError::Refused(Refusal::FutureRevision)) => None,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(got, model.range(&request), "{request:?}");
        }
        Step::Reopen => reopen(bench),
        Step::Move => go_elsewhere(bench),
        Step::Rewind(requests) => rewind(bench, requests),
    }
}

fn bench_group() -> GroupId {
    GroupId(7)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "any revision will do"
)]
fn scaled(revision: i64, share: f64) -> i64 {
    (revision as f64 * share) as i64
}

/// Opens the store again, and replays the newest entry as a crash would make it.
fn reopen(bench: &mut Bench) {
    let elsewhere = tempfile::tempdir().unwrap();
    let config = KvConfig {
        cache_bytes: 1 << 20,
    };
    bench.machine = KvMachine::open(elsewhere.path(), config).unwrap(); // drops the old one
    bench.machine = KvMachine::open(bench.dir.path(), config).unwrap();
    assert_eq!(
        bench.machine.applied(bench_group()).unwrap(),
        bench.next.prev()
    );
    if bench.next > Index(1) {
        let next = bench.next;
        bench.next = next.prev();
        let change = Change::Put(PutRequest {
            key: Bytes::from_static(b"never"),
            ..PutRequest::default()
        });
        let entry = bench.entry(EntryKind::Normal, encode_command(change).unwrap());
        let outcome = bench.machine.apply(&[entry]).unwrap().remove(0);
        assert_eq!(outcome.result, Ok(Response::Skipped));
    }
}

/// Goes on with a machine that knows the group from a snapshot only.
fn go_elsewhere(bench: &mut Bench) {
    if bench.next == Index(1) {
        return; // there are no snapshots at index zero
    }
    let state = state_of(&bench.machine, bench_group());
    let other = Bench::new();
    let last = bench.next.prev();
    restore(&other.machine, bench_group(), last, Source::new(&state)).unwrap();
    assert_eq!(state_of(&other.machine, bench_group()), state);
    *bench = Bench {
        next: bench.next,
        ..other
    };
}

/// Changes the group, then restores the state from before.
fn rewind(bench: &mut Bench, requests: Vec<DeleteRangeRequest>) {
    if bench.next == Index(1) {
        return;
    }
    let (next, state) = (bench.next, state_of(&bench.machine, bench_group()));
    for request in requests {
        let put = PutRequest {
            key: request.key.clone(),
            ..PutRequest::default()
        };
        bench.put(put).unwrap();
        bench.delete(request).unwrap();
    }
    bench.next = next;
    restore(
        &bench.machine,
        bench_group(),
        next.prev(),
        Source::new(&state),
    )
    .unwrap();
    assert_eq!(state_of(&bench.machine, bench_group()), state);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_as_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let mut bench = Bench::new();
        let mut model = Model::default();
        for step in steps {
            check(&mut bench, &mut model, step);
        }
        for revision in 1..=model.revision() {
            let request = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision,
                ..RangeRequest::default()
            };
            let got = bench.machine.range(bench_group(), &request).unwrap();
            prop_assert_eq!(Some((got.kvs, got.more, got.count)), model.range(&request));
        }
    }
}
