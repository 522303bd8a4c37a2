//! Snapshots on their way: the real protocol and the real files, over simulated connections.
//!
//! A connection is reliable and in order until it breaks; then everything on it is lost, and the
//! sender makes another one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::shard::ShardInput;
use multiraft_engine::snapshot::{SnapshotSending, SnapshotStore, Travelling};
use multiraft_engine::types::NodeId;
use multiraft_transport::config::SnapshotLimits;
use multiraft_transport::snapshot::wire::{self, Taken};
use multiraft_transport::snapshot::{Ends, Incoming, SendingSnapshot};

use super::node::Node;

/// Frames that one transfer moves in a tick, each way.
const FRAMES_PER_TICK: usize = 3;
/// One tick of simulated time.
const TICK: Duration = Duration::from_millis(100);

/// The limits of a run: small, so that files of a few hundred bytes have many chunks.
pub fn limits() -> SnapshotLimits {
    SnapshotLimits {
        chunk_bytes: 64,
        window_chunks: 3,
        parallel_receives: 4,
        stall_timeout: 60 * TICK,
        finish_timeout: 120 * TICK,
        partial_retention: 200 * TICK,
        ..SnapshotLimits::default()
    }
}

/// The time at a tick.
pub fn now(tick: u64) -> Duration {
    TICK * u32::try_from(tick).expect("a run is shorter")
}

/// One snapshot on its way.
struct Transfer {
    from: NodeId,
    sender: SendingSnapshot,
    connection: Option<Connection>,
    /// No new connection before.
    retry_at: u64,
}

/// A connection between both ends of a transfer.
pub(crate) struct Connection {
    incoming: Incoming,
    /// Bytes for the receiver: frames may be cut anywhere.
    forth: VecDeque<Bytes>,
    arrived: BytesMut,
    back: VecDeque<Bytes>,
}

/// All transfers between all nodes, in the order in which they began.
#[derive(Default)]
pub struct Transfers {
    transfers: Vec<Transfer>,
}

/// What a round of all transfers has for the nodes.
pub type News = Vec<(NodeId, super::node::Input)>;

impl Transfers {
    /// A node sends a snapshot; what comes of it at once is returned.
    pub fn begin(&mut self, node: &Node, envelope: Envelope, tick: u64) -> News {
        let Message::InstallSnapshot { snapshot } = &envelope.message else {
            panic!("a message that goes without a file");
        };
        let sent = Travelling {
            group: envelope.group,
            to: envelope.to,
            index: snapshot.index,
        };
        let store = node.process.as_ref().map(|process| process.store.clone());
        let file = store.and_then(|store| store.open(sent.group, sent.index).ok());
        let aborted = ShardInput::SnapshotSending(sent, SnapshotSending::Aborted);
        let Some(file) = file else {
            return vec![(node.id, aborted)];
        };
        let sender = SendingSnapshot::new(envelope, file, &limits(), now(tick));
        self.transfers.push(Transfer {
            from: node.id,
            sender: sender.expect("an offer within the limits"),
            connection: None,
            retry_at: 0,
        });
        Vec::new()
    }

    /// A node's process ended, and all its connections with it.
    pub fn on_crash(&mut self, node: NodeId) {
        self.transfers.retain(|transfer| transfer.from != node);
        for transfer in &mut self.transfers {
            if transfer.sender.travelling().to == node {
                transfer.disconnect(0);
            }
        }
    }

    /// The ends of the connections that are up.
    pub fn connected(&self) -> Vec<(NodeId, NodeId)> {
        let up = self.transfers.iter().filter(|t| t.connection.is_some());
        up.map(|t| (t.from, t.sender.travelling().to)).collect()
    }

    /// Breaks the connections between two nodes.
    pub fn reset(&mut self, one: NodeId, other: NodeId, tick: u64) {
        for transfer in &mut self.transfers {
            let ends = (transfer.from, transfer.sender.travelling().to);
            if ends == (one, other) || ends == (other, one) {
                transfer.disconnect(tick + 3);
            }
        }
    }

    /// One round of all transfers. `is_open`: whether frames pass from one node to another.
    pub fn turn(
        &mut self,
        nodes: &mut [Node],
        tick: u64,
        is_open: impl Fn(NodeId, NodeId) -> bool,
    ) -> News {
        let mut news = Vec::new();
        for node in nodes.iter() {
            if let Some(process) = &node.process {
                process.receiver.expire(now(tick));
            }
        }
        for transfer in &mut self.transfers {
            let to = transfer.sender.travelling().to;
            let is_linked = is_open(transfer.from, to) && is_open(to, transfer.from);
            transfer.sender.tick(now(tick));
            transfer.turn(nodes, tick, is_linked, &mut news);
            for sending in transfer.sender.take_events() {
                let sent = transfer.sender.travelling();
                let input = ShardInput::SnapshotSending(sent, sending);
                news.push((transfer.from, input));
            }
        }
        self.transfers
            .retain(|transfer| !transfer.sender.has_ended());
        news
    }
}

impl Transfer {
    fn disconnect(&mut self, retry_at: u64) {
        if self.connection.take().is_some() {
            self.sender.disconnected();
        }
        self.retry_at = retry_at;
    }

    fn turn(&mut self, nodes: &mut [Node], tick: u64, is_linked: bool, news: &mut News) {
        let to = self.sender.travelling().to;
        let find = |id: NodeId| nodes.iter().find(|node| node.id == id);
        let (sender, receiver) = (find(self.from), find(to));
        let is_awake = |node: Option<&Node>| node.is_some_and(|node| node.is_awake(tick));
        let is_up = receiver.is_some_and(|node| node.process.is_some());
        if !is_linked || !is_up {
            self.disconnect(tick + 3);
            return;
        }
        if !is_awake(sender) || !is_awake(receiver) || tick < self.retry_at {
            return; // paused: the connection stands still
        }
        if self.connection.is_none() {
            self.connect(sender, receiver);
        }
        if self.exchange(tick, to, news).is_err() {
            self.disconnect(tick + 3);
        }
    }

    fn connect(&mut self, sender: Option<&Node>, receiver: Option<&Node>) {
        let (Some(sender), Some(receiver)) = (sender, receiver) else {
            return;
        };
        let Some(process) = &receiver.process else {
            return;
        };
        let ends = Ends {
            from: sender.id,
            incarnation: sender.incarnation,
            to: receiver.id,
        };
        let incoming = process.receiver.connection(ends);
        self.connection = Some(Connection::open(&mut self.sender, incoming));
    }

    fn exchange(
        &mut self,
        tick: u64,
        to: NodeId,
        news: &mut News,
    ) -> Result<(), multiraft_transport::Error> {
        if let Some(connection) = &mut self.connection {
            let mut delivered = Vec::new();
            let result = connection.exchange(&mut self.sender, now(tick), &mut delivered);
            let received = delivered.into_iter().map(ShardInput::SnapshotReceived);
            news.extend(received.map(|input| (to, input)));
            result?;
        }
        Ok(())
    }
}

impl Connection {
    /// A new one, with the sender's offer on it.
    pub(crate) fn open(sender: &mut SendingSnapshot, incoming: Incoming) -> Self {
        Self {
            incoming,
            forth: VecDeque::from([sender.connect()]),
            arrived: BytesMut::new(),
            back: VecDeque::new(),
        }
    }

    /// Some frames each way, the receiver's first: what is sent in a round arrives in the next one.
    /// What is delivered counts also if the connection breaks behind it.
    pub(crate) fn exchange(
        &mut self,
        sender: &mut SendingSnapshot,
        now: Duration,
        delivered: &mut Vec<Envelope>,
    ) -> Result<(), multiraft_transport::Error> {
        for bytes in self.back.drain(..) {
            sender.on_frame(wire::decode(bytes)?, now)?;
        }
        for _ in 0..FRAMES_PER_TICK {
            let Some(bytes) = self.forth.pop_front() else {
                break;
            };
            self.arrived.extend_from_slice(&bytes);
            while let Taken::Frame(frame) = wire::take(&mut self.arrived)? {
                let (replies, arrived) = self.incoming.on_frame_to_end(frame, now)?;
                self.back.extend(replies.iter().map(wire::encode));
                delivered.extend(arrived);
            }
        }
        while self.forth.len() < FRAMES_PER_TICK
            && let Some(bytes) = sender.next_frame()
        {
            self.forth.push_back(bytes);
        }
        Ok(())
    }
}
