//! Snapshots of groups, and groups restored from them.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use multiraft_engine::state_machine::{RestoreError, StateMachine};
use multiraft_proto::etcdserverpb::range_request::SortTarget;

use super::*;
use crate::kv::rows::RowKind;
use crate::kv::snapshot::tests::{Memory, Source};

/// The state of a group as a snapshot has it.
pub fn state_of(machine: &KvMachine, group: GroupId) -> Vec<u8> {
    let mut out = Memory::default();
    let mut view = StateMachine::snapshot(machine, group).unwrap();
    view.write_to(&mut out).unwrap();
    out.0
}

pub fn restore(
    machine: &KvMachine,
    group: GroupId,
    index: Index,
    mut source: Source<'_>,
) -> Result<(), RestoreError<KvError>> {
    StateMachine::restore(machine, group, index, TERM, &mut source)
}

/// What is wrong with a snapshot, of which nothing may be left.
pub(super) fn refusal(result: Result<(), RestoreError<KvError>>) -> io::Error {
    match result.unwrap_err() {
        RestoreError::Snapshot(error) => error,
        RestoreError::Machine(error) => panic!("{error}"),
    }
}

/// All of a group at each revision: the answers of two machines are the same.
pub(super) fn assert_same(one: (&KvMachine, GroupId), other: (&KvMachine, GroupId)) {
    assert_eq!(
        one.0.applied(one.1).unwrap(),
        other.0.applied(other.1).unwrap()
    );
    let newest = one
        .0
        .range(one.1, &range("a", ""))
        .unwrap()
        .header
        .unwrap()
        .revision;
    for revision in 0..=newest {
        for sort_target in [SortTarget::Key, SortTarget::Version] {
            let request = RangeRequest {
                revision,
                sort_target: sort_target as i32,
                ..range("\0", "\0")
            };
            let answer = one.0.range(one.1, &request).unwrap();
            assert_eq!(
                other.0.range(other.1, &request).unwrap(),
                answer,
                "at {revision}"
            );
        }
    }
    assert_eq!(state_of(one.0, one.1), state_of(other.0, other.1));
}

/// The group is there without a row, and waits for a snapshot.
pub(super) fn assert_emptied(machine: &KvMachine, group: GroupId) {
    assert_eq!(machine.applied(group).unwrap(), Index::ZERO);
    let error = machine.range(group, &range("\0", "\0")).unwrap_err();
    assert!(
        matches!(error, KvError::BeingRestored(g) if g == group),
        "{error}"
    );
    assert_eq!(
        machine.store.view().group(group).unwrap(),
        Some(GroupRow::Emptied)
    );
    for kind in RowKind::ALL {
        assert_eq!(
            machine.store.view().rows(group, kind).count(),
            0,
            "{kind:?}"
        );
    }
}

/// Puts, deletions of one and of many, keys that are prefixes of others; a no-op last.
pub(super) fn history(steps: usize) -> Bench {
    let mut bench = Bench::new();
    for i in 0..steps {
        let key = ["a", "ab", "a\0", "b", "c"][i % 5];
        match i % 7 {
            6 => drop(bench.delete(delete(key, "c")).unwrap()),
            3 => drop(bench.delete(delete(key, "")).unwrap()),
            _ => drop(bench.set(key, ["1", "22", ""][i % 3])),
        }
    }
    let noop = bench.entry(EntryKind::Noop, Bytes::new());
    bench.machine.apply(&[noop]).unwrap();
    bench
}

#[test]
fn a_restored_group_answers_as_the_one_before_at_each_revision() {
    let mut bench = history(60);
    let state = state_of(&bench.machine, GROUP);
    let other = Bench::new();
    for group in [GROUP, OTHER, GroupId(u32::MAX)] {
        restore(
            &other.machine,
            group,
            bench.next.prev(),
            Source::new(&state),
        )
        .unwrap();
        assert_same((&bench.machine, GROUP), (&other.machine, group));
    }
    // The log goes on behind it, with the same outcome; also after a restart.
    let other_dir = other.dir;
    drop(other.machine);
    let other = open(other_dir.path());
    for change in [
        Change::Put(put("ab", "new")),
        Change::DeleteRange(delete("a", "b")),
    ] {
        let (_, entry) = bench.entry(EntryKind::Normal, encode_command(change).unwrap());
        let outcome = bench.machine.apply(&[(GROUP, entry.clone())]).unwrap();
        let other_outcome = other.apply(&[(OTHER, entry)]).unwrap();
        assert_eq!(outcome[0].result, other_outcome[0].result);
    }
    assert_same((&bench.machine, GROUP), (&other, OTHER));
}

#[test]
fn groups_without_rows_are_restored_too() {
    let bench = history(0);
    let state = state_of(&bench.machine, GROUP);
    let other = history(9);
    restore(&other.machine, GROUP, Index(1), Source::new(&state)).unwrap();
    assert_same((&bench.machine, GROUP), (&other.machine, GROUP));
    assert_eq!(other.range(&range("\0", "\0")).header.unwrap().revision, 1);
}

#[test]
fn a_snapshot_shows_the_moment_it_was_taken() {
    let mut bench = history(60);
    let at_once = state_of(&bench.machine, GROUP);
    let [mut during, mut after] =
        [(); 2].map(|()| StateMachine::snapshot(&*bench.machine, GROUP).unwrap());
    let (started, is_started) = mpsc::channel();
    let done = AtomicBool::new(false);
    let bench = std::thread::scope(|scope| {
        let done = &done;
        let writer = scope.spawn(move || {
            let mut written = 0;
            while written < 200 || !done.load(Ordering::Acquire) {
                bench.set("a", "later");
                bench.set("new", "later");
                written += 1;
                if written == 20 {
                    started.send(()).unwrap();
                }
            }
            bench.delete(delete("\0", "\0")).unwrap();
            bench
        });
        let mut out = Memory::default();
        is_started.recv().unwrap();
        during.write_to(&mut out).unwrap();
        done.store(true, Ordering::Release);
        assert!(out.0 == at_once, "written while others were writing");
        writer.join().unwrap()
    });
    bench.machine.store.compact().unwrap();
    bench.machine.remove_group(GROUP).unwrap();
    bench.machine.store.compact().unwrap();
    let mut out = Memory::default();
    after.write_to(&mut out).unwrap();
    assert!(
        out.0 == at_once,
        "written when all that it shows was deleted"
    );
}

#[test]
fn another_state_is_replaced_whole() {
    let mut wanted = history(20);
    wanted.set("only here", "1");
    let state = state_of(&wanted.machine, GROUP);
    let mut other = history(100);
    other.set("only there", "1");
    for group in [GROUP, OTHER] {
        let (_, entry) = wanted.entry(EntryKind::Normal, payload(&put("k", "neighbour")));
        let entry = Entry {
            index: other.machine.applied(group).unwrap().next(),
            ..entry
        };
        other.machine.apply(&[(group, entry)]).unwrap();
    }
    let neighbour = state_of(&other.machine, OTHER);
    let index = wanted.machine.applied(GROUP).unwrap();
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    assert_same((&wanted.machine, GROUP), (&other.machine, GROUP));
    assert_eq!(state_of(&other.machine, OTHER), neighbour);
    // The same one once more.
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    assert_same((&wanted.machine, GROUP), (&other.machine, GROUP));
}

#[test]
fn a_snapshot_of_another_entry_leaves_the_old_state() {
    let bench = history(10);
    let state = state_of(&bench.machine, GROUP);
    let other = history(20);
    let old = state_of(&other.machine, GROUP);
    let index = bench.next.prev();
    for (index, term) in [(index.next(), TERM), (index, Term(2)), (Index::ZERO, TERM)] {
        let mut source = Source::new(&state);
        let result = StateMachine::restore(&*other.machine, GROUP, index, term, &mut source);
        assert_eq!(refusal(result).kind(), ErrorKind::InvalidData);
        assert_eq!(state_of(&other.machine, GROUP), old);
    }
}

#[test]
fn a_damaged_row_does_not_travel() {
    let bench = history(10);
    for (kind, keyspace) in [(RowKind::Key, "keys"), (RowKind::Revision, "revisions")] {
        let view = bench.machine.store.view();
        let (row_key, value) = view.rows(GROUP, kind).nth(1).unwrap().unwrap();
        let put = |value: &[u8]| {
            let mut batch = bench.machine.store.batch();
            batch.put_row(GROUP, kind, &row_key[4..], value);
            batch.commit().unwrap();
        };
        put(&value[..value.len() - 1]);
        let mut view = StateMachine::snapshot(&*bench.machine, GROUP).unwrap();
        let error = view.write_to(&mut Memory::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let text = format!("a damaged row in {keyspace}");
        assert!(error.to_string().contains(&text), "{error}");
        put(&value);
        state_of(&bench.machine, GROUP);
    }
}

/// Bytes of a state's header: what is wrong with it is noticed before anything is deleted.
const HEADER_BYTES: usize = 36;

#[test]
fn damage_anywhere_leaves_nothing_wrong_behind() {
    let bench = history(6);
    let index = bench.next.prev();
    let state = state_of(&bench.machine, GROUP);
    let other = history(8);
    let old = state_of(&other.machine, GROUP);
    let mut damaged: Vec<_> = (0..state.len()).map(|cut| state[..cut].to_vec()).collect();
    for at in 0..state.len() {
        let mut flipped = state.clone();
        flipped[at] ^= 1 << (at % 8);
        damaged.push(flipped);
    }
    damaged.push([&state[..], &[0]].concat());
    assert!(state.len() > 300, "cuts and flips of {} bytes", state.len());
    let mut left_alone = 0;
    for bytes in damaged {
        let result = restore(&other.machine, GROUP, index, Source::new(&bytes));
        assert_eq!(refusal(result).kind(), ErrorKind::InvalidData);
        if other.machine.store.view().group(GROUP).unwrap() == Some(GroupRow::Emptied) {
            assert_emptied(&other.machine, GROUP);
            let old_index = other.next.prev();
            restore(&other.machine, GROUP, old_index, Source::new(&old)).unwrap();
        } else {
            left_alone += 1;
        }
        assert_eq!(state_of(&other.machine, GROUP), old);
    }
    assert!(left_alone >= 2 * HEADER_BYTES - 8, "{left_alone}");
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    assert_same((&bench.machine, GROUP), (&other.machine, GROUP));
}

#[test]
fn a_group_that_waits_for_a_snapshot_can_begin_anew_or_be_removed() {
    let bench = history(30);
    let state = state_of(&bench.machine, GROUP);
    let mut other = history(10);
    for removes_first in [false, true] {
        let fail = || Err(ErrorKind::TimedOut.into());
        let source = Source::with_hook(&state, state.len() / 2, fail);
        let error = refusal(restore(&other.machine, GROUP, bench.next.prev(), source));
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_emptied(&other.machine, GROUP);
        assert!(matches!(
            StateMachine::snapshot(&*other.machine, GROUP),
            Err(KvError::BeingRestored(GROUP))
        ));
        let Bench { dir, machine, .. } = other;
        drop(machine);
        other = Bench {
            machine: open(dir.path()),
            dir,
            next: Index(1),
        };
        assert_emptied(&other.machine, GROUP);
        assert_eq!(other.machine.groups().unwrap(), [GROUP]);
        if removes_first {
            StateMachine::remove(&*other.machine, GROUP).unwrap();
            assert_eq!(other.machine.groups().unwrap(), []);
            assert_eq!(other.range(&range("\0", "\0")).count, 0);
        }
        assert_eq!(other.set("a", "first"), 2);
        assert_eq!(
            other.range(&range("\0", "\0")).kvs,
            [kv("a", "first", (2, 2, 1))]
        );
    }
}

#[test]
fn readers_and_other_groups_go_on_during_a_restore() {
    let mut bench = Bench::new();
    for _ in 0..3000 {
        bench.set("a", "b");
        bench.set("b", "c");
    }
    let (index, state) = (bench.next.prev(), state_of(&bench.machine, GROUP));
    let wanted = bench.range(&range("\0", "\0"));
    let other = history(40);
    let before = other.range(&range("\0", "\0"));
    let done = AtomicBool::new(false);
    let applied = std::thread::scope(|scope| {
        let applies = scope.spawn(|| {
            let mut next = Index(1);
            while !done.load(Ordering::Acquire) || next < Index(50) {
                let entry = Entry {
                    index: next,
                    term: TERM,
                    kind: EntryKind::Normal,
                    payload: payload(&put("k", "v")),
                };
                other.machine.apply(&[(OTHER, entry)]).unwrap();
                next = next.next();
            }
            next.prev()
        });
        let reads = scope.spawn(|| {
            let mut refused = 0;
            while !done.load(Ordering::Acquire) || refused == 0 {
                match other.machine.range(GROUP, &range("\0", "\0")) {
                    Ok(answer) => assert!(answer == wanted || answer == before, "{answer:?}"),
                    Err(KvError::BeingRestored(GROUP)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
                assert!(
                    [Index::ZERO, index, other.next.prev()]
                        .contains(&other.machine.applied(GROUP).unwrap())
                );
            }
            refused
        });
        for _ in 0..3 {
            // In the middle, the other group's applies and the reads get their turn.
            let turn = || {
                let start = other.machine.applied(OTHER).unwrap();
                while other.machine.applied(OTHER).unwrap() < Index(start.0 + 3) {
                    std::thread::yield_now();
                }
                Ok(())
            };
            let source = Source::with_hook(&state, state.len() / 2, turn);
            restore(&other.machine, GROUP, index, source).unwrap();
        }
        // The last try fails, so that the reader meets a refusal however slow it is.
        let source = Source::new(&state[..state.len() - 1]);
        refusal(restore(&other.machine, GROUP, index, source));
        done.store(true, Ordering::Release);
        assert!(reads.join().unwrap() > 0);
        applies.join().unwrap()
    });
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    assert_same_newest(&bench, &other.machine);
    assert_eq!(other.machine.applied(OTHER).unwrap(), applied);
    let [kv] = &other.machine.range(OTHER, &range("\0", "\0")).unwrap().kvs[..] else {
        panic!("one key was put");
    };
    assert_eq!(u64::try_from(kv.version).unwrap(), applied.0);
}

/// As [`assert_same`], of a group with too many revisions to compare each of them.
pub(super) fn assert_same_newest(bench: &Bench, other: &KvMachine) {
    let all = range("\0", "\0");
    assert_eq!(other.range(GROUP, &all).unwrap(), bench.range(&all));
    let (one, other) = (state_of(&bench.machine, GROUP), state_of(other, GROUP));
    assert!(
        one == other,
        "states of {} and {} bytes",
        one.len(),
        other.len()
    );
}

#[test]
fn an_apply_call_of_a_group_being_restored_changes_nothing() {
    let mut bench = history(10);
    let state = state_of(&bench.machine, GROUP);
    let index = bench.next.prev();
    let (_, entry) = bench.entry(EntryKind::Normal, payload(&put("k", "v")));
    let first = Entry {
        index: Index(1),
        ..entry.clone()
    };
    let machine = &bench.machine;
    let apply = || {
        let error = machine
            .apply(&[(OTHER, first), (GROUP, entry)])
            .unwrap_err();
        assert!(matches!(error, KvError::BeingRestored(GROUP)), "{error}");
        Ok(())
    };
    let source = Source::with_hook(&state, state.len() / 2, apply);
    restore(machine, GROUP, index, source).unwrap();
    assert_eq!(state_of(machine, GROUP), state);
    assert_eq!(machine.applied(OTHER).unwrap(), Index::ZERO);
}

#[test]
fn a_removal_waits_for_the_restore_of_its_group() {
    let bench = history(30);
    let state = state_of(&bench.machine, GROUP);
    let machine = &bench.machine;
    std::thread::scope(|scope| {
        let remove = || {
            let (calling, is_calling) = mpsc::channel();
            scope.spawn(move || {
                calling.send(()).unwrap();
                machine.remove_group(GROUP).unwrap();
            });
            is_calling.recv().unwrap();
            machine.remove_group(OTHER).unwrap(); // others need not wait
            Ok(())
        };
        let source = Source::with_hook(&state, state.len() / 2, remove);
        restore(machine, GROUP, bench.next.prev(), source).unwrap();
    });
    assert_eq!(machine.groups().unwrap(), []);
}
