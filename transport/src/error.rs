//! Why a connection, or the transport itself, does not work.

use multiraft_engine::block::BlockError;
use multiraft_engine::types::NodeId;

/// See the variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Error {
    /// The caller's configuration.
    #[error("transport: {0}")]
    Config(&'static str),
    /// Another process listens there, or the address is not this machine's.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: String,
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("the peer was silent for too long")]
    Silent,
    /// The peer's bytes are none of ours.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// A frame's header and messages do not match their checksum.
    #[error("frame checksum mismatch")]
    Checksum,
    /// A block's bytes are damaged.
    #[error("damaged block in a frame: {0}")]
    Block(#[from] BlockError),
    /// The other end speaks no version of this protocol that we do.
    #[error("the peer speaks protocol {theirs}, this node {ours}")]
    Version { theirs: u16, ours: u16 },
    /// Two clusters are wired together.
    #[error(
        "the peer belongs to cluster {theirs}, this node to {ours}: check --cluster-id and addresses"
    )]
    Cluster { theirs: u64, ours: u64 },
    /// An address leads to the wrong node.
    #[error(
        "expected node {expected} at the other end, found {found}: check the members' addresses"
    )]
    Node { expected: u32, found: u32 },
    /// The peer refused us; its own log says why.
    #[error("the peer refused the handshake: {0}")]
    Refused(&'static str),
    /// A receiver of snapshots has no place at the moment.
    #[error("the peer is busy with other snapshots")]
    Busy,
    /// A newer connection took this one's place.
    #[error("replaced by a newer connection of node {0}")]
    Replaced(NodeId),
    /// The address was changed.
    #[error("the peer has a new address")]
    Moved,
}

impl Error {
    /// Whether the peer's process is surely gone or deaf, and not only some bytes wrong.
    pub(crate) fn means_down(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Closed | Self::Silent)
    }
}
