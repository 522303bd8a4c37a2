//! Real nodes in processes of their own, and clients that talk to them as anybody would.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

pub mod cli;
pub mod load;
pub mod proxy;
pub mod watching;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::admin::{GroupStatus, StatusRequest};
use multiraft_proto::etcdserverpb::kv_client::KvClient;
use multiraft_proto::etcdserverpb::{PutRequest, PutResponse, RangeRequest};
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{BootstrapRequest, GroupConfig, MemberConfig};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Long beyond anything that works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One node's process, or the place where it was.
pub struct Process {
    pub id: u32,
    pub api_port: u16,
    pub raft_port: u16,
    pub metrics_port: u16,
    pub data_dir: PathBuf,
    /// Where the others reach it for Raft.
    pub advertised_port: u16,
    /// Of `serve`, beside those of every node.
    pub arguments: Vec<String>,
    child: Option<Child>,
}

pub struct Cluster {
    pub nodes: Vec<Process>,
    _dir: tempfile::TempDir,
}

/// Ports that are free, and that nobody takes while a node is down: below those that the system gives
/// to outgoing connections, and each only once in a process.
pub fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(101);
    let candidates = std::iter::repeat_with(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        u16::try_from(FIRST + begin.wrapping_add(next) % COUNT).unwrap()
    });
    let free = candidates.filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    free.take(count).collect()
}

impl Cluster {
    pub fn start(size: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(3 * size as usize);
        let nodes = (1..=size).zip(ports.chunks(3)).map(|(id, ports)| {
            let data_dir = dir.path().join(format!("node-{id}"));
            let mut node = Process {
                id,
                api_port: ports[0],
                raft_port: ports[1],
                metrics_port: ports[2],
                data_dir,
                advertised_port: ports[1],
                arguments: Vec::new(),
                child: None,
            };
            node.start();
            node
        });
        Self {
            nodes: nodes.collect(),
            _dir: dir,
        }
    }

    pub fn members(&self) -> Vec<MemberConfig> {
        let member = |node: &Process| MemberConfig {
            node_id: node.id,
            host: "127.0.0.1".to_owned(),
            port: i32::from(node.advertised_port),
            role: Role::Member.into(),
        };
        self.nodes.iter().map(member).collect()
    }

    pub async fn bootstrap(&self, group_id: u32) {
        for node in &self.nodes {
            let group = GroupConfig {
                group_id,
                members: self.members(),
            };
            bootstrap(node, group).await.unwrap();
        }
    }
}

impl Process {
    pub fn start(&mut self) {
        let log = std::fs::File::create(self.data_dir.with_extension("log")).unwrap();
        self.child = Some(self.command().stderr(log).spawn().unwrap());
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_multiraft"));
        command
            .arg("serve")
            .args(["--node", &self.id.to_string()])
            .args(["--api-port", &self.api_port.to_string()])
            .args(["--raft-port", &self.raft_port.to_string()])
            .args(["--metrics-port", &self.metrics_port.to_string()])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// SIGKILL: nothing is flushed, nothing is said.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and what its exit code was.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let term = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(term.unwrap().success());
        child.wait().unwrap().code()
    }

    /// A connection, as soon as the node serves.
    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", self.api_port)).unwrap();
        let began = Instant::now();
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => assert!(
                    began.elapsed() < PATIENCE,
                    "node {}: {error}; its log:\n{}",
                    self.id,
                    self.log()
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it has written to standard error since its start.
    fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir.with_extension("log")).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

pub async fn bootstrap(node: &Process, group: GroupConfig) -> Result<(), Status> {
    let request = BootstrapRequest { group: Some(group) };
    NodeClient::new(node.channel().await)
        .bootstrap(request)
        .await
        .map(|_| ())
}

pub fn to_group<T>(group: u32, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("multiraft-group", group.to_string().parse().unwrap());
    request
}

pub async fn put(
    channel: Channel,
    group: u32,
    key: &str,
    value: &str,
) -> Result<PutResponse, Status> {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    let request = PutRequest {
        key,
        value,
        ..PutRequest::default()
    };
    Ok(KvClient::new(channel)
        .put(to_group(group, request))
        .await?
        .into_inner())
}

/// What a node tells of a group; `None`: it has nothing of it.
pub async fn group_status(node: &Process, group: u32) -> Option<GroupStatus> {
    let mut client = AdminClient::new(node.channel().await);
    let request = StatusRequest {
        group_ids: vec![group],
    };
    let status = client.status(request).await.ok()?.into_inner();
    status.groups.into_iter().next()
}

/// All keys and values of a group.
pub async fn all(channel: Channel, group: u32) -> Result<Vec<(String, String)>, Status> {
    let range = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..RangeRequest::default()
    };
    let answer = KvClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .range(to_group(group, range))
        .await?
        .into_inner();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(answer
        .kvs
        .iter()
        .map(|kv| (text(&kv.key), text(&kv.value)))
        .collect())
}
