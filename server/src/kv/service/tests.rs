#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
//! The service over a real connection, on a backend that applies at once: a group of one.

use std::sync::Mutex;

use bytes::Bytes;
use multiraft_engine::block::{Entry, EntryKind};
use multiraft_engine::snapshot::SnapshotView;
use multiraft_engine::types::{Index, Term};
use multiraft_proto::etcdserverpb::kv_client::KvClient;
use multiraft_proto::etcdserverpb::kv_server::KvServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::kv::check::MAX_REQUEST_BYTES;
use crate::kv::snapshot::tests::{Memory, Source};
use crate::kv::{ApplyOutcome, AuthorityLayer, BackendError, HeaderInfo, KvConfig, KvMachine};

const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(7)];

struct GroupOfOne {
    machine: Arc<KvMachine>,
    /// What calls fail with; the barrier only.
    barrier: Mutex<Result<(), BackendError>>,
    propose: Mutex<Result<(), BackendError>>,
    _dir: tempfile::TempDir,
}

impl GroupOfOne {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(Self {
            machine: KvMachine::open(dir.path(), KvConfig::default()).unwrap(),
            barrier: Mutex::new(Ok(())),
            propose: Mutex::new(Ok(())),
            _dir: dir,
        })
    }
}

impl Backend for GroupOfOne {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<ApplyOutcome, BackendError> {
        self.check_local(group)?;
        self.propose.lock().unwrap().clone()?;
        let entry = Entry {
            index: self.machine.applied(group).unwrap().next(),
            term: Term(self.term(group)),
            kind: EntryKind::Normal,
            payload: command,
        };
        Ok(self.machine.apply(&[(group, entry)]).unwrap().remove(0))
    }

    async fn read_barrier(&self, group: GroupId) -> Result<(), BackendError> {
        self.check_local(group)?;
        self.barrier.lock().unwrap().clone()
    }

    fn check_local(&self, group: GroupId) -> Result<(), BackendError> {
        if GROUPS.contains(&group) {
            return Ok(());
        }
        Err(BackendError::UnknownGroup(group))
    }

    fn header_info(&self) -> HeaderInfo {
        HeaderInfo {
            cluster_id: 11,
            member_id: 12,
        }
    }

    fn machine(&self) -> &KvMachine {
        &self.machine
    }

    fn term(&self, _group: GroupId) -> u64 {
        5
    }

    fn default_group(&self) -> GroupId {
        GROUPS[0]
    }
}

/// Serves the backend, and connects: as `host`, or by address.
async fn client(backend: &Arc<GroupOfOne>, host: Option<&str>) -> KvClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = KvServer::new(KvService::new(Arc::clone(backend)));
    let server = Server::builder().layer(AuthorityLayer).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut endpoint = Endpoint::from_shared(address).unwrap();
    if let Some(host) = host {
        endpoint = endpoint.origin(format!("http://{host}").parse().unwrap());
    }
    KvClient::new(endpoint.connect().await.unwrap())
}

fn put(key: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: "v".into(),
        ..PutRequest::default()
    }
}

fn range(key: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    }
}

fn to_group<T>(group: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = group.parse().unwrap();
    request.metadata_mut().insert("multiraft-group", value);
    request
}

#[tokio::test]
async fn puts_are_read_and_deleted() {
    let mut client = client(&GroupOfOne::new(), None).await;
    let want = |revision| {
        Some(ResponseHeader {
            cluster_id: 11,
            member_id: 12,
            revision,
            raft_term: 5,
        })
    };
    let response = client.put(put("k")).await.unwrap().into_inner();
    assert_eq!(response.header, want(2));
    let response = client.range(range("k")).await.unwrap().into_inner();
    assert_eq!((response.header, response.count), (want(2), 1));
    let request = DeleteRangeRequest {
        key: "k".into(),
        ..DeleteRangeRequest::default()
    };
    let response = client.delete_range(request).await.unwrap().into_inner();
    assert_eq!((response.header, response.deleted), (want(3), 1));
}

#[tokio::test]
async fn metadata_or_host_name_chooses_the_group() {
    let backend = GroupOfOne::new();
    let mut plain = client(&backend, None).await;
    let mut host = client(&backend, Some("g7.localhost")).await;
    plain.put(to_group("7", put("by-metadata"))).await.unwrap();
    host.put(put("by-host")).await.unwrap();
    host.put(to_group("1", put("metadata-first")))
        .await
        .unwrap();
    for (group, key, want) in [
        ("7", "by-metadata", 1),
        ("7", "by-host", 1),
        ("1", "metadata-first", 1),
        ("1", "by-host", 0),
    ] {
        let response = plain.range(to_group(group, range(key))).await.unwrap();
        assert_eq!(response.into_inner().count, want, "{group} {key}");
    }
}

#[tokio::test]
async fn groups_that_are_none_or_elsewhere() {
    let mut client = client(&GroupOfOne::new(), None).await;
    let status = client.put(to_group("x", put("k"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let serializable = RangeRequest {
        serializable: true,
        ..range("k")
    };
    for status in [
        client.put(to_group("9", put("k"))).await.unwrap_err(),
        client.range(to_group("9", range("k"))).await.unwrap_err(),
        client.range(to_group("9", serializable)).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound);
        let message = status.message();
        assert!(
            message.contains("group 9") && message.contains("Bootstrap"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn serializable_reads_skip_the_barrier() {
    let backend = GroupOfOne::new();
    let mut client = client(&backend, None).await;
    client.put(put("k")).await.unwrap();
    *backend.barrier.lock().unwrap() = Err(BackendError::NoLeader);
    let status = client.range(range("k")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let serializable = RangeRequest {
        serializable: true,
        ..range("k")
    };
    let response = client.range(serializable).await.unwrap();
    assert_eq!(response.into_inner().count, 1);
}

#[tokio::test]
async fn refusals_have_the_codes_and_texts_of_etcd() {
    let mut client = client(&GroupOfOne::new(), None).await;
    let large = PutRequest {
        value: vec![0; MAX_REQUEST_BYTES].into(),
        ..put("k")
    };
    let leased = PutRequest {
        lease: 1,
        ..put("k")
    };
    let keeping = PutRequest {
        ignore_value: true,
        value: Bytes::new(),
        ..put("k")
    };
    let future = RangeRequest {
        revision: 9,
        ..range("k")
    };
    for (status, code, text) in [
        (
            client.put(put("")).await.unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: key is not provided",
        ),
        (
            client.put(large).await.unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: request is too large",
        ),
        (
            client.put(leased).await.unwrap_err(),
            Code::NotFound,
            "etcdserver: requested lease not found",
        ),
        (
            client.put(keeping).await.unwrap_err(),
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
        (
            client.range(future).await.unwrap_err(),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ] {
        assert_eq!((status.code(), status.message()), (code, text));
    }
    let status = client.txn(TxnRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let request = CompactionRequest::default();
    let status = client.compact(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn troubles_of_the_node_have_their_codes() {
    let backend = GroupOfOne::new();
    let mut client = client(&backend, None).await;
    for (error, code, text) in [
        (BackendError::Busy, Code::ResourceExhausted, "too many"),
        (BackendError::DiskFull, Code::ResourceExhausted, "space"),
        (BackendError::NoLeader, Code::Unavailable, "no leader"),
        (
            BackendError::Unavailable("moving".into()),
            Code::Unavailable,
            "moving",
        ),
        (
            BackendError::Timeout,
            Code::DeadlineExceeded,
            "may or may not take effect",
        ),
        (BackendError::Stopped, Code::Unavailable, "stopped"),
        (BackendError::Fenced, Code::Unavailable, "log failed"),
    ] {
        *backend.propose.lock().unwrap() = Err(error);
        let status = client.put(put("k")).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(text), "{status}");
    }
}

#[tokio::test]
async fn a_group_that_waits_for_a_snapshot_is_not_read_as_empty() {
    let backend = GroupOfOne::new();
    let mut client = client(&backend, None).await;
    client.put(put("k")).await.unwrap();
    let machine = &backend.machine;
    let mut state = Memory::default();
    let mut view = machine.snapshot_group(GROUPS[0]).unwrap();
    view.write_to(&mut state).unwrap();
    let restore = |bytes| {
        let mut source = Source::new(bytes);
        machine.restore_group(GROUPS[0], Index(1), Term(5), &mut source)
    };
    restore(&state.0[..state.0.len() - 1]).unwrap_err();
    for serializable in [false, true] {
        let request = RangeRequest {
            serializable,
            ..range("k")
        };
        let status = client.range(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("being restored"), "{status}");
    }
    restore(&state.0).unwrap();
    assert_eq!(
        client.range(range("k")).await.unwrap().into_inner().count,
        1
    );
}
