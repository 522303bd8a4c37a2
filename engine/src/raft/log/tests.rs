//! The log's view through restarts, conflicts, snapshots and compaction.

mod apply;

use super::super::conf_change::{Change, Transition};
use super::*;
use crate::types::{GroupId, HardState, NodeId};

const GROUP: GroupId = GroupId(1);
/// No limit in the way.
const MUCH: usize = usize::MAX;

fn terms(runs: &[(u64, u64, u64)]) -> Vec<(Index, Index, Term)> {
    let run = |run: &(u64, u64, u64)| (Index(run.0), Index(run.1), Term(run.2));
    runs.iter().map(run).collect()
}

fn stored(compacted: (u64, u64), runs: &[(u64, u64, u64)], commit: u64) -> StoredGroup {
    StoredGroup {
        group: GROUP,
        meta: Bytes::new(),
        hard_state: HardState {
            commit: Index(commit),
            ..HardState::default()
        },
        compacted: (Index(compacted.0), Term(compacted.1)),
        terms: terms(runs),
    }
}

/// Entries 1 to 3 of term 1 and 4 to 5 of term 2 on the disk, 2 committed and applied.
fn restored() -> RaftLog {
    let stored = stored((0, 0), &[(1, 3, 1), (4, 5, 2)], 2);
    RaftLog::restore(&stored, Index(2), MUCH, ApplyRule::Durable)
}

fn empty(cache_limit: usize, rule: ApplyRule) -> RaftLog {
    RaftLog::restore(&stored((0, 0), &[], 0), Index(0), cache_limit, rule)
}

/// Entries of one byte each.
fn block(first: u64, last: u64, term: u64) -> Block {
    let entry = |_| (EntryKind::Normal, Bytes::from_static(b"x"));
    let entries: Vec<_> = (first..=last).map(entry).collect();
    Block::encode(Index(first), Term(term), &entries)
}

fn change() -> ConfChange {
    let node = NodeId::new(4).expect("not zero");
    ConfChange::new(Transition::Auto, vec![Change::Learner(node)])
}

/// One configuration change, in a block of its own.
fn change_block(index: u64, term: u64) -> Block {
    let entries = [(EntryKind::ConfChange, change().encode())];
    Block::encode(Index(index), Term(term), &entries)
}

/// First, last and term of each block.
fn spans(blocks: &[Block]) -> Vec<(u64, u64, u64)> {
    let span = |b: &Block| (b.first().0, b.last().0, b.term().0);
    blocks.iter().map(span).collect()
}

/// The terms of all entries that can be asked for.
fn terms_of(log: &RaftLog) -> Vec<u64> {
    let first = log.first().0;
    let term = |index| log.term(Index(index)).expect("inside").0;
    (first..=log.last().0).map(term).collect()
}

/// What goes to the disk.
fn written(log: &mut RaftLog) -> GroupWrite {
    let mut write = GroupWrite::new(GROUP);
    log.take_unwritten(&mut write);
    assert!(!log.has_unwritten(), "all of it is taken");
    write
}

/// A disk that must not be asked.
fn no_disk(first: Index, last: Index, _: usize) -> Result<Vec<Block>, LogError> {
    panic!("read from {first} to {last} although the cache has it")
}

/// Takes what is committed from the cache.
fn committed(log: &mut RaftLog, max_bytes: usize) -> Vec<(u64, u64, u64)> {
    let has_some = log.has_committed(max_bytes);
    let blocks = log.take_committed(max_bytes, &mut no_disk);
    let blocks = blocks.expect("from the cache");
    assert_eq!(has_some, !blocks.is_empty(), "has_committed foretells it");
    spans(&blocks)
}

#[test]
fn a_restored_log_is_what_disk_and_machine_agree_on() {
    let runs = &[(1, 3, 1), (4, 5, 2)][..];
    let tail = &[(5, 6, 2), (7, 7, 4)][..];
    // Compacted, runs, hard state's commit, machine's applied; then first, last, last term, commit,
    // applied, whether the state is missing.
    for (compacted, runs, commit, applied, want) in [
        ((0, 0), &[][..], 0, 0, (1, 0, 0, 0, 0, false)),
        ((0, 0), runs, 2, 1, (1, 5, 2, 2, 1, false)),
        // The machine is only given committed entries: it knows better than the hint.
        ((0, 0), runs, 2, 4, (1, 5, 2, 4, 4, false)),
        // The hint was written with entries that were not.
        ((0, 0), runs, 9, 1, (1, 5, 2, 5, 1, false)),
        // All is compacted.
        ((4, 2), &[][..], 4, 4, (5, 4, 2, 4, 4, false)),
        ((4, 2), tail, 0, 4, (5, 7, 4, 4, 4, false)),
        ((4, 2), tail, 6, 5, (5, 7, 4, 6, 5, false)),
        // The state ends before the log begins: nothing can be applied.
        ((4, 2), tail, 6, 3, (5, 7, 4, 6, 4, true)),
        ((4, 2), &[][..], 0, 0, (5, 4, 2, 4, 4, true)),
    ] {
        let stored = stored(compacted, runs, commit);
        let mut log = RaftLog::restore(&stored, Index(applied), MUCH, ApplyRule::Durable);
        let (first, last, last_term, commit, applied, is_missing) = want;
        let case = format!("{stored:?} applied={applied}");
        assert_eq!((log.first().0, log.last().0), (first, last), "{case}");
        assert_eq!(log.last_term(), Term(last_term), "{case}");
        assert_eq!(log.durable(), log.last(), "{case}: it comes from the disk");
        assert_eq!(
            (log.commit().0, log.applied().0),
            (commit, applied),
            "{case}"
        );
        assert_eq!(log.applying(), log.applied(), "{case}");
        assert_eq!(log.is_state_missing(), is_missing, "{case}");
        assert_eq!(log.has_pending_snapshot(), is_missing, "{case}");
        let can_apply = !is_missing && commit > applied;
        assert_eq!(log.has_committed(MUCH), can_apply, "{case}");
        assert!(!log.has_unwritten(), "{case}");
        assert!(written(&mut log).is_empty(), "{case}");
    }
}

#[test]
#[should_panic(expected = "applied 6 beyond the durable log's end 5")]
fn a_machine_ahead_of_its_log_is_refused() {
    let stored = stored((0, 0), &[(1, 5, 1)], 5);
    drop(RaftLog::restore(
        &stored,
        Index(6),
        MUCH,
        ApplyRule::Durable,
    ));
}

#[test]
fn a_term_is_known_from_the_compacted_entry_to_the_last() {
    let stored = stored((4, 2), &[(5, 6, 2), (7, 7, 3), (8, 9, 7)], 9);
    let log = RaftLog::restore(&stored, Index(9), MUCH, ApplyRule::Durable);
    for (index, term) in [
        (0, None),
        (3, None),
        (4, Some(2)), // log matching at our first entry needs it
        (5, Some(2)),
        (6, Some(2)),
        (7, Some(3)),
        (8, Some(7)),
        (9, Some(7)),
        (10, None),
    ] {
        assert_eq!(log.term(Index(index)), term.map(Term), "index {index}");
    }
}

#[test]
fn a_conflict_skips_whole_terms() {
    let stored = stored((2, 2), &[(3, 4, 2), (5, 7, 3), (8, 9, 7)], 3);
    let log = RaftLog::restore(&stored, Index(3), MUCH, ApplyRule::Durable);
    // A peer's entry at this index has this term: where do we agree at most?
    for (index, term, at) in [
        (9, 7, 9),
        (9, 8, 9),
        (9, 6, 7), // none of our term 7
        (9, 3, 7),
        (6, 3, 6),
        (9, 2, 4),
        (9, 1, 2), // before our log: only a snapshot tells
        (9, 0, 2),
        (50, 3, 7), // beyond our end
        (50, 9, 9),
        (2, 0, 2),
        (1, 0, 1),
    ] {
        assert_eq!(
            log.find_conflict_by_term(Index(index), Term(term)),
            Index(at),
            "index {index} of term {term}"
        );
    }
}

#[test]
fn a_follower_skips_what_it_has_cuts_at_a_conflict_and_appends_the_rest() {
    // The leader's blocks; what is cut; the terms then; what goes to the disk.
    for (blocks, cut, terms, write) in [
        (vec![], None, vec![1, 1, 1, 2, 2], vec![]),
        // All of it is here.
        (
            vec![block(3, 3, 1), block(4, 5, 2)],
            None,
            vec![1, 1, 1, 2, 2],
            vec![],
        ),
        // Only the end is new.
        (
            vec![block(4, 7, 2)],
            None,
            vec![1, 1, 1, 2, 2, 2, 2],
            vec![(6, 7, 2)],
        ),
        (
            vec![block(4, 5, 2), block(6, 6, 4)],
            None,
            vec![1, 1, 1, 2, 2, 4],
            vec![(6, 6, 4)],
        ),
        (
            vec![block(6, 6, 2)],
            None,
            vec![1, 1, 1, 2, 2, 2],
            vec![(6, 6, 2)],
        ),
        // A conflict at the start, in the middle and at the end of a block.
        (
            vec![block(4, 4, 3)],
            Some(4),
            vec![1, 1, 1, 3],
            vec![(4, 4, 3)],
        ),
        (
            vec![block(3, 4, 1)],
            Some(4),
            vec![1, 1, 1, 1],
            vec![(4, 4, 1)],
        ),
        (
            vec![block(3, 3, 1), block(4, 6, 3), block(7, 7, 4)],
            Some(4),
            vec![1, 1, 1, 3, 3, 3, 4],
            vec![(4, 6, 3), (7, 7, 4)],
        ),
        (
            vec![block(5, 5, 3)],
            Some(5),
            vec![1, 1, 1, 2, 3],
            vec![(5, 5, 3)],
        ),
        // The conflict is as near to what is committed as it can be.
        (
            vec![block(3, 3, 5)],
            Some(3),
            vec![1, 1, 5],
            vec![(3, 3, 5)],
        ),
    ] {
        let case = format!("{:?}", spans(&blocks));
        let mut log = restored();
        assert_eq!(log.accept(&blocks), Ok(cut.map(Index)), "{case}");
        assert_eq!(terms_of(&log), terms, "{case}");
        assert_eq!(log.last(), Index(terms.len() as u64), "{case}");
        let durable = cut.map_or(5, |cut| cut - 1);
        assert_eq!(log.durable(), Index(durable), "{case}: only what stayed");
        assert_eq!(log.has_unwritten(), !write.is_empty(), "{case}");
        let found = written(&mut log);
        assert_eq!(found.truncate_from, cut.map(Index), "{case}");
        assert_eq!(spans(&found.blocks), write, "{case}");
    }
}

#[test]
fn an_append_against_a_committed_entry_changes_nothing() {
    let mut log = restored();
    log.commit_to(Index(4));
    for (blocks, at) in [
        (vec![block(4, 4, 3)], 4),
        (vec![block(2, 2, 1), block(3, 6, 2)], 3),
        (vec![block(1, 1, 2)], 1),
    ] {
        assert_eq!(log.accept(&blocks), Err(CommittedConflict(Index(at))));
        assert_eq!(terms_of(&log), [1, 1, 1, 2, 2]);
        assert_eq!((log.durable(), log.commit()), (Index(5), Index(4)));
        assert!(!log.has_unwritten());
    }
}

#[test]
fn what_is_compacted_agrees_with_every_leader() {
    let stored = stored((4, 2), &[(5, 5, 2)], 4);
    let mut log = RaftLog::restore(&stored, Index(4), MUCH, ApplyRule::Durable);
    // A block that reaches back behind our beginning: what is before it is not looked at.
    assert_eq!(log.accept(&[block(3, 6, 2)]), Ok(None));
    assert_eq!(terms_of(&log), [2, 2]);
    assert_eq!(spans(&written(&mut log).blocks), [(6, 6, 2)]);
}

#[test]
fn a_cut_also_takes_what_was_not_written_yet() {
    let mut log = restored();
    assert_eq!(log.accept(&[block(6, 9, 2), change_block(10, 2)]), Ok(None));
    assert!(log.may_hold_conf_change());
    // The second leader's entries replace the first one's before any write.
    assert_eq!(log.accept(&[block(8, 8, 3)]), Ok(Some(Index(8))));
    assert_eq!(terms_of(&log), [1, 1, 1, 2, 2, 2, 2, 3]);
    assert_eq!(log.durable(), Index(5), "6 and 7 never came to the disk");
    // A third one cuts deeper, a fourth one less deep.
    assert_eq!(log.accept(&[block(5, 6, 4)]), Ok(Some(Index(5))));
    assert_eq!(log.accept(&[block(6, 6, 5)]), Ok(Some(Index(6))));
    let write = written(&mut log);
    assert_eq!(write.truncate_from, Some(Index(5)), "the deepest cut");
    assert_eq!(spans(&write.blocks), [(5, 5, 4), (6, 6, 5)]);
    assert_eq!(log.unapplied_conf_changes().next(), None, "it was cut");
    let blocks = log.blocks(Index(5), Index(6), MUCH, &mut no_disk);
    assert_eq!(spans(&blocks.expect("cached")), [(5, 5, 4), (6, 6, 5)]);
    let bytes: usize = log.cache.iter().map(|b| b.bytes().len()).sum();
    assert_eq!(log.cache_bytes, bytes);
}

#[test]
fn a_change_behind_a_cut_is_gone_and_one_before_it_stays() {
    let mut log = restored();
    let blocks = [change_block(6, 2), block(7, 7, 2), change_block(8, 2)];
    log.accept(&blocks).expect("no conflict");
    log.accept(&[block(8, 8, 3)]).expect("nothing committed");
    let left: Vec<_> = log.conf_changes.iter().map(|c| c.0).collect();
    assert_eq!(left, [Index(6)]);
    log.accept(&[block(6, 6, 4)]).expect("nothing committed");
    assert!(log.conf_changes.is_empty(), "cut exactly there");
}

#[test]
#[should_panic(expected = "terms in a log never fall")]
fn a_log_takes_no_entry_of_an_older_term() {
    let mut log = restored();
    log.stage(Term(1), EntryKind::Noop, Bytes::new());
}

#[test]
fn a_leader_s_entries_of_a_turn_are_one_block() {
    let mut log = restored();
    let stage = |log: &mut RaftLog, kind| log.stage(Term(3), kind, Bytes::from_static(b"x"));
    assert_eq!(stage(&mut log, EntryKind::Noop), Index(6));
    assert_eq!(stage(&mut log, EntryKind::Normal), Index(7));
    assert_eq!((log.last(), log.last_term()), (Index(7), Term(3)));
    assert_eq!(log.durable(), Index(5));
    assert!(log.has_unwritten(), "staged counts");
    assert_eq!(terms_of(&log), [1, 1, 1, 2, 2, 3, 3]);
    let blocks = log.blocks(Index(6), Index(7), MUCH, &mut no_disk);
    assert_eq!(spans(&blocks.expect("sealed now")), [(6, 7, 3)]);
    assert!(log.has_unwritten(), "sealed counts");
    stage(&mut log, EntryKind::Normal);
    assert_eq!(
        spans(&written(&mut log).blocks),
        [(6, 7, 3), (8, 8, 3)],
        "taking seals"
    );
    log.seal();
    assert!(!log.has_unwritten(), "sealing nothing makes nothing");
}

#[test]
fn a_deposed_leader_s_staged_entries_can_be_cut() {
    let mut log = restored();
    log.stage(Term(3), EntryKind::Noop, Bytes::new());
    log.stage(Term(3), EntryKind::Noop, Bytes::new());
    assert_eq!(log.accept(&[block(7, 7, 4)]), Ok(Some(Index(7))));
    assert_eq!(terms_of(&log), [1, 1, 1, 2, 2, 3, 4]);
    assert_eq!(spans(&written(&mut log).blocks), [(6, 6, 3), (7, 7, 4)]);
}

#[test]
fn a_block_is_sealed_when_it_is_long() {
    let mut log = restored();
    let half = Bytes::from(vec![0; SEAL_BYTES / 2]);
    log.stage(Term(3), EntryKind::Normal, half.clone());
    assert_eq!(log.unwritten.len(), 0);
    log.stage(Term(3), EntryKind::Normal, half.clone());
    assert_eq!(spans(&log.unwritten), [(6, 7, 3)], "at the limit");
    log.stage(Term(3), EntryKind::Normal, half);
    assert_eq!(log.unwritten.len(), 1, "counted anew");
}

#[test]
fn writes_take_what_is_new_and_each_mark_alone_asks_for_one() {
    let mut log = restored();
    assert!(!log.has_unwritten());
    log.on_applied_to(2);
    assert!(log.compact(Index(2)));
    assert!(log.has_unwritten());
    assert_eq!(written(&mut log).compact_to, Some(Index(2)));
    log.truncate(Index(5));
    assert!(log.has_unwritten());
    assert_eq!(written(&mut log).truncate_from, Some(Index(5)));
    log.restart_after(Index(9), Term(3));
    assert!(log.has_unwritten());
    let write = written(&mut log);
    assert_eq!(write.restart_after, Some((Index(9), Term(3))));
    assert_eq!((write.compact_to, write.truncate_from), (None, None));
    log.stage(Term(3), EntryKind::Noop, Bytes::new());
    assert!(log.has_unwritten());
    log.seal();
    assert!(log.has_unwritten());
}

impl RaftLog {
    /// As if the apply stage had been given everything up to `index` and were done with it.
    fn on_applied_to(&mut self, index: u64) {
        self.applying = Index(index);
        self.on_applied(Index(index));
    }
}

#[test]
#[should_panic(expected = "cut at 4, committed up to 4")]
fn nothing_committed_is_cut() {
    let mut log = restored();
    log.commit_to(Index(4));
    log.truncate(Index(4));
}

#[test]
fn a_snapshot_takes_the_place_of_the_whole_log() {
    let mut log = restored();
    log.accept(&[change_block(6, 2), block(7, 7, 3)])
        .expect("no conflict");
    log.stage(Term(3), EntryKind::Noop, Bytes::new());
    log.on_applied_to(2);
    log.compact(Index(1));
    log.at_apply.push_back((Index(2), 40));
    log.restart_after(Index(12), Term(5));
    assert_eq!((log.first(), log.last()), (Index(13), Index(12)));
    assert_eq!(log.last_term(), Term(5));
    assert_eq!(log.term(Index(12)), Some(Term(5)));
    assert_eq!((log.term(Index(11)), log.term(Index(13))), (None, None));
    assert_eq!((log.commit(), log.applying()), (Index(12), Index(12)));
    assert_eq!(log.applied(), Index(2), "the machine has not come to it");
    assert_eq!(log.durable(), Index(0), "nothing of it is on our disk");
    assert!(log.has_pending_snapshot() && !log.is_state_missing());
    assert!(!log.has_committed(MUCH));
    assert!(
        !log.may_hold_conf_change(),
        "the snapshot's membership has it"
    );
    let write = written(&mut log);
    let only_restart = GroupWrite {
        restart_after: Some((Index(12), Term(5))),
        ..GroupWrite::new(GROUP)
    };
    assert_eq!(write, only_restart);
    assert_eq!(
        (log.cache.len(), log.cache_bytes, log.staged_bytes),
        (0, 0, 0)
    );
    assert!(log.at_apply.is_empty());

    // What the apply stage was still at when it came says nothing any more.
    log.on_applied(Index(7));
    assert_eq!(log.applied(), Index(2));
    assert!(log.has_pending_snapshot());
    log.on_durable(Index(12));
    // The leader goes on behind it meanwhile; nothing of that is applied before the snapshot is in.
    assert_eq!(log.accept(&[block(13, 13, 5)]), Ok(None));
    log.commit_to(Index(13));
    log.on_durable(Index(13));
    assert!(!log.has_committed(MUCH));
    log.on_applied(Index(12));
    assert!(!log.has_pending_snapshot());
    assert_eq!(committed(&mut log, MUCH), [(13, 13, 5)]);
}

#[test]
#[should_panic(expected = "a snapshot below the commit index")]
fn a_snapshot_never_takes_back_what_is_committed() {
    restored().restart_after(Index(2), Term(1));
}

#[test]
fn a_lost_state_is_replaced_and_the_log_stays() {
    let stored = stored((4, 2), &[(5, 9, 2)], 6);
    // The snapshot's index; the commit index then.
    for (index, commit) in [(4, 6), (5, 6), (8, 8), (9, 9)] {
        let mut log = RaftLog::restore(&stored, Index(1), MUCH, ApplyRule::Durable);
        assert!(log.is_state_missing() && log.has_pending_snapshot());
        assert!(!log.has_committed(MUCH), "nothing to apply it to");
        log.replace_state(Index(index));
        assert!(!log.is_state_missing() && log.has_pending_snapshot());
        assert_eq!(log.commit(), Index(commit), "snapshot {index}");
        assert_eq!(log.applying(), Index(index), "snapshot {index}");
        assert_eq!((log.first(), log.last()), (Index(5), Index(9)));
        assert!(!log.has_unwritten(), "the log is as it should be");
        log.on_applied(Index(index));
        assert!(!log.has_pending_snapshot());
        assert_eq!(log.has_committed(MUCH), commit > index);
    }
}

#[test]
fn a_state_is_replaced_only_where_one_is_missing() {
    let stored = stored((4, 2), &[(5, 9, 2)], 6);
    for (case, applied, index) in [
        ("nothing is missing", 4, 5),
        ("before the log", 1, 3),
        ("beyond the log", 1, 10),
    ] {
        let mut log = RaftLog::restore(&stored, Index(applied), MUCH, ApplyRule::Durable);
        let replace = std::panic::AssertUnwindSafe(|| log.replace_state(Index(index)));
        assert!(std::panic::catch_unwind(replace).is_err(), "{case}");
    }
}

#[test]
fn who_joins_has_no_state_until_a_snapshot_comes() {
    let mut log = restored();
    assert!(!log.is_state_missing());
    log.await_state();
    assert!(log.is_state_missing() && log.has_pending_snapshot());
}

#[test]
fn a_damaged_snapshot_leaves_the_state_missing() {
    let mut log = restored();
    log.restart_after(Index(12), Term(5));
    log.on_snapshot_lost(Index(9)); // another one
    assert!(!log.is_state_missing() && log.has_pending_snapshot());
    log.on_snapshot_lost(Index(12));
    assert!(log.is_state_missing() && log.has_pending_snapshot());
    log.replace_state(Index(12));
    assert!(!log.is_state_missing(), "another one came");
}

#[test]
fn compaction_forgets_up_to_what_is_applied() {
    // Compacted to; whether news; first and the terms from there; the compacted entry's term.
    for (to, is_news, first, terms, term) in [
        (0, false, 1, vec![1, 1, 1, 2, 2, 4], None),
        (1, true, 2, vec![1, 1, 2, 2, 4], Some(1)), // within a run
        (3, true, 4, vec![2, 2, 4], Some(1)),       // at its end
        (4, true, 5, vec![2, 4], Some(2)),          // the first of a run
        (5, true, 6, vec![4], Some(2)),
        (6, true, 7, vec![], Some(4)), // all
    ] {
        let stored = stored((0, 0), &[(1, 3, 1), (4, 5, 2), (6, 6, 4)], 6);
        let mut log = RaftLog::restore(&stored, Index(6), MUCH, ApplyRule::Durable);
        assert_eq!(log.compact(Index(to)), is_news, "to {to}");
        assert_eq!(log.first(), Index(first), "to {to}");
        assert_eq!(
            (log.last(), log.last_term()),
            (Index(6), Term(4)),
            "to {to}"
        );
        assert_eq!(terms_of(&log), terms, "to {to}");
        if let Some(term) = term {
            assert_eq!(log.term(Index(to)), Some(Term(term)), "to {to}");
        }
        assert!(!log.compact(Index(to)), "again");
        assert!(!log.compact(Index(to.saturating_sub(1))), "less");
        let compact_to = is_news.then_some(Index(to));
        assert_eq!(written(&mut log).compact_to, compact_to, "to {to}");
        // The log goes on, in the same term or in a newer one.
        assert_eq!(log.stage(Term(4), EntryKind::Noop, Bytes::new()), Index(7));
        assert_eq!(log.stage(Term(5), EntryKind::Noop, Bytes::new()), Index(8));
        let more: Vec<_> = terms.iter().copied().chain([4, 5]).collect();
        assert_eq!(terms_of(&log), more, "to {to}");
    }
}

#[test]
#[should_panic(expected = "compacted 3 before it is applied")]
fn nothing_is_compacted_before_it_is_applied() {
    restored().compact(Index(3));
}
