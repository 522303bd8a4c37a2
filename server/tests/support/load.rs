//! Clients that write all the time, and what they were told.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{PATIENCE, Process, all, put};

/// Between two looks at what is to become so.
pub const LOOK: Duration = Duration::from_millis(20);
/// Writes to see acknowledged before it is believed that the groups go on.
const PROGRESS: u64 = 50;
const WRITERS: u32 = 6;
/// How long a write may take before the next is tried.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys and values by group.
pub type Data = BTreeMap<u32, BTreeMap<String, String>>;

/// What clients were told, by groups from 1 on.
pub struct Load {
    groups: u32,
    /// What each writer waits between two writes.
    pause: Duration,
    acknowledged: Mutex<Data>,
    count: AtomicU64,
    stop: AtomicBool,
    /// Writers so far: no two write the same keys.
    writers: AtomicU32,
    /// The API ports that they go to, one after the other.
    channels: Mutex<Vec<Channel>>,
}

impl Load {
    pub fn new(groups: u32, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            groups,
            pause,
            acknowledged: Mutex::default(),
            count: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            writers: AtomicU32::new(0),
            channels: Mutex::default(),
        })
    }

    /// Writes go to these nodes from now on.
    pub fn aim_at<'a>(&self, nodes: impl IntoIterator<Item = &'a Process>) {
        let channel = |node: &Process| {
            let endpoint = format!("http://127.0.0.1:{}", node.api_port);
            let endpoint = Channel::from_shared(endpoint).unwrap();
            endpoint.timeout(WRITE_TIMEOUT).connect_lazy()
        };
        *self.channels.lock() = nodes.into_iter().map(channel).collect();
    }

    /// Writers that write until [`Self::stop`].
    pub fn start(self: &Arc<Self>) -> JoinSet<()> {
        self.stop.store(false, Ordering::Relaxed);
        let first = self.writers.fetch_add(WRITERS, Ordering::Relaxed);
        let writers = first..first + WRITERS;
        writers.map(|w| write(Arc::clone(self), w)).collect()
    }

    pub async fn stop(&self, writers: &mut JoinSet<()>) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(writer) = writers.join_next().await {
            writer.unwrap();
        }
    }

    /// Waits until writes have been acknowledged again.
    pub async fn progress(&self) {
        let (began, before) = (Instant::now(), self.count.load(Ordering::Relaxed));
        while self.count.load(Ordering::Relaxed) < before + PROGRESS {
            assert!(
                began.elapsed() < PATIENCE,
                "no write is acknowledged any more"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All that was acknowledged before the call.
    pub fn acknowledged(&self) -> Data {
        self.acknowledged.lock().clone()
    }

    /// What was acknowledged before the call is read through each of these nodes.
    pub async fn holds<'a>(&self, nodes: impl IntoIterator<Item = &'a Process>) {
        let acknowledged = self.acknowledged();
        for node in nodes {
            for (&group, expected) in &acknowledged {
                holds(&read(node, group).await, expected, group);
            }
        }
    }

    /// Every node gives every group the same data, and all of what was acknowledged. Nobody writes.
    pub async fn agrees<'a>(&self, nodes: impl IntoIterator<Item = &'a Process>) {
        let acknowledged = self.acknowledged();
        let nodes: Vec<&Process> = nodes.into_iter().collect();
        for (&group, expected) in &acknowledged {
            let first = read(nodes[0], group).await;
            holds(&first, expected, group);
            for node in &nodes[1..] {
                assert!(
                    read(node, group).await == first,
                    "group {group}: the nodes differ"
                );
            }
        }
    }
}

/// `data` has all of what is `expected`.
pub fn holds(data: &BTreeMap<String, String>, expected: &BTreeMap<String, String>, group: u32) {
    for (key, value) in expected {
        assert_eq!(
            data.get(key),
            Some(value),
            "group {group} lost an acknowledged write"
        );
    }
}

/// A group's data as one node gives it, as soon as it does.
pub async fn read(node: &Process, group: u32) -> BTreeMap<String, String> {
    let began = Instant::now();
    loop {
        match all(node.channel().await, group).await {
            Ok(data) => return data.into_iter().collect(),
            Err(error) => assert!(began.elapsed() < PATIENCE, "node {}: {error}", node.id),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes unique keys through one node after the other; an error says nothing about the write.
async fn write(load: Arc<Load>, writer: u32) {
    for serial in 1_usize.. {
        if load.stop.load(Ordering::Relaxed) {
            return;
        }
        let group = 1 + (writer + u32::try_from(serial).unwrap()) % load.groups;
        let (key, value) = (
            format!("w{writer}-{serial:08}"),
            format!("{writer} {serial}"),
        );
        let channel = {
            let channels = load.channels.lock();
            channels[serial % channels.len()].clone()
        };
        if put(channel, group, &key, &value).await.is_ok() {
            let mut acknowledged = load.acknowledged.lock();
            acknowledged.entry(group).or_default().insert(key, value);
            load.count.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(load.pause).await;
    }
}
