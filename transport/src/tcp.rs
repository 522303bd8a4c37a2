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
use tokio::task::JoinSet;

use crate::address::Addresses;
use crate::backoff::Backoff;
use crate::codec::Item;
use crate::config::Config;
use crate::error::Error;
use crate::handshake::{self, Accepted, Purpose};
use crate::introduce::introduce_forever;
use crate::metrics::{Metrics, label};
use crate::peer::{Peer, SharedPeer, run_connection};
use crate::snapshot_net::{ObserverSlot, Snapshots};

/// The way to the other nodes, over TCP.
pub struct TcpTransport {
    shared: Arc<Shared>,
    listener: Mutex<Option<TcpListener>>,
    local: SocketAddr,
}

struct Shared {
    config: Config,
    metrics: Metrics,
    /// Where peers reach this node; an empty host as in [`Config::advertise`].
    own: PeerAddress,
    /// Peers with a higher id are in it as long as there is an address to dial. Whoever changes that
    /// holds the lock: each has one task.
    peers: Mutex<BTreeMap<NodeId, SharedPeer>>,
    /// `None` before the start and after the end: nothing is delivered then.
    observer: ObserverSlot,
    snapshots: Snapshots,
    runtime: Handle,
    /// `None` after the end: nothing is begun then.
    tasks: Mutex<Option<JoinSet<()>>>,
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
            own: config.own_address(local),
            config,
            metrics,
            peers: Mutex::default(),
            observer,
            snapshots,
            runtime,
            tasks: Mutex::new(Some(JoinSet::new())),
        });
        let listener = Mutex::new(Some(listener));
        Ok(Arc::new(Self {
            shared,
            listener,
            local,
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
        let addresses = peer.map(|peer| peer.addresses.subscribe());
        self.shared.snapshots.send(envelope, addresses);
    }

    fn set_peer(&self, node: NodeId, address: PeerAddress) {
        if node == self.shared.config.node {
            return;
        }
        let mut peers = self.shared.peers.lock();
        let peer = known_or_new(&mut peers, node);
        let first = peer.addresses.borrow().dialled().is_none();
        peer.addresses.send_if_modified(|known| known.tell(address));
        drop(peers);
        if first {
            self.shared.seek(peer);
        }
    }

    fn set_observer(&self, observer: Arc<dyn TransportObserver>) {
        *self.shared.observer.lock() = Some(observer);
        if let Some(listener) = self.listener.lock().take() {
            let shared = Arc::clone(&self.shared);
            self.shared.spawn(accept_forever(shared, listener));
            let shared = Arc::clone(&self.shared);
            self.shared
                .spawn(async move { shared.snapshots.work().await });
        }
    }

    fn shut_down(&self) {
        self.shared.snapshots.shut_down();
        *self.shared.observer.lock() = None;
        let tasks = self.shared.tasks.lock().take();
        drop(tasks); // aborts them
        for peer in self.shared.peers.lock().values() {
            peer.generation.send_modify(|generation| *generation += 1);
        }
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *self.tasks.lock() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Begins to dial a peer, or to ask it to dial.
    fn seek(self: &Arc<Self>, peer: SharedPeer) {
        let shared = Arc::clone(self);
        if peer.node > self.config.node {
            self.spawn(dial_forever(shared, peer));
        } else {
            self.spawn(async move { introduce_forever(&shared.config, &peer, &shared.own).await });
        }
    }

    /// A peer with a higher id says where it is.
    fn on_introduction(self: &Arc<Self>, node: NodeId, address: PeerAddress) -> Result<(), Error> {
        tracing::debug!(%node, %address, "introduced");
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(&node) {
            peer.introduce(address);
            return Ok(());
        }
        let only_introduced = |peer: &&SharedPeer| {
            peer.node > self.config.node && peer.addresses.borrow().is_only_introduced()
        };
        if peers.values().filter(only_introduced).count() >= self.config.introduced_peers {
            return Err(Error::Refused("too many peers introduce themselves"));
        }
        let peer = known_or_new(&mut peers, node);
        peer.introduce(address);
        drop(peers);
        self.seek(peer);
        Ok(())
    }

    /// A peer with a higher id was not found there. If that was introduced, it counts no more, and
    /// a peer without another address is forgotten.
    fn on_not_found(&self, peer: &Peer, address: &PeerAddress) {
        let mut peers = self.peers.lock();
        let disproved = |known: &mut Addresses| known.disprove(address);
        if peer.addresses.send_if_modified(disproved) && peer.addresses.borrow().dialled().is_none()
        {
            peers.remove(&peer.node);
            self.metrics.forget(peer.node);
        }
    }

    fn observer(&self) -> Option<Arc<dyn TransportObserver>> {
        self.observer.lock().clone()
    }

    /// A connection is up: its generation.
    fn on_established(&self, peer: &Peer, address: &PeerAddress) -> u64 {
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
        generation
    }

    /// Runs a connection of this generation to its end, and tells of that.
    async fn serve(
        &self,
        peer: &Peer,
        generation: u64,
        (stream, incarnation): (TcpStream, u64),
        address: &PeerAddress,
    ) -> Error {
        let node = peer.node;
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

    /// Does what an accepted connection is for, until its end; an error if it is refused after all.
    async fn on_accepted(
        self: &Arc<Self>,
        accepted: Accepted,
        stream: TcpStream,
        from: SocketAddr,
    ) -> Result<(), Error> {
        let Accepted {
            node,
            incarnation,
            purpose,
        } = accepted;
        match purpose {
            Purpose::Messages => self.serve_accepted(node, (stream, incarnation), from).await,
            Purpose::Snapshots => self.snapshots.receive(stream, (node, incarnation)).await,
            Purpose::Introduction(address) => self.on_introduction(node, address)?,
        }
        Ok(())
    }

    /// Serves a connection for messages that a peer has dialled.
    async fn serve_accepted(&self, node: NodeId, connection: (TcpStream, u64), from: SocketAddr) {
        let peer = known_or_new(&mut self.peers.lock(), node);
        let known = peer.addresses.borrow().dialled().cloned();
        let unknown = || PeerAddress {
            host: from.ip().to_string(),
            port: from.port(),
        };
        let address = known.unwrap_or_else(unknown);
        let generation = self.on_established(&peer, &address);
        let error = self.serve(&peer, generation, connection, &address).await;
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
        // The figures of a peer that was forgotten are gone, and must not come back.
        if self.peers.lock().contains_key(&node) {
            self.metrics.failures.get_or_create(&label(node)).inc();
        }
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

fn known_or_new(peers: &mut BTreeMap<NodeId, SharedPeer>, node: NodeId) -> SharedPeer {
    let peer = peers.entry(node);
    Arc::clone(peer.or_insert_with(|| Arc::new(Peer::new(node))))
}

/// Keeps a connection to a peer with a higher id, as long as there is an address to dial; pauses
/// longer after each failure in a row.
async fn dial_forever(shared: Arc<Shared>, peer: SharedPeer) {
    let config = &shared.config;
    let mut backoff = Backoff::new(config);
    loop {
        let known = peer.addresses.borrow().clone();
        let Some(address) = known.dialled().cloned() else {
            return;
        };
        match handshake::connect(config, peer.node, &address, ConnectionKind::Messages).await {
            Ok(connection) => {
                backoff.reset();
                let generation = shared.on_established(&peer, &address);
                peer.confirm(&known, &address);
                tokio::select! {
                    _ = shared.serve(&peer, generation, connection, &address) => {}
                    error = peer.moved(&known, &address) => {
                        peer.set_connected(false, &shared.metrics);
                        shared.on_failure(peer.node, &address, &error);
                    }
                }
            }
            Err(error) => {
                shared.on_not_found(&peer, &address);
                shared.on_failure(peer.node, &address, &error);
            }
        }
        backoff.pause().await;
    }
}

/// Takes connections of peers with lower ids, introductions of those with higher ones, and snapshots
/// of all.
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
            let result = match result.unwrap_or(Err(Error::Silent)) {
                Ok(accepted) => shared.on_accepted(accepted, stream, from).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                shared.metrics.refused.inc();
                tracing::warn!(%from, %error, "refused a connection");
            }
        });
    }
}
