//! What a crash in the middle of a restore may leave behind.

use std::cell::RefCell;

use super::restore::{assert_emptied, assert_same, assert_same_newest, history, restore, state_of};
use super::*;
use crate::kv::snapshot::tests::Source;

/// Enough rows for several batches.
const MANY_KEYS: usize = 6000;

/// Sets many keys with values that tell whose they are.
fn many(owner: &str) -> Bench {
    let mut bench = Bench::new();
    let mut entries = Vec::new();
    for i in 0..MANY_KEYS {
        let request = PutRequest {
            key: format!("{owner}/{i:05}").into(),
            value: owner.to_owned().into(),
            ..PutRequest::default()
        };
        entries.push(bench.entry(EntryKind::Normal, payload(&request)));
    }
    bench.machine.apply(&entries).unwrap();
    bench
}

/// A directory as it is at this moment, and what a machine finds there.
fn crashed(dir: &Path) -> (tempfile::TempDir, Arc<KvMachine>) {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    let machine = open(copy.path());
    (copy, machine)
}

#[test]
fn a_process_killed_in_the_middle_leaves_the_old_state_or_none() {
    let bench = many("new");
    let (index, state) = (bench.next.prev(), state_of(&bench.machine, GROUP));
    let other = many("old");
    let (old_index, old) = (other.next.prev(), state_of(&other.machine, GROUP));
    // Before the header, after the old rows, within the new ones, and before the last batch.
    for (at, keeps_old) in [
        (0, true),
        (40, false),
        (state.len() / 3, false),
        (state.len() / 2, false),
        (state.len() - 1, false),
        (state.len(), false),
    ] {
        let found = RefCell::new(None);
        let crash = || {
            *found.borrow_mut() = Some(crashed(other.dir.path()));
            Ok(())
        };
        let source = Source::with_hook(&state, at, crash);
        restore(&other.machine, GROUP, index, source).unwrap();
        let (_dir, machine) = found.into_inner().unwrap();
        if keeps_old {
            assert_same_newest(&many("old"), &machine);
        } else {
            assert_emptied(&machine, GROUP);
            restore(&machine, GROUP, index, Source::new(&state)).unwrap();
            assert_same_newest(&bench, &machine);
        }
        restore(&other.machine, GROUP, old_index, Source::new(&old)).unwrap();
    }
}

#[test]
fn a_power_failure_at_any_batch_leaves_the_old_state_none_or_the_new_one() {
    let bench = history(40);
    let (index, state) = (bench.next.prev(), state_of(&bench.machine, GROUP));
    let other = history(23);
    let old_index = other.next.prev();
    let before = tempfile::tempdir().unwrap();
    copy_dir(other.dir.path(), before.path());
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    let after = tempfile::tempdir().unwrap();
    copy_dir(other.dir.path(), after.path());

    let start = common_bytes(&journal_of(after.path()), &journal_of(before.path()));
    let end = std::fs::read(journal_of(after.path())).unwrap();
    let end = end.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let end = u64::try_from(end).unwrap();
    let old = open(before.path());
    let mut outcomes = [0; 3];
    for cut in (start..end).step_by(61).chain([end - 1, end]) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(after.path(), copy.path());
        let mut options = std::fs::OpenOptions::new();
        let journal = options.write(true).open(journal_of(copy.path()));
        journal.unwrap().set_len(cut).unwrap();
        let machine = open(copy.path());
        let found = machine.applied(GROUP).unwrap();
        let outcome = if found == old_index {
            assert_same((&old, GROUP), (&machine, GROUP));
            0
        } else if found == index {
            assert_same((&bench.machine, GROUP), (&machine, GROUP));
            2
        } else {
            assert_emptied(&machine, GROUP);
            restore(&machine, GROUP, index, Source::new(&state)).unwrap();
            assert_same((&bench.machine, GROUP), (&machine, GROUP));
            1
        };
        assert!(
            outcomes[outcome + 1..].iter().all(|n| *n == 0),
            "cut at {cut} goes back"
        );
        outcomes[outcome] += 1;
    }
    assert!(outcomes.iter().all(|n| *n > 0), "{outcomes:?}");
}

#[test]
fn a_restored_state_is_found_again_in_tables() {
    let bench = history(40);
    let (index, state) = (bench.next.prev(), state_of(&bench.machine, GROUP));
    let other = history(10);
    restore(&other.machine, GROUP, index, Source::new(&state)).unwrap();
    other.machine.store.compact().unwrap();
    let (_dir, machine) = crashed(other.dir.path());
    assert_same((&bench.machine, GROUP), (&machine, GROUP));
}
