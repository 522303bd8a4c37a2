//! A node joins over a slow link that breaks: the snapshot arrives once, goes on where it was, and disturbs
//! nobody's heartbeats.
//!
//! Sizes are from the environment: `MULTIRAFT_TEST_SNAPSHOT_MIB` (64) and `MULTIRAFT_TEST_LINK_MB` (20, in
//! millions of bytes a second).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::{Duration, Instant};

use multiraft_proto::etcdserverpb::kv_client::KvClient;
use multiraft_proto::etcdserverpb::{PutRequest, RangeRequest};
use multiraft_proto::node::event::Event as Kind;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng};
use support::cli::{bootstrap, done, multiraft_within};
use support::load::LOOK;
use support::proxy::Proxy;
use support::watching::Watcher;
use support::{Cluster, Process, group_status, to_group};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const VALUE_BYTES: usize = 512 << 10;
const VALUES_PER_MIB: u64 = 2;
/// Puts that are under way at once.
const PARALLEL: usize = 8;
/// Long beyond what the largest run takes.
const LONG: &str = "30m";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The value of a key: bytes that nothing makes smaller.
fn value(key: u64) -> Vec<u8> {
    let mut bytes = vec![0; VALUE_BYTES];
    SmallRng::seed_from_u64(key).fill(&mut bytes[..]);
    bytes
}

async fn put(channel: Channel, group: u32, key: u64) {
    let request = PutRequest {
        key: key.to_be_bytes().to_vec().into(),
        value: value(key).into(),
        ..PutRequest::default()
    };
    let mut client = KvClient::new(channel);
    client.put(to_group(group, request)).await.unwrap();
}

async fn get(channel: Channel, group: u32, key: u64) -> Vec<u8> {
    let request = RangeRequest {
        key: key.to_be_bytes().to_vec().into(),
        ..RangeRequest::default()
    };
    let mut client = KvClient::new(channel);
    let answer = client.range(to_group(group, request)).await.unwrap();
    answer.into_inner().kvs.remove(0).value.to_vec()
}

async fn fill(node: &Process, group: u32, values: u64) {
    let channel = node.channel().await;
    let mut puts = JoinSet::new();
    for key in 0..values {
        puts.spawn(put(channel.clone(), group, key));
        if puts.len() == PARALLEL {
            puts.join_next().await.unwrap().unwrap();
        }
    }
    puts.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_over_a_slow_link_that_breaks_twice_arrives_once() {
    let mib = setting("MULTIRAFT_TEST_SNAPSHOT_MIB", 64);
    let rate = setting("MULTIRAFT_TEST_LINK_MB", 20) * 1_000_000;
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start(cluster.nodes[2].raft_port, rate).await;
    // Snapshots are made when the test says so.
    let never = ["--snapshot-byte-threshold=1TiB".to_owned()];
    for node in &mut cluster.nodes {
        node.kill();
        node.arguments.extend(never.clone());
        if node.id == 3 {
            let advertised = format!("--raft-advertise=127.0.0.1:{}", proxy.port);
            node.arguments.push(advertised);
            node.advertised_port = proxy.port;
        }
        node.start();
        node.channel().await;
    }
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    bootstrap(&[a, b], "1");
    bootstrap(&[a, b, c], "2");
    done(&[a], &["transfer", "--group", "1", "--to", "1"]);
    done(&[a], &["transfer", "--group", "2", "--to", "1"]);
    fill(a, 1, mib * VALUES_PER_MIB).await;
    put(a.channel().await, 2, 1).await;
    done(&[a], &["snapshot", "--group", "1"]);
    done(&[a], &["compact", "--group", "1"]);
    let before_terms = [terms(a).await, terms(b).await];
    let (sender, receiver) = (Watcher::start(a).await, Watcher::start(c).await);

    let before = proxy.passed();
    let began = Instant::now();
    let snapshot_bytes = mib << 20;
    let add = {
        let new = format!("127.0.0.1:{}", c.api_port);
        let asked = format!("127.0.0.1:{}", a.api_port);
        tokio::task::spawn_blocking(move || {
            let add = ["add", "--group", "1", "--new", &new];
            multiraft_within(LONG, &asked, &add)
        })
    };
    for part in [1, 2] {
        while proxy.passed() - before < part * snapshot_bytes / 3 && !add.is_finished() {
            tokio::time::sleep(LOOK).await;
        }
        if !add.is_finished() {
            proxy.cut();
        }
    }
    let (is_done, text) = add.await.unwrap();
    assert!(
        is_done,
        "{text} {:?} {:?}",
        sender.events(),
        receiver.events()
    );
    let took = began.elapsed();
    let passed = proxy.passed() - before;
    println!(
        "{mib} MiB over {} MB/s with two cuts: {took:.1?}, {} bytes for each thousand",
        rate / 1_000_000,
        passed * 1000 / snapshot_bytes
    );
    assert!(
        took >= Duration::from_secs(snapshot_bytes / rate),
        "{took:?}"
    );
    // Of each transfer that was cut only what was on its way goes again.
    assert!(passed < snapshot_bytes + snapshot_bytes / 3, "{passed}");

    let of_group = |kind: &Kind| match kind {
        Kind::SendSnapshotStarted(e) if e.group_id == 1 => Some(("started", e.index)),
        Kind::SendSnapshotCompleted(e) if e.group_id == 1 => Some(("completed", e.index)),
        Kind::SendSnapshotAborted(e) if e.group_id == 1 => Some(("aborted", e.index)),
        Kind::SnapshotReceived(e) if e.group_id == 1 => Some(("received", e.index)),
        Kind::SnapshotRecovered(e) if e.group_id == 1 => Some(("recovered", e.index)),
        _ => None,
    };
    let index = group_status(a, 1).await.unwrap().snapshot_index;
    assert_eq!(
        sender.all(of_group),
        [("started", index), ("completed", index)]
    );
    assert_eq!(
        receiver.all(of_group),
        [("received", index), ("recovered", index)]
    );
    let after = [terms(a).await, terms(b).await];
    assert_eq!(before_terms, after, "nobody missed a heartbeat");
    let channel = c.channel().await;
    for key in 0..mib * VALUES_PER_MIB {
        assert!(get(channel.clone(), 1, key).await == value(key), "{key}");
    }
}

/// Term and leader of both groups.
async fn terms(node: &Process) -> Vec<(u64, u32)> {
    let mut terms = Vec::new();
    for group in [1, 2] {
        let status = group_status(node, group).await.unwrap();
        terms.push((status.term, status.leader_id));
    }
    terms
}
