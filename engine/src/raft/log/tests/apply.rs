//! Commit, apply, the cache, and configuration changes on their way from append to apply.

use super::*;

#[test]
fn marks_only_rise() {
    let mut log = restored();
    assert_eq!(log.accept(&[block(6, 8, 2)]), Ok(None));
    log.on_durable(Index(7));
    log.on_durable(Index(6));
    assert_eq!(log.durable(), Index(7));
    assert!(log.commit_to(Index(4)));
    assert!(!log.commit_to(Index(4)) && !log.commit_to(Index(3)));
    assert_eq!(log.commit(), Index(4));
    assert!(log.commit_to(Index(8)), "to the end");
}

#[test]
#[should_panic(expected = "durable 6 beyond the end 5")]
fn nothing_is_durable_that_is_not_there() {
    restored().on_durable(Index(6));
}

#[test]
#[should_panic(expected = "commit 6 beyond the end 5")]
fn nothing_is_committed_that_is_not_there() {
    restored().commit_to(Index(6));
}

#[test]
fn applied_comes_in_order_and_no_further_than_what_was_handed_out() {
    for (case, index) in [("back", 1), ("ahead", 4)] {
        let mut log = restored();
        log.applying = Index(3);
        let apply = std::panic::AssertUnwindSafe(|| log.on_applied(Index(index)));
        assert!(std::panic::catch_unwind(apply).is_err(), "{case}");
    }
    let mut log = restored();
    log.applying = Index(3);
    log.on_applied(Index(2));
    log.on_applied(Index(3));
    assert_eq!(log.applied(), Index(3));
}

#[test]
fn entries_are_applied_when_committed_and_durable() {
    for (rule, committed_only, both) in [
        (ApplyRule::Durable, vec![], vec![(1, 2, 1)]),
        // The caller finishes the write before it applies.
        (ApplyRule::WithWrite, vec![(1, 2, 1)], vec![]),
    ] {
        let mut log = empty(MUCH, rule);
        log.accept(&[block(1, 3, 1)]).expect("empty before");
        assert_eq!(committed(&mut log, MUCH), [], "{rule:?}: not committed");
        log.commit_to(Index(2));
        assert_eq!(committed(&mut log, MUCH), committed_only, "{rule:?}");
        log.on_durable(Index(3));
        assert_eq!(committed(&mut log, MUCH), both, "{rule:?}");
        assert_eq!(log.applying(), Index(2), "{rule:?}");
        assert_eq!(committed(&mut log, MUCH), [], "{rule:?}: each entry once");
    }
}

#[test]
fn the_apply_stage_has_so_many_bytes_at_a_time() {
    let one = block(1, 1, 1).bytes().len();
    let mut log = empty(MUCH, ApplyRule::WithWrite);
    let blocks: Vec<_> = (1..=6).map(|index| block(index, index, 1)).collect();
    log.accept(&blocks).expect("empty before");
    log.commit_to(Index(6));
    // Room for two and a half: two go.
    let limit = 5 * one / 2;
    assert_eq!(committed(&mut log, limit), [(1, 1, 1), (2, 2, 1)]);
    // Half a block of room is left: a larger one still goes, so that nothing is stuck.
    assert_eq!(committed(&mut log, limit), [(3, 3, 1)]);
    assert_eq!(committed(&mut log, limit), [], "full");
    assert_eq!(committed(&mut log, 3 * one), [], "exactly full");
    log.on_applied(Index(1));
    assert_eq!(
        committed(&mut log, limit),
        [],
        "given back by whole hand-outs"
    );
    log.on_applied(Index(2));
    assert_eq!(
        committed(&mut log, limit),
        [(4, 4, 1)],
        "one is there still"
    );
    log.on_applied(Index(4));
    assert!(log.at_apply.is_empty());
    assert_eq!(committed(&mut log, 2 * one), [(5, 5, 1), (6, 6, 1)]);
}

#[test]
fn entries_come_from_the_cache_and_older_ones_from_the_disk() {
    let mut log = restored(); // 1 to 5 are on the disk alone
    log.accept(&[block(6, 8, 2), block(9, 9, 3)])
        .expect("no conflict");
    let one = block(9, 9, 3).bytes().len();
    for (first, last, max_bytes, want) in [
        (6, 9, MUCH, vec![(6, 8, 2), (9, 9, 3)]),
        (7, 9, MUCH, vec![(7, 8, 2), (9, 9, 3)]), // cut at the first
        (6, 7, MUCH, vec![(6, 7, 2)]),            // and at the last
        (9, 9, MUCH, vec![(9, 9, 3)]),
        (6, 9, 0, vec![(6, 8, 2)]), // at least one
        (8, 9, 2 * one, vec![(8, 8, 2), (9, 9, 3)]),
        (8, 9, 2 * one - 1, vec![(8, 8, 2)]),
    ] {
        let found = log.blocks(Index(first), Index(last), max_bytes, &mut no_disk);
        let found = spans(&found.expect("cached"));
        assert_eq!(found, want, "{first} to {last}, {max_bytes} bytes");
    }
    // From the disk no further than the cache begins: the next call goes on there.
    for (first, last, asked) in [(1, 9, (1, 5)), (3, 4, (3, 4)), (5, 5, (5, 5))] {
        let mut calls = Vec::new();
        let mut disk = |first: Index, last: Index, max_bytes: usize| {
            calls.push((first.0, last.0, max_bytes));
            Ok(vec![block(first.0, last.0, 1)])
        };
        let found = log.blocks(Index(first), Index(last), 77, &mut disk);
        assert_eq!(spans(&found.expect("the disk has it")).len(), 1);
        assert_eq!(calls, [(asked.0, asked.1, 77)]);
    }
}

#[test]
fn an_unreadable_entry_is_not_handed_out() {
    let damaged = || LogError::Damaged {
        group: GROUP,
        index: Index(3),
    };
    let mut log = restored();
    log.commit_to(Index(5));
    let mut disk = |_: Index, _: Index, _: usize| Err(damaged());
    assert!(log.take_committed(MUCH, &mut disk).is_err());
    assert_eq!(log.applying(), Index(2));
    let mut nothing = |_: Index, _: Index, _: usize| Ok(Vec::new());
    let found = log.take_committed(MUCH, &mut nothing);
    assert_eq!(spans(&found.expect("no error")), []);
    assert_eq!(log.applying(), Index(2), "tried again later");
}

#[test]
fn the_cache_keeps_what_is_not_durable_and_else_its_limit() {
    let one = block(1, 1, 1).bytes().len();
    let mut log = empty(2 * one, ApplyRule::Durable);
    for index in 1..=5 {
        log.accept(&[block(index, index, 1)]).expect("no conflict");
    }
    let cached = |log: &RaftLog| -> Vec<u64> { log.cache.iter().map(|b| b.first().0).collect() };
    assert_eq!(cached(&log), [1, 2, 3, 4, 5], "nothing is durable yet");
    log.on_durable(Index(2));
    assert_eq!(cached(&log), [3, 4, 5], "over the limit, but not durable");
    assert_eq!(log.cache_bytes, 3 * one);
    log.on_durable(Index(4));
    assert_eq!(cached(&log), [4, 5], "exactly the limit");
    assert_eq!(log.cache_bytes, 2 * one);
    log.on_durable(Index(5));
    assert_eq!(cached(&log), [4, 5]);

    let mut log = empty(0, ApplyRule::Durable);
    log.accept(&[block(1, 3, 1)]).expect("no conflict");
    log.on_durable(Index(2));
    assert_eq!(cached(&log), [1], "its last entry is not durable");
    log.on_durable(Index(3));
    assert_eq!(cached(&log), [0_u64; 0]);
}

#[test]
fn an_applied_mark_trims_the_cache_too() {
    let one = block(1, 1, 1).bytes().len();
    let mut log = empty(one, ApplyRule::Durable);
    log.accept(&[block(1, 1, 1), block(2, 2, 1)])
        .expect("no conflict");
    log.durable = Index(2); // as a restart of the limit would leave it
    log.on_applied_to(1);
    assert_eq!(log.cache.len(), 1);
}

#[test]
fn changes_are_known_from_the_append_to_the_apply() {
    let mut log = empty(MUCH, ApplyRule::WithWrite);
    assert!(!log.may_hold_conf_change() && !log.has_unapplied_conf_change());
    log.accept(&[block(1, 1, 1), change_block(2, 1), block(3, 3, 1)])
        .expect("empty before");
    assert!(log.may_hold_conf_change(), "appended");
    assert!(!log.has_unapplied_conf_change(), "not committed");
    let pending = |log: &RaftLog| log.unapplied_conf_changes().next().cloned();
    assert_eq!(pending(&log), Some((Index(2), change())));
    assert_eq!(log.last_conf_change(), Index(2));
    log.commit_to(Index(1));
    assert!(!log.has_unapplied_conf_change(), "only what is before it");
    log.commit_to(Index(2));
    assert!(log.has_unapplied_conf_change(), "committed, not applied");
    assert!(pending(&log).is_some());
    log.on_applied_to(1);
    assert!(log.has_unapplied_conf_change());
    log.on_applied_to(2);
    assert!(!log.has_unapplied_conf_change() && !log.may_hold_conf_change());
    assert_eq!((pending(&log), log.last_conf_change()), (None, Index::ZERO));
    // A second one, behind the first.
    log.accept(&[change_block(4, 1), change_block(5, 1)])
        .expect("no conflict");
    log.commit_to(Index(4));
    log.on_applied_to(4);
    assert_eq!(pending(&log).map(|change| change.0), Some(Index(5)));
    assert!(log.may_hold_conf_change() && !log.has_unapplied_conf_change());
}

#[test]
fn a_change_that_does_not_decode_is_there_without_effect() {
    let mut log = empty(MUCH, ApplyRule::WithWrite);
    let entries = [
        (EntryKind::Normal, Bytes::from_static(b"x")),
        (EntryKind::ConfChange, Bytes::from_static(b"garbage")),
    ];
    let block = Block::encode(Index(1), Term(1), &entries);
    log.accept(&[block]).expect("empty before");
    let change = (Index(2), ConfChange::default());
    assert_eq!(log.unapplied_conf_changes().next(), Some(&change));
    assert_eq!(log.conf_changes.len(), 1, "the command is none");
}

#[test]
fn what_the_disk_held_at_the_start_may_hold_a_change_until_it_is_applied() {
    // Committed, applied; whether a committed change may wait, whether any may.
    for (commit, applied, has_unapplied, may_hold) in [
        (2, 2, false, true), // 3 to 5 may be changes, not committed
        (4, 2, true, true),
        (4, 4, false, true),
        (5, 5, false, false),
    ] {
        let mut log = restored();
        log.commit_to(Index(commit));
        log.on_applied_to(applied);
        let case = format!("commit={commit} applied={applied}");
        assert_eq!(log.has_unapplied_conf_change(), has_unapplied, "{case}");
        assert_eq!(log.may_hold_conf_change(), may_hold, "{case}");
    }
    // What came since is known to be none.
    let mut log = restored();
    log.accept(&[block(6, 8, 2)]).expect("no conflict");
    log.commit_to(Index(8));
    log.on_applied_to(5);
    assert!(!log.has_unapplied_conf_change() && !log.may_hold_conf_change());
    // What was unknown is cut: nothing of it waits.
    let mut log = restored();
    log.accept(&[block(3, 3, 4)])
        .expect("3 to 5 are not committed");
    log.commit_to(Index(3));
    log.on_applied_to(3);
    assert!(!log.may_hold_conf_change());
}

#[test]
fn a_leader_reads_which_changes_its_log_holds() {
    // Applied; which entries are read; which changes wait then: 3 and 5 are some, and 6 came since.
    for (applied, read, waiting) in [
        (2, vec![3, 4, 5], vec![3, 5, 6]),
        (3, vec![4, 5], vec![5, 6]),
        (4, vec![5], vec![5, 6]),
        (5, vec![], vec![6]),
    ] {
        let case = format!("applied={applied}");
        let mut log = restored();
        log.accept(&[change_block(6, 2)]).expect("no conflict");
        log.commit_to(Index(5));
        log.on_applied_to(applied);
        let mut asked = Vec::new();
        let mut disk = |first: Index, last: Index, _: usize| {
            assert_eq!(last, Index(5), "what came since is known");
            asked.push(first.0);
            let term = log_term(first.0);
            Ok(match first.0 {
                3 | 5 => vec![change_block(first.0, term)],
                other => vec![block(other, other, term)],
            })
        };
        log.learn_kinds(&mut disk).expect("the disk answers");
        assert_eq!(asked, read, "{case}");
        assert!(!log.has_unknown_kinds(), "{case}");
        let found: Vec<_> = log.unapplied_conf_changes().map(|c| c.0.0).collect();
        assert_eq!(found, waiting, "{case}");
        let again = log.learn_kinds(&mut no_disk);
        again.expect("known: nothing is read");
    }
}

/// Of the entries of [`restored`].
fn log_term(index: u64) -> u64 {
    if index <= 3 { 1 } else { 2 }
}

#[test]
fn changes_stay_unknown_while_the_disk_cannot_tell() {
    let mut log = restored();
    let mut nothing = |_: Index, _: Index, _: usize| Ok(Vec::new());
    log.learn_kinds(&mut nothing).expect("asked again later");
    assert!(log.has_unknown_kinds());
    let damaged = LogError::Damaged {
        group: GROUP,
        index: Index(4),
    };
    let mut first_only = |first: Index, _: Index, _: usize| match first.0 {
        3 => Ok(vec![change_block(3, 1)]),
        _ => Err(damaged.clone()),
    };
    let failed = log.learn_kinds(&mut first_only);
    assert!(matches!(failed, Err(LogError::Damaged { .. })));
    assert!(log.has_unknown_kinds() && log.may_hold_conf_change());
    assert_eq!(log.unapplied_conf_changes().count(), 0, "all or nothing");
}
