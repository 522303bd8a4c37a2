//! One transfer to a peer: dial, offer, chunks; and again until it has ended.

use std::sync::Arc;

use bytes::BytesMut;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::{SnapshotError, SnapshotFile, Travelling};
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress};
use multiraft_engine::types::NodeId;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};

use super::sends::{Job, Ticket};
use super::{Shared, next_frame};
use crate::address::Addresses;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::handshake;
use crate::metrics::label;
use crate::snapshot::SendingSnapshot;
use crate::snapshot::rate::RateLimit;

/// A transfer under way. Its parts are polled in turn by one task.
struct Transfer {
    shared: Arc<Shared>,
    rate: Arc<Mutex<RateLimit>>,
    addresses: watch::Receiver<Addresses>,
    ticket: Mutex<Ticket>,
    sender: Mutex<SendingSnapshot>,
    /// An acknowledgement came: the window may be open.
    window: Notify,
    link: Mutex<Link>,
}

/// Whether the peer can be reached, as far as the last attempt showed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down,
}

/// Sends a snapshot, or gives it up; the ticket tells it when it is dropped.
pub async fn run(shared: Arc<Shared>, rate: Arc<Mutex<RateLimit>>, job: Job) {
    let Job {
        envelope,
        addresses,
        ticket,
        ..
    } = job;
    let Some(sender) = begin(&shared, envelope, ticket.travelling()).await else {
        return;
    };
    let transfer = Transfer {
        shared,
        rate,
        addresses,
        ticket: Mutex::new(ticket),
        sender: Mutex::new(sender),
        window: Notify::new(),
        link: Mutex::new(Link::Down),
    };
    tokio::select! {
        () = transfer.keep_connecting() => {}
        () = transfer.wait_stalled() => transfer.on_stalled(),
    }
    transfer.tell();
}

/// Opens the file; a disk that hangs is given up like a peer that does.
async fn begin(
    shared: &Arc<Shared>,
    envelope: Envelope,
    travelling: Travelling,
) -> Option<SendingSnapshot> {
    let limits = &shared.config.snapshots;
    let opened = tokio::time::timeout(limits.stall_timeout, open(shared, travelling)).await;
    let result = match opened {
        Ok(Ok(file)) => SendingSnapshot::new(envelope, file, limits, shared.now()),
        Ok(Err(error)) => {
            tracing::warn!(?travelling, %error, "no snapshot to send");
            return None;
        }
        Err(_) => Err(Error::Silent),
    };
    if let Err(error) = &result {
        tracing::warn!(?travelling, %error, "cannot send a snapshot");
    }
    result.ok()
}

async fn open(
    shared: &Arc<Shared>,
    travelling: Travelling,
) -> Result<Box<dyn SnapshotFile>, SnapshotError> {
    let store = Arc::clone(&shared.store);
    let Travelling { group, index, .. } = travelling;
    let opening = tokio::task::spawn_blocking(move || store.open(group, index));
    opening.await.map_err(std::io::Error::other)?
}

impl Transfer {
    /// Tries until the transfer has ended, with longer pauses after each try that brought nothing.
    async fn keep_connecting(&self) {
        let mut backoff = Backoff::new(&self.shared.config);
        while !self.sender.lock().has_ended() {
            let before = self.sender.lock().acked();
            let address = self.addresses.borrow().dialled().cloned();
            let Some(address) = address else {
                return self.sender.lock().abort();
            };
            let result = self.use_one_connection(&address).await;
            self.sender.lock().disconnected();
            match result {
                Ok(()) => return,
                Err(error) => self.on_failure(&address, &error),
            }
            if self.sender.lock().acked() > before {
                backoff.reset();
            }
            backoff.pause().await;
        }
    }

    /// Until the transfer ends, or the connection does: an error.
    async fn use_one_connection(&self, address: &PeerAddress) -> Result<(), Error> {
        let config = &self.shared.config;
        let node = self.node();
        let connecting = handshake::connect(config, node, address, ConnectionKind::Snapshots);
        let (stream, _incarnation) = connecting.await?;
        *self.link.lock() = Link::Up;
        self.tell_connection(address, ConnectionState::Established);
        let (reader, mut writer) = stream.into_split();
        let offer = self.sender.lock().connect();
        writer.write_all(&offer).await?;
        tokio::select! {
            result = self.read_answers(reader) => result,
            result = self.write_chunks(writer) => result,
        }
    }

    async fn read_answers(&self, mut reader: OwnedReadHalf) -> Result<(), Error> {
        let silence = self.shared.config.silence_timeout;
        let mut buffer = BytesMut::new();
        loop {
            let frame = next_frame(&mut reader, &mut buffer, silence).await?;
            let now = self.shared.now();
            let mut sender = self.sender.lock();
            sender.on_frame(frame, now)?;
            if sender.has_ended() {
                return Ok(());
            }
            drop(sender);
            self.window.notify_one();
        }
    }

    async fn write_chunks(&self, mut writer: OwnedWriteHalf) -> Result<(), Error> {
        let metrics = &self.shared.metrics.snapshots;
        let label = label(self.node());
        loop {
            let next = self.sender.lock().next_chunk();
            let Some(read) = next else {
                self.window.notified().await;
                continue;
            };
            let read = tokio::task::spawn_blocking(move || read.run()).await;
            let chunk = match read.map_err(std::io::Error::other).flatten() {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.sender.lock().on_unreadable(&error);
                    return Ok(());
                }
            };
            let bytes = chunk.bytes();
            let turn = self.rate.lock().reserve(bytes, self.shared.now());
            tokio::time::sleep_until(self.shared.began + turn).await;
            let (frame, resent) = {
                let mut sender = self.sender.lock();
                (sender.leave(chunk), sender.take_resent_chunks())
            };
            let Some(frame) = frame else {
                continue;
            };
            self.tell();
            writer.write_all(&frame).await?;
            metrics
                .bytes_sent
                .get_or_create(&label)
                .inc_by(bytes as u64);
            metrics.chunks_resent.get_or_create(&label).inc_by(resent);
        }
    }

    /// Until nothing was acknowledged for too long.
    async fn wait_stalled(&self) {
        loop {
            let deadline = self.sender.lock().deadline();
            if self.shared.now() >= deadline {
                return;
            }
            tokio::time::sleep_until(self.shared.began + deadline).await;
        }
    }

    fn on_stalled(&self) {
        let ticket = self.ticket.lock();
        tracing::warn!(travelling = ?ticket.travelling(), "a snapshot made no progress and is given up");
        if *self.link.lock() == Link::Down {
            ticket.on_unreachable();
        }
        self.sender.lock().tick(self.shared.now());
    }

    fn node(&self) -> NodeId {
        self.ticket.lock().travelling().to
    }

    /// Hands on what happened.
    fn tell(&self) {
        let events = self.sender.lock().take_events();
        let mut ticket = self.ticket.lock();
        for event in events {
            ticket.tell(event);
        }
    }

    fn tell_connection(&self, address: &PeerAddress, state: ConnectionState) {
        if let Some(observer) = self.shared.observer() {
            observer.on_connection(self.node(), address, ConnectionKind::Snapshots, state);
        }
    }

    /// A busy peer is no broken one: it is tried again, and nobody is alarmed.
    fn on_failure(&self, address: &PeerAddress, error: &Error) {
        let node = self.node();
        tracing::debug!(%node, %address, %error, "no connection for a snapshot");
        if !matches!(error, Error::Busy) {
            *self.link.lock() = Link::Down;
            let failures = &self.shared.metrics.failures;
            failures.get_or_create(&label(node)).inc();
            self.tell_connection(address, ConnectionState::Failed);
        }
    }
}
