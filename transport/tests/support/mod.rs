//! What the tests of the transport see of it.
#![allow(
    missing_docs,
    dead_code, // no test file uses all of it
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

pub mod node;
pub mod pair;
pub mod proxy;
pub mod raw;
pub mod store;

use std::sync::mpsc;
use std::time::Duration;

use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::{SnapshotSending, Travelling};
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress, TransportObserver};
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

/// Long beyond anything that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq)]
pub enum Seen {
    Messages(Vec<Envelope>),
    Connection(NodeId, ConnectionKind, ConnectionState),
    Down(NodeId),
    Sending(Travelling, SnapshotSending),
    Received(Envelope),
}

pub struct Observer(pub mpsc::Sender<Seen>);

impl TransportObserver for Observer {
    fn on_messages(&self, envelopes: Vec<Envelope>) {
        drop(self.0.send(Seen::Messages(envelopes)));
    }

    fn on_connection(
        &self,
        node: NodeId,
        _address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    ) {
        drop(self.0.send(Seen::Connection(node, kind, state)));
    }

    fn on_snapshot_sending(&self, snapshot: Travelling, sending: SnapshotSending) {
        drop(self.0.send(Seen::Sending(snapshot, sending)));
    }

    fn on_snapshot_received(&self, envelope: Envelope) {
        drop(self.0.send(Seen::Received(envelope)));
    }

    fn on_peer_down(&self, node: NodeId) {
        drop(self.0.send(Seen::Down(node)));
    }
}

pub fn id(node: u32) -> NodeId {
    NodeId::new(node).unwrap()
}

/// A message with a snapshot, as the core gives it to the transport.
pub fn install(group: u32, from: u32, to: u32, index: u64) -> Envelope {
    Envelope {
        group: GroupId(group),
        from: id(from),
        to: id(to),
        term: Term(3),
        incarnation: 0,
        message: Message::InstallSnapshot {
            snapshot: described(index),
        },
    }
}

/// What the file at an index stands for.
pub fn described(index: u64) -> Snapshot {
    Snapshot {
        index: Index(index),
        term: Term(2),
        membership: Membership::default(),
    }
}

/// Bytes that tell where they belong.
pub fn file(bytes: usize) -> Vec<u8> {
    let words = (0..bytes.div_ceil(4)).map(|word| u32::try_from(word).unwrap());
    let mut file: Vec<u8> = words
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    file.truncate(bytes);
    file
}
