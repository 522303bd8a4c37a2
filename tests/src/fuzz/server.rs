//! The key-value machine and the configuration file.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use clap::Parser;
use multiraft_engine::block::{Entry, EntryKind};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_proto::etcdserverpb::range_request::SortOrder;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use multiraft_server::cli::ServeArgs;
use multiraft_server::config::Config;
use multiraft_server::kv::command::{Change, encode_command};
use multiraft_server::kv::model::Model;
use multiraft_server::kv::{KvConfig, KvError, KvMachine, Refusal, Response};

/// One store for all inputs: each has a group of its own in it.
struct Store {
    machine: Arc<KvMachine>,
    groups: AtomicU32,
    _dir: tempfile::TempDir,
}

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let config = KvConfig {
            cache_bytes: 1 << 20,
        };
        Store {
            machine: KvMachine::open(dir.path(), config).unwrap(),
            groups: AtomicU32::new(1),
            _dir: dir,
        }
    })
}

/// Writes and reads of one group, held against the model.
pub fn kv_ops(data: &[u8]) {
    let store = store();
    let group = GroupId(store.groups.fetch_add(1, Ordering::Relaxed));
    let mut input = Unstructured::new(data);
    let mut bench = Bench {
        machine: &store.machine,
        group,
        model: Model::default(),
        applied: Index::ZERO,
    };
    while !input.is_empty() && bench.step(&mut input).is_ok() {}
    store.machine.remove_group(group).unwrap();
}

struct Bench<'a> {
    machine: &'a KvMachine,
    group: GroupId,
    model: Model,
    applied: Index,
}

impl Bench<'_> {
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=3)? {
            0 | 1 => self.put(&put(input)?),
            2 => self.delete(&delete(input)?),
            _ => self.range(&range(input, self.model.revision())?),
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) -> std::result::Result<Response, Refusal> {
        self.applied = self.applied.next();
        let entry = Entry {
            index: self.applied,
            term: Term(1),
            kind: EntryKind::Normal,
            payload: encode_command(change)?,
        };
        let mut outcomes = self.machine.apply(&[(self.group, entry)]).unwrap();
        outcomes.remove(0).result
    }

    fn put(&mut self, request: &PutRequest) {
        let got = match self.apply(Change::Put(request.clone())) {
            Ok(Response::Put(put)) => Some((put.header.unwrap().revision, put.prev_kv)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        let want = self.model.put(request);
        let want = want.map(|(revision, kv)| (revision, kv.filter(|_| request.prev_kv)));
        assert_eq!(got, want, "{request:?}");
    }

    fn delete(&mut self, request: &DeleteRangeRequest) {
        let Ok(Response::DeleteRange(got)) = self.apply(Change::DeleteRange(request.clone()))
        else {
            panic!("refused: {request:?}");
        };
        let (revision, doomed) = self.model.delete(request);
        assert_eq!(got.header.unwrap().revision, revision, "{request:?}");
        assert_eq!(usize::try_from(got.deleted).unwrap(), doomed.len());
        let want = if request.prev_kv { doomed } else { Vec::new() };
        assert_eq!(got.prev_kvs, want, "{request:?}");
    }

    fn range(&mut self, request: &RangeRequest) {
        let got = match self.machine.range(self.group, request) {
            Ok(range) => Some((range.kvs, range.more, range.count)),
            Err(KvError::Refused(Refusal::FutureRevision)) => None,
            Err(error) => panic!("{error}: {request:?}"),
        };
        assert_eq!(got, self.model.range(request), "{request:?}");
    }
}

/// Short keys that are prefixes of each other and end in extreme bytes, so that requests meet.
fn key(input: &mut Unstructured<'_>) -> Result<Bytes> {
    const KEYS: [&[u8]; 8] = [
        b"\x00",
        b"a",
        b"a\x00",
        b"a\xff",
        b"ab",
        b"b",
        b"\xff",
        b"\xff\xff",
    ];
    Ok(Bytes::from_static(input.choose(&KEYS)?))
}

fn end(input: &mut Unstructured<'_>) -> Result<Bytes> {
    match input.int_in_range(0..=3)? {
        0 => Ok(Bytes::new()),
        1 => Ok(Bytes::from_static(b"\0")),
        _ => key(input),
    }
}

fn put(input: &mut Unstructured<'_>) -> Result<PutRequest> {
    let key = key(input)?;
    let ignore_value = input.ratio(1, 4)?;
    let value: &[u8] = if ignore_value {
        &[]
    } else {
        input.arbitrary()?
    };
    Ok(PutRequest {
        key,
        value: Bytes::copy_from_slice(value),
        prev_kv: input.arbitrary()?,
        ignore_value,
        ..PutRequest::default()
    })
}

fn delete(input: &mut Unstructured<'_>) -> Result<DeleteRangeRequest> {
    Ok(DeleteRangeRequest {
        key: key(input)?,
        range_end: end(input)?,
        prev_kv: input.arbitrary()?,
    })
}

fn range(input: &mut Unstructured<'_>, newest: i64) -> Result<RangeRequest> {
    Ok(RangeRequest {
        key: key(input)?,
        range_end: end(input)?,
        limit: input.int_in_range(0..=3)?,
        // Without an order etcd cuts before it sorts; the model sorts first.
        sort_order: SortOrder::Ascend as i32,
        sort_target: input.int_in_range(0..=4)?,
        min_mod_revision: input.int_in_range(0..=3)?,
        count_only: input.ratio(1, 6)?,
        revision: input.int_in_range(0..=newest + 1)?,
        ..RangeRequest::default()
    })
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A configuration file, as JSON and as TOML: taken and valid, or refused with words that name it.
pub fn config_file(data: &[u8]) {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap());
    for name in ["config.json", "config.toml"] {
        let path = dir.path().join(name);
        std::fs::write(&path, data).unwrap();
        let path = path.to_str().unwrap();
        let line = Line::try_parse_from(["serve", "--node", "1", "--config", path]);
        match Config::load(&line.unwrap().serve) {
            Ok(config) => config.validate().unwrap(),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
