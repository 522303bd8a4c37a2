//! Entries, calls and groups.

use super::*;

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
