//! What the transport counts, by peer.

use multiraft_engine::types::NodeId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The peer that a figure belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabel {
    /// Its node id.
    pub peer: u32,
}

/// Figures of one transport.
#[derive(Debug, Default, Clone)]
pub struct Metrics {
    /// 1 while connected.
    pub connected: Family<PeerLabel, Gauge>,
    /// Bytes of messages that wait.
    pub queue_bytes: Family<PeerLabel, Gauge>,
    /// Messages dropped at a full queue or without a connection.
    pub dropped: Family<PeerLabel, Counter>,
    /// Frames sent.
    pub frames_sent: Family<PeerLabel, Counter>,
    /// Bytes sent.
    pub bytes_sent: Family<PeerLabel, Counter>,
    /// Bytes received.
    pub bytes_received: Family<PeerLabel, Counter>,
    /// Connections that failed or broke.
    pub failures: Family<PeerLabel, Counter>,
    /// Handshakes refused, of anybody.
    pub refused: Counter,
}

impl Metrics {
    /// Names the figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("transport");
        registry.register("connected", "1 while connected", self.connected.clone());
        registry.register("queue_bytes", "Bytes that wait", self.queue_bytes.clone());
        registry.register("dropped_messages", "Messages dropped", self.dropped.clone());
        registry.register("frames_sent", "Frames sent", self.frames_sent.clone());
        registry.register("sent_bytes", "Bytes sent", self.bytes_sent.clone());
        registry.register(
            "received_bytes",
            "Bytes received",
            self.bytes_received.clone(),
        );
        registry.register(
            "connection_failures",
            "Lost connections",
            self.failures.clone(),
        );
        registry.register(
            "refused_handshakes",
            "Handshakes refused",
            self.refused.clone(),
        );
    }
}

/// The label of a node.
pub fn label(node: NodeId) -> PeerLabel {
    PeerLabel { peer: node.get() }
}
