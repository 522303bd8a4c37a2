//! One running node: log, state, transport, host and services, wired together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::config::Config as EngineConfig;
use multiraft_engine::host::{Host, Parts};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::GroupId;
use multiraft_logdb::{Access, Disk, FsDisk, LogDb, SnapshotDir};
use multiraft_proto::FILE_DESCRIPTOR_SET;
use multiraft_proto::admin::admin_server::AdminServer;
use multiraft_proto::etcdserverpb::kv_server::KvServer;
use multiraft_proto::node::node_server::NodeServer;
use multiraft_transport::{SnapshotLimits, TcpTransport};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::api::admin::{About, AdminService};
use crate::api::node::NodeService;
use crate::backend::HostBackend;
use crate::config::Config;
use crate::events::EventHub;
use crate::kv::{AuthorityLayer, KvConfig, KvMachine, KvService};
use crate::metrics_http;

/// How long open calls may take to end when the node stops; watches never end by themselves.
const DRAIN: Duration = Duration::from_millis(500);
/// Calls that one client connection may have open.
const CONCURRENT_STREAMS: u32 = 1024;

/// Why a node did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Log(#[from] multiraft_logdb::Error),
    /// The key-value store cannot be used.
    #[error("the key-value store: {0}")]
    Store(String),
    #[error(
        "the store has keys of group {group}, but the log does not have the group: log and store do \
         not belong together; restore the log directory beside the store, or start with an empty \
         data directory"
    )]
    NoLog { group: GroupId },
    #[error("{0}; choose another port with --raft-port, or end the process that has it")]
    RaftPort(multiraft_transport::Error),
    #[error("cannot listen on {address} for {what}: {source}; choose another port with {flag}")]
    Port {
        address: String,
        what: &'static str,
        flag: &'static str,
        source: std::io::Error,
    },
    /// The groups could not be started.
    #[error(transparent)]
    Engine(#[from] multiraft_engine::error::StartError),
    /// The reflection service could not be made.
    #[error("the reflection service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A task of the node ended before its time.
    #[error("a task of the node failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A node that serves.
pub struct Node {
    about: About,
    log: Arc<LogDb>,
    host: Arc<Host<KvMachine>>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    metrics: Option<JoinHandle<()>>,
    /// Wakes watchers; it ends when this is dropped.
    _waking: JoinSet<()>,
}

impl Node {
    /// Opens the data directory, starts all groups in it and serves.
    pub async fn start(config: &Config) -> Result<Self, NodeError> {
        let disk = FsDisk::new(&log_dir(config), Access::ReadWrite);
        Self::start_on(Arc::new(disk), config).await
    }

    /// The same with the log's segments on another disk.
    pub async fn start_on(disk: Arc<dyn Disk>, config: &Config) -> Result<Self, NodeError> {
        let (log, machine) = open(disk, config).await?;
        let snapshots = open_snapshots(config, log.incarnation()).await?;
        let transport = bind_transport(config, log.incarnation(), &snapshots).await?;
        let api = listen(&config.api_host, config.api_port, "the API", "--api-port").await?;
        let about = about(config, &log, api.local_addr().ok(), transport.local_addr());
        let events = Arc::new(EventHub::new(config.node));
        let mut waking = JoinSet::new();
        waking.spawn(events.waking());
        let parts = Parts {
            log: log.clone(),
            transport: transport.clone(),
            machine,
            snapshots: snapshots.clone(),
            events: events.clone(),
            connections: events.clone(),
        };
        let host = Arc::new(Host::start(
            engine_config(config, log.incarnation()),
            parts,
        )?);
        let metrics = match config.metrics_port {
            Some(port) => {
                let registry = registry(&log, &snapshots, &transport, &host);
                Some(serve_metrics(config, port, registry).await?)
            }
            None => None,
        };
        let (stop, stopped) = oneshot::channel();
        let server = serve(config, &about, &host, &log, &events, api, stopped).await?;
        tracing::info!(node = %about.node, api = about.api_address, raft = about.raft_address, "ready");
        Ok(Self {
            about,
            log,
            host,
            stop,
            server,
            metrics,
            _waking: waking,
        })
    }

    /// Who this node is and where it serves.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Ends calls, groups and connections, makes the state durable and closes the log.
    pub async fn shut_down(self) -> Result<(), NodeError> {
        if self.stop.send(()).is_err() {
            tracing::warn!("the API had ended before");
        }
        let server = self.server.abort_handle();
        match tokio::time::timeout(DRAIN, self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the API ended with an error"),
            Ok(Err(error)) => tracing::warn!(%error, "the API's task failed"),
            Err(_) => server.abort(), // watchers that do not leave
        }
        if let Some(metrics) = self.metrics {
            metrics.abort();
        }
        let (host, log) = (self.host, self.log);
        let ended = tokio::task::spawn_blocking(move || {
            let flushed = host.shut_down();
            log.close();
            flushed
        });
        ended
            .await?
            .map_err(|error| NodeError::Store(error.to_string()))
    }
}

fn log_dir(config: &Config) -> PathBuf {
    config.data_dir.join("log")
}

/// The log first: it holds the lock and the identity of the data directory.
async fn open(
    disk: Arc<dyn Disk>,
    config: &Config,
) -> Result<(Arc<LogDb>, Arc<KvMachine>), NodeError> {
    let (options, data_dir) = (config.log_options(log_dir(config)), config.data_dir.clone());
    tokio::task::spawn_blocking(move || {
        let log = LogDb::open_with(disk, options)?;
        let machine = KvMachine::open(&data_dir.join("kv"), KvConfig::default());
        let machine = machine.map_err(|error| NodeError::Store(error.to_string()))?;
        check_together(&machine, &log)?;
        Ok((log, machine))
    })
    .await?
}

/// State of a group that the log does not know: the log was lost or is another's. Were it used, a
/// new group of that id would take over its keys and skip its own first entries as applied; were it
/// deleted, so might be the last copy of somebody's data.
fn check_together(machine: &KvMachine, log: &LogDb) -> Result<(), NodeError> {
    let groups = machine
        .groups()
        .map_err(|error| NodeError::Store(error.to_string()))?;
    let known = log.groups();
    match groups.into_iter().find(|group| !known.contains(group)) {
        Some(group) => Err(NodeError::NoLog { group }),
        None => Ok(()),
    }
}

/// After the log, which holds the lock.
async fn open_snapshots(config: &Config, incarnation: u64) -> Result<Arc<SnapshotDir>, NodeError> {
    let dir = config.data_dir.join("snapshots");
    let opened = tokio::task::spawn_blocking(move || SnapshotDir::open_dir(&dir, incarnation));
    Ok(opened.await??)
}

async fn bind_transport(
    config: &Config,
    incarnation: u64,
    snapshots: &Arc<SnapshotDir>,
) -> Result<Arc<TcpTransport>, NodeError> {
    let transport = multiraft_transport::Config {
        host: config.raft_host.clone(),
        port: config.raft_port,
        advertise: advertised(config),
        snapshots: SnapshotLimits {
            bytes_per_second: config.snapshot_rate,
            ..SnapshotLimits::default()
        },
        ..multiraft_transport::Config::new(config.cluster_id, config.node, incarnation)
    };
    let runtime = tokio::runtime::Handle::current();
    TcpTransport::bind(transport, snapshots.clone(), runtime)
        .await
        .map_err(NodeError::RaftPort)
}

fn advertised(config: &Config) -> Option<PeerAddress> {
    let (host, port) = config.raft_advertise.clone()?;
    let port = port.unwrap_or(config.raft_port);
    Some(PeerAddress { host, port })
}

async fn listen(
    host: &str,
    port: u16,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, NodeError> {
    TcpListener::bind((host, port))
        .await
        .map_err(|source| NodeError::Port {
            address: format!("{host}:{port}"),
            what,
            flag,
            source,
        })
}

fn about(config: &Config, log: &LogDb, api: Option<SocketAddr>, raft: SocketAddr) -> About {
    let shown = Path::canonicalize(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    About {
        node: config.node,
        cluster_id: config.cluster_id,
        incarnation: log.incarnation(),
        api_address: api.map_or_else(String::new, |address| address.to_string()),
        raft_address: advertised(config).map_or(raft.to_string(), |address| address.to_string()),
        data_dir: shown.display().to_string(),
    }
}

fn engine_config(config: &Config, incarnation: u64) -> EngineConfig {
    let mut engine = EngineConfig::new(config.node);
    engine.incarnation = incarnation;
    engine.snapshot_entries = config.snapshot_entry_threshold;
    engine.snapshot_bytes = config.snapshot_bytes;
    engine.retain_entries = config.compaction_retain_entries;
    engine.tick = config.heartbeat_period;
    let ticks = config
        .election_timeout
        .as_nanos()
        .div_ceil(config.heartbeat_period.as_nanos());
    engine.limits.election_ticks = u32::try_from(ticks).unwrap_or(u32::MAX / 4);
    engine.limits.stuck_disk_ticks = 2 * engine.limits.election_ticks;
    engine
}

fn registry(
    log: &LogDb,
    snapshots: &SnapshotDir,
    transport: &TcpTransport,
    host: &Host<KvMachine>,
) -> Registry {
    let mut registry = Registry::with_prefix("multiraft");
    log.metrics().register(&mut registry);
    snapshots.metrics().register(&mut registry);
    transport.metrics().register(&mut registry);
    host.metrics().register(&mut registry);
    registry
}

async fn serve_metrics(
    config: &Config,
    port: u16,
    registry: Registry,
) -> Result<JoinHandle<()>, NodeError> {
    let listener = listen(&config.api_host, port, "metrics", "--metrics-port").await?;
    Ok(tokio::spawn(metrics_http::serve(
        listener,
        Arc::new(registry),
    )))
}

/// All services on one port.
async fn serve(
    config: &Config,
    about: &About,
    host: &Arc<Host<KvMachine>>,
    log: &Arc<LogDb>,
    events: &Arc<EventHub>,
    listener: TcpListener,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, NodeError> {
    let backend = HostBackend::new(host.clone(), events.clone(), about.clone(), config);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeServer<NodeService>>().await;
    health
        .set_serving::<KvServer<KvService<HostBackend>>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let server = Server::builder()
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
        .layer(AuthorityLayer)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(NodeServer::new(NodeService::new(
            host.clone(),
            events.clone(),
        )))
        .add_service(AdminServer::new(AdminService::new(
            about.clone(),
            host.clone(),
            log.clone(),
            events.clone(),
        )))
        .add_service(KvServer::new(KvService::new(Arc::new(backend))));
    let incoming = TcpListenerStream::new(listener);
    let until = async {
        drop(stopped.await); // told, or the node was dropped
    };
    Ok(tokio::spawn(
        server.serve_with_incoming_shutdown(incoming, until),
    ))
}
