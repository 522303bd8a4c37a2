#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
//! One test for each rule of etcd that the machine keeps, for what a crash may leave behind, and for
//! what snapshots carry.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use multiraft_engine::block::EntryKind;
use multiraft_engine::types::Term;
use multiraft_proto::etcdserverpb::DeleteRangeRequest;
use multiraft_proto::etcdserverpb::PutRequest;
use multiraft_proto::mvccpb::KeyValue;

use super::*;
use crate::kv::command::{Change, encode_command};

mod applying;
mod crashes;
mod reads;
pub(super) mod restore;
mod restore_crashes;
mod writes;

const GROUP: GroupId = GroupId(7);
const OTHER: GroupId = GroupId(8);
const TERM: Term = Term(3);

/// A machine in a directory of its own, and the next index of its log.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
    pub machine: Arc<KvMachine>,
    pub next: Index,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = open(dir.path());
        Self {
            dir,
            machine,
            next: Index(1),
        }
    }

    /// Makes an entry of the next index.
    pub fn entry(&mut self, kind: EntryKind, payload: Bytes) -> (GroupId, Entry) {
        let index = self.next;
        self.next = index.next();
        let term = TERM;
        let entry = Entry {
            index,
            term,
            kind,
            payload,
        };
        (GROUP, entry)
    }

    pub fn change(&mut self, change: Change) -> Result<Response, Refusal> {
        let entry = self.entry(EntryKind::Normal, encode_command(change).unwrap());
        self.machine.apply(&[entry]).unwrap().remove(0).result
    }

    pub fn put(&mut self, request: PutRequest) -> Result<PutResponse, Refusal> {
        match self.change(Change::Put(request))? {
            Response::Put(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        match self.change(Change::DeleteRange(request))? {
            Response::DeleteRange(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, key: &'static str, value: &'static str) -> i64 {
        let header = self.put(put(key, value)).unwrap().header.unwrap();
        assert_eq!(header.raft_term, TERM.0);
        header.revision
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        self.machine.range(GROUP, request).unwrap()
    }

    /// Keys of an answer, each with `more` and the count.
    fn keys(&self, request: &RangeRequest) -> (Vec<Bytes>, bool, i64) {
        let response = self.range(request);
        let keys = response.kvs.into_iter().map(|kv| kv.key).collect();
        (keys, response.more, response.count)
    }
}

fn open(dir: &Path) -> Arc<KvMachine> {
    let cache_bytes = 1 << 20;
    KvMachine::open(dir, KvConfig { cache_bytes }).unwrap()
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn delete(key: &'static str, end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv: true,
    }
}

fn range(key: &'static str, end: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..RangeRequest::default()
    }
}

fn kv(key: &'static str, value: &'static str, revisions: (i64, i64, i64)) -> KeyValue {
    let (create_revision, mod_revision, version) = revisions;
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision,
        mod_revision,
        version,
        lease: 0,
    }
}

fn payload(request: &PutRequest) -> Bytes {
    encode_command(Change::Put(request.clone())).unwrap()
}

/// The files of a store as a power failure at this moment may leave them.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The file in which a store's newest batches are.
fn journal_of(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap();
    let mut journals = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jnl"));
    let journal = journals.next().unwrap();
    assert_eq!(journals.next(), None, "small stores have one journal");
    journal
}

/// How many bytes two files have in common from their start on.
fn common_bytes(one: &Path, other: &Path) -> u64 {
    let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    u64::try_from(common).unwrap()
}
