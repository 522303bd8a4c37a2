//! What the tests of the transport see of it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::sync::mpsc;
use std::time::Duration;

use multiraft_engine::raft::message::Envelope;
use multiraft_engine::traits::{ConnectionState, PeerAddress, TransportObserver};
use multiraft_engine::types::NodeId;

/// Long beyond anything that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq)]
pub enum Seen {
    Messages(Vec<Envelope>),
    Connection(NodeId, ConnectionState),
    Down(NodeId),
}

pub struct Observer(pub mpsc::Sender<Seen>);

impl TransportObserver for Observer {
    fn on_messages(&self, envelopes: Vec<Envelope>) {
        drop(self.0.send(Seen::Messages(envelopes)));
    }

    fn on_connection(&self, node: NodeId, _address: &PeerAddress, state: ConnectionState) {
        drop(self.0.send(Seen::Connection(node, state)));
    }

    fn on_peer_down(&self, node: NodeId) {
        drop(self.0.send(Seen::Down(node)));
    }
}

pub fn id(node: u32) -> NodeId {
    NodeId::new(node).unwrap()
}
