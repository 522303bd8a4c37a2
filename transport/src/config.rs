//! The transport's limits with their defaults.

use std::net::SocketAddr;
use std::time::Duration;

use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::NodeId;

use crate::error::Error;
use crate::introduce::MAX_HOST_BYTES;
use crate::snapshot::wire::MAX_CHUNK_BYTES;

/// The most chunks that a transfer may have under way.
const MAX_WINDOW_CHUNKS: usize = 1024;

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
    /// Where peers can reach this node, as it tells them when it introduces itself
    /// ([`crate::introduce`]). An empty host stands for the address that they see it come from.
    ///
    /// Default `None`: `host` and the port that is listened on, or an empty host if that is every
    /// address of the machine (`0.0.0.0` or `::`).
    pub advertise: Option<PeerAddress>,
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
    /// How long a node is without a connection to a peer with a lower id before it introduces itself;
    /// default 200 ms.
    ///
    /// By itself the lower id dials after the first pauses of its back-off (20, 40 and 80 ms), so
    /// that after a short break no introduction is needed; and nobody notices so short a wait of a
    /// node that joins. One too many does no harm.
    pub introduce_after: Duration,
    /// Peers that are known only from their introductions; default 1,024. More are refused, until one
    /// of them is told with `set_peer`, or cannot be reached.
    pub introduced_peers: usize,
    /// How snapshots travel.
    pub snapshots: SnapshotLimits,
}

/// How snapshots travel between nodes, each on a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Bytes of a file in one chunk, which is acknowledged as a whole; default 1 MiB, at most
    /// [`MAX_CHUNK_BYTES`].
    pub chunk_bytes: usize,
    /// Chunks of one transfer that may be under way without acknowledgement; default 4.
    pub window_chunks: usize,
    /// Transfers from here at once; default 4. More wait, and begin in the order in which they came.
    pub parallel_sends: usize,
    /// Transfers that may wait for their turn; default 1,024. One more is aborted at once.
    pub queued_sends: usize,
    /// Partial files here at once; default 16. Further senders are told to come again, unless there
    /// is a file whose sender has gone: that is deleted in favour of the new one.
    pub parallel_receives: usize,
    /// A partial file that did not grow for so long is deleted; default 2 minutes, and not less than
    /// `stall_timeout`, so that a sender that still tries finds it.
    pub partial_retention: Duration,
    /// Bytes a second of all transfers from here together; default 0, no limit.
    ///
    /// So slow that a transfer's chunk could not pass within half of `stall_timeout` when all others
    /// send too is refused: each would be given up for the limit's sake.
    pub bytes_per_second: u64,
    /// A transfer is given up when nothing was acknowledged for so long, over all connections that it
    /// tried; default 30 s. There is no limit for the whole.
    pub stall_timeout: Duration,
    /// When a receiver has all bytes it checks and syncs the file; that may take so long, as long as
    /// it shows that it is alive; default 10 minutes.
    pub finish_timeout: Duration,
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self {
            chunk_bytes: 1 << 20,
            window_chunks: 4,
            parallel_sends: 4,
            queued_sends: 1024,
            parallel_receives: 16,
            partial_retention: Duration::from_secs(120),
            bytes_per_second: 0,
            stall_timeout: Duration::from_secs(30),
            finish_timeout: Duration::from_secs(600),
        }
    }
}

impl SnapshotLimits {
    /// What could not work.
    fn wrong(&self) -> Option<&'static str> {
        if self.chunk_bytes == 0 || self.chunk_bytes > MAX_CHUNK_BYTES {
            Some("snapshots.chunk_bytes must be at least 1 and at most 8 MiB")
        } else if self.window_chunks == 0 || self.window_chunks > MAX_WINDOW_CHUNKS {
            Some("snapshots.window_chunks must be at least 1 and at most 1024")
        } else if self.parallel_sends == 0 || self.queued_sends == 0 || self.parallel_receives == 0
        {
            Some("snapshots: parallel_sends, queued_sends and parallel_receives must be at least 1")
        } else if self.stall_timeout.is_zero()
            || self.finish_timeout < self.stall_timeout
            || self.partial_retention < self.stall_timeout
        {
            Some(
                "snapshots: stall_timeout must be above zero, finish_timeout and \
                 partial_retention not below it",
            )
        } else if self.starves() {
            Some(
                "snapshots.bytes_per_second must let every transfer's chunk pass in half a stall_timeout",
            )
        } else {
            None
        }
    }

    fn starves(&self) -> bool {
        self.bytes_per_second != 0 && self.bytes_per_second < self.min_bytes_per_second()
    }

    /// The lowest limit of the rate with which every transfer's chunk passes in half a
    /// [`Self::stall_timeout`] when all send; bytes a second.
    pub fn min_bytes_per_second(&self) -> u64 {
        let round = self.chunk_bytes as u128 * self.parallel_sends as u128;
        let needed = (2000 * round).div_ceil(self.stall_timeout.as_millis().max(1));
        u64::try_from(needed).unwrap_or(u64::MAX)
    }
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
            advertise: None,
            queue_bytes: 64 << 20,
            frame_bytes: 1 << 20,
            handshake_timeout: Duration::from_secs(10),
            ping_period: Duration::from_millis(500),
            silence_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            pending_handshakes: 64,
            introduce_after: Duration::from_millis(200),
            introduced_peers: 1024,
            snapshots: SnapshotLimits::default(),
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
        } else if self.hosts().any(|host| host.len() > MAX_HOST_BYTES) {
            "host and advertise.host must have at most 255 bytes"
        } else if self.advertise.as_ref().is_some_and(|own| own.port == 0) {
            "advertise.port must not be 0"
        } else if let Some(wrong) = self.snapshots.wrong() {
            wrong
        } else {
            return Ok(());
        };
        Err(Error::Config(wrong))
    }

    fn hosts(&self) -> impl Iterator<Item = &String> {
        let advertised = self.advertise.iter().map(|own| &own.host);
        advertised.chain([&self.host])
    }

    /// Where peers reach a node that listens on `local`; an empty host as in [`Config::advertise`].
    pub(crate) fn own_address(&self, local: SocketAddr) -> PeerAddress {
        let listens_on = || PeerAddress {
            host: if local.ip().is_unspecified() {
                String::new()
            } else {
                self.host.clone()
            },
            port: local.port(),
        };
        self.advertise.clone().unwrap_or_else(listens_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_where_it_listens_unless_it_is_told_better() {
        let address = |host: &str, port| PeerAddress {
            host: host.to_owned(),
            port,
        };
        let elsewhere = || Some(address("gate.example", 9));
        for (host, advertise, local, want) in [
            ("localhost", None, "127.0.0.1:7", address("localhost", 7)),
            ("0.0.0.0", None, "0.0.0.0:7", address("", 7)),
            ("::", None, "[::]:7", address("", 7)),
            ("::", elsewhere(), "[::]:7", address("gate.example", 9)),
        ] {
            let node = NodeId::new(1).expect("above zero");
            let config = Config {
                host: host.to_owned(),
                advertise,
                ..Config::new(1, node, 1)
            };
            let local = local.parse().expect("an address");
            assert_eq!(config.own_address(local), want, "{host}");
        }
    }

    #[test]
    fn addresses_that_could_not_be_told_are_refused() {
        let node = NodeId::new(1).expect("above zero");
        for (host_bytes, port, works) in [(255, 1, true), (256, 1, false), (0, 0, false)] {
            let host = "h".repeat(host_bytes);
            let config = Config {
                advertise: Some(PeerAddress { host, port }),
                ..Config::new(1, node, 1)
            };
            assert_eq!(config.validate().is_ok(), works, "{host_bytes} {port}");
        }
    }
}
