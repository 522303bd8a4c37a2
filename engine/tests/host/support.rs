//! A log, a network, a machine and snapshots in memory, each of which can be told to fail.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::block::{Block, Entry};
use multiraft_engine::config::Config;
use multiraft_engine::error::StartError;
use multiraft_engine::events::{EventSink, GroupEvent};
use multiraft_engine::host::{ConnectionSink, Host, Parts};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::{
    IncomingSnapshot, SnapshotError, SnapshotFile, SnapshotIn, SnapshotOut, SnapshotStore,
    SnapshotView,
};
use multiraft_engine::state_machine::{RestoreError, StateMachine};
use multiraft_engine::traits::{
    ConnectionKind, ConnectionState, GroupWrite, Log, LogError, LogObserver, PeerAddress,
    StoredGroup, Transport, TransportObserver, WriteBatch,
};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub fn id(id: u32) -> NodeId {
    NodeId::new(id).expect("not zero")
}

/// What the log does with a batch.
#[derive(Default)]
pub enum Disk {
    /// It is durable at once.
    #[default]
    Works,
    /// It is never durable.
    Hangs,
    /// It is not taken.
    Refuses,
    /// Once: the caller's thread stands still until the gate is dropped, then as `Works`.
    Gate(Stop),
}

/// A thread's side of a [`Gate`].
pub struct Stop {
    told: Sender<()>,
    wait: Receiver<()>,
}

impl Stop {
    fn stand(&self) {
        self.told.send(()).expect("the test waits for it");
        self.wait.recv().expect_err("only dropped");
    }
}

/// Where a thread stands still: the test drops it to let the thread go on.
pub struct Gate {
    reached: Receiver<()>,
    _held: Sender<()>,
}

impl Gate {
    /// Returns when the thread stands there.
    pub fn reached(&self) {
        self.reached.recv().expect("the thread lives");
    }
}

fn gate() -> (Stop, Gate) {
    let (told, reached) = channel();
    let (held, wait) = channel();
    let gate = Gate {
        reached,
        _held: held,
    };
    (Stop { told, wait }, gate)
}

#[derive(Default, Clone)]
struct Stored {
    meta: Bytes,
    hard_state: HardState,
    compacted: (Index, Term),
    blocks: Vec<Block>,
}

impl Stored {
    fn write(&mut self, write: GroupWrite) {
        if write.remove {
            *self = Self::default();
        }
        self.meta = write.meta.unwrap_or(std::mem::take(&mut self.meta));
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        if let Some(after) = write.restart_after {
            self.compacted = after;
            self.blocks.clear();
        }
        if let Some(from) = write.truncate_from {
            self.blocks.retain(|block| block.first() < from);
        }
        self.blocks.extend(write.blocks);
    }
}

fn runs(blocks: &[Block]) -> Vec<(Index, Index, Term)> {
    let mut runs: Vec<(Index, Index, Term)> = Vec::new();
    for block in blocks {
        match runs.last_mut().filter(|run| run.2 == block.term()) {
            Some(run) => run.1 = block.last(),
            None => runs.push((block.first(), block.last(), block.term())),
        }
    }
    runs
}

#[derive(Default)]
pub struct MemoryLog {
    pub disk: Mutex<Disk>,
    pub is_full: Mutex<bool>,
    groups: Mutex<BTreeMap<GroupId, Stored>>,
    observer: Mutex<Option<Arc<dyn LogObserver>>>,
}

impl MemoryLog {
    pub fn gate(&self) -> Gate {
        let (stop, gate) = gate();
        *self.disk.lock() = Disk::Gate(stop);
        gate
    }

    pub fn observer(&self) -> Arc<dyn LogObserver> {
        self.observer.lock().clone().expect("a host was started")
    }

    /// A group that an earlier start left behind.
    pub fn leave_behind(
        &self,
        group: GroupId,
        meta: Bytes,
        compacted: (Index, Term),
        blocks: Vec<Block>,
    ) {
        let last_term = blocks.last().map_or(compacted.1, Block::term);
        let hard_state = HardState {
            term: last_term,
            ..HardState::default()
        };
        let stored = Stored {
            meta,
            hard_state,
            compacted,
            blocks,
        };
        self.groups.lock().insert(group, stored);
    }
}

pub fn failed() -> LogError {
    LogError::Fenced(Arc::new(io::Error::other("a failed sync")))
}

impl Log for MemoryLog {
    fn append(&self, batch: WriteBatch) -> Result<(), LogError> {
        let disk = {
            let mut disk = self.disk.lock();
            match &*disk {
                Disk::Works => Disk::Works,
                Disk::Hangs => Disk::Hangs,
                Disk::Refuses => return Err(failed()),
                Disk::Gate(_) => std::mem::take(&mut *disk),
            }
        };
        if let Disk::Gate(stop) = &disk {
            stop.stand();
        }
        let mut groups = self.groups.lock();
        for write in batch.writes {
            groups.entry(write.group).or_default().write(write);
        }
        if !matches!(disk, Disk::Hangs) {
            self.observer().on_durable(batch.shard, batch.ticket);
        }
        Ok(())
    }

    fn read(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        _max_bytes: usize,
    ) -> Result<Vec<Block>, LogError> {
        let groups = self.groups.lock();
        let missing = LogError::NotFound {
            group,
            index: first,
        };
        let blocks = &groups.get(&group).ok_or(missing)?.blocks;
        let here = blocks
            .iter()
            .filter(|b| b.last() >= first && b.first() <= last);
        Ok(here
            .map(|b| b.slice(b.first().max(first), b.last().min(last)))
            .collect())
    }

    fn take_stored_groups(&self) -> Vec<StoredGroup> {
        let groups = self.groups.lock().clone();
        let stored = |(group, stored): (GroupId, Stored)| StoredGroup {
            group,
            meta: stored.meta,
            hard_state: stored.hard_state,
            compacted: stored.compacted,
            terms: runs(&stored.blocks),
        };
        groups.into_iter().map(stored).collect()
    }

    fn has_room(&self) -> bool {
        !*self.is_full.lock()
    }

    fn set_observer(&self, observer: Arc<dyn LogObserver>) {
        *self.observer.lock() = Some(observer);
    }
}

/// Nobody is there: what is sent is counted, and the test speaks for the peers.
#[derive(Default)]
pub struct Network {
    pub peers: Mutex<BTreeMap<NodeId, PeerAddress>>,
    observer: Mutex<Option<Arc<dyn TransportObserver>>>,
}

impl Network {
    pub fn observer(&self) -> Arc<dyn TransportObserver> {
        self.observer.lock().clone().expect("a host was started")
    }
}

impl Transport for Network {
    fn send(&self, envelopes: Vec<Envelope>) {
        assert!(!envelopes.is_empty(), "nothing is not sent");
    }

    fn send_snapshot(&self, envelope: Envelope) {
        panic!("nobody needs a snapshot: {envelope:?}");
    }

    fn set_peer(&self, node: NodeId, address: PeerAddress) {
        self.peers.lock().insert(node, address);
    }

    fn set_observer(&self, observer: Arc<dyn TransportObserver>) {
        *self.observer.lock() = Some(observer);
    }

    fn shut_down(&self) {}
}

/// What a machine may fail at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Applied,
    Apply,
    Flush,
    Snapshot,
    Restore,
}

/// Answers with the command.
#[derive(Default)]
pub struct Machine {
    pub fails: Mutex<Option<Step>>,
    pub applied: Mutex<BTreeMap<GroupId, Index>>,
    stop: Mutex<Option<Stop>>,
}

impl Machine {
    /// Where the next snapshot stands still.
    pub fn gate(&self) -> Gate {
        let (stop, gate) = gate();
        *self.stop.lock() = Some(stop);
        gate
    }

    fn check(&self, step: Step) -> io::Result<()> {
        if *self.fails.lock() == Some(step) {
            return Err(io::Error::other("a failed machine"));
        }
        Ok(())
    }
}

impl StateMachine for Machine {
    type Output = Bytes;
    type Error = io::Error;

    fn applied(&self, group: GroupId) -> io::Result<Index> {
        self.check(Step::Applied)?;
        Ok(self.applied.lock().get(&group).copied().unwrap_or_default())
    }

    fn apply(&self, entries: &[(GroupId, Entry)]) -> io::Result<Vec<Bytes>> {
        self.check(Step::Apply)?;
        let mut applied = self.applied.lock();
        for (group, entry) in entries {
            let before = applied.insert(*group, entry.index).unwrap_or_default();
            assert_eq!(entry.index, before.next(), "each once, in order");
        }
        Ok(entries.iter().map(|(_, e)| e.payload.clone()).collect())
    }

    fn flush(&self) -> io::Result<()> {
        self.check(Step::Flush)
    }

    fn snapshot(&self, _: GroupId) -> io::Result<Box<dyn SnapshotView>> {
        if let Some(stop) = self.stop.lock().take() {
            stop.stand();
        }
        self.check(Step::Snapshot)?;
        Ok(Box::new(Empty))
    }

    fn restore(
        &self,
        group: GroupId,
        index: Index,
        _: Term,
        _: &mut dyn SnapshotIn,
    ) -> Result<(), RestoreError<io::Error>> {
        self.check(Step::Restore).map_err(RestoreError::Machine)?;
        self.applied.lock().insert(group, index);
        Ok(())
    }

    fn remove(&self, group: GroupId) -> io::Result<()> {
        self.applied.lock().remove(&group);
        Ok(())
    }
}

/// A snapshot without bytes.
struct Empty;

impl SnapshotView for Empty {
    fn write_to(&mut self, _: &mut dyn SnapshotOut) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for Empty {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl SnapshotIn for Empty {
    fn next_file(&mut self) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// What a store did that no event tells of.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// It had no room for a snapshot.
    Refused(GroupId),
    /// It deleted all of a group.
    Forgot(GroupId),
    /// It read all of this one.
    Verified(Index),
}

/// Descriptions without files.
pub struct Store {
    pub is_full: Mutex<bool>,
    pub snapshots: Mutex<BTreeMap<GroupId, Vec<Snapshot>>>,
    pub damaged: Mutex<Vec<Index>>,
    done: UnboundedSender<Done>,
}

impl Store {
    fn check(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        if self.damaged.lock().contains(&index) {
            let what = "a byte";
            return Err(SnapshotError::Damaged { group, index, what });
        }
        let is_here = self.of(group).iter().any(|s| s.index == index);
        is_here
            .then_some(())
            .ok_or(SnapshotError::NotFound { group, index })
    }
}

impl SnapshotStore for Store {
    fn of(&self, group: GroupId) -> Vec<Snapshot> {
        let snapshots = self.snapshots.lock();
        snapshots.get(&group).cloned().unwrap_or_default()
    }

    fn newest(&self) -> Vec<(GroupId, Snapshot)> {
        let snapshots = self.snapshots.lock();
        let newest = |(&group, all): (&GroupId, &Vec<Snapshot>)| Some((group, all.last()?.clone()));
        snapshots.iter().filter_map(newest).collect()
    }

    fn save(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        _: &mut dyn SnapshotView,
    ) -> Result<(), SnapshotError> {
        if *self.is_full.lock() {
            self.done
                .send(Done::Refused(group))
                .expect("the test listens");
            return Err(SnapshotError::NoRoom { bytes: 1 });
        }
        let mut snapshots = self.snapshots.lock();
        snapshots.entry(group).or_default().push(snapshot.clone());
        Ok(())
    }

    fn load(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotIn>, SnapshotError> {
        self.check(group, index)?;
        Ok(Box::new(Empty))
    }

    fn remove(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        let mut snapshots = self.snapshots.lock();
        let all = snapshots.entry(group).or_default();
        all.retain(|snapshot| snapshot.index != index);
        Ok(())
    }

    fn remove_others(
        &self,
        group: GroupId,
        keep: Option<Index>,
    ) -> Result<Vec<Index>, SnapshotError> {
        assert_eq!(keep, None, "a host only forgets");
        let gone = self.snapshots.lock().remove(&group).unwrap_or_default();
        self.done
            .send(Done::Forgot(group))
            .expect("the test listens");
        Ok(gone.into_iter().map(|snapshot| snapshot.index).collect())
    }

    fn open(&self, group: GroupId, index: Index) -> Result<Box<dyn SnapshotFile>, SnapshotError> {
        Err(SnapshotError::NotFound { group, index })
    }

    fn verify(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        let found = self.check(group, index);
        self.done
            .send(Done::Verified(index))
            .expect("the test listens");
        found
    }

    fn receive(
        &self,
        _: GroupId,
        _: &Snapshot,
        bytes: u64,
        _: u32,
    ) -> Result<Box<dyn IncomingSnapshot>, SnapshotError> {
        Err(SnapshotError::NoRoom { bytes })
    }
}

struct Told(UnboundedSender<GroupEvent>);

impl EventSink for Told {
    fn on_events(&self, events: Vec<GroupEvent>) {
        for event in events {
            drop(self.0.send(event)); // the test may have seen enough
        }
    }
}

/// A connection's other end, and what happened to it.
pub type Connection = (NodeId, PeerAddress, ConnectionKind, ConnectionState);

#[derive(Default)]
pub struct Connections(pub Mutex<Vec<Connection>>);

impl ConnectionSink for Connections {
    fn on_connection(
        &self,
        node: NodeId,
        address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    ) {
        let mut seen = self.0.lock();
        seen.push((node, address.clone(), kind, state));
    }
}

/// What a host of node 1 runs on.
pub struct World {
    pub config: Config,
    pub log: Arc<MemoryLog>,
    pub network: Arc<Network>,
    pub machine: Arc<Machine>,
    pub store: Arc<Store>,
    pub connections: Arc<Connections>,
    pub events: UnboundedReceiver<GroupEvent>,
    pub done: UnboundedReceiver<Done>,
    told: UnboundedSender<GroupEvent>,
}

impl World {
    pub fn new() -> Self {
        let (told, events) = unbounded_channel();
        let (done_in, done) = unbounded_channel();
        let store = Store {
            is_full: Mutex::default(),
            snapshots: Mutex::default(),
            damaged: Mutex::default(),
            done: done_in,
        };
        let mut config = Config {
            shards: 2,
            tick: Duration::from_millis(1),
            seed: Some(1),
            ..Config::new(id(1))
        };
        config.limits.stuck_disk_ticks = u32::MAX; // only a test decides that a disk hangs
        Self {
            config,
            log: Arc::default(),
            network: Arc::default(),
            machine: Arc::default(),
            store: Arc::new(store),
            connections: Arc::default(),
            events,
            done,
            told,
        }
    }

    pub fn start(&self) -> Result<Host<Machine>, StartError> {
        let parts = Parts {
            log: self.log.clone(),
            transport: self.network.clone(),
            machine: self.machine.clone(),
            snapshots: self.store.clone(),
            events: Arc::new(Told(self.told.clone())),
            connections: self.connections.clone(),
        };
        Host::start(self.config.clone(), parts)
    }

    /// Waits for an event of this kind, past all others.
    pub async fn event(&mut self, is_it: impl Fn(&GroupEvent) -> bool) -> GroupEvent {
        loop {
            let event = self.events.recv().await.expect("the world keeps a sender");
            if is_it(&event) {
                return event;
            }
        }
    }
}
