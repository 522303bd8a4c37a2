//! A node whose disk fails or fills up: it says so, promises nothing, and loses nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use multiraft_engine::types::NodeId;
use multiraft_logdb::sim::SimDisk;
use multiraft_proto::admin::StatusRequest;
use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::etcdserverpb::kv_client::KvClient;
use multiraft_proto::etcdserverpb::{PutRequest, RangeRequest};
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{BootstrapRequest, GroupConfig, MemberConfig};
use multiraft_server::config::Config;
use multiraft_server::node::Node;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Long beyond anything that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node whose log's segments are on a simulated disk, which forgets what a failed sync did not write.
async fn start(dir: &Path, disk: &Arc<SimDisk>) -> (Node, Channel) {
    let config = Config {
        api_port: 0,
        raft_port: 0,
        metrics_port: None,
        data_dir: dir.to_owned(),
        ..Config::new(NodeId::new(1).unwrap())
    };
    let disk = Arc::<SimDisk>::clone(disk);
    let node = Node::start_on(disk, &config).await.unwrap();
    let endpoint = format!("http://{}", node.about().api_address);
    let channel = Channel::from_shared(endpoint).unwrap().connect().await;
    (node, channel.unwrap())
}

async fn bootstrap(channel: &Channel, group_id: u32) -> Result<(), Status> {
    let member = MemberConfig {
        node_id: 1,
        host: "127.0.0.1".to_owned(),
        port: 5000,
        role: Role::Member.into(),
    };
    let group = GroupConfig {
        group_id,
        members: vec![member],
    };
    let request = BootstrapRequest { group: Some(group) };
    let mut client = NodeClient::new(channel.clone());
    client.bootstrap(request).await.map(|_| ())
}

async fn put(channel: &Channel, key: &str) -> Result<(), Status> {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: "v".to_owned().into(),
        ..PutRequest::default()
    };
    KvClient::new(channel.clone())
        .put(request)
        .await
        .map(|_| ())
}

async fn count(channel: &Channel) -> Result<i64, Status> {
    let request = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..RangeRequest::default()
    };
    let answer = KvClient::new(channel.clone()).range(request).await?;
    Ok(answer.into_inner().count)
}

/// Puts until the answer is this code.
async fn put_until(channel: &Channel, wanted: Code) {
    let began = Instant::now();
    loop {
        let code = put(channel, "more")
            .await
            .map_or_else(|s| s.code(), |()| Code::Ok);
        if code == wanted {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "still {code}, not {wanted}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_nothing_is_accepted_and_everything_acknowledged_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    let (node, channel) = start(dir.path(), &disk).await;
    bootstrap(&channel, 1).await.unwrap();
    for key in ["a", "b", "c"] {
        put(&channel, key).await.unwrap();
    }
    disk.fail_next_sync();
    // The one under way is told at once that nobody knows what becomes of it.
    let lost = put(&channel, "lost").await.unwrap_err();
    assert!(lost.message().contains("may or may not"), "{lost}");
    // The disk works again, and is not believed: its pages are gone.
    put_until(&channel, Code::Unavailable).await;
    let refused = bootstrap(&channel, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let mut admin = AdminClient::new(channel.clone());
    let status = admin.status(StatusRequest::default()).await.unwrap();
    assert_eq!(status.into_inner().groups.len(), 1, "the process lives on");
    node.shut_down().await.unwrap();

    let (node, channel) = start(dir.path(), &disk).await;
    let began = Instant::now();
    let found = loop {
        match count(&channel).await {
            Ok(found) => break found,
            Err(status) => assert!(began.elapsed() < PATIENCE, "{status}"),
        }
    };
    assert!(found >= 3, "{found} keys, three were acknowledged");
    put(&channel, "d").await.unwrap();
    node.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    let (node, channel) = start(dir.path(), &disk).await;
    bootstrap(&channel, 1).await.unwrap();
    put(&channel, "a").await.unwrap();
    disk.set_free_bytes(0);
    put_until(&channel, Code::ResourceExhausted).await;
    let refused = bootstrap(&channel, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(count(&channel).await.unwrap() >= 1, "reads go on");
    disk.set_free_bytes(1 << 30);
    put_until(&channel, Code::Ok).await;
    bootstrap(&channel, 2).await.unwrap();
    node.shut_down().await.unwrap();
}
