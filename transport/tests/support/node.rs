//! A real transport with a store in memory, and what is seen of it.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::SnapshotSending::{self, Aborted, Completed, Started};
use multiraft_engine::traits::{ConnectionKind, PeerAddress, Transport};
use multiraft_engine::types::GroupId;
use multiraft_transport::metrics::SnapshotMetrics;
use multiraft_transport::{Config, TcpTransport};
use tokio::runtime::Handle;

use super::store::MemoryStore;
use super::{Observer, PATIENCE, Seen, file, id, install};

pub const CHUNK: usize = 64 << 10;

pub struct End {
    pub transport: Arc<TcpTransport>,
    pub store: MemoryStore,
    pub seen: mpsc::Receiver<Seen>,
}

/// A node of cluster 1 with short chunks, which does not introduce itself.
pub async fn end(node: u32, change: impl FnOnce(&mut Config)) -> End {
    let mut config = Config::new(1, id(node), 70 + u64::from(node));
    config.snapshots.chunk_bytes = CHUNK;
    config.snapshots.window_chunks = 2;
    config.introduce_after = Duration::from_secs(3600);
    change(&mut config);
    let store = MemoryStore::default();
    let bound = TcpTransport::bind(config, store.shared(), Handle::current()).await;
    let transport = bound.unwrap();
    let (sender, seen) = mpsc::channel();
    transport.set_observer(Arc::new(Observer(sender)));
    End {
        transport,
        store,
        seen,
    }
}

pub fn local(port: u16) -> PeerAddress {
    let host = "127.0.0.1".to_owned();
    PeerAddress { host, port }
}

impl End {
    pub fn port(&self) -> u16 {
        self.transport.local_addr().port()
    }

    pub fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("seen in time")
    }

    /// What watchers are told of a group's snapshot, up to its end.
    pub fn wait_ended(&self, group: u32) -> Vec<SnapshotSending> {
        let mut told = Vec::new();
        while !matches!(told.last(), Some(Completed | Aborted)) {
            if let Seen::Sending(travelling, sending) = self.next()
                && travelling.group == GroupId(group)
            {
                told.push(sending);
            }
        }
        told
    }

    pub fn wait_received(&self) -> Envelope {
        loop {
            if let Seen::Received(envelope) = self.next() {
                return envelope;
            }
        }
    }

    pub fn wait_connection(&self) -> Seen {
        loop {
            let seen = self.next();
            if matches!(seen, Seen::Connection(_, ConnectionKind::Snapshots, _)) {
                return seen;
            }
        }
    }

    /// All ends that were told, by group, until so many came.
    pub fn wait_ends(&self, count: usize) -> BTreeMap<u32, SnapshotSending> {
        let mut ends = BTreeMap::new();
        while ends.len() < count {
            match self.next() {
                Seen::Sending(travelling, sending @ (Completed | Aborted)) => {
                    let before = ends.insert(travelling.group.0, sending);
                    assert_eq!(before, None, "two ends of {travelling:?}");
                }
                Seen::Sending(_, Started)
                | Seen::Messages(_)
                | Seen::Connection(..)
                | Seen::Down(_)
                | Seen::Received(_) => {}
            }
        }
        ends
    }

    pub fn metrics(&self) -> SnapshotMetrics {
        self.transport.metrics().snapshots.clone()
    }
}

pub async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Node 2 with the files of groups 1 to `groups`, and node 1, which it may send them to.
pub async fn two_nodes(
    groups: u32,
    bytes: usize,
    change_sender: impl FnOnce(&mut Config),
    change_receiver: impl FnOnce(&mut Config),
) -> (End, End) {
    let sender = end(2, change_sender).await;
    let receiver = end(1, change_receiver).await;
    for group in 1..=groups {
        sender.store.put(group, 7, file(bytes));
    }
    sender.transport.set_peer(id(1), local(receiver.port()));
    (sender, receiver)
}

pub fn arrived(group: u32, from: u32, to: u32) -> Envelope {
    Envelope {
        incarnation: 70 + u64::from(from),
        ..install(group, from, to, 7)
    }
}
