//! The key-value machine, and its snapshots, against a model.

mod nodes;
mod requests;

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_engine::block::{Entry, EntryKind};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::snapshot::{SnapshotIn, SnapshotStore, SnapshotView};
use multiraft_engine::state_machine::{RestoreError, StateMachine};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_logdb::SnapshotDir;
use multiraft_logdb::sim::SimDisk;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use multiraft_server::kv::command::{Change, encode_command};
use multiraft_server::kv::model::Model;
use multiraft_server::kv::{KvError, KvMachine, Refusal, Response};

use self::nodes::{Node, Nodes};

const TERM: Term = Term(1);
/// Revisions that are compared at most when two states must be equal.
const COMPARED: usize = 24;

/// Writes, reads and restarts of one group, held against the model; snapshots of it, written while
/// it goes on, and taken over by another node, which then has what the model had, and goes on too.
pub fn kv_ops(data: &[u8]) {
    let mut input = Unstructured::new(data);
    Nodes::with(|nodes, group| {
        let mut bench = Bench {
            nodes,
            here: 0,
            group,
            model: Model::default(),
            log: Vec::new(),
            view: None,
            store: SnapshotDir::open(SimDisk::new(), 1).unwrap(),
            saved: None,
        };
        while !input.is_empty() && bench.step(&mut input).is_ok() {}
        bench.end();
    });
}

/// An entry of the log.
struct Applied {
    payload: Bytes,
    /// The newest revision after it.
    revision: i64,
}

struct Bench<'a> {
    nodes: &'a mut Nodes,
    /// The node whose state is the newest.
    here: usize,
    group: GroupId,
    model: Model,
    /// All entries, from index 1 on.
    log: Vec<Applied>,
    /// A snapshot that is not written yet.
    view: Option<(Index, Box<dyn SnapshotView>)>,
    store: Arc<SnapshotDir>,
    /// The newest snapshot that is written.
    saved: Option<Index>,
}

impl Bench<'_> {
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=31)? {
            0..13 => self.put(&requests::put(input)?),
            13..18 => self.delete(&requests::delete(input)?),
            18..24 => self.range(&requests::range(input, self.model.revision())?),
            24 | 25 => self.look(),
            26 | 27 => self.save(),
            28 | 29 => self.move_on(),
            30 => self.break_off(input)?,
            _ => self.restart(),
        }
        Ok(())
    }

    fn last(&self) -> Index {
        Index(self.log.len() as u64)
    }

    fn machine(&self) -> &KvMachine {
        self.nodes.all[self.here].machine()
    }

    fn there(&mut self) -> &mut Node {
        &mut self.nodes.all[1 - self.here]
    }

    fn entry(&self, index: Index) -> (GroupId, Entry) {
        let at = usize::try_from(index.0 - 1).unwrap();
        let entry = Entry {
            index,
            term: TERM,
            kind: EntryKind::Normal,
            payload: self.log[at].payload.clone(),
        };
        (self.group, entry)
    }

    fn apply(&mut self, change: Change) -> std::result::Result<Response, Refusal> {
        let payload = encode_command(change)?;
        let revision = self.model.revision();
        self.log.push(Applied { payload, revision });
        let entry = self.entry(self.last());
        let mut outcomes = self.machine().apply(&[entry]).unwrap();
        outcomes.remove(0).result
    }

    fn put(&mut self, request: &PutRequest) {
        let want = self.model.put(request);
        let want = want.map(|(revision, kv)| (revision, kv.filter(|_| request.prev_kv)));
        let got = match self.apply(Change::Put(request.clone())) {
            Ok(Response::Put(put)) => Some((put.header.unwrap().revision, put.prev_kv)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        assert_eq!(got, want, "{request:?}");
    }

    fn delete(&mut self, request: &DeleteRangeRequest) {
        let (revision, doomed) = self.model.delete(request);
        let Ok(Response::DeleteRange(got)) = self.apply(Change::DeleteRange(request.clone()))
        else {
            panic!("refused: {request:?}");
        };
        assert_eq!(got.header.unwrap().revision, revision, "{request:?}");
        assert_eq!(usize::try_from(got.deleted).unwrap(), doomed.len());
        let want = if request.prev_kv { doomed } else { Vec::new() };
        assert_eq!(got.prev_kvs, want, "{request:?}");
    }

    fn range(&self, request: &RangeRequest) {
        let got = match self.machine().range(self.group, request) {
            Ok(range) => Some((range.kvs, range.more, range.count)),
            Err(KvError::Refused(Refusal::FutureRevision)) => None,
            Err(error) => panic!("{error}: {request:?}"),
        };
        assert_eq!(got, self.model.range(request), "{request:?}");
    }

    /// Takes a view, to be written later.
    fn look(&mut self) {
        if self.last() > Index::ZERO {
            let view = StateMachine::snapshot(self.machine(), self.group).unwrap();
            self.view = Some((self.last(), view));
        }
    }

    /// Writes what was seen then, whatever was applied since.
    fn save(&mut self) {
        let Some((index, mut view)) = self.view.take() else {
            return;
        };
        let snapshot = Snapshot {
            index,
            term: TERM,
            membership: Membership::default(),
        };
        self.store.save(self.group, &snapshot, &mut *view).unwrap();
        self.store.remove_others(self.group, Some(index)).unwrap();
        self.saved = Some(index);
    }

    /// The other node takes the snapshot over, in place of whatever it has, then applies what comes
    /// after it in the log; from then on it is the one that counts.
    fn move_on(&mut self) {
        let Some(index) = self.saved else {
            return;
        };
        let mut from = self.store.load(self.group, index).unwrap();
        let (group, machine) = (self.group, self.there().machine());
        StateMachine::restore(machine, group, index, TERM, &mut *from).unwrap();
        self.here = 1 - self.here;
        self.view = None;
        self.check_state(index);
        let rest: Vec<_> = (index.0 + 1..=self.last().0).map(Index).collect();
        let rest: Vec<_> = rest.into_iter().map(|index| self.entry(index)).collect();
        self.machine().apply(&rest).unwrap();
        self.check_state(self.last());
    }

    /// The state is that of the model after this entry, at each revision.
    fn check_state(&self, index: Index) {
        assert_eq!(self.machine().applied(self.group).unwrap(), index);
        let newest = match usize::try_from(index.0).unwrap().checked_sub(1) {
            Some(at) => self.log[at].revision,
            None => Model::default().revision(),
        };
        let stride = usize::try_from(newest).unwrap().div_ceil(COMPARED);
        for revision in (1..=newest).rev().step_by(stride) {
            let got = self.machine().range(self.group, &all_at(revision)).unwrap();
            assert_eq!(got.header.unwrap().revision, newest);
            let got = Some((got.kvs, got.more, got.count));
            assert_eq!(got, self.model.range(&all_at(revision)), "at {revision}");
        }
        let future = self.machine().range(self.group, &all_at(newest + 1));
        let is_future = |error| matches!(error, KvError::Refused(Refusal::FutureRevision));
        assert!(future.is_err_and(is_future), "more than the snapshot had");
    }

    /// The other node begins to take the snapshot over, and does not come to its end: the file cannot
    /// be read on, or the process is killed. It has its old state then, or none.
    fn break_off(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(index) = self.saved else {
            return Ok(());
        };
        let (group, store) = (self.group, Arc::clone(&self.store));
        let bytes = store.open(group, index).unwrap().bytes();
        let at = input.int_in_range(0..=bytes)?;
        let is_killed = input.arbitrary()?;
        let node = self.there();
        let before = node.machine().range(group, &all_at(0)).ok();
        let before = before.map(|read| (node.machine().applied(group).unwrap(), read));
        let mut killed = None;
        let mut from = Cut {
            inner: store.load(group, index).unwrap(),
            left: usize::try_from(at).unwrap(),
            at_end: || {
                if is_killed {
                    killed = Some(node.copy());
                }
            },
        };
        match StateMachine::restore(node.machine(), group, index, TERM, &mut from) {
            Ok(()) => return Ok(()), // what is beyond is of the file alone
            Err(RestoreError::Snapshot(error)) => assert_eq!(error.kind(), ErrorKind::Other),
            Err(RestoreError::Machine(error)) => panic!("{error}"),
        }
        if let Some(killed) = killed {
            node.become_copy(killed);
        }
        let after = node.machine().applied(group).unwrap();
        match node.machine().range(group, &all_at(0)) {
            Ok(read) => assert_eq!(Some((after, read)), before, "half of a state"),
            Err(KvError::BeingRestored(_)) => assert_eq!(after, Index::ZERO),
            Err(error) => panic!("{error}"),
        }
        Ok(())
    }

    /// The node's process is killed and started again; the newest entry comes once more.
    fn restart(&mut self) {
        self.view = None; // it keeps the files open
        self.nodes.all[self.here].restart();
        assert_eq!(self.machine().applied(self.group).unwrap(), self.last());
        if self.last() > Index::ZERO {
            let entry = self.entry(self.last());
            let outcome = self.machine().apply(&[entry]).unwrap().remove(0);
            assert_eq!(outcome.result, Ok(Response::Skipped));
        }
    }

    fn end(self) {
        self.check_state(self.last());
        for node in &self.nodes.all {
            node.machine().remove_group(self.group).unwrap();
        }
    }
}

/// All keys at a revision.
fn all_at(revision: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    }
}

/// A snapshot whose file cannot be read beyond some place.
struct Cut<F> {
    inner: Box<dyn SnapshotIn>,
    left: usize,
    /// Called there.
    at_end: F,
}

impl<F: FnMut()> Read for Cut<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            (self.at_end)();
            return Err(io::Error::other("the disk fails"));
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}

impl<F: FnMut()> SnapshotIn for Cut<F> {
    fn next_file(&mut self) -> io::Result<Option<String>> {
        self.inner.next_file()
    }
}
