//! A node whose disk fails or fills up: it says so, promises nothing, and loses nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use multiraft_engine::types::NodeId;
use multiraft_logdb::{Access, Disk, DiskFile, FsDisk};
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

/// The real disk, until it is told to fail.
struct Faulty {
    disk: FsDisk,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    sync_fails: AtomicBool,
    is_full: AtomicBool,
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    faults: Arc<Faults>,
}

impl Faulty {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let faults = Arc::clone(&self.faults);
        Arc::new(FaultyFile { file, faults })
    }
}

impl Disk for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if self.faults.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.wrap(self.disk.create(name, bytes)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.disk.open(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        let is_full = self.faults.is_full.load(Ordering::SeqCst);
        if is_full {
            Ok(0)
        } else {
            self.disk.free_bytes()
        }
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("input/output error"));
        }
        self.file.sync_data()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }
}

async fn start(dir: &Path, faults: &Arc<Faults>) -> (Node, Channel) {
    let config = Config {
        api_port: 0,
        raft_port: 0,
        metrics_port: None,
        data_dir: dir.to_owned(),
        ..Config::new(NodeId::new(1).unwrap())
    };
    let disk = FsDisk::new(&dir.join("log"), Access::ReadWrite);
    let faults = Arc::clone(faults);
    let node = Node::start_on(Arc::new(Faulty { disk, faults }), &config)
        .await
        .unwrap();
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
    let faults = Arc::new(Faults::default());
    let (node, channel) = start(dir.path(), &faults).await;
    bootstrap(&channel, 1).await.unwrap();
    for key in ["a", "b", "c"] {
        put(&channel, key).await.unwrap();
    }
    faults.sync_fails.store(true, Ordering::SeqCst);
    // The one under way is told at once that nobody knows what becomes of it.
    let lost = put(&channel, "lost").await.unwrap_err();
    assert!(lost.message().contains("may or may not"), "{lost}");
    // The disk works again, and is not believed: its pages may be gone.
    faults.sync_fails.store(false, Ordering::SeqCst);
    put_until(&channel, Code::Unavailable).await;
    let refused = bootstrap(&channel, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let mut admin = AdminClient::new(channel.clone());
    let status = admin.status(StatusRequest::default()).await.unwrap();
    assert_eq!(status.into_inner().groups.len(), 1, "the process lives on");
    node.shut_down().await.unwrap();

    let (node, channel) = start(dir.path(), &faults).await;
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
    let faults = Arc::new(Faults::default());
    let (node, channel) = start(dir.path(), &faults).await;
    bootstrap(&channel, 1).await.unwrap();
    put(&channel, "a").await.unwrap();
    faults.is_full.store(true, Ordering::SeqCst);
    put_until(&channel, Code::ResourceExhausted).await;
    let refused = bootstrap(&channel, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(count(&channel).await.unwrap() >= 1, "reads go on");
    faults.is_full.store(false, Ordering::SeqCst);
    put_until(&channel, Code::Ok).await;
    bootstrap(&channel, 2).await.unwrap();
    node.shut_down().await.unwrap();
}
