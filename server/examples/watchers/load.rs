//! Clients that put, leadership that moves, and what came of it in a period.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use multiraft_proto::admin::TransferLeadershipRequest;
use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::etcdserverpb::PutRequest;
use multiraft_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::nodes::{Cluster, NODES, connected};
use crate::{Failure, count_f64};

/// Keys of a client in a group; they are written again and again, so that the state does not grow.
const KEYS: u64 = 100;
const VALUE_BYTES: usize = 100;
/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: u32 = 8;
/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What a client waits after a put that failed.
const PAUSE: Duration = Duration::from_millis(5);
/// What goes before a period.
const SETTLING: Duration = Duration::from_millis(500);

/// The load, from its start to its stop the same.
pub struct Load {
    counts: Arc<Counts>,
    tasks: JoinSet<Result<(), Failure>>,
}

#[derive(Default)]
struct Counts {
    puts: AtomicU64,
    failed: AtomicU64,
    transfers: AtomicU64,
}

/// What was done in a period.
pub struct Period {
    /// Its length.
    pub seconds: f64,
    puts: u64,
    failed: u64,
    transfers: u64,
    node_cpu: Duration,
}

impl Load {
    /// Clients and transfers of leadership, all through the watched node.
    pub async fn start(
        cluster: &Cluster,
        clients: u32,
        groups: u32,
        transfer_every: Duration,
    ) -> Result<Self, Failure> {
        let endpoint = cluster.watched()?.timeout(TIMEOUT);
        let counts = Arc::<Counts>::default();
        let mut tasks = JoinSet::new();
        let mut channel = connected(&endpoint).await?;
        tasks.spawn(transfer(
            channel.clone(),
            groups,
            transfer_every,
            Arc::clone(&counts),
        ));
        for client in 0..clients {
            if client % CLIENTS_PER_CONNECTION == 0 {
                channel = connected(&endpoint).await?;
            }
            tasks.spawn(put(channel.clone(), client, groups, Arc::clone(&counts)));
        }
        Ok(Self { counts, tasks })
    }

    /// Until what was before is over.
    pub async fn settle(&self) {
        tokio::time::sleep(SETTLING).await;
    }

    /// What is done in the next while.
    pub async fn period(&self, cluster: &Cluster, length: Duration) -> Result<Period, Failure> {
        let read = || {
            let counts = &self.counts;
            [&counts.puts, &counts.failed, &counts.transfers].map(|c| c.load(Ordering::Relaxed))
        };
        let (began, cpu, before) = (Instant::now(), cluster.watched_cpu()?, read());
        tokio::time::sleep(length).await;
        let (seconds, after) = (began.elapsed().as_secs_f64(), read());
        let node_cpu = cluster.watched_cpu()?.saturating_sub(cpu);
        let [puts, failed, transfers] = [0, 1, 2].map(|at| after[at] - before[at]);
        if puts == 0 {
            return Err("no put was acknowledged in a whole period".into());
        }
        Ok(Period {
            seconds,
            puts,
            failed,
            transfers,
            node_cpu,
        })
    }

    /// Ends the load; an error that ended a part of it before is told.
    pub async fn stop(mut self) -> Result<(), Failure> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended??;
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}

impl Period {
    /// Puts that were acknowledged, in a second.
    pub fn puts_per_second(&self) -> f64 {
        count_f64(self.puts) / self.seconds
    }

    /// Processor time of the watched node for each of them, microseconds.
    pub fn node_micros(&self) -> f64 {
        self.node_cpu.as_secs_f64() * 1e6 / count_f64(self.puts)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (puts, micros) = (self.puts_per_second(), self.node_micros());
        write!(f, "{puts:>6.0}  {micros:>15.0}  {:>9}", self.transfers)?;
        if self.failed > 0 {
            write!(f, "  ({} puts failed)", self.failed)?;
        }
        Ok(())
    }
}

/// One client. A put may fail while leadership moves; that is counted, and the next tried.
async fn put(
    channel: Channel,
    client: u32,
    groups: u32,
    counts: Arc<Counts>,
) -> Result<(), Failure> {
    let mut kv = KvClient::new(channel);
    for serial in u64::from(client).. {
        let group = 1 + serial % u64::from(groups);
        let mut request = Request::new(PutRequest {
            key: format!("{client}-{}", serial % KEYS).into(),
            value: vec![b'v'; VALUE_BYTES].into(),
            ..PutRequest::default()
        });
        request
            .metadata_mut()
            .insert("multiraft-group", group.into());
        if kv.put(request).await.is_ok() {
            counts.puts.fetch_add(1, Ordering::Relaxed);
        } else {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Moves the leadership of one group after the other to one node after the other.
async fn transfer(
    channel: Channel,
    groups: u32,
    every: Duration,
    counts: Arc<Counts>,
) -> Result<(), Failure> {
    let mut admin = AdminClient::new(channel);
    let mut due = tokio::time::interval(every);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for node_id in (1..=NODES).cycle() {
        for group_id in 1..=groups {
            due.tick().await;
            let request = TransferLeadershipRequest {
                group_id,
                node_id: 1 + (node_id + group_id) % NODES,
            };
            let moved: Result<_, Status> = admin.transfer_leadership(request).await;
            counts
                .transfers
                .fetch_add(u64::from(moved.is_ok()), Ordering::Relaxed);
        }
    }
    Ok(())
}
