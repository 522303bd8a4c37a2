//! The protocol of snapshots without sockets: every break, every race, every broken rule.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::SnapshotSending::{self, Aborted, Completed, Started};
use multiraft_transport::Error;
use multiraft_transport::snapshot::sender::MAX_RESTARTS;
use multiraft_transport::snapshot::{Frame, Receiver, Refusal, SendingSnapshot};
use support::pair::{CHUNK, Eager, Pair, chunk, ends, limits, offer, offer_of, say, sender};
use support::store::{Disk, Hangs, MemoryStore};
use support::{file, install};

/// Neither a multiple of the chunk nor of the window.
const FILE_BYTES: usize = 8 * CHUNK + 3;

fn stores() -> (MemoryStore, MemoryStore) {
    let from = MemoryStore::with(4, 7, file(FILE_BYTES));
    (from, MemoryStore::default())
}

fn pair() -> (Pair, MemoryStore, MemoryStore) {
    let (from, to) = stores();
    (Pair::new(&from, &to, Eager::Receiver), from, to)
}

fn arrived() -> Envelope {
    Envelope {
        incarnation: 71,
        ..install(4, 1, 9, 7)
    }
}

/// One end, and it is the last; `Completed` never without `Started`.
fn check_events(events: &[SnapshotSending]) {
    let well_formed = [&[Started, Completed][..], &[Started, Aborted], &[Aborted]];
    assert!(well_formed.contains(&events), "{events:?}");
}

#[test]
fn a_file_arrives_whole_in_chunks_with_its_message() {
    for eager in [Eager::Sender, Eager::Receiver] {
        for bytes in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, FILE_BYTES] {
            let from = MemoryStore::with(4, 7, file(bytes));
            let to = MemoryStore::default();
            let mut pair = Pair::new(&from, &to, eager);
            pair.run();
            assert_eq!(to.get(4, 7), Some(file(bytes)));
            assert_eq!(pair.delivered, [arrived()]);
            assert_eq!(pair.events, [Started, Completed]);
            assert_eq!(pair.chunks.len(), bytes.div_ceil(CHUNK));
            assert_eq!((pair.receiver.partials(), to.inner().partial), (0, 0));
        }
    }
}

#[test]
fn no_more_than_the_window_is_under_way() {
    let (mut pair, ..) = pair();
    pair.connect();
    let _offer = pair.to_receiver.pop_front();
    let resume = Frame::Resume { offset: 0 };
    pair.sender.on_frame(resume, pair.now).unwrap();
    let under_way =
        |sender: &mut SendingSnapshot| std::iter::from_fn(|| sender.next_frame()).count();
    assert_eq!(under_way(&mut pair.sender), 3);
    let ack = Frame::Ack { offset: 10 };
    pair.sender.on_frame(ack, pair.now).unwrap();
    assert_eq!(under_way(&mut pair.sender), 1);
}

#[test]
fn it_is_started_when_the_first_chunk_leaves_and_not_before() {
    let (mut pair, ..) = pair();
    pair.connect();
    let resume = Frame::Resume { offset: 0 };
    pair.sender.on_frame(resume, pair.now).unwrap();
    let read = pair.sender.next_chunk().unwrap().run().unwrap();
    assert_eq!(pair.sender.take_events(), []);
    assert!(pair.sender.leave(read).is_some());
    assert_eq!(pair.sender.take_events(), [Started]);
}

#[test]
fn a_chunk_that_was_read_for_a_lost_connection_does_not_leave() {
    let (mut pair, ..) = pair();
    pair.connect();
    let resume = Frame::Resume { offset: 0 };
    pair.sender.on_frame(resume, pair.now).unwrap();
    let [one, two] = [(); 2].map(|()| pair.sender.next_chunk().unwrap().run().unwrap());
    pair.cut();
    assert!(pair.sender.leave(one).is_none());
    pair.connect();
    let further = Frame::Resume { offset: 10 };
    pair.sender.on_frame(further, pair.now).unwrap();
    assert!(pair.sender.leave(two).is_none());
}

/// The stream breaks once, after every possible frame, or again and again after every n-th.
#[test]
fn wherever_the_stream_breaks_the_same_file_arrives() {
    for eager in [Eager::Sender, Eager::Receiver] {
        let frames = {
            let (from, to) = stores();
            let mut pair = Pair::new(&from, &to, eager);
            pair.connect();
            std::iter::from_fn(|| pair.step()).count()
        };
        assert!(frames > 18, "{frames} frames");
        for first in 0..=frames {
            for second in 0..=frames {
                check_breaks(eager, &[first, second]);
            }
        }
        for every in 0..=frames {
            check_breaks(eager, &[every; 100]);
        }
    }
}

/// Cuts the stream after so many frames, then the next one, and lets the last one be.
fn check_breaks(eager: Eager, cuts: &[usize]) {
    let (from, to) = stores();
    let mut pair = Pair::new(&from, &to, eager);
    let mut last_acked = Duration::ZERO;
    for &frames in cuts {
        pair.connect();
        let before = pair.acked;
        for _ in 0..frames {
            if let Some(result) = pair.step() {
                result.unwrap();
            }
        }
        if pair.acked > before {
            last_acked = pair.now;
        }
        pair.cut();
        if pair.sender.has_ended() {
            break;
        }
        pair.pass(Duration::from_secs(1));
        let stalled = pair.now >= last_acked + limits().stall_timeout;
        assert_eq!(pair.sender.has_ended(), stalled, "{eager:?} {cuts:?}");
        if stalled {
            break;
        }
    }
    let makes_progress = cuts.len() <= 2 || cuts[0] >= 3;
    if !pair.sender.has_ended() {
        pair.run();
    }
    check_events(&pair.events);
    assert_eq!(
        pair.events.contains(&Completed),
        makes_progress,
        "{eager:?} {cuts:?}"
    );
    if makes_progress {
        assert_eq!(to.get(4, 7), Some(file(FILE_BYTES)), "{eager:?} {cuts:?}");
        assert!(!pair.delivered.is_empty(), "{eager:?} {cuts:?}");
        assert_eq!(to.inner().appended, FILE_BYTES as u64, "taken once each");
        assert_eq!(to.inner().finished, 1);
        assert_eq!(to.inner().partial, 0);
    }
}

#[test]
fn what_arrived_counts_even_if_its_acknowledgement_is_lost() {
    let (mut pair, _, to) = pair();
    pair.connect();
    while to.inner().appended < 30 {
        pair.step().unwrap().unwrap();
    }
    assert_eq!(pair.sender.acked(), 0);
    pair.cut();
    let before = pair.chunks.len();
    pair.run();
    assert_eq!(pair.chunks[before], (30, 40));
    assert_eq!(pair.events, [Started, Completed]);
}

#[test]
fn a_lost_end_is_told_again_and_the_message_too() {
    let (mut pair, _, to) = pair();
    pair.connect();
    while to.inner().finished == 0 {
        pair.step().unwrap().unwrap();
    }
    pair.cut();
    assert_eq!(pair.events, [Started]);
    pair.run();
    assert_eq!(pair.events, [Started, Completed]);
    assert_eq!(pair.delivered, [arrived(), arrived()]);
    assert_eq!(to.inner().finished, 1);
}

#[test]
fn a_snapshot_that_is_there_already_is_completed_without_a_chunk() {
    let (from, to) = stores();
    to.put(4, 7, file(3)); // of the receiver's own making: the same state in other bytes
    let mut pair = Pair::new(&from, &to, Eager::Receiver);
    pair.run();
    assert_eq!(pair.events, [Started, Completed]);
    assert_eq!(pair.delivered, [arrived()]);
    assert_eq!((pair.chunks.len(), to.inner().appended), (0, 0));
}

#[test]
fn a_snapshot_that_is_there_already_is_not_delivered_under_another_description() {
    let (_, to) = stores();
    to.put(4, 7, file(20));
    let receiver = Receiver::new(to.shared(), &limits());
    let mut wrong = offer_of(&file(20), 4, 7);
    wrong.snapshot.term = wrong.snapshot.term.next();
    let mut line = receiver.connection(ends(1));
    let refused = Frame::Refuse(Refusal::Damaged);
    assert_eq!(offer(&mut line, wrong), [refused]);
    assert_eq!(to.get(4, 7), Some(file(20)));
}

#[test]
fn a_later_send_goes_on_where_an_aborted_one_was_given_up() {
    let (from, to) = stores();
    let mut pair = Pair::new(&from, &to, Eager::Receiver);
    pair.connect();
    while to.inner().appended < 40 {
        pair.step().unwrap().unwrap();
    }
    pair.cut();
    pair.pass(limits().stall_timeout);
    assert_eq!(pair.events, [Started, Aborted]);
    let mut again = Pair::with_receiver(&from, Arc::clone(&pair.receiver), Eager::Receiver);
    again.run();
    assert_eq!(again.chunks[0], (40, 50));
    assert_eq!(to.get(4, 7), Some(file(FILE_BYTES)));
}

#[test]
fn another_snapshot_of_the_group_takes_the_place_of_the_partial_one() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits());
    let mut older = receiver.connection(ends(1));
    let old = file(20);
    offer(&mut older, offer_of(&old, 4, 7));
    say(&mut older, chunk(0, &old[..10])).unwrap();
    let mut newer = receiver.connection(ends(1));
    let new = file(30);
    let resume = vec![Frame::Resume { offset: 0 }];
    assert_eq!(offer(&mut newer, offer_of(&new, 4, 8)), resume);
    assert_eq!((receiver.partials(), to.inner().partial), (1, 1));
    let late = say(&mut older, chunk(10, &old[10..]));
    assert!(matches!(late, Err(Error::Replaced(_))));
    let done = say(&mut newer, chunk(0, &new)).unwrap();
    assert_eq!(done.last(), Some(&Frame::Done));
    assert_eq!((to.get(4, 7), to.get(4, 8)), (None, Some(new)));
}

#[test]
fn a_new_connection_takes_the_file_over_from_a_half_open_one() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits());
    let bytes = file(20);
    let mut older = receiver.connection(ends(1));
    offer(&mut older, offer_of(&bytes, 4, 7));
    say(&mut older, chunk(0, &bytes[..10])).unwrap();
    let mut newer = receiver.connection(ends(1));
    let resume = vec![Frame::Resume { offset: 10 }];
    assert_eq!(offer(&mut newer, offer_of(&bytes, 4, 7)), resume);
    let late = say(&mut older, chunk(10, &bytes[10..]));
    assert!(matches!(late, Err(Error::Replaced(_))));
    drop(older); // leaves alone what is not its own any more
    let done = say(&mut newer, chunk(10, &bytes[10..])).unwrap();
    assert_eq!(done.last(), Some(&Frame::Done));
    assert_eq!(to.get(4, 7), Some(bytes));
}

#[test]
fn a_file_in_work_is_busy_for_other_connections_and_holds_no_other_thread() {
    for hangs in [Hangs::Appends, Hangs::Syncs] {
        let to = MemoryStore::default();
        let receiver = Receiver::new(to.shared(), &limits());
        let bytes = file(20);
        let mut first = receiver.connection(ends(1));
        offer(&mut first, offer_of(&bytes, 4, 7));
        to.hang(hangs);
        let all = chunk(0, &bytes);
        let working = std::thread::spawn(move || say(&mut first, all).unwrap());
        while to.inner().hanging == 0 {
            std::thread::yield_now();
        }
        let mut second = receiver.connection(ends(1));
        let busy = [Frame::Refuse(Refusal::Busy)];
        assert_eq!(offer(&mut second, offer_of(&bytes, 4, 7)), busy);
        assert_eq!(offer(&mut second, offer_of(&bytes, 4, 8)), busy);
        assert_eq!(receiver.expire(Duration::from_secs(3600)), 0);
        let resume = [Frame::Resume { offset: 0 }]; // other places are not held up
        assert_eq!(offer(&mut second, offer_of(&bytes, 5, 7)), resume);
        to.hang(Hangs::Nothing);
        assert_eq!(working.join().unwrap().last(), Some(&Frame::Done));
        let mut third = receiver.connection(ends(1));
        assert_eq!(offer(&mut third, offer_of(&bytes, 4, 7)), [Frame::Done]);
    }
}

#[test]
fn a_full_receiver_is_busy_until_a_place_is_free() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits()); // two places
    let bytes = file(20);
    let mut lines = [1, 2, 3].map(|from| receiver.connection(ends(from)));
    let resume = vec![Frame::Resume { offset: 0 }];
    let [one, two, three] = &mut lines;
    assert_eq!(offer(one, offer_of(&bytes, 4, 7)), resume);
    assert_eq!(offer(two, offer_of(&bytes, 4, 7)), resume);
    let busy = vec![Frame::Refuse(Refusal::Busy)];
    assert_eq!(offer(three, offer_of(&bytes, 4, 7)), busy);
    assert_eq!(to.inner().most_partial, 2);
    say(one, chunk(0, &bytes)).unwrap();
    // The same connection may ask again.
    assert_eq!(offer(three, offer_of(&bytes, 5, 7)), resume);
}

#[test]
fn a_file_whose_sender_has_gone_makes_room_the_oldest_first() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits());
    let bytes = file(20);
    for (from, second) in [(1, 5), (2, 3)] {
        let mut incoming = receiver.connection(ends(from));
        let now = Duration::from_secs(second);
        incoming
            .on_frame(Frame::Offer(offer_of(&bytes, 4, 7)), now)
            .unwrap();
        incoming.on_frame(chunk(0, &bytes[..10]), now).unwrap();
    }
    let new = offer(&mut receiver.connection(ends(3)), offer_of(&bytes, 4, 7));
    assert_eq!(new, [Frame::Resume { offset: 0 }]);
    let kept = offer(&mut receiver.connection(ends(1)), offer_of(&bytes, 4, 7));
    assert_eq!(kept, [Frame::Resume { offset: 10 }]);
    assert_eq!((receiver.partials(), to.inner().partial), (2, 2));
}

#[test]
fn a_partial_file_without_progress_is_deleted() {
    let (mut pair, _, to) = pair();
    pair.connect();
    while to.inner().appended < 30 {
        pair.step().unwrap().unwrap();
    }
    pair.cut();
    let retention = limits().partial_retention;
    assert_eq!(
        pair.receiver
            .expire(retention.saturating_sub(Duration::from_millis(1))),
        0
    );
    assert_eq!(pair.receiver.expire(retention), 1);
    assert_eq!((pair.receiver.partials(), to.inner().partial), (0, 0));
    pair.run(); // from the start
    assert_eq!(pair.events, [Started, Completed]);
    assert_eq!(to.inner().appended, 30 + FILE_BYTES as u64);
}

#[test]
fn a_closed_receiver_keeps_nothing_and_takes_nothing() {
    let (mut pair, _, to) = pair();
    pair.connect();
    while to.inner().appended < 30 {
        pair.step().unwrap().unwrap();
    }
    pair.receiver.close();
    assert_eq!((pair.receiver.partials(), to.inner().partial), (0, 0));
    let result = std::iter::from_fn(|| pair.step()).find(Result::is_err);
    assert!(matches!(result, Some(Err(Error::Replaced(_)))));
    pair.connect();
    let result = std::iter::from_fn(|| pair.step()).find(Result::is_err);
    assert!(matches!(result, Some(Err(Error::Busy))));
    assert_eq!(to.inner().partial, 0);
}

#[test]
fn a_receiver_that_forgets_what_it_acknowledged_is_given_up_in_the_end() {
    let (from, to) = stores();
    let mut pair = Pair::new(&from, &to, Eager::Sender);
    for round in 0..=MAX_RESTARTS + 1 {
        assert!(!pair.sender.has_ended(), "round {round}");
        pair.receiver = Receiver::new(to.shared(), &limits()); // as after a restart
        pair.acked = 0; // what it lost must be sent again
        pair.connect();
        for _offer_and_resume in 0..2 {
            pair.step().unwrap().unwrap();
        }
        while pair.sender.acked() < 10 && !pair.sender.has_ended() {
            pair.step().unwrap().unwrap();
        }
        pair.cut();
    }
    assert_eq!(pair.events, [Started, Aborted]);
    assert_eq!(
        pair.sender.take_resent_chunks(),
        u64::from(MAX_RESTARTS) * 3
    );
}

#[test]
fn a_transfer_lives_as_long_as_something_is_acknowledged() {
    let (mut pair, ..) = pair();
    pair.connect();
    let almost = limits()
        .stall_timeout
        .saturating_sub(Duration::from_millis(1));
    let mut acked = 0;
    while !pair.sender.has_ended() {
        pair.step().unwrap().unwrap();
        if pair.sender.acked() > acked {
            acked = pair.sender.acked();
            pair.pass(almost);
        }
    }
    assert!(pair.now > 8 * almost);
    assert_eq!(pair.events, [Started, Completed]);
}

#[test]
fn life_without_progress_does_not_count_while_the_file_travels() {
    let (mut pair, ..) = pair();
    pair.connect();
    let stall = limits().stall_timeout;
    for _ in 0..29 {
        pair.pass(stall / 30);
        pair.sender.on_frame(Frame::Alive, pair.now).unwrap();
        assert!(!pair.sender.has_ended());
    }
    pair.pass(stall / 30);
    assert_eq!(pair.events, [Aborted]);
}

#[test]
fn a_long_check_of_the_file_is_waited_for_while_the_peer_lives() {
    let limits = limits();
    let checking = || {
        let (from, _) = stores();
        let mut sender = sender(&from);
        sender.connect();
        let bytes = FILE_BYTES as u64;
        let all = Frame::Resume { offset: bytes };
        sender.on_frame(all, Duration::ZERO).unwrap();
        sender
    };
    let mut alive = checking();
    let mut now = Duration::ZERO;
    while now < limits.finish_timeout {
        alive.tick(now);
        assert!(!alive.has_ended(), "given up after {now:?}");
        alive.on_frame(Frame::Alive, now).unwrap();
        alive.connect(); // a connection that breaks again and again makes it no longer
        let offset = FILE_BYTES as u64;
        alive.on_frame(Frame::Resume { offset }, now).unwrap();
        now += limits.stall_timeout / 2;
    }
    alive.tick(now);
    assert_eq!(alive.take_events(), [Aborted]);
    let mut dead = checking();
    dead.tick(limits.stall_timeout);
    assert_eq!(dead.take_events(), [Aborted]);
    let mut done = checking();
    done.on_frame(Frame::Done, limits.stall_timeout * 3)
        .unwrap();
    assert_eq!(done.take_events(), [Started, Completed]);
}

#[test]
fn an_unreadable_file_is_given_up_before_or_after_the_start() {
    for (bad, events) in [(0, &[Aborted][..]), (25, &[Started, Aborted])] {
        let (mut pair, from, to) = pair();
        from.inner().disk = Disk::FailsToReadFrom(bad);
        pair.run();
        assert_eq!(pair.events, events);
        assert_eq!(to.inner().appended, bad / 10 * 10);
        assert_eq!(pair.delivered, []);
    }
}

#[test]
fn refusals_end_the_transfer_but_busy_does_not() {
    let ends_with = |prepare: fn(&mut support::store::Inner), events: &[SnapshotSending]| {
        let (mut pair, _, to) = pair();
        prepare(&mut to.inner());
        pair.run();
        assert_eq!(pair.events, events);
        assert_eq!((pair.receiver.partials(), to.inner().partial), (0, 0));
        assert_eq!((to.get(4, 7), &pair.delivered[..]), (None, &[][..]));
    };
    ends_with(|store| store.room = 10, &[Aborted]);
    ends_with(|store| store.disk = Disk::FailsToWrite, &[Started, Aborted]);
    ends_with(|store| store.disk = Disk::FailsToSync, &[Started, Aborted]);

    let (mut pair, ..) = pair();
    pair.connect();
    let busy = pair.sender.on_frame(Frame::Refuse(Refusal::Busy), pair.now);
    assert!(matches!(busy, Err(Error::Busy)));
    pair.cut();
    pair.run();
    assert_eq!(pair.events, [Started, Completed]);
}
