//! The fourteen kinds of events, each from its natural cause, on five nodes: fields and order as it really was.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use multiraft_proto::node::Event;
use multiraft_proto::node::event::Event as Kind;
use support::cli::{add, bootstrap, done};
use support::load::LOOK;
use support::proxy::Proxy;
use support::watching::Watcher;
use support::{Cluster, PATIENCE, Process, group_status, put};

const GROUP: u32 = 1;
/// Entries after which a snapshot is made, and that are kept behind it.
const THRESHOLD: u64 = 50;
const RETAINED: u64 = 10;
const VALUE_BYTES: usize = 512 << 10;
/// Of what a joining node has to be sent, over a link on which that takes seconds.
const STATE_VALUES: usize = 16;
const LINK_BYTES_PER_SECOND: u64 = 3_000_000;

/// Puts a large value until it is acknowledged.
async fn write(node: &Process, key: &str) {
    let began = Instant::now();
    let value = "v".repeat(VALUE_BYTES);
    while let Err(status) = put(node.channel().await, GROUP, key, &value).await {
        assert!(began.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(LOOK).await;
    }
}

fn name(kind: &Kind) -> String {
    let text = format!("{kind:?}");
    text.split('(').next().unwrap().to_owned()
}

fn created(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::SnapshotCreated(e) => Some(e.index),
        _ => None,
    }
}

fn snapshot_compacted(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::SnapshotCompacted(e) => Some(e.index),
        _ => None,
    }
}

fn log_compacted(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::LogCompacted(e) => Some(e.index),
        _ => None,
    }
}

fn logdb_compacted(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::LogdbCompacted(e) => Some(e.index),
        _ => None,
    }
}

/// What happens to snapshots that are sent to a node.
fn sending(to: u64) -> impl Fn(&Kind) -> Option<(&'static str, u64)> {
    move |kind| match kind {
        Kind::SendSnapshotStarted(e) if e.to == to => Some(("started", e.index)),
        Kind::SendSnapshotCompleted(e) if e.to == to => Some(("completed", e.index)),
        Kind::SendSnapshotAborted(e) if e.to == to => Some(("aborted", e.index)),
        _ => None,
    }
}

/// Who leads by which term, as told.
fn led(kind: &Kind) -> Option<(u64, u64)> {
    match kind {
        Kind::LeaderUpdated(e) if e.leader != 0 => Some((e.term, e.leader)),
        _ => None,
    }
}

fn changed(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::MembershipChanged(e) => Some(e.node_id),
        _ => None,
    }
}

fn ready(kind: &Kind) -> Option<u64> {
    match kind {
        Kind::MemberReady(e) => Some(e.node_id),
        _ => None,
    }
}

fn connection(kind: &Kind) -> Option<(bool, String, bool)> {
    let (is_up, info) = match kind {
        Kind::ConnectionEstablished(e) => (true, e.info.clone()?),
        Kind::ConnectionFailed(e) => (false, e.info.clone()?),
        _ => return None,
    };
    Some((is_up, info.address, info.snapshot))
}

fn is_rising(indexes: &[u64]) -> bool {
    indexes.windows(2).all(|two| two[0] < two[1])
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_fourteen_kinds_tell_what_really_happened() {
    let mut cluster = Cluster::start(5);
    let proxy = Proxy::start(cluster.nodes[3].raft_port, LINK_BYTES_PER_SECOND).await;
    for node in &mut cluster.nodes {
        node.kill();
        node.arguments = vec![
            format!("--snapshot-entry-threshold={THRESHOLD}"),
            format!("--compaction-retain-entries={RETAINED}"),
        ];
        if node.id == 4 {
            let advertised = format!("--raft-advertise=127.0.0.1:{}", proxy.port);
            node.arguments.push(advertised);
            node.advertised_port = proxy.port;
        }
        node.start();
    }
    let mut watchers = Vec::new();
    for node in &cluster.nodes {
        watchers.push(Watcher::start(node).await);
    }
    let [first, second, third] = [0, 1, 2].map(|at| &cluster.nodes[at]);

    // A group begins.
    bootstrap(&[first, second, third], "1");
    for (node, watcher) in [first, second, third].iter().zip(&watchers) {
        let own = watcher.first("MemberReady", ready).await;
        assert_eq!(own, u64::from(node.id));
        watcher.first("a leader", led).await;
        let members: BTreeSet<u64> = watcher.all(changed).into_iter().collect();
        assert_eq!(members, [1, 2, 3].into());
    }
    let up = watchers[0].first("a connection", connection).await;
    assert!(up.0, "the first thing that is told of a connection");

    // Snapshots, and space given back: the log's files are of 32 MiB.
    for at in 0..220 {
        write(first, &format!("key-{:02}", at % STATE_VALUES)).await;
    }
    for watcher in &watchers[..3] {
        watcher.first("LogDBCompacted", logdb_compacted).await;
        let made = watcher.all(created);
        assert!(made.len() >= 3 && is_rising(&made), "{made:?}");
        let older = watcher.all(snapshot_compacted);
        assert!(
            is_rising(&older) && made.starts_with(&older),
            "{older:?} {made:?}"
        );
        let cut = watcher.all(log_compacted);
        let expected: Vec<u64> = made.iter().map(|index| index - RETAINED).collect();
        assert!(
            expected.starts_with(&cut) && cut.len() >= 3,
            "{cut:?} {made:?}"
        );
        // Space comes back after the log has let go of it, and never more than that.
        let mut let_go = 0;
        let mut reclaimed = Vec::new();
        watcher.all(|kind| {
            let_go = log_compacted(kind).unwrap_or(let_go);
            reclaimed.extend(logdb_compacted(kind).map(|index| (index, let_go)));
            None::<()>
        });
        assert!(
            reclaimed.iter().all(|(index, let_go)| index <= let_go),
            "{reclaimed:?}"
        );
        assert!(reclaimed.iter().is_sorted(), "{reclaimed:?}");
    }

    // A transfer that fails, since the receiver dies, and one that does not.
    done(&[first], &["transfer", "--group", "1", "--to", "1"]);
    let joining = {
        let new = format!("127.0.0.1:{}", cluster.nodes[3].api_port);
        let asked = format!("127.0.0.1:{}", first.api_port);
        tokio::task::spawn_blocking(move || {
            let add = ["add", "--group", "1", "--new", &new];
            support::cli::multiraft_within("60s", &asked, &add)
        })
    };
    let (what, first_sent) = watchers[0].first("a transfer", sending(4)).await;
    assert_eq!(what, "started");
    cluster.nodes[3].kill();
    let aborted = |kind: &Kind| sending(4)(kind).filter(|(what, _)| *what == "aborted");
    assert_eq!(watchers[0].first("its end", aborted).await.1, first_sent);
    // The lower id of two dials: it is node 1's connection that failed.
    let link = format!("127.0.0.1:{}", proxy.port);
    for is_up in [true, false] {
        let is_it = |c: &(bool, String, bool)| *c == (is_up, link.clone(), false);
        let found = |kind: &Kind| connection(kind).filter(is_it);
        watchers[0].first("the connection to node 4", found).await;
    }
    joining.await.unwrap();
    cluster.nodes[3].start();
    watchers[3] = Watcher::start(&cluster.nodes[3]).await;
    let [first, fourth] = [0, 3].map(|at| &cluster.nodes[at]);
    add(&[first], GROUP, fourth, "member");
    let sent = watchers[0].all(sending(4));
    let pairs = sent
        .chunks(2)
        .map(|two| (two[0].0 == "started", two.get(1).map(|end| end.0)));
    let is_pair = |(is_start, end): (bool, Option<&str>)| is_start && end != Some("started");
    assert!(
        pairs.clone().all(is_pair) && sent.len().is_multiple_of(2),
        "{sent:?}"
    );
    assert_eq!(sent.last().unwrap().0, "completed", "{sent:?}");
    let last = sent.last().unwrap().1;
    let taken_over = watchers[3].all(|kind| match kind {
        Kind::SnapshotReceived(e) => Some(("received", e.index, e.from)),
        Kind::SnapshotRecovered(e) => Some(("recovered", e.index, 0)),
        _ => None,
    });
    assert_eq!(taken_over, [("received", last, 1), ("recovered", last, 0)]);
    let carries = |kind: &Kind| connection(kind).filter(|(is_up, _, carries)| *is_up && *carries);
    let over = watchers[0]
        .first("a connection for snapshots", carries)
        .await;
    assert_eq!(over.1, link);

    // One comes and goes; what it had of the group is deleted.
    let fifth = &cluster.nodes[4];
    add(&[first], GROUP, fifth, "observer");
    write(fifth, "key-00").await;
    done(&[fifth], &["snapshot", "--group", "1"]);
    let its_own = watchers[4].first("its own snapshot", created).await;
    done(&[fifth], &["leave", "--group", "1"]);
    let gone = |kind: &Kind| snapshot_compacted(kind).filter(|index| *index == its_own);
    watchers[4].first("the end of its snapshot", gone).await;
    for watcher in &watchers[..4] {
        watcher
            .first("node 5", |kind| changed(kind).filter(|node| *node == 5))
            .await;
    }

    // The leader dies.
    cluster.nodes[0].kill();
    let survivors = &watchers[1..4];
    for watcher in survivors {
        let other = |kind: &Kind| led(kind).filter(|(_, leader)| *leader != 1);
        watcher.first("the next leader", other).await;
    }
    let status = agreed(&cluster.nodes[1]).await;
    for watcher in survivors {
        let now = |kind: &Kind| led(kind).filter(|led| *led == status);
        watcher.first("the leader of the status", now).await;
    }
    one_leader_a_term(&watchers);
    for watcher in &watchers {
        in_order(&watcher.events());
    }
    let seen = watchers.iter().flat_map(|w| w.all(|kind| Some(name(kind))));
    let seen: BTreeSet<String> = seen.collect();
    assert_eq!(seen.len(), 14, "{seen:?}");

    // Who comes now is told what is so.
    let late = Watcher::start(&cluster.nodes[1]).await;
    late.first("the leader", |kind| led(kind).filter(|led| *led == status))
        .await;
    let members: BTreeSet<u64> = late.all(changed).into_iter().collect();
    assert_eq!(members, [1, 2, 3, 4].into());
    assert_eq!(late.all(ready), [2]);
}

/// Term and leader, as soon as there is one that lives.
async fn agreed(node: &Process) -> (u64, u64) {
    let began = Instant::now();
    loop {
        let status = group_status(node, GROUP).await.unwrap();
        if status.leader_id > 1 {
            return (status.term, u64::from(status.leader_id));
        }
        assert!(began.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn one_leader_a_term(watchers: &[Watcher]) {
    let mut leaders = BTreeMap::new();
    for (term, leader) in watchers.iter().flat_map(|watcher| watcher.all(led)) {
        let known = *leaders.entry(term).or_insert(leader);
        assert_eq!(known, leader, "two leaders in term {term}");
    }
}

/// The times of live events never go back; those of the present state come first, with times of their own.
fn in_order(events: &[Event]) {
    let times = events.iter().map(|event| {
        let time = event.timestamp.unwrap();
        (time.seconds, time.nanos)
    });
    let times: Vec<_> = times.collect();
    assert!(times.is_sorted(), "{events:?}");
}
