//! Snapshots over real connections on loopback.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::SnapshotSending::{Aborted, Completed, Started};
use multiraft_engine::traits::ConnectionState::{Established, Failed};
use multiraft_engine::traits::{ConnectionKind, Transport};
use multiraft_engine::types::{GroupId, Term};
use multiraft_transport::Config;
use multiraft_transport::metrics::PeerLabel;
use support::node::{CHUNK, arrived, end, local, two_nodes, wait_until};
use support::proxy::Proxy;
use support::store::Hangs;
use support::{Seen, file, id, install};
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_arrives_while_messages_flow_both_ways() {
    let long_chunks = |config: &mut Config| config.snapshots.chunk_bytes = 1 << 20;
    let (one, two) = (end(1, long_chunks).await, end(2, long_chunks).await);
    one.transport.set_peer(id(2), local(two.port()));
    two.transport.set_peer(id(1), local(one.port()));
    for end in [&one, &two] {
        let up = |seen| {
            matches!(
                seen,
                Seen::Connection(_, ConnectionKind::Messages, Established)
            )
        };
        while !up(end.next()) {}
    }
    for (from, to, a, b) in [(&one, &two, 1, 2), (&two, &one, 2, 1)] {
        from.store.put(a, 7, file(8 << 20));
        from.transport.send_snapshot(install(a, a, b, 7));
        let (mut told, mut received, mut sent, mut next) = (Vec::new(), None, 0, 0);
        // One message at a time: each must make its way while chunks travel.
        while !matches!(told.last(), Some(Completed)) || received.is_none() || next < 100 {
            if sent == next {
                from.transport.send(vec![read_index(a, b, sent)]);
                sent += 1;
            }
            match to.next() {
                Seen::Messages(envelopes) => {
                    let request = Message::ReadIndex { request: next };
                    assert_eq!(envelopes[0].message, request);
                    next += 1;
                }
                Seen::Received(envelope) => received = Some(envelope),
                Seen::Connection(..) | Seen::Down(_) | Seen::Sending(..) => {}
            }
            let news = from.seen.try_iter();
            told.extend(news.filter_map(|seen| match seen {
                Seen::Sending(_, sending) => Some(sending),
                _ => None,
            }));
        }
        assert_eq!(told, [Started, Completed]);
        assert_eq!(received, Some(arrived(a, a, b)));
        assert_eq!(to.store.get(a, 7), Some(file(8 << 20)));
        let (label, metrics) = (PeerLabel { peer: b }, from.metrics());
        assert_eq!(metrics.bytes_sent.get_or_create(&label).get(), 8 << 20);
        assert_eq!(metrics.sends_completed.get_or_create(&label).get(), 1);
        assert_eq!(metrics.sends_open.get_or_create(&label).get(), 0);
        let (label, metrics) = (PeerLabel { peer: a }, to.metrics());
        assert_eq!(metrics.bytes_received.get_or_create(&label).get(), 8 << 20);
        assert_eq!(metrics.received.get_or_create(&label).get(), 1);
    }
}

fn read_index(from: u32, to: u32, request: u64) -> Envelope {
    Envelope {
        group: GroupId(1),
        from: id(from),
        to: id(to),
        term: Term(0),
        incarnation: 0,
        message: Message::ReadIndex { request },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_resumed_and_nothing_acknowledged_is_sent_again() {
    let (sender, receiver) = two_nodes(1, 1 << 20, |_| {}, |_| {}).await;
    let cuts = vec![400 << 10, 300 << 10];
    let proxy = Proxy::new(receiver.transport.local_addr(), cuts).await;
    sender.transport.set_peer(id(1), local(proxy.port));
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    assert_eq!(sender.wait_ended(1), [Started, Completed]);
    assert_eq!(receiver.wait_received(), arrived(1, 2, 1));
    assert_eq!(receiver.store.get(1, 7), Some(file(1 << 20)));
    assert_eq!(receiver.store.inner().appended, 1 << 20);
    // Each cut may lose a window and the half of a chunk; hellos, offers and headers are small.
    let forwarded = proxy.forwarded.load(Ordering::Relaxed);
    let most = (1 << 20) + 2 * 3 * CHUNK as u64 + 4096;
    assert!(((1 << 20)..most).contains(&forwarded), "{forwarded} bytes");
    let resent = sender.metrics().chunks_resent;
    let resent = resent.get_or_create(&PeerLabel { peer: 1 }).get();
    assert!((1..=2 * 2).contains(&resent), "{resent} chunks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_for_snapshots_are_told_by_their_kind() {
    let (sender, receiver) = two_nodes(1, CHUNK, |_| {}, |_| {}).await;
    let proxy = Proxy::new(receiver.transport.local_addr(), vec![1000]).await;
    sender.transport.set_peer(id(1), local(proxy.port));
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    let (mut states, mut told) = (Vec::new(), Vec::new());
    while told.last() != Some(&Completed) {
        match sender.next() {
            Seen::Connection(_, ConnectionKind::Snapshots, state) => states.push(state),
            Seen::Sending(_, sending) => told.push(sending),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(states, [Established, Failed, Established]);
    assert_eq!(told, [Started, Completed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_few_are_sent_at_once_and_the_others_wait_in_order() {
    let few = |config: &mut Config| config.snapshots.parallel_sends = 2;
    let (sender, receiver) = two_nodes(6, 3 * CHUNK, few, |_| {}).await;
    receiver.store.hang(Hangs::Appends);
    for group in 1..=6 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    wait_until("two begin", || receiver.store.inner().hanging == 2).await;
    tokio::time::sleep(Duration::from_millis(50)).await; // a third could only come now
    receiver.store.hang(Hangs::Nothing);
    let ends = sender.wait_ends(6);
    assert!(ends.values().all(|&end| end == Completed), "{ends:?}");
    assert_eq!(receiver.store.inner().most_partial, 2);
    assert_eq!(receiver.store.inner().files.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_the_queue_is_aborted_at_once() {
    let short = |config: &mut Config| {
        config.snapshots.parallel_sends = 1;
        config.snapshots.queued_sends = 2;
    };
    let (sender, receiver) = two_nodes(6, CHUNK, short, |_| {}).await;
    receiver.store.hang(Hangs::Appends);
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    wait_until("one begins", || receiver.store.inner().hanging == 1).await;
    for group in 2..=6 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    let aborted: Vec<_> = sender.wait_ends(3).into_iter().collect();
    assert_eq!(aborted, [(4, Aborted), (5, Aborted), (6, Aborted)]);
    receiver.store.hang(Hangs::Nothing);
    let sent: Vec<_> = sender.wait_ends(3).into_iter().collect();
    assert_eq!(sent, [(1, Completed), (2, Completed), (3, Completed)]);
    let label = PeerLabel { peer: 1 };
    assert_eq!(
        sender.metrics().sends_aborted.get_or_create(&label).get(),
        3
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_snapshots_of_one_group_do_not_travel_to_one_peer_at_once() {
    let (sender, receiver) = two_nodes(1, CHUNK, |_| {}, |_| {}).await;
    sender.store.put(1, 8, file(CHUNK));
    receiver.store.hang(Hangs::Appends);
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    wait_until("the first begins", || receiver.store.inner().hanging == 1).await;
    sender.transport.send_snapshot(install(1, 2, 1, 8));
    loop {
        if let Seen::Sending(travelling, end @ (Completed | Aborted)) = sender.next() {
            assert_eq!((travelling.index.0, end), (8, Aborted));
            break;
        }
    }
    receiver.store.hang(Hangs::Nothing);
    assert_eq!(sender.wait_ended(1), [Completed]);
    sender.transport.send_snapshot(install(1, 2, 1, 8));
    assert_eq!(sender.wait_ended(1), [Started, Completed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_takes_all_that_waits_for_it_along() {
    let impatient = |config: &mut Config| {
        config.snapshots.parallel_sends = 1;
        config.snapshots.stall_timeout = Duration::from_millis(300);
    };
    let (sender, receiver) = two_nodes(1001, 10, impatient, |_| {}).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    sender.transport.set_peer(id(1), local(port));
    let began = Instant::now();
    for group in 1..=1000 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    let failed = Seen::Connection(id(1), ConnectionKind::Snapshots, Failed);
    assert_eq!(sender.wait_connection(), failed);
    let ends = sender.wait_ends(1000);
    assert!(ends.values().all(|&end| end == Aborted), "{ends:?}");
    // Each on its own would have taken its 300 ms.
    assert!(began.elapsed() < Duration::from_secs(100));
    // What is asked for later has its own chance.
    sender.transport.set_peer(id(1), local(receiver.port()));
    sender.transport.send_snapshot(install(1001, 2, 1, 7));
    assert_eq!(sender.wait_ended(1001), [Started, Completed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sent_is_aborted_without_a_start() {
    let impatient = |config: &mut Config| {
        config.snapshots.stall_timeout = Duration::from_millis(300);
    };
    let (sender, receiver) = two_nodes(4, CHUNK, impatient, |_| {}).await;
    // Nobody knows where node 3 is; of group 9 there is no file; node 5 is of another cluster.
    sender.transport.send_snapshot(install(1, 2, 3, 7));
    assert_eq!(sender.wait_ended(1), [Aborted]);
    sender.transport.send_snapshot(install(9, 2, 1, 7));
    assert_eq!(sender.wait_ended(9), [Aborted]);
    let foreign = end(5, |config| config.cluster_id = 2).await;
    sender.transport.set_peer(id(5), local(foreign.port()));
    sender.transport.send_snapshot(install(2, 2, 5, 7));
    assert_eq!(sender.wait_ended(2), [Aborted]);
    assert!(foreign.transport.metrics().refused.get() > 0);
    // An address that leads to another node, and a receiver without room.
    sender.transport.set_peer(id(6), local(receiver.port()));
    sender.transport.send_snapshot(install(3, 2, 6, 7));
    assert_eq!(sender.wait_ended(3), [Aborted]);
    receiver.store.inner().room = 10;
    sender.transport.send_snapshot(install(4, 2, 1, 7));
    assert_eq!(sender.wait_ended(4), [Aborted]);
    for end in [&receiver, &foreign] {
        assert_eq!(end.store.inner().files.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_check_of_the_file_is_waited_for() {
    let change = |config: &mut Config| {
        config.ping_period = Duration::from_millis(20);
        config.snapshots.stall_timeout = Duration::from_millis(500);
    };
    let (sender, receiver) = two_nodes(1, CHUNK, change, change).await;
    receiver.store.hang(Hangs::Syncs);
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    wait_until("it is synced", || receiver.store.inner().hanging == 1).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    receiver.store.hang(Hangs::Nothing);
    assert_eq!(sender.wait_ended(1), [Started, Completed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_receiver_is_asked_again() {
    let single = |config: &mut Config| config.snapshots.parallel_receives = 1;
    let (sender, receiver) = two_nodes(3, 3 * CHUNK, |_| {}, single).await;
    for group in 1..=3 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    let ends = sender.wait_ends(3);
    assert!(ends.values().all(|&end| end == Completed), "{ends:?}");
    assert_eq!(receiver.store.inner().most_partial, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_holds_for_all_transfers_together() {
    let slow = |config: &mut Config| config.snapshots.bytes_per_second = 1 << 20;
    let (sender, _receiver) = two_nodes(4, 4 * CHUNK, slow, |_| {}).await;
    let began = Instant::now();
    for group in 1..=4 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    sender.wait_ends(4);
    // 16 chunks of 1/16 s each; the first one leaves at once. A slow machine only takes longer.
    assert!(began.elapsed() >= Duration::from_millis(15 * 1000 / 16));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_transport_aborts_all_and_keeps_no_partial_file() {
    let single = |config: &mut Config| config.snapshots.parallel_sends = 1;
    let (sender, receiver) = two_nodes(3, 4 * CHUNK, single, |_| {}).await;
    receiver.store.hang(Hangs::Appends);
    for group in 1..=3 {
        sender.transport.send_snapshot(install(group, 2, 1, 7));
    }
    wait_until("one begins", || receiver.store.inner().hanging == 1).await;
    sender.transport.shut_down();
    let told = sender.seen.try_iter(); // all of it is told when the call returns
    let is_aborted = |seen: &Seen| matches!(seen, Seen::Sending(_, Aborted));
    assert_eq!(told.filter(is_aborted).count(), 3);
    receiver.transport.shut_down();
    receiver.store.hang(Hangs::Nothing);
    wait_until("it is deleted", || receiver.store.inner().partial == 0).await;
    assert_eq!(receiver.store.inner().files.len(), 0);
    let later = sender.seen.try_iter();
    let ends = later
        .filter(|seen| matches!(seen, Seen::Sending(..)))
        .count();
    assert_eq!(ends, 0, "an end after the end");
}
