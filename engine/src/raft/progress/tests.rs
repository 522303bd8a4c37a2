//! Every transition of one peer's progress, and the limits of its window.

use super::*;

const WINDOW: Window = Window {
    messages: 2,
    bytes: 100,
};
const FIRST: Index = Index(1);
const PROBE: ProgressState = ProgressState::Probe;
const REPLICATE: ProgressState = ProgressState::Replicate;
const SNAPSHOT: ProgressState = ProgressState::Snapshot(Index(20));

/// Of a leader whose log ended at 5 when it was elected, and a peer that holds 6.
fn replicating() -> Progress {
    let mut peer = Progress::new(Index(5));
    peer.on_sent(Some(Index(6)), 10, Index(0), WINDOW);
    assert!(peer.is_paused(), "a probe waits for word");
    assert!(peer.on_accepted(Index(6), FIRST));
    assert_eq!((peer.state, peer.next), (REPLICATE, Index(7)));
    peer
}

/// In any state, with any places: what a table's line begins with.
fn peer(state: ProgressState, matched: u64, next: u64) -> Progress {
    Progress {
        matched: Index(matched),
        next: Index(next),
        state,
        ..Progress::new(Index::ZERO)
    }
}

#[test]
fn a_new_leader_probes_from_its_end_and_a_newcomer_counts_as_alive() {
    for (case, peer, next, is_active) in [
        ("elected, empty log", Progress::new(Index(0)), 1, false),
        ("elected", Progress::new(Index(5)), 6, false),
        // A newcomer is most likely empty: the first probe asks for the entry that brought it.
        ("joined, empty log", Progress::joined(Index(0)), 1, true),
        ("joined", Progress::joined(Index(5)), 5, true),
    ] {
        assert_eq!(peer.next, Index(next), "{case}");
        assert_eq!(peer.recent_active, is_active, "{case}");
        assert_eq!((peer.state, peer.matched), (PROBE, Index(0)), "{case}");
        assert_eq!(peer.wanted, Wanted::Nothing, "{case}");
        assert!(!peer.is_paused() && !peer.is_full(WINDOW), "{case}");
    }
}

#[test]
fn what_is_wanted_only_grows_until_it_is_told() {
    let mut peer = Progress::new(Index(5));
    for (asked, wanted) in [
        (Wanted::Nothing, Wanted::Nothing),
        (Wanted::Entries, Wanted::Entries),
        (Wanted::Append, Wanted::Append),
        (Wanted::Entries, Wanted::Append),
    ] {
        peer.want(asked);
        assert_eq!(peer.wanted, wanted, "asked for {asked:?}");
    }
}

#[test]
fn a_probe_with_entries_waits_for_word_and_an_empty_one_does_not() {
    let mut peer = Progress::new(Index(5));
    peer.on_sent(None, 0, Index(3), WINDOW);
    assert!(!peer.is_paused(), "it carried nothing that could be lost");
    assert_eq!(peer.next, Index(6));
    peer.on_sent(Some(Index(9)), 10, Index(3), WINDOW);
    assert!(peer.is_paused());
    assert_eq!(peer.next, Index(6), "a probe is not optimistic");
    peer.on_sent(None, 0, Index(3), WINDOW);
    assert!(peer.is_paused(), "the first one is still out");
}

#[test]
fn a_window_is_full_by_messages_or_by_bytes() {
    let mut peer = replicating();
    peer.on_sent(Some(Index(7)), 10, Index(5), WINDOW);
    assert!(!peer.is_paused());
    assert_eq!(peer.next, Index(8), "optimistic");
    peer.on_sent(Some(Index(8)), 10, Index(5), WINDOW);
    assert!(peer.is_paused() && peer.is_full(WINDOW), "two messages");
    peer.on_accepted(Index(7), FIRST);
    assert!(!peer.is_paused() && !peer.is_full(WINDOW));
    peer.on_sent(Some(Index(9)), 200, Index(5), WINDOW);
    peer.on_accepted(Index(8), FIRST);
    assert!(peer.is_full(WINDOW), "its bytes fill the window");
    peer.on_heartbeat_response(Index(9));
    assert!(
        !peer.is_paused() && peer.is_full(WINDOW),
        "an empty append may ask whether the appends were lost"
    );
    peer.on_sent(None, 0, Index(5), WINDOW);
    assert!(peer.is_paused(), "one question at a time");
    peer.on_accepted(Index(9), FIRST);
    assert!(!peer.is_full(WINDOW), "all was heard");
}

#[test]
fn a_window_of_bytes_counts_what_is_in_flight_and_no_more() {
    for (sent, accepted, is_full) in [
        (&[(7, 99)][..], 6, false),
        (&[(7, 100)], 6, true), // at the limit
        (&[(7, 60), (8, 40)], 6, true),
        (&[(7, 60), (8, 40)], 7, false),
        (&[(7, 40), (8, 100)], 7, true), // the larger one is still out
        (&[(7, 40), (8, 100)], 8, false),
    ] {
        let wide = Window {
            messages: 99,
            ..WINDOW
        };
        let mut peer = replicating();
        for &(last, bytes) in sent {
            peer.on_sent(Some(Index(last)), bytes, Index(5), wide);
        }
        peer.on_accepted(Index(accepted), FIRST);
        assert_eq!(peer.is_full(wide), is_full, "{sent:?} up to {accepted}");
    }
    // Only who is sent to optimistically has a window.
    for state in [PROBE, SNAPSHOT] {
        let mut peer = peer(state, 5, 6);
        peer.inflight.extend([(Index(6), 200), (Index(7), 200)]);
        peer.inflight_bytes = 400;
        assert!(!peer.is_full(WINDOW), "{state:?}");
    }
}

#[test]
fn the_commit_index_is_told_when_it_helps_and_not_twice() {
    // Told before, the next entry to send, the commit index now.
    for (sent, next, commit, want) in [
        (5, 10, 5, false), // known
        (5, 10, 4, false), // older than known
        (5, 10, 6, true),
        (5, 10, 20, true),  // beyond what it was sent: it can commit up to there
        (9, 10, 20, false), // it has committed all that it was sent
        (8, 10, 20, true),
        (10, 10, 20, false),
    ] {
        let mut peer = peer(REPLICATE, 1, next);
        peer.on_commit_sent(Index(sent));
        assert_eq!(
            peer.can_bump_commit(Index(commit)),
            want,
            "sent={sent} next={next} commit={commit}"
        );
    }
    let mut peer = replicating();
    peer.on_sent(Some(Index(9)), 10, Index(8), WINDOW);
    assert!(!peer.can_bump_commit(Index(8)), "an append tells it too");
    assert!(peer.can_bump_commit(Index(9)));
    peer.on_unreachable();
    assert_eq!(peer.next, Index(7));
    peer.next = Index(10);
    assert!(
        peer.can_bump_commit(Index(8)),
        "what may be lost was perhaps never heard: told from the match on"
    );
    assert!(!peer.can_bump_commit(Index(6)), "that much it has");
}

#[test]
fn an_acceptance_moves_the_match_and_the_state() {
    const NEAR: Index = Index(1);
    /// The leader has compacted up to 14.
    const FAR: Index = Index(15);
    // Before: state, match, next. Then the acceptance. After: whether news, state, match, next.
    for (before, (last, first), is_news, after) in [
        // A probe that is answered finds the match.
        ((PROBE, 0, 6), (5, NEAR), true, (REPLICATE, 5, 6)),
        ((PROBE, 0, 6), (3, NEAR), true, (REPLICATE, 3, 4)),
        // The peer holds nothing new, but the logs agree where we thought.
        ((PROBE, 5, 6), (5, NEAR), true, (REPLICATE, 5, 6)),
        // An older answer than the match tells nothing.
        ((PROBE, 5, 6), (4, NEAR), false, (PROBE, 5, 6)),
        ((REPLICATE, 5, 9), (7, NEAR), true, (REPLICATE, 7, 9)),
        ((REPLICATE, 5, 9), (5, NEAR), false, (REPLICATE, 5, 9)),
        ((REPLICATE, 5, 9), (4, NEAR), false, (REPLICATE, 5, 9)),
        // It holds more than we thought to have sent: of an earlier leadership of ours.
        ((REPLICATE, 5, 7), (8, NEAR), true, (REPLICATE, 8, 9)),
        // What it got before the snapshot does not reach our log.
        ((SNAPSHOT, 5, 21), (8, FAR), true, (SNAPSHOT, 8, 21)),
        ((SNAPSHOT, 5, 21), (13, FAR), true, (SNAPSHOT, 13, 21)),
        // 14 is the entry before our first: it can go on.
        ((SNAPSHOT, 5, 21), (14, FAR), true, (REPLICATE, 14, 15)),
        ((SNAPSHOT, 5, 21), (20, FAR), true, (REPLICATE, 20, 21)),
        ((SNAPSHOT, 5, 21), (25, FAR), true, (REPLICATE, 25, 26)),
        ((SNAPSHOT, 16, 21), (16, FAR), false, (SNAPSHOT, 16, 21)),
    ] {
        let case = format!("{before:?} accepts {last}, our first is {first}");
        let mut peer = peer(before.0, before.1, before.2);
        assert_eq!(peer.on_accepted(Index(last), first), is_news, "{case}");
        let seen = (peer.state, peer.matched.0, peer.next.0);
        assert_eq!(seen, after, "{case}");
    }
}

#[test]
fn an_acceptance_frees_the_window_up_to_its_entry() {
    let mut peer = replicating();
    peer.on_sent(Some(Index(7)), 10, Index(5), WINDOW);
    peer.on_sent(Some(Index(9)), 10, Index(5), WINDOW);
    assert!(peer.on_accepted(Index(8), FIRST));
    let left: Vec<_> = peer.inflight.iter().copied().collect();
    assert_eq!(left, [(Index(9), 10)], "9 is still on its way");
    assert_eq!(peer.inflight_bytes, 10);
    assert!(!peer.on_accepted(Index(8), FIRST), "told twice");
    assert!(peer.on_accepted(Index(9), FIRST));
    assert_eq!((peer.inflight.len(), peer.inflight_bytes), (0, 0));
}

#[test]
fn a_rejection_counts_if_it_answers_what_is_open() {
    // Before: state, match, next. The rejection: prev, hint. After: whether open, state, next.
    for (before, (prev, hint), is_open, after) in [
        // Exactly the probe that is out: back to behind the hint.
        ((PROBE, 0, 10), (9, 4), true, (PROBE, 5)),
        ((PROBE, 0, 10), (9, 0), true, (PROBE, 1)),
        // Never above the refused place: that would ask the same again for ever.
        ((PROBE, 0, 10), (9, 9), true, (PROBE, 9)),
        ((PROBE, 0, 10), (9, 50), true, (PROBE, 9)),
        // Never below the match.
        ((PROBE, 6, 10), (9, 2), true, (PROBE, 7)),
        // Another probe's.
        ((PROBE, 0, 10), (3, 2), false, (PROBE, 10)),
        ((PROBE, 0, 10), (10, 2), false, (PROBE, 10)),
        // While replicating any append beyond the match may have been lost before it.
        ((REPLICATE, 4, 10), (9, 4), true, (PROBE, 5)),
        ((REPLICATE, 4, 10), (7, 0), true, (PROBE, 5)),
        ((REPLICATE, 4, 10), (5, 0), true, (PROBE, 5)),
        ((REPLICATE, 4, 10), (4, 0), false, (REPLICATE, 10)), // stale
        ((REPLICATE, 4, 10), (3, 0), false, (REPLICATE, 10)),
        // The snapshot answers it, if it is not from before.
        ((SNAPSHOT, 4, 21), (3, 0), false, (SNAPSHOT, 21)),
    ] {
        let case = format!("{before:?} rejects {prev}, hint {hint}");
        let mut peer = peer(before.0, before.1, before.2);
        assert_eq!(
            peer.on_rejected(Index(prev), Index(hint)),
            is_open,
            "{case}"
        );
        assert_eq!((peer.state, peer.next.0), after, "{case}");
        assert_eq!(peer.matched, Index(before.1), "{case}");
    }
}

#[test]
fn a_rejected_probe_may_be_repeated_and_its_commit_index_was_not_taken() {
    let mut peer = Progress::new(Index(9));
    peer.on_sent(Some(Index(10)), 10, Index(8), WINDOW);
    assert!(peer.on_rejected(Index(9), Index(4)));
    assert!(!peer.is_paused());
    assert!(!peer.can_bump_commit(Index(4)));
    peer.next = Index(10);
    assert!(peer.can_bump_commit(Index(5)), "known up to 4 at most");
}

#[test]
fn word_of_a_living_peer_lets_us_ask_again() {
    // State, match; our last entry; what is wanted then.
    for (state, matched, last, wanted) in [
        (PROBE, 5, 5, Wanted::Append), // the probe may be lost
        (PROBE, 3, 5, Wanted::Append),
        (REPLICATE, 3, 5, Wanted::Append), // the window may be lost
        (REPLICATE, 5, 5, Wanted::Nothing),
        (SNAPSHOT, 5, 5, Wanted::Nothing),
    ] {
        let mut peer = peer(state, matched, 6);
        peer.paused = true;
        peer.on_heartbeat_response(Index(last));
        assert_eq!(peer.wanted, wanted, "{state:?} {matched} of {last}");
        let waits = matches!(state, ProgressState::Snapshot(_));
        assert_eq!(peer.is_paused(), waits, "{state:?}: only a snapshot waits");
        let mut open = Progress {
            paused: false,
            ..peer.clone()
        };
        open.on_heartbeat_response(Index(last));
        assert!(!open.paused, "{state:?}");
    }
}

#[test]
fn an_unreachable_peer_is_probed_from_the_match() {
    for (before, after) in [
        ((REPLICATE, 5, 9), (PROBE, 6)),
        ((PROBE, 5, 9), (PROBE, 9)), // the probe is repeated by a heartbeat
        ((SNAPSHOT, 5, 21), (SNAPSHOT, 21)), // its transport tells how it ends
    ] {
        let mut peer = peer(before.0, before.1, before.2);
        peer.inflight.push_back((Index(8), 10));
        peer.inflight_bytes = 10;
        peer.on_unreachable();
        assert_eq!((peer.state, peer.next.0), after, "{before:?}");
        if before.0 == REPLICATE {
            assert_eq!((peer.inflight.len(), peer.inflight_bytes), (0, 0));
        }
    }
}

#[test]
fn a_lost_state_asks_for_a_snapshot_unless_one_is_on_its_way() {
    for state in [PROBE, REPLICATE] {
        let mut peer = peer(state, 5, 9);
        peer.on_state_missing(Index(3));
        assert_eq!(peer.state_missing, Some(Index(3)), "{state:?}");
        assert_eq!(peer.wanted, Wanted::Append, "{state:?}");
        peer.become_snapshot(Index(20));
        assert_eq!(peer.state_missing, None, "it is answered");
    }
    let mut peer = peer(SNAPSHOT, 5, 21);
    peer.on_state_missing(Index(3));
    assert_eq!(peer.state_missing, None);
    assert_eq!(peer.wanted, Wanted::Nothing);
}

#[test]
fn a_snapshot_takes_the_place_of_what_was_in_flight() {
    let mut peer = replicating();
    peer.on_sent(Some(Index(7)), 10, Index(5), WINDOW);
    peer.on_sent(Some(Index(8)), 10, Index(5), WINDOW);
    peer.become_snapshot(Index(20));
    assert!(peer.is_paused(), "nothing else goes meanwhile");
    assert_eq!((peer.state, peer.next), (SNAPSHOT, Index(21)));
    assert_eq!((peer.inflight.len(), peer.inflight_bytes), (0, 0));
    assert!(!peer.can_bump_commit(Index(20)), "it commits up to its end");
    peer.on_sent(Some(Index(30)), 10, Index(20), WINDOW);
    assert_eq!(peer.next, Index(21), "an append would say nothing now");
    assert!(peer.inflight.is_empty());
}

#[test]
fn a_snapshot_ends_by_word_of_the_peer_or_of_the_sender() {
    use SnapshotOutcome::{Failed, Sent};
    // Before: state, match. The outcome. After: state, next, whether it waits for word.
    for (before, outcome, after) in [
        ((SNAPSHOT, 8), Sent, (PROBE, 21, true)),
        ((SNAPSHOT, 25), Sent, (PROBE, 26, true)), // it got more meanwhile
        ((SNAPSHOT, 8), Failed, (PROBE, 9, true)), // from the match again
        // It could go on from our log before the sender knew: nothing to do any more.
        ((REPLICATE, 8), Sent, (REPLICATE, 21, false)),
        ((REPLICATE, 8), Failed, (REPLICATE, 21, false)),
        ((PROBE, 8), Failed, (PROBE, 21, false)),
    ] {
        let mut peer = peer(before.0, before.1, 21);
        peer.on_snapshot_ended(outcome);
        let seen = (peer.state, peer.next.0, peer.is_paused());
        assert_eq!(seen, after, "{before:?} {outcome:?}");
    }
    let mut peer = replicating();
    peer.become_snapshot(Index(20));
    peer.on_snapshot_ended(Failed);
    peer.next = Index(21);
    assert!(
        peer.can_bump_commit(Index(20)),
        "what did not arrive told no commit index"
    );
}

#[test]
fn who_left_and_came_back_has_nothing_of_what_it_acknowledged() {
    for (from, matched) in [(0, 0), (1, 6), (3, 6)] {
        let mut peer = replicating();
        peer.on_state_missing(Index(from));
        assert_eq!(peer.matched, Index(matched), "from {from}");
    }
}
