//! kill -9 under writes: what was acknowledged is never lost, and the others go on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::{Duration, Instant};

use support::load::Load;
use support::{Cluster, PATIENCE, put};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const GROUPS: u32 = 4;
const ROUNDS: usize = 10;
/// The election timeout of a node that nobody configured.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a probe may take before the next is tried.
const PROBE: Duration = Duration::from_millis(50);

/// The longest time, over all groups, until one of `ports` takes a new write.
async fn until_all_groups_go_on(ports: [u16; 2], round: usize) -> Duration {
    let began = Instant::now();
    let mut probes = JoinSet::new();
    for group in 1..=GROUPS {
        probes.spawn(async move {
            for attempt in 0_usize.. {
                let endpoint = format!("http://127.0.0.1:{}", ports[attempt % 2]);
                let channel = Channel::from_shared(endpoint).unwrap().connect_lazy();
                let key = format!("probe-{round}-{attempt}");
                let write = tokio::time::timeout(PROBE, put(channel, group, &key, ""));
                if matches!(write.await, Ok(Ok(_))) {
                    return;
                }
                assert!(began.elapsed() < PATIENCE, "group {group} does not go on");
            }
        });
    }
    probes.join_all().await;
    began.elapsed()
}

/// At any moment of its first start a node may be killed, and comes up with the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_while_its_directory_is_made_starts_again() {
    for step in 0..16 {
        let mut cluster = Cluster::start(1);
        tokio::time::sleep(step * Duration::from_millis(4)).await;
        let node = &mut cluster.nodes[0];
        node.kill();
        node.start();
        node.channel().await;
        cluster.bootstrap(1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_of_one_node_and_one_of_all_lose_nothing() {
    let mut cluster = Cluster::start(3);
    for group in 1..=GROUPS {
        cluster.bootstrap(group).await;
    }
    let load = Load::new(GROUPS, Duration::ZERO);
    load.aim_at(&cluster.nodes);
    let mut writers = load.start();
    let mut waits = Vec::new();
    for round in 0..ROUNDS {
        load.progress().await;
        let victim = round % cluster.nodes.len();
        cluster.nodes[victim].kill();
        let port = |at: usize| cluster.nodes[(victim + at) % 3].api_port;
        waits.push(until_all_groups_go_on([port(1), port(2)], round).await);
        load.progress().await;
        cluster.nodes[victim].start();
        cluster.nodes[victim].channel().await;
    }
    waits.sort();
    let in_timeouts = |wait: Duration| wait.as_secs_f64() / ELECTION_TIMEOUT.as_secs_f64();
    let (median, longest) = (
        in_timeouts(waits[ROUNDS / 2]),
        in_timeouts(waits[ROUNDS - 1]),
    );
    println!("all groups go on after {median:.2} election timeouts, {longest:.2} at most");
    load.progress().await;
    load.stop(&mut writers).await;
    load.agrees(&cluster.nodes).await;

    writers = load.start();
    load.progress().await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    load.stop(&mut writers).await;
    for node in &mut cluster.nodes {
        node.start();
    }
    load.agrees(&cluster.nodes).await;
}
