//! Sockets, threads and timers around [`crate::snapshot`].
//!
//! ```text
//! send_snapshot ─▶ Sends: bounded queue, first come first sent ─▶ a few transfers at once
//!                    each: dial, hello, Offer …  read on a blocking thread ─▶ rate limit ─▶ socket
//! accepted, hello of this kind ─▶ receive: socket ─▶ append on a blocking thread ─▶ Ack ─▶ socket
//!                    all bytes here: finish on a blocking thread ─▶ observer, Done
//! ```
//! One connection for each transfer under way, dialled by its sender, closed when it has ended. The
//! receiver says something every ping period, also while its disk works; a sender that hears nothing
//! for the silence time-out dials again. Nothing of this shares a socket or a queue with messages.
//!
//! Invariants: each send is told one end, also if it is refused at once or the transport ends; no
//! file is touched on a thread of the runtime.

mod receive;
mod send;
mod sends;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::SnapshotStore;
use multiraft_engine::traits::TransportObserver;
use multiraft_engine::types::NodeId;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::address::Addresses;
use crate::config::Config;
use crate::error::Error;
use crate::metrics::{Metrics, label};
use crate::peer::fill;
use crate::snapshot::wire::{self, Frame, Taken};
use crate::snapshot::{Ends, Receiver};
use sends::Sends;

/// Who is told, if anybody is.
pub type ObserverSlot = Arc<Mutex<Option<Arc<dyn TransportObserver>>>>;

/// Connections of senders that may be open for each place of a partial file: who finds no place
/// learns that on a connection too.
const CONNECTIONS_PER_PLACE: usize = 4;

/// Both directions of a node's snapshots.
pub struct Snapshots {
    shared: Arc<Shared>,
    sends: Arc<Sends>,
    receiver: Arc<Receiver>,
    connections: Semaphore,
}

/// What all transfers of a node use.
struct Shared {
    config: Config,
    metrics: Metrics,
    store: Arc<dyn SnapshotStore>,
    observer: ObserverSlot,
    began: Instant,
}

impl Shared {
    /// The time that the protocol is told.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn observer(&self) -> Option<Arc<dyn TransportObserver>> {
        self.observer.lock().clone()
    }
}

impl Snapshots {
    /// Idle until [`Snapshots::work`] is polled.
    pub fn new(
        config: Config,
        metrics: Metrics,
        store: Arc<dyn SnapshotStore>,
        observer: ObserverSlot,
        runtime: Handle,
    ) -> Self {
        let limits = &config.snapshots;
        let receiver = Receiver::new(Arc::clone(&store), limits);
        let connections = Semaphore::new(CONNECTIONS_PER_PLACE * limits.parallel_receives);
        let shared = Arc::new(Shared {
            config,
            metrics,
            store,
            observer,
            began: Instant::now(),
        });
        Self {
            sends: Sends::new(Arc::clone(&shared), runtime),
            shared,
            receiver,
            connections,
        }
    }

    /// Queues a snapshot for a peer; without an address for it, it is aborted.
    pub fn send(&self, envelope: Envelope, addresses: Option<watch::Receiver<Addresses>>) {
        self.sends.send(envelope, addresses);
    }

    /// Sends what is queued, and deletes partial files that nobody goes on with; ends when dropped.
    pub async fn work(&self) {
        tokio::join!(self.sends.work(), self.expire_forever());
    }

    async fn expire_forever(&self) {
        let period = self.shared.config.snapshots.partial_retention / 4;
        let mut timer = tokio::time::interval(period.max(Duration::from_millis(1)));
        loop {
            timer.tick().await;
            let (receiver, now) = (Arc::clone(&self.receiver), self.shared.now());
            let expired = tokio::task::spawn_blocking(move || receiver.expire(now)).await;
            if let Ok(count @ 1..) = expired {
                tracing::info!(count, "deleted snapshots that did not arrive");
            }
        }
    }

    /// Serves a sender's connection to its end.
    pub async fn receive(&self, stream: TcpStream, (node, incarnation): (NodeId, u64)) {
        let ends = Ends {
            from: node,
            incarnation,
            to: self.shared.config.node,
        };
        let error = match self.connections.try_acquire() {
            Ok(_place) => receive::serve(&self.shared, &self.receiver, stream, ends).await,
            Err(_) => receive::refuse(&self.shared, stream).await,
        };
        tracing::debug!(%node, %error, "a connection for snapshots ended");
        if !matches!(error, Error::Closed | Error::Busy) {
            let failures = &self.shared.metrics.failures;
            failures.get_or_create(&label(node)).inc();
        }
    }

    /// Aborts all sends, and deletes all partial files. Blocks for the latter.
    pub fn shut_down(&self) {
        self.sends.shut_down();
        self.receiver.close();
    }
}

/// The next frame, if it is here as a whole in time.
async fn next_frame(
    reader: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    within: Duration,
) -> Result<Frame, Error> {
    let reading = async {
        loop {
            match wire::take(buffer)? {
                Taken::Frame(frame) => return Ok(frame),
                Taken::Needs(bytes) => fill(reader, buffer, bytes, within).await?,
            }
        }
    };
    let result = tokio::time::timeout(within, reading).await;
    result.unwrap_or(Err(Error::Silent))
}
