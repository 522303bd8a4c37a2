//! The transport: listens, dials, and hands messages to whom they are for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::SnapshotStore;
use multiraft_engine::traits::{
    ConnectionKind, ConnectionState, PeerAddress, Transport, TransportObserver,
};
use multiraft_engine::types::NodeId;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::backoff::Backoff;
use crate::codec::Item;
use crate::config::Config;
use crate::error::Error;
use crate::handshake::{self, Accepted};
use crate::metrics::{Metrics, label};
use crate::peer::{Peer, SharedPeer, run_connection};
use crate::snapshot_net::{ObserverSlot, Snapshots};

/// The way to the other nodes, over TCP.
pub struct TcpTransport {
    shared: Arc<Shared>,
    runtime: Handle,
    listener: Mutex<Option<TcpListener>>,
    local: SocketAddr,
    tasks: Mutex<Vec<AbortHandle>>,
}

struct Shared {
    config: Config,
    metrics: Metrics,
    peers: Mutex<BTreeMap<NodeId, SharedPeer>>,
    /// `None` before the start and after the end: nothing is delivered then.
    observer: ObserverSlot,
    snapshots: Snapshots,
}

impl TcpTransport {
    /// Takes the port; accepts and dials from [`Transport::set_observer`] on. Files of snapshots are
    /// read from and written to `snapshots`.
    pub async fn bind(
        config: Config,
        snapshots: Arc<dyn SnapshotStore>,
        runtime: Handle,
    ) -> Result<Arc<Self>, Error> {
        config.validate()?;
        let failed = |source| {
            let address = PeerAddress {
                host: config.host.clone(),
                port: config.port,
            };
            Error::Bind {
                address: address.to_string(),
                source,
            }
        };
        let bound = TcpListener::bind((config.host.as_str(), config.port)).await;
        let listener = bound.map_err(failed)?;
        let local = listener.local_addr()?;
        let (metrics, observer) = (Metrics::default(), ObserverSlot::default());
        let snapshots = Snapshots::new(
            config.clone(),
            metrics.clone(),
            snapshots,
            Arc::clone(&observer),
            runtime.clone(),
        );
        let shared = Arc::new(Shared {
            config,
            metrics,
            peers: Mutex::default(),
            observer,
            snapshots,
        });
        let (listener, tasks) = (Mutex::new(Some(listener)), Mutex::default());
        Ok(Arc::new(Self {
            shared,
            runtime,
            listener,
            local,
            tasks,
        }))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Its figures.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.runtime.spawn(task).abort_handle();
        self.tasks.lock().push(handle);
    }
}

impl Transport for TcpTransport {
    fn send(&self, envelopes: Vec<Envelope>) {
        let mut by_peer: BTreeMap<NodeId, Vec<Envelope>> = BTreeMap::new();
        for envelope in envelopes {
            by_peer.entry(envelope.to).or_default().push(envelope);
        }
        let limit = self.shared.config.queue_bytes;
        for (node, envelopes) in by_peer {
            let peer = self.shared.peers.lock().get(&node).cloned();
            if let Some(peer) = peer {
                peer.push(envelopes, limit, &self.shared.metrics);
            }
        }
    }

    fn send_snapshot(&self, envelope: Envelope) {
        let peer = self.shared.peers.lock().get(&envelope.to).cloned();
        let address = peer.map(|peer| peer.address.subscribe());
        self.shared.snapshots.send(envelope, address);
    }

    fn set_peer(&self, node: NodeId, address: PeerAddress) {
        if node == self.shared.config.node {
            return;
        }
        let peer = self.shared.peer(node);
        let first = peer.address.borrow().is_none();
        peer.address.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&address);
            *known = Some(address);
            changed
        });
        if first && node > self.shared.config.node {
            self.spawn(dial_forever(Arc::clone(&self.shared), peer));
        }
    }

    fn set_observer(&self, observer: Arc<dyn TransportObserver>) {
        *self.shared.observer.lock() = Some(observer);
        if let Some(listener) = self.listener.lock().take() {
            self.spawn(accept_forever(Arc::clone(&self.shared), listener));
            let shared = Arc::clone(&self.shared);
            self.spawn(async move { shared.snapshots.work().await });
        }
    }

    fn shut_down(&self) {
        self.shared.snapshots.shut_down();
        *self.shared.observer.lock() = None;
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        for peer in self.shared.peers.lock().values() {
            peer.generation.send_modify(|generation| *generation += 1);
        }
    }
}

impl Shared {
    fn peer(&self, node: NodeId) -> SharedPeer {
        let mut peers = self.peers.lock();
        Arc::clone(
            peers
                .entry(node)
                .or_insert_with(|| Arc::new(Peer::new(node))),
        )
    }

    fn observer(&self) -> Option<Arc<dyn TransportObserver>> {
        self.observer.lock().clone()
    }

    /// Runs one connection from its handshake to its end, and tells of both.
    async fn serve(
        &self,
        peer: &Peer,
        (stream, incarnation): (TcpStream, u64),
        address: &PeerAddress,
    ) -> Error {
        let node = peer.node;
        let mut generation = 0;
        peer.generation.send_modify(|newest| {
            *newest += 1;
            generation = *newest;
        });
        peer.set_connected(true, &self.metrics);
        tracing::debug!(%node, %address, "connected");
        if let Some(observer) = self.observer() {
            let (kind, state) = (ConnectionKind::Messages, ConnectionState::Established);
            observer.on_connection(node, address, kind, state);
        }
        let deliver = |items| self.deliver(node, incarnation, items);
        let error = run_connection(
            peer,
            stream,
            generation,
            (&self.config, &self.metrics),
            deliver,
        )
        .await;
        if *peer.generation.borrow() == generation {
            peer.set_connected(false, &self.metrics);
            self.on_failure(node, address, &error);
        }
        error
    }

    /// As [`Shared::serve`], of a connection for messages that a peer has dialled.
    async fn serve_accepted(&self, accepted: Accepted, stream: TcpStream, from: SocketAddr) {
        let node = accepted.node;
        let peer = self.peer(node);
        let known = peer.address.borrow().clone();
        let unknown = || PeerAddress {
            host: from.ip().to_string(),
            port: from.port(),
        };
        let address = known.unwrap_or_else(unknown);
        let connection = (stream, accepted.incarnation);
        let error = self.serve(&peer, connection, &address).await;
        tracing::debug!(%node, %error, "connection ended");
    }

    fn deliver(&self, from: NodeId, incarnation: u64, items: Vec<Item>) {
        let Some(observer) = self.observer() else {
            return;
        };
        let to = self.config.node;
        let envelope = |Item {
                            group,
                            term,
                            message,
                        }| Envelope {
            group,
            from,
            to,
            term,
            incarnation,
            message,
        };
        observer.on_messages(items.into_iter().map(envelope).collect());
    }

    fn on_failure(&self, node: NodeId, address: &PeerAddress, error: &Error) {
        self.metrics.failures.get_or_create(&label(node)).inc();
        tracing::debug!(%node, %address, %error, "no connection");
        let Some(observer) = self.observer() else {
            return;
        };
        let (kind, state) = (ConnectionKind::Messages, ConnectionState::Failed);
        observer.on_connection(node, address, kind, state);
        if error.means_down() {
            observer.on_peer_down(node);
        }
    }
}

/// Keeps a connection to a peer with a higher id; pauses longer after each failure in a row.
async fn dial_forever(shared: Arc<Shared>, peer: SharedPeer) {
    let config = &shared.config;
    let mut backoff = Backoff::new(config);
    let mut addresses = peer.address.subscribe();
    loop {
        let Some(address) = addresses.borrow_and_update().clone() else {
            return;
        };
        let moved = async {
            match addresses.changed().await {
                Ok(()) => Error::Moved,
                Err(_) => std::future::pending().await, // the peer lives as long as this task
            }
        };
        match handshake::connect(config, peer.node, &address, ConnectionKind::Messages).await {
            Ok(connection) => {
                backoff.reset();
                tokio::select! {
                    _ = shared.serve(&peer, connection, &address) => {}
                    error = moved => {
                        peer.set_connected(false, &shared.metrics);
                        shared.on_failure(peer.node, &address, &error);
                    }
                }
            }
            Err(error) => shared.on_failure(peer.node, &address, &error),
        }
        backoff.pause().await;
    }
}

/// Takes connections of peers with lower ids, and snapshots of all.
async fn accept_forever(shared: Arc<Shared>, listener: TcpListener) {
    let pending = Arc::new(Semaphore::new(shared.config.pending_handshakes));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&pending).acquire_owned().await else {
            return;
        };
        let (mut stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(shared.config.backoff_min).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let hello = handshake::accept(&mut stream, &shared.config);
            let result = tokio::time::timeout(shared.config.handshake_timeout, hello).await;
            drop(permit);
            match result.unwrap_or(Err(Error::Silent)) {
                Ok(accepted) => match accepted.kind {
                    ConnectionKind::Messages => shared.serve_accepted(accepted, stream, from).await,
                    ConnectionKind::Snapshots => shared.snapshots.receive(stream, accepted).await,
                },
                Err(error) => {
                    shared.metrics.refused.inc();
                    tracing::warn!(%from, %error, "refused a connection");
                }
            }
        });
    }
}
