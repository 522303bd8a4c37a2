//! One peer: its queue, and the connection that empties it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::NodeId;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};

use crate::address::Addresses;
use crate::codec::{Item, weight};
use crate::config::Config;
use crate::error::Error;
use crate::frame::{self, FrameBuilder, HEADER_BYTES};
use crate::metrics::{Metrics, PeerLabel, label};

/// The receive buffer grows by at most this much ahead of what has arrived.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// A peer node, connected or not.
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Where it is dialled; none until somebody tells.
    pub addresses: watch::Sender<Addresses>,
    /// Rises with each connection: an older one ends when it sees a newer.
    pub generation: watch::Sender<u64>,
    label: PeerLabel,
    /// Whether a connection for messages is up.
    connected: watch::Sender<bool>,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    connected: bool,
    items: Vec<Item>,
    bytes: usize,
}

impl Peer {
    /// A peer without connection.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            addresses: watch::Sender::default(),
            generation: watch::Sender::new(0),
            label: label(node),
            connected: watch::Sender::new(false),
            queue: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// Queues messages; those beyond the limit, or without a connection, are dropped: Raft resends,
    /// and what waited through a long break would only be stale.
    pub fn push(&self, envelopes: Vec<Envelope>, limit: usize, metrics: &Metrics) {
        let mut dropped = 0;
        let mut queue = self.queue.lock();
        for Envelope {
            group,
            term,
            message,
            ..
        } in envelopes
        {
            let bytes = weight(&message);
            if !queue.connected || queue.bytes + bytes > limit {
                dropped += 1;
                continue;
            }
            queue.bytes += bytes;
            queue.items.push(Item {
                group,
                term,
                message,
            });
        }
        metrics
            .queue_bytes
            .get_or_create(&self.label)
            .set(queue.bytes.try_into().unwrap_or(i64::MAX));
        drop(queue);
        self.filled.notify_one();
        if dropped > 0 {
            metrics.dropped.get_or_create(&self.label).inc_by(dropped);
        }
    }

    /// From now on messages are queued, or not.
    pub fn set_connected(&self, connected: bool, metrics: &Metrics) {
        let mut queue = self.queue.lock();
        *queue = Queue {
            connected,
            ..Queue::default()
        };
        self.connected.send_replace(connected);
        metrics
            .connected
            .get_or_create(&self.label)
            .set(i64::from(connected));
        metrics.queue_bytes.get_or_create(&self.label).set(0);
    }

    /// Tells whether a connection for messages is up, and when that changes.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// It says where it can be reached; ignored while it is connected, for then it has no reason to,
    /// and somebody else might.
    pub fn introduce(&self, address: PeerAddress) {
        self.addresses.send_if_modified(|addresses| {
            let is_heard = !*self.connected.borrow(); // under the lock: see `confirm`
            is_heard && addresses.introduce(address)
        });
    }

    /// To be called when a connection to this `address` is up, for which `before` was known.
    ///
    /// What was introduced until then is forgotten here, and what is introduced from then on is
    /// ignored: in whatever order the two come, the address that works stays.
    pub fn confirm(&self, before: &Addresses, address: &PeerAddress) {
        self.addresses
            .send_if_modified(|addresses| addresses.confirm(before, address));
    }

    /// Waits until the connection to this `address` must be left for another, told since `before`.
    pub async fn moved(&self, before: &Addresses, address: &PeerAddress) -> Error {
        let mut addresses = self.addresses.subscribe();
        drop(addresses.wait_for(|now| now.moved(before, address)).await);
        Error::Moved
    }

    fn take(&self) -> Vec<Item> {
        let mut queue = self.queue.lock();
        queue.bytes = 0;
        std::mem::take(&mut queue.items)
    }
}

/// Carries messages both ways until one end fails or a newer connection than this `generation`
/// comes; says why.
pub async fn run_connection(
    peer: &Peer,
    stream: TcpStream,
    generation: u64,
    (config, metrics): (&Config, &Metrics),
    deliver: impl Fn(Vec<Item>),
) -> Error {
    let mut newer = peer.generation.subscribe();
    let (reader, writer) = stream.into_split();
    tokio::select! {
        result = read_frames(reader, peer, config, metrics, deliver) => ended(result),
        result = write_frames(writer, peer, config, metrics) => ended(result),
        _ = newer.wait_for(|&newest| newest != generation) => Error::Replaced(peer.node),
    }
}

fn ended(result: Result<(), Error>) -> Error {
    match result {
        Ok(()) => Error::Closed,
        Err(error) => error,
    }
}

async fn write_frames(
    mut writer: OwnedWriteHalf,
    peer: &Peer,
    config: &Config,
    metrics: &Metrics,
) -> Result<(), Error> {
    loop {
        let items = peer.take();
        if items.is_empty() {
            let filled = peer.filled.notified();
            if tokio::time::timeout(config.ping_period, filled)
                .await
                .is_ok()
            {
                continue;
            }
        }
        for frame in frames(&items, config.frame_bytes) {
            let bytes: usize = frame.iter().map(Bytes::len).sum();
            metrics.frames_sent.get_or_create(&peer.label).inc();
            metrics
                .bytes_sent
                .get_or_create(&peer.label)
                .inc_by(bytes as u64);
            let sent = write_pieces(&mut writer, frame);
            tokio::time::timeout(config.silence_timeout * 4, sent)
                .await
                .map_err(|_| Error::Silent)??;
        }
    }
}

/// Frames for these messages; one empty frame, a ping, for none.
fn frames(items: &[Item], frame_bytes: usize) -> Vec<Vec<Bytes>> {
    let mut frames = Vec::new();
    let mut builder = FrameBuilder::default();
    for item in items {
        if builder.bytes() > 0 && builder.bytes() + weight(&item.message) > frame_bytes {
            frames.push(std::mem::take(&mut builder).finish());
        }
        builder.push(item);
    }
    if builder.bytes() > 0 || frames.is_empty() {
        frames.push(builder.finish());
    }
    frames
}

/// Writes all pieces with as few system calls as the kernel allows, copying none.
async fn write_pieces(writer: &mut OwnedWriteHalf, pieces: Vec<Bytes>) -> Result<(), Error> {
    let mut pieces = std::collections::VecDeque::from(pieces);
    while let Some(first) = pieces.front() {
        if first.is_empty() {
            pieces.pop_front();
            continue;
        }
        let slices: Vec<_> = pieces
            .iter()
            .map(|piece| std::io::IoSlice::new(piece))
            .collect();
        let mut written = writer.write_vectored(&slices).await?;
        if written == 0 {
            return Err(Error::Closed);
        }
        while let Some(piece) = pieces.front_mut().filter(|_| written > 0) {
            let part = written.min(piece.len());
            piece.advance(part);
            written -= part;
            if piece.is_empty() {
                pieces.pop_front();
            }
        }
    }
    Ok(())
}

async fn read_frames(
    mut reader: OwnedReadHalf,
    peer: &Peer,
    config: &Config,
    metrics: &Metrics,
    deliver: impl Fn(Vec<Item>),
) -> Result<(), Error> {
    let mut buffer = BytesMut::new();
    loop {
        fill(
            &mut reader,
            &mut buffer,
            HEADER_BYTES,
            config.silence_timeout,
        )
        .await?;
        let header: [u8; HEADER_BYTES] = buffer
            .split_to(HEADER_BYTES)
            .as_ref()
            .try_into()
            .expect("filled to this length");
        let header = frame::decode_header(&header)?;
        let body_bytes = header.meta_bytes + header.block_bytes;
        fill(&mut reader, &mut buffer, body_bytes, config.silence_timeout).await?;
        let body = buffer.split_to(body_bytes).freeze();
        let received = (HEADER_BYTES + body_bytes) as u64;
        metrics
            .bytes_received
            .get_or_create(&peer.label)
            .inc_by(received);
        let items = frame::decode_body(header, body)?;
        if !items.is_empty() {
            deliver(items);
        }
    }
}

/// Reads until the buffer has `bytes`, with no pause longer than `silence` between two of them.
/// Memory grows with what arrives, not with what is announced.
pub(crate) async fn fill(
    reader: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    bytes: usize,
    silence: Duration,
) -> Result<(), Error> {
    while buffer.len() < bytes {
        buffer.reserve((bytes - buffer.len()).min(READ_AHEAD_BYTES));
        let read = tokio::time::timeout(silence, reader.read_buf(buffer)).await;
        if read.map_err(|_| Error::Silent)?? == 0 {
            return Err(Error::Closed);
        }
    }
    Ok(())
}

/// A shared peer.
pub type SharedPeer = Arc<Peer>;
