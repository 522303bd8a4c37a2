//! The transport's limits with their defaults.

use std::time::Duration;

use multiraft_engine::types::NodeId;

use crate::error::Error;

/// How a node reaches its peers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Nodes of another cluster are refused.
    pub cluster_id: u64,
    /// This node.
    pub node: NodeId,
    /// Drawn when the node's data directory was made; peers are told it.
    pub incarnation: u64,
    /// Where to listen: host name or address.
    pub host: String,
    /// Where to listen: TCP port; 0 takes a free one.
    pub port: u16,
    /// Bytes of messages that wait for one peer; more are dropped.
    pub queue_bytes: usize,
    /// A frame is closed at this many bytes; one larger message still goes in a frame of its own.
    pub frame_bytes: usize,
    /// How long a peer may take to say who it is, and to be reached.
    pub handshake_timeout: Duration,
    /// A connection without other traffic carries an empty frame this often.
    pub ping_period: Duration,
    /// A connection on which nothing arrives for so long is given up; at least three pings.
    pub silence_timeout: Duration,
    /// The first pause after a failed connection; doubles up to `backoff_max`, half of it drawn.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// Connections that may be in their handshake at once.
    pub pending_handshakes: usize,
}

impl Config {
    /// The defaults for a node that listens on a free port of the loopback interface.
    pub fn new(cluster_id: u64, node: NodeId, incarnation: u64) -> Self {
        Self {
            cluster_id,
            node,
            incarnation,
            host: "127.0.0.1".to_owned(),
            port: 0,
            queue_bytes: 64 << 20,
            frame_bytes: 1 << 20,
            handshake_timeout: Duration::from_secs(10),
            ping_period: Duration::from_millis(500),
            silence_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            pending_handshakes: 64,
        }
    }

    /// Refuses what could not work.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = if self.queue_bytes == 0 || self.frame_bytes == 0 {
            "queue_bytes and frame_bytes must be at least 1"
        } else if self.frame_bytes > crate::frame::MAX_META_BYTES / 2 {
            "frame_bytes must leave room for one more message below the frame's limit"
        } else if self.silence_timeout < 3 * self.ping_period {
            "silence_timeout must be at least three ping periods"
        } else if self.backoff_min.is_zero() || self.backoff_max < self.backoff_min {
            "backoff_min must be above zero and at most backoff_max"
        } else if self.pending_handshakes == 0 {
            "pending_handshakes must be at least 1"
        } else {
            return Ok(());
        };
        Err(Error::Config(wrong))
    }
}
