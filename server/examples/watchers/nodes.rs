//! Three nodes in processes of their own, and what they spend.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use multiraft_proto::admin::StatusRequest;
use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{BootstrapRequest, GroupConfig, MemberConfig};
use tonic::transport::{Channel, Endpoint};

use crate::Failure;

/// Long beyond anything that works.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The nodes' ids are 1 to this; the first is the one that is watched.
pub const NODES: u32 = 3;
/// Files and connections of a process beside those of the watchers.
const OTHER_FILES: u64 = 512;
/// Linux tells processor time in hundredths of a second.
const TICKS_PER_SECOND: u64 = 100;

/// A process that is killed when this is dropped.
pub struct Process(pub Child);

impl Process {
    /// Processor time that it has used since its start, in its own code and in the kernel.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let mut times = behind_name.split_whitespace().skip(11); // utime and stime, see proc(5)
        let mut next = || -> Result<u64, Failure> {
            Ok(times.next().ok_or("a short /proc/PID/stat")?.parse()?)
        };
        Ok(Duration::from_millis(
            (next()? + next()?) * 1000 / TICKS_PER_SECOND,
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("process {} could not be ended", self.0.id());
        }
    }
}

/// Nodes that end when this is dropped.
pub struct Cluster {
    nodes: Vec<Process>,
    api_ports: Vec<u16>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts the nodes and waits until all groups have leaders.
    pub async fn start(groups: u32) -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let ports = free_ports(2 * NODES as usize)?;
        let (api_ports, raft_ports) = ports.split_at(NODES as usize);
        let mut nodes = Vec::new();
        for (id, (api, raft)) in (1..=NODES).zip(api_ports.iter().zip(raft_ports)) {
            let node = this_program()?
                .args(["serve", "--log-level", "error"])
                .args(["--node", &id.to_string()])
                .args(["--api-port", &api.to_string()])
                .args(["--raft-port", &raft.to_string()])
                .arg("--data-dir")
                .arg(dir.path().join(format!("node-{id}")))
                .stdout(Stdio::null())
                .spawn()?;
            nodes.push(Process(node));
        }
        let cluster = Self {
            nodes,
            api_ports: api_ports.to_vec(),
            _dir: dir,
        };
        tokio::time::timeout(PATIENCE, cluster.form(groups, raft_ports)).await??;
        Ok(cluster)
    }

    async fn form(&self, groups: u32, raft_ports: &[u16]) -> Result<(), Failure> {
        let members = (1..=NODES)
            .zip(raft_ports)
            .map(|(node_id, &port)| MemberConfig {
                node_id,
                host: "127.0.0.1".to_owned(),
                port: i32::from(port),
                role: Role::Member.into(),
            });
        let members: Vec<MemberConfig> = members.collect();
        for &port in &self.api_ports {
            let mut client = NodeClient::new(connected(&endpoint(port)?).await?);
            for group_id in 1..=groups {
                let members = members.clone();
                let group = Some(GroupConfig { group_id, members });
                client.bootstrap(BootstrapRequest { group }).await?;
            }
        }
        let mut client = AdminClient::new(connected(&self.watched()?).await?);
        loop {
            let status = client.status(StatusRequest::default()).await?.into_inner();
            if status.groups.iter().all(|group| group.leader_id != 0) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where the node that is watched serves.
    pub fn watched(&self) -> Result<Endpoint, Failure> {
        endpoint(self.watched_port())
    }

    /// The API port of the node that is watched.
    pub fn watched_port(&self) -> u16 {
        self.api_ports[0]
    }

    /// Processor time that the watched node has used since its start.
    pub fn watched_cpu(&self) -> Result<Duration, Failure> {
        self.nodes[0].cpu()
    }
}

/// This very program, to be another process.
pub fn this_program() -> Result<Command, Failure> {
    Ok(Command::new(std::env::current_exe()?))
}

pub fn endpoint(port: u16) -> Result<Endpoint, Failure> {
    Ok(Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?)
}

/// A connection, as soon as the node serves.
pub async fn connected(endpoint: &Endpoint) -> Result<Channel, Failure> {
    let began = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Each watcher is an open file of the watched node, and of the process of the watchers.
pub fn check_open_files(watchers: u64) -> Result<(), Failure> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    let soft: u64 = soft
        .ok_or("no limit of open files")?
        .parse()
        .unwrap_or(u64::MAX);
    let needed = watchers + OTHER_FILES;
    if soft < needed {
        return Err(
            format!("{needed} open files are needed, {soft} allowed: ulimit -n {needed}").into(),
        );
    }
    Ok(())
}

fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let bind = |_| TcpListener::bind("127.0.0.1:0");
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect::<Result<_, _>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}
