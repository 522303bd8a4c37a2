//! What a crash may leave behind, and what is left of a removed group.

use super::*;

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
    let journal = journal_of(newer.path());
    let start = common_bytes(&journal, &journal_of(copy.path()));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&journal)
        .unwrap();
    file.set_len(start + 40).unwrap();
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
