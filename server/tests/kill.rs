//! kill -9 under writes: what was acknowledged is never lost, and the others go on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{Cluster, PATIENCE, all, put};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const GROUPS: u32 = 4;
const WRITERS: u32 = 6;
const ROUNDS: usize = 10;
/// The election timeout of a node that nobody configured.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a write may take before the next is tried.
const PROBE: Duration = Duration::from_millis(50);
/// Writes to see acknowledged while a node is down.
const PROGRESS: u64 = 50;

/// What clients were told.
#[derive(Default)]
struct History {
    acknowledged: Mutex<BTreeMap<u32, BTreeMap<String, String>>>,
    count: AtomicU64,
    stop: AtomicBool,
    /// Writers so far: no two write the same keys.
    writers: AtomicU32,
}

/// Writes unique keys through one node after the other; an error says nothing about the write.
async fn write(history: Arc<History>, writer: u32, ports: Vec<u16>) {
    let channel = |port| {
        let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        endpoint.timeout(Duration::from_secs(5)).connect_lazy()
    };
    let channels: Vec<Channel> = ports.into_iter().map(channel).collect();
    let mut serial: usize = 0;
    while !history.stop.load(Ordering::Relaxed) {
        serial += 1;
        let group = 1 + (writer + u32::try_from(serial).unwrap()) % GROUPS;
        let (key, value) = (
            format!("w{writer}-{serial:08}"),
            format!("{writer} {serial}"),
        );
        let channel = channels[serial % channels.len()].clone();
        if put(channel, group, &key, &value).await.is_ok() {
            history
                .acknowledged
                .lock()
                .await
                .entry(group)
                .or_default()
                .insert(key, value);
            history.count.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn progress(history: &History) {
    let (began, before) = (Instant::now(), history.count.load(Ordering::Relaxed));
    while history.count.load(Ordering::Relaxed) < before + PROGRESS {
        assert!(
            began.elapsed() < PATIENCE,
            "no write is acknowledged any more"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

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

/// Every node gives every group the same data, and all of what was acknowledged.
async fn check(cluster: &Cluster, history: &History) {
    let acknowledged = history.acknowledged.lock().await.clone();
    for (&group, expected) in &acknowledged {
        let mut seen: Vec<BTreeMap<String, String>> = Vec::new();
        for node in &cluster.nodes {
            let began = Instant::now();
            let data = loop {
                match all(node.channel().await, group).await {
                    Ok(data) => break data,
                    Err(error) => assert!(began.elapsed() < PATIENCE, "node {}: {error}", node.id),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            seen.push(data.into_iter().collect());
        }
        for (key, value) in expected {
            assert_eq!(
                seen[0].get(key),
                Some(value),
                "group {group} lost an acknowledged write"
            );
        }
        assert!(
            seen.iter().all(|data| *data == seen[0]),
            "group {group}: the nodes differ"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_of_one_node_and_one_of_all_lose_nothing() {
    let mut cluster = Cluster::start(3);
    for group in 1..=GROUPS {
        cluster.bootstrap(group).await;
    }
    let history = Arc::new(History::default());
    let mut writers = start_writers(&cluster, &history);
    let mut waits = Vec::new();
    for round in 0..ROUNDS {
        progress(&history).await;
        let victim = round % cluster.nodes.len();
        cluster.nodes[victim].kill();
        let port = |at: usize| cluster.nodes[(victim + at) % 3].api_port;
        waits.push(until_all_groups_go_on([port(1), port(2)], round).await);
        progress(&history).await;
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
    progress(&history).await;
    stop(&history, &mut writers).await;
    check(&cluster, &history).await;

    writers = start_writers(&cluster, &history);
    progress(&history).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    stop(&history, &mut writers).await;
    for node in &mut cluster.nodes {
        node.start();
    }
    check(&cluster, &history).await;
}

fn start_writers(cluster: &Cluster, history: &Arc<History>) -> JoinSet<()> {
    history.stop.store(false, Ordering::Relaxed);
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.api_port).collect();
    let first = history.writers.fetch_add(WRITERS, Ordering::Relaxed);
    let writers = first..first + WRITERS;
    writers
        .map(|writer| write(Arc::clone(history), writer, ports.clone()))
        .collect()
}

async fn stop(history: &History, writers: &mut JoinSet<()>) {
    history.stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
}
