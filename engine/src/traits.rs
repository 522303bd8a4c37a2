//! What the engine asks of the log and the network, and what they tell the engine.

use std::sync::Arc;

use bytes::Bytes;

use crate::block::Block;
use crate::raft::message::Envelope;
use crate::snapshot::{SnapshotSending, Travelling};
use crate::types::{GroupId, HardState, Index, NodeId, Term};

/// What one group wants made durable in one turn, as one atomic unit.
///
/// Applied in the order of the fields: removal, creation, restart, compaction, truncation, blocks,
/// hard state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupWrite {
    /// The group.
    pub group: GroupId,
    /// Delete all that is stored of the group before the rest of this write takes effect.
    pub remove: bool,
    /// Replace the group's description (opaque here; creates the group if it is new).
    pub meta: Option<Bytes>,
    /// Drop all entries: the log goes on after this one, the last that an installed snapshot covers
    /// (Raft §7).
    pub restart_after: Option<(Index, Term)>,
    /// Entries up to and including this index are no longer needed.
    pub compact_to: Option<Index>,
    /// Drop all entries from this index on; the blocks below start at or before it.
    pub truncate_from: Option<Index>,
    /// Appended after what is there: the first starts at last + 1.
    pub blocks: Vec<Block>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
}

impl GroupWrite {
    /// A write that asks for nothing yet.
    pub fn new(group: GroupId) -> Self {
        Self {
            group,
            remove: false,
            meta: None,
            restart_after: None,
            compact_to: None,
            truncate_from: None,
            blocks: Vec::new(),
            hard_state: None,
        }
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::new(self.group)
    }
}

/// What one shard wants durable at the end of one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteBatch {
    /// The shard, as in [`LogObserver::on_durable`].
    pub shard: u32,
    /// Rising by one for each batch of a shard.
    pub ticket: u64,
    /// Each group at most once.
    pub writes: Vec<GroupWrite>,
}

/// A group as the log holds it when the node starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGroup {
    /// The group.
    pub group: GroupId,
    /// Its description, as last written.
    pub meta: Bytes,
    /// Its hard state, as last written.
    pub hard_state: HardState,
    /// The entry before the first one kept: what compaction removed last; zero if nothing.
    pub compacted: (Index, Term),
    /// `(first index, last index, term)` of each run of entries of one term, gapless.
    pub terms: Vec<(Index, Index, Term)>,
}

/// Why the log refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum LogError {
    /// Expected: the peer needs a snapshot instead.
    #[error("group {group}: entry {index} was compacted, the first kept is {first}")]
    Compacted {
        group: GroupId,
        index: Index,
        first: Index,
    },
    /// Asked beyond the last entry, or for a group that is not stored.
    #[error("group {group}: entry {index} is not in the log")]
    NotFound { group: GroupId, index: Index },
    /// Stored bytes no longer match their checksum.
    #[error("group {group}: entry {index} is damaged on disk")]
    Damaged { group: GroupId, index: Index },
    /// Final: a failed sync may have dropped dirty pages. Restart after the disk is mended.
    #[error("the log is fenced after a failed write or sync: {0}")]
    Fenced(Arc<std::io::Error>),
    /// Reading failed.
    #[error("reading the log failed: {0}")]
    Io(Arc<std::io::Error>),
}

/// The durable log of all groups of a node.
pub trait Log: Send + Sync + 'static {
    /// Queues a batch for the writer; never waits for the disk. Batches of one shard become
    /// durable in order, and [`LogObserver::on_durable`] tells it.
    fn append(&self, batch: WriteBatch) -> Result<(), LogError>;

    /// Blocks that cover the entries from `first` on, in order and cut exactly at `first` and
    /// `last`; at least one block, then no more than `max_bytes`. Sees appended batches at once,
    /// durable or not.
    fn read(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError>;

    /// All groups found when the log was opened. Taken once, before the first append.
    fn take_stored_groups(&self) -> Vec<StoredGroup>;

    /// Whether there is room for proposals. Hard states and truncations have a reserve.
    fn has_room(&self) -> bool;

    /// Who is told of durable batches from now on.
    fn set_observer(&self, observer: Arc<dyn LogObserver>);
}

/// Told by the log's writer, on its thread: must not block.
pub trait LogObserver: Send + Sync + 'static {
    /// All batches of `shard` up to `ticket` are on stable storage.
    fn on_durable(&self, shard: u32, ticket: u64);

    /// A write or sync failed; nothing becomes durable any more.
    fn on_fenced(&self, error: &LogError);

    /// The space of a group's entries up to this one was given back: nothing of them is left in the log. Told
    /// some time after they were compacted, with rising indexes.
    fn on_reclaimed(&self, group: GroupId, index: Index);
}

/// Where a node is reached for Raft: host name or IP address, and port 1..=65535.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The way to the other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Queues messages; never blocks. Messages to one peer keep their order, and none arrives twice;
    /// a full queue, an unknown peer or a broken connection drops them, which Raft mends.
    fn send(&self, envelopes: Vec<Envelope>);

    /// Sends the file of the snapshot that this [`crate::raft::message::Message::InstallSnapshot`]
    /// names, on a connection of its own, and with it the message; never blocks. Always ends with
    /// one [`TransportObserver::on_snapshot_sending`] that is not `Started`.
    fn send_snapshot(&self, envelope: Envelope);

    /// Learns or changes a peer's address; connects in the background.
    fn set_peer(&self, node: NodeId, address: PeerAddress);

    /// Who gets messages and news of connections from now on; starts the work.
    fn set_observer(&self, observer: Arc<dyn TransportObserver>);

    /// Ends all connections and threads; returns when they are gone.
    fn shut_down(&self);
}

/// A change of an outgoing connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// It came up.
    Established,
    /// It could not be made or broke; paced by the back-off.
    Failed,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionKind {
    /// Messages of all groups.
    Messages,
    /// Files of snapshots.
    Snapshots,
}

/// Told by the transport, on its threads: must not block.
pub trait TransportObserver: Send + Sync + 'static {
    /// Checked messages from one peer: `from` is the connection's node, `to` is this node.
    fn on_messages(&self, envelopes: Vec<Envelope>);

    /// An outgoing connection to `node` changed.
    fn on_connection(
        &self,
        node: NodeId,
        address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    );

    /// A snapshot on its way to a peer; in order for each.
    fn on_snapshot_sending(&self, snapshot: Travelling, sending: SnapshotSending);

    /// A snapshot has arrived: its file is whole and durable in our store. The message is that of
    /// its leader, as checked as any other.
    fn on_snapshot_received(&self, envelope: Envelope);

    /// The process of `node` is gone or cannot be reached: its end reset or refused us. Groups
    /// led there need not wait for a whole election timeout.
    fn on_peer_down(&self, node: NodeId);
}
