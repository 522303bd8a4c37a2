//! One simulated process: real shards over the real log on a simulated disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use multiraft_engine::apply::Applier;
use multiraft_engine::config::Config;
use multiraft_engine::description::{Description, Standing};
use multiraft_engine::raft::Limits;
use multiraft_engine::raft::progress::Window;
use multiraft_engine::raft::read_index::ReadMode;
use multiraft_engine::shard::{ApplyTask, Shard, ShardInput};
use multiraft_engine::snapshot::{SnapshotStore, SnapshotTask};
use multiraft_engine::start::{forget_left, load};
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Error, Identity, LogDb, Options, SnapshotDir, Turn, Writer};
use multiraft_transport::snapshot::Receiver;
use parking_lot::Mutex;
use rand::Rng;

use super::client::OpId;
use super::dice::Dice;
use super::faults::{Fault, FaultSet};
use super::machine::Machine;
use super::transfers;

/// What goes into a shard here.
pub type Input = ShardInput<OpId, OpId>;
/// What a shard asks of the apply stage here.
pub type Task = ApplyTask<OpId>;

/// What a replaced disk adds to a node's incarnation.
const LIFE: u64 = 1 << 32;
/// Peers' messages that wait at most; more are dropped.
const INBOX_MESSAGES: usize = 5_000;

/// What the log tells, until the next round takes it.
#[derive(Default)]
pub struct Marks {
    durable: Mutex<Vec<(u32, u64)>>,
    fenced: Mutex<Option<LogError>>,
    reclaimed: Mutex<Vec<(GroupId, Index)>>,
}

impl LogObserver for Marks {
    fn on_durable(&self, shard: u32, ticket: u64) {
        self.durable.lock().push((shard, ticket));
    }

    fn on_fenced(&self, error: &LogError) {
        *self.fenced.lock() = Some(error.clone());
    }

    fn on_reclaimed(&self, group: GroupId, index: Index) {
        self.reclaimed.lock().push((group, index));
    }
}

impl Marks {
    /// Durable batches since the last time.
    pub fn take_durable(&self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.durable.lock())
    }

    /// Entries whose space was given back since the last time.
    pub fn take_reclaimed(&self) -> Vec<(GroupId, Index)> {
        std::mem::take(&mut self.reclaimed.lock())
    }

    /// Whether the log was fenced since the last time.
    pub fn take_fenced(&self) -> Option<LogError> {
        self.fenced.lock().take()
    }
}

/// A process that runs.
pub struct Process {
    /// Its log.
    pub log: Arc<LogDb>,
    /// The log's writer, turned by hand.
    pub writer: Writer,
    /// What the log tells.
    pub marks: Arc<Marks>,
    /// Its shards.
    pub shards: Vec<Shard<OpId, OpId>>,
    /// What waits for each.
    pub inboxes: Vec<Vec<Input>>,
    /// Peers' messages among that.
    pub waiting_messages: usize,
    /// The apply stage of each.
    pub appliers: Vec<Applier<Machine, OpId>>,
    /// What waits for each.
    pub tasks: Vec<Vec<Task>>,
    /// The files of its snapshots.
    pub store: Arc<SnapshotDir>,
    /// Snapshots on their way in.
    pub receiver: Arc<Receiver>,
    /// Work on snapshots, and when it is done.
    pub snapshot_tasks: Vec<(u64, SnapshotTask)>,
    /// Its log failed: only a new start helps.
    pub is_fenced: bool,
}

/// A node, whether its process runs or not.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Which life of its data: it changes when the disk is wiped.
    pub incarnation: u64,
    /// What survives.
    pub disk: Arc<SimDisk>,
    /// The same, of snapshots.
    pub snapshot_disk: Arc<SimDisk>,
    /// What survives in part.
    pub machine: Arc<Machine>,
    /// `None`: down.
    pub process: Option<Process>,
    /// When it starts again.
    pub restart_at: u64,
    /// It does nothing until then.
    pub paused_until: u64,
    /// Its disk does nothing until then.
    pub stuck_until: u64,
    /// Its disk has no room until then.
    pub full_until: u64,
    /// Its clock's rate in thousandths, and what has added up.
    pub clock: (u32, u32),
    /// Its timing and limits.
    pub config: Config,
    /// The newest snapshot of each group that somebody relies on: no crash may take it.
    pub relied_on: BTreeMap<GroupId, Index>,
    shards: u32,
}

impl Node {
    /// A node with an empty disk that has not started.
    pub fn new(id: NodeId, rng: &mut Dice, limits: Limits) -> Self {
        let shards = rng.random_range(1..=3);
        let mut config = Config::new(id);
        config.shards = shards;
        config.limits = limits;
        config.forward_ticks = 40;
        config.snapshot_entries = rng.random_range(20..300);
        config.snapshot_bytes = rng.random_range(2_000..40_000);
        config.retain_entries = rng.random_range(0..50);
        Self {
            id,
            incarnation: u64::from(id.get()),
            disk: SimDisk::new(),
            snapshot_disk: SimDisk::new(),
            machine: Arc::default(),
            process: None,
            restart_at: 0,
            paused_until: 0,
            stuck_until: 0,
            full_until: 0,
            clock: (1000, 0),
            config,
            relied_on: BTreeMap::new(),
            shards,
        }
    }

    /// A full disk has room again when it is time, whether anything runs on it or not.
    pub fn free_disk(&mut self, tick: u64) {
        if self.full_until > 0 && tick >= self.full_until {
            self.full_until = 0;
            self.disk.set_free_bytes(1 << 30);
            self.snapshot_disk.set_free_bytes(1 << 30);
        }
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&mut self) {
        assert!(
            self.process.is_none(),
            "a disk is replaced while nothing runs"
        );
        self.incarnation += LIFE;
        self.disk = SimDisk::new();
        self.snapshot_disk = SimDisk::new();
        self.machine = Arc::default();
        self.relied_on.clear();
        self.full_until = 0;
    }

    fn open_log(&self) -> Option<(Arc<LogDb>, Writer)> {
        let identity = Identity {
            cluster_id: 1,
            node: self.id,
        };
        let options = Options {
            segment_bytes: 256 << 10,
            batch_bytes: 16 << 10,
            cache_bytes: 4 << 10,
            min_free_bytes: 1,
            ..Options::new("", identity)
        };
        let disk = Arc::<SimDisk>::clone(&self.disk);
        match LogDb::open_on(disk, self.incarnation, options) {
            Ok(opened) => Some(opened),
            Err(Error::Io { .. }) => None,
            Err(error) => panic!("node {} does not start again: {error}", self.id),
        }
    }

    /// Nothing is left of a group in the log but its description, and a term and vote as they may be read of
    /// an older one. `None`: there is no whole replica of it, or the disk failed.
    pub fn lose(&mut self, group: GroupId, is_forgotten: bool) -> Option<HardState> {
        let (log, mut writer) = self.open_log()?;
        let stored = log.take_stored_groups();
        let stored = stored.iter().find(|stored| stored.group == group)?;
        let description = Description::decode(&stored.meta).expect("as it was encoded");
        if description.standing != Standing::Member {
            return None;
        }
        let hard_state = HardState {
            commit: Index::ZERO,
            ..stored.hard_state
        };
        let hard_state = if is_forgotten {
            HardState::default()
        } else {
            hard_state
        };
        let write = GroupWrite {
            remove: true,
            meta: Some(Description::lost(Some(&stored.meta)).encode()),
            hard_state: Some(hard_state),
            ..GroupWrite::new(group)
        };
        let batch = WriteBatch {
            shard: 0,
            ticket: 1,
            writes: vec![write],
        };
        log.append(batch).ok()?;
        (writer.turn() == Turn::Worked).then_some(hard_state)
    }

    /// Starts the process on what the disk holds; gives what the log found. `None`: the disk failed,
    /// and whoever operates the node tries again.
    pub fn start(&mut self, seed: u64) -> Option<Vec<StoredGroup>> {
        let (log, writer) = self.open_log()?;
        let disk = Arc::<SimDisk>::clone(&self.snapshot_disk);
        let store = match SnapshotDir::open(disk, self.incarnation) {
            Ok(store) => store,
            Err(Error::Io { .. }) => return None,
            Err(error) => panic!("node {} does not start again: {error}", self.id),
        };
        self.check_snapshots(&store);
        self.config.incarnation = self.incarnation;
        let marks = Arc::new(Marks::default());
        log.set_observer(Arc::<Marks>::clone(&marks));
        let new_shard = |id: u32| {
            let log: Arc<dyn Log> = log.clone();
            Shard::new(id, self.config.clone(), log, seed ^ (u64::from(id) << 50))
        };
        let mut shards: Vec<_> = (0..self.shards).map(new_shard).collect();
        let stored = log.take_stored_groups();
        for group in &stored {
            let description = Description::decode(&group.meta).expect("as it was encoded");
            let shard = &mut shards[group.group.0 as usize % self.shards as usize];
            let failed = |error| panic!("node {}: {error}", self.id);
            if description.standing == Standing::Left {
                let forgotten = forget_left(group.group, &*self.machine, &*store);
                forgotten.unwrap_or_else(failed);
                shard.restore_left(group, description.membership);
                self.relied_on.remove(&group.group);
                continue;
            }
            let loaded = load(group, description, &*self.machine, &*store);
            shard.restore(
                group,
                loaded.unwrap_or_else(|error| panic!("node {}: {error}", self.id)),
            );
        }
        let count = shards.len();
        self.process = Some(Process {
            log,
            writer,
            marks,
            shards,
            inboxes: (0..count).map(|_| Vec::new()).collect(),
            waiting_messages: 0,
            appliers: (0..count)
                .map(|_| Applier::new(Arc::clone(&self.machine)))
                .collect(),
            tasks: (0..count).map(|_| Vec::new()).collect(),
            receiver: Receiver::new(store.clone(), &transfers::limits()),
            store,
            snapshot_tasks: Vec::new(),
            is_fenced: false,
        });
        Some(stored)
    }

    /// A snapshot that was told of, or that the log has restarted behind, outlives the process.
    fn check_snapshots(&self, store: &SnapshotDir) {
        for (&group, &index) in &self.relied_on {
            let newest = store.of(group).pop().map(|snapshot| snapshot.index);
            assert!(
                newest >= Some(index),
                "node {}: the snapshot of group {group} at {index} is gone, the newest is {newest:?}",
                self.id
            );
        }
    }

    /// Whether it can do something at `tick`.
    pub fn is_awake(&self, tick: u64) -> bool {
        self.process.is_some() && tick >= self.paused_until
    }

    /// Puts something into the inbox of a group's shard.
    pub fn push(&mut self, group: GroupId, input: Input) {
        if let Some(process) = &mut self.process {
            let shard = group.0 as usize % process.shards.len();
            process.inboxes[shard].push(input);
        }
    }

    /// Puts something into every inbox.
    pub fn push_all(&mut self, input: impl Fn() -> Input) {
        if let Some(process) = &mut self.process {
            for inbox in &mut process.inboxes {
                inbox.push(input());
            }
        }
    }

    /// A frame has arrived; dropped if too much waits.
    pub fn receive(&mut self, envelopes: Vec<multiraft_engine::raft::message::Envelope>) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.waiting_messages + envelopes.len() > INBOX_MESSAGES {
            return;
        }
        process.waiting_messages += envelopes.len();
        for envelope in envelopes {
            let shard = envelope.group.0 as usize % process.shards.len();
            process.inboxes[shard].push(ShardInput::Messages(vec![envelope]));
        }
    }

    /// One turn of the log's writer, and what it tells.
    pub fn turn_writer(&mut self) -> Vec<(u32, u64)> {
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        let turn = process.writer.turn();
        if let Some(error) = process.marks.take_fenced() {
            assert!(turn == Turn::Fenced, "fenced in secret");
            process.is_fenced = true;
            self.push_all(|| ShardInput::Fence(error.clone()));
            return Vec::new();
        }
        let durable = process.marks.take_durable();
        assert!(
            durable.is_empty() || !process.is_fenced,
            "acknowledged after a failed sync"
        );
        for (group, index) in process.marks.take_reclaimed() {
            let shard = group.0 as usize % process.inboxes.len();
            process.inboxes[shard].push(ShardInput::Reclaimed(group, index));
        }
        for &(shard, ticket) in &durable {
            process.inboxes[shard as usize].push(ShardInput::Durable(ticket));
        }
        durable
    }
}

/// The limits of a run: small, so that every limit is reached.
pub fn limits(rng: &mut Dice, faults: FaultSet) -> Limits {
    let careful = rng.random_bool(0.8);
    // A lease is only as good as the clocks: they must keep the bound that it states.
    let clocks_keep = !faults.has(Fault::ClockRate) && !faults.has(Fault::Pause);
    let has_leases = rng.random_bool(0.5) && clocks_keep;
    Limits {
        reads: if has_leases {
            ReadMode::Lease { drift_ticks: 2 }
        } else {
            ReadMode::Index
        },
        pre_vote: careful || rng.random(),
        check_quorum: careful || has_leases || rng.random(),
        window: Window {
            messages: rng.random_range(1..8),
            bytes: 4 << 10,
        },
        append_bytes: 600,
        uncommitted_bytes: 2 << 10,
        cache_bytes: 400,
        apply_bytes: 800,
        ..Limits::default()
    }
}
