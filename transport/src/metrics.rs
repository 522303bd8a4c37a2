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
    /// Of snapshots.
    pub snapshots: SnapshotMetrics,
}

/// Figures of the snapshots between nodes.
#[derive(Debug, Default, Clone)]
pub struct SnapshotMetrics {
    /// Bytes of files sent, those sent again included.
    pub bytes_sent: Family<PeerLabel, Counter>,
    /// Bytes of files received.
    pub bytes_received: Family<PeerLabel, Counter>,
    /// Transfers that wait or are under way.
    pub sends_open: Family<PeerLabel, Gauge>,
    /// Transfers that the peer has confirmed.
    pub sends_completed: Family<PeerLabel, Counter>,
    /// Transfers that were given up.
    pub sends_aborted: Family<PeerLabel, Counter>,
    /// Chunks that left once more, because they were lost with their connection.
    pub chunks_resent: Family<PeerLabel, Counter>,
    /// Snapshots that arrived, whole and durable.
    pub received: Family<PeerLabel, Counter>,
}

impl SnapshotMetrics {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("snapshot");
        let counters = [
            ("sent_bytes", "Bytes of files sent", &self.bytes_sent),
            ("received_bytes", "Bytes received", &self.bytes_received),
            ("completed_sends", "Snapshots sent", &self.sends_completed),
            ("aborted_sends", "Sends given up", &self.sends_aborted),
            ("resent_chunks", "Chunks sent again", &self.chunks_resent),
            ("received", "Snapshots received", &self.received),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let open = self.sends_open.clone();
        registry.register("open_sends", "Sends waiting or under way", open);
    }
}

impl Metrics {
    /// Drops the figures of a peer's messages: whoever can make peers up must not fill memory.
    pub(crate) fn forget(&self, node: NodeId) {
        let label = label(node);
        for gauges in [&self.connected, &self.queue_bytes] {
            gauges.remove(&label);
        }
        let counters = [
            &self.dropped,
            &self.frames_sent,
            &self.bytes_sent,
            &self.bytes_received,
            &self.failures,
        ];
        for counters in counters {
            counters.remove(&label);
        }
    }

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
        self.snapshots.register(registry);
    }
}

/// The label of a node.
pub fn label(node: NodeId) -> PeerLabel {
    PeerLabel { peer: node.get() }
}
