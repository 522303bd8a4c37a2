//! Threads around the shards and the apply stage: what an embedding service calls.
//!
//! Each shard has two threads: one runs [`Shard::turn`] over its mailbox, one applies. A proposal
//! takes one lock, that of its shard's mailbox, for a push.

mod backup;
mod members;
mod observer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::observer::Observer;
use crate::apply::Applier;
use crate::config::Config;
use crate::description::{Description, Standing};
use crate::error::{BootstrapError, ChangeMembershipError, ProposeError, ReadError, StartError};
use crate::events::{EventSink, GroupEvent};
use crate::mailbox::{Lane, Mailbox};
use crate::metrics::Metrics;
use crate::raft::conf_change::ConfChange;
use crate::raft::effects::Refusal;
use crate::raft::membership::Membership;
use crate::shard::{ApplyTask, GroupStatus, Shard, ShardInput, TurnEffects};
use crate::snapshot::{SnapshotStore, SnapshotTask, forget};
use crate::start::{forget_left, load};
use crate::state_machine::StateMachine;
use crate::traits::{
    ConnectionKind, ConnectionState, Log, LogError, PeerAddress, StoredGroup, Transport,
};
use crate::types::{GroupId, Index, NodeId};

type Proposal<M> = oneshot::Sender<Result<<M as StateMachine>::Output, ProposeError>>;
type Read = oneshot::Sender<Result<Index, ReadError>>;
type ShardBox<M> = Mailbox<ShardInput<Proposal<M>, Read>>;
type ApplyBox<M> = Mailbox<ApplyTask<Proposal<M>>>;

/// Told of connections on the transport's threads: must not block.
pub trait ConnectionSink: Send + Sync + 'static {
    /// The outgoing connection to `node` changed.
    fn on_connection(
        &self,
        node: NodeId,
        address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    );
}

/// What a host works with.
pub struct Parts<M> {
    /// The log of all groups.
    pub log: Arc<dyn Log>,
    /// The way to the other nodes.
    pub transport: Arc<dyn Transport>,
    /// The state of all groups.
    pub machine: Arc<M>,
    /// The files of snapshots; the same that the transport sends from and receives into.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Told what happens to groups.
    pub events: Arc<dyn EventSink>,
    /// Told what happens to connections.
    pub connections: Arc<dyn ConnectionSink>,
}

/// A node's groups, running.
pub struct Host<M: StateMachine> {
    inner: Arc<Inner<M>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Inner<M: StateMachine> {
    config: Config,
    parts: Parts<M>,
    shards: Vec<ShardBox<M>>,
    appliers: Vec<ApplyBox<M>>,
    /// Work on snapshots, of all shards.
    snapshot_tasks: Mailbox<SnapshotTask>,
    /// How many calls wait for this node to join a group or to leave it.
    waiting: Mutex<BTreeMap<GroupId, usize>>,
    metrics: Metrics,
    stopping: AtomicBool,
}

impl<M: StateMachine> Host<M> {
    /// Starts all groups that the log holds, and the threads that run them.
    pub fn start(config: Config, parts: Parts<M>) -> Result<Self, StartError> {
        config.validate()?;
        let seed = config.seed.unwrap_or_else(rand::random);
        let count = config.shards as usize;
        let inner = Arc::new(Inner {
            shards: (0..count).map(|_| Mailbox::default()).collect(),
            appliers: (0..count).map(|_| Mailbox::default()).collect(),
            snapshot_tasks: Mailbox::default(),
            waiting: Mutex::default(),
            metrics: Metrics::default(),
            stopping: AtomicBool::new(false),
            config,
            parts,
        });
        let new_shard = |id: u32| {
            let log = Arc::clone(&inner.parts.log);
            Shard::new(
                id,
                inner.config.clone(),
                log,
                seed.wrapping_add(u64::from(id) << 40),
            )
        };
        let mut shards: Vec<_> = (0..inner.config.shards).map(new_shard).collect();
        let stored_groups = inner.parts.log.take_stored_groups();
        for (group, _) in inner.parts.snapshots.newest() {
            if stored_groups.iter().all(|stored| stored.group != group) {
                forget(&*inner.parts.snapshots, group);
            }
        }
        for stored in stored_groups {
            inner.restore(&stored, &mut shards[inner.shard_of(stored.group)])?;
        }
        let observer = Arc::new(Observer(Arc::downgrade(&inner)));
        inner.parts.log.set_observer(observer.clone());
        let host = Self {
            inner,
            threads: Mutex::default(),
        };
        for (at, shard) in shards.into_iter().enumerate() {
            host.spawn(format!("shard-{at}"), move |inner| {
                inner.run_shard(at, shard);
            })?;
            host.spawn(format!("apply-{at}"), move |inner| inner.run_applier(at))?;
        }
        for at in 0..host.inner.config.snapshot_threads {
            host.spawn(format!("snapshot-{at}"), |inner| inner.run_snapshots())?;
        }
        host.inner.parts.transport.set_observer(observer);
        Ok(host)
    }

    fn spawn(
        &self,
        name: String,
        body: impl FnOnce(Arc<Inner<M>>) + Send + 'static,
    ) -> Result<(), StartError> {
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || body(inner));
        self.threads
            .lock()
            .push(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    /// Starts a new group here. Every member's node gets the same call; calling again is the same
    /// as calling once. Returns when this node would remember it after a crash.
    pub async fn bootstrap(
        &self,
        group: GroupId,
        membership: Membership,
    ) -> Result<(), BootstrapError> {
        membership.check()?;
        if !membership.members.contains_key(&self.inner.config.node) {
            return Err(BootstrapError::NotAMember);
        }
        let (sender, receiver) = oneshot::channel();
        self.inner.learn_addresses(&membership);
        let reply = Box::new(move |result| drop(sender.send(result)));
        let input = ShardInput::Bootstrap(group, membership, reply);
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        shard.push(input).map_err(|_| BootstrapError::Stopped)?;
        receiver.await.unwrap_or(Err(BootstrapError::Stopped))
    }

    /// Proposes a command; returns its output once it is applied here. A follower forwards it to
    /// the leader. Whether it took effect is unknown after [`ProposeError::Unknown`],
    /// [`ProposeError::Stopped`], and when the future is dropped.
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Result<M::Output, ProposeError> {
        let inner = &self.inner;
        if command.len() > inner.config.limits.proposal_bytes {
            return Err(Refusal::TooLarge.into());
        }
        if !inner.parts.log.has_room() {
            inner.metrics.refused.inc();
            return Err(ProposeError::DiskFull);
        }
        let (sender, receiver) = oneshot::channel();
        let input = ShardInput::Propose(group, command, sender);
        if let Err(closed) = inner.push_request(group, input) {
            inner.metrics.refused.inc();
            let busy = ProposeError::Refused(Refusal::Busy);
            return Err(if closed { ProposeError::Stopped } else { busy });
        }
        inner.metrics.proposals.inc();
        receiver.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Returns once the machine here reflects every command that was acknowledged anywhere before
    /// this call (thesis §6.4); then read from the machine.
    pub async fn read_index(&self, group: GroupId) -> Result<Index, ReadError> {
        let (sender, receiver) = oneshot::channel();
        if let Err(closed) = self
            .inner
            .push_request(group, ShardInput::Read(group, sender))
        {
            let busy = ReadError::Refused(Refusal::Busy);
            return Err(if closed { ReadError::Stopped } else { busy });
        }
        receiver.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Changes who belongs to a group; returns the membership once the change took effect here. A
    /// follower forwards it to the leader. Set [`ConfChange::expected`] to be sure of the
    /// configuration that is changed.
    pub async fn change_membership(
        &self,
        group: GroupId,
        change: ConfChange,
    ) -> Result<Membership, ChangeMembershipError> {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        let input = ShardInput::ChangeMembership(group, change, reply);
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        let stopped = ChangeMembershipError::Stopped;
        shard.push(input).map_err(|_| stopped.clone())?;
        receiver.await.unwrap_or(Err(stopped))
    }

    /// Asks the leader of a group to hand over to `to`, which must be a voter. Whether it does
    /// shows in the group's status and events: it gives up after an election timeout.
    pub fn transfer_leadership(&self, group: GroupId, to: NodeId) {
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        if shard
            .push(ShardInput::TransferLeadership(group, to))
            .is_err()
        {
            tracing::debug!(%group, "a transfer while stopping");
        }
    }

    /// Asks for a snapshot of a group's state here, if anything was applied since the last one. Whether
    /// it was made shows in the group's status and events.
    pub fn make_snapshot(&self, group: GroupId) {
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        if shard.push(ShardInput::MakeSnapshot(group)).is_err() {
            tracing::debug!(%group, "a snapshot while stopping");
        }
    }

    /// Forgets the log's entries of a group up to `index`, as far as they are applied here: a peer that
    /// lacks one of them is sent a snapshot. Whether it did shows in the group's status and events.
    pub fn compact(&self, group: GroupId, index: Index) {
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        if shard.push(ShardInput::Compact(group, index)).is_err() {
            tracing::debug!(%group, "a compaction while stopping");
        }
    }

    /// The state of these groups, or of all if none is named, by rising id.
    pub async fn status(&self, groups: &[GroupId]) -> Vec<GroupStatus> {
        let mut all = Vec::new();
        for shard in &self.inner.shards {
            let (sender, receiver) = oneshot::channel();
            let reply = Box::new(move |status| drop(sender.send(status)));
            if shard
                .push(ShardInput::Status(groups.to_vec(), reply))
                .is_ok()
            {
                all.extend(receiver.await.unwrap_or_default());
            }
        }
        all.sort_by_key(|status: &GroupStatus| status.group);
        all
    }

    /// The state machine.
    pub fn machine(&self) -> &Arc<M> {
        &self.inner.parts.machine
    }

    /// The host's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Stops all groups and threads and makes the machine durable. Blocks; calling again does
    /// nothing. The log is closed by whoever opened it.
    pub fn shut_down(&self) -> Result<(), M::Error> {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.parts.transport.shut_down();
        for shard in &self.inner.shards {
            shard.close();
        }
        self.inner.snapshot_tasks.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the host panicked");
            }
        }
        self.inner.parts.machine.flush()
    }
}

impl<M: StateMachine> Drop for Host<M> {
    fn drop(&mut self) {
        if !self.inner.stopping.load(Ordering::Acquire)
            && let Err(error) = self.shut_down()
        {
            tracing::error!(%error, "the state machine could not be flushed");
        }
    }
}

impl<M: StateMachine> Inner<M> {
    fn shard_of(&self, group: GroupId) -> usize {
        group.0 as usize % self.shards.len()
    }

    fn learn_addresses(&self, membership: &Membership) {
        for (node, address) in membership.addresses() {
            if node != self.config.node {
                self.parts.transport.set_peer(node, address.clone());
            }
        }
    }

    /// Gives a shard a group of its log; the state machine is restored from the snapshot with which
    /// the log begins if it has not come that far.
    fn restore(
        &self,
        stored: &StoredGroup,
        shard: &mut Shard<Proposal<M>, Read>,
    ) -> Result<(), StartError> {
        let group = stored.group;
        let description = Description::decode(&stored.meta)
            .map_err(|source| StartError::Membership { group, source })?;
        let (machine, snapshots) = (&*self.parts.machine, &*self.parts.snapshots);
        if description.standing == Standing::Left {
            forget_left(group, machine, snapshots)?;
            shard.restore_left(stored, description.membership);
            return Ok(());
        }
        let loaded = load(stored, description, machine, snapshots)?;
        self.learn_addresses(&loaded.description.membership);
        shard.restore(stored, loaded);
        Ok(())
    }

    /// Whether the mailbox is closed, if it did not take the request.
    fn push_request(
        &self,
        group: GroupId,
        input: ShardInput<Proposal<M>, Read>,
    ) -> Result<(), bool> {
        let shard = &self.shards[self.shard_of(group)];
        let limit = self.config.inbox_requests;
        shard
            .push_bounded(input, Lane::Requests, 1, limit)
            .map_err(|(_, closed)| closed)
    }

    fn run_shard(&self, at: usize, mut shard: Shard<Proposal<M>, Read>) {
        let mut inputs = Vec::new();
        let mut next_tick = Instant::now() + self.config.tick;
        loop {
            self.metrics.turns.inc();
            let effects = shard.turn(inputs.drain(..));
            let wants_turn = effects.wants_turn;
            self.carry_out(at, effects);
            if wants_turn {
                continue;
            }
            if !self.shards[at].take(&mut inputs, Some(next_tick)) {
                break;
            }
            let now = Instant::now();
            if now >= next_tick {
                inputs.push(ShardInput::Tick);
                // A pause is one tick, however long: time we did not see must not make us campaign.
                next_tick = (next_tick + self.config.tick).max(now);
            }
        }
        self.appliers[at].close();
    }

    /// In this order: the log first, so that what is sent is at least on its way to the disk;
    /// clients and watchers last.
    fn carry_out(&self, at: usize, effects: TurnEffects<Proposal<M>, Read>) {
        if let Some(batch) = effects.write
            && let Err(error) = self.parts.log.append(batch)
        {
            tracing::error!(%error, "the log refused a batch: this node stops serving");
            self.fence(&error);
            return;
        }
        if !effects.send.is_empty() {
            self.parts.transport.send(effects.send);
        }
        for envelope in effects.send_snapshots {
            self.parts.transport.send_snapshot(envelope);
        }
        for task in effects.apply {
            if let ApplyTask::Apply(_, blocks) = &task {
                self.metrics
                    .committed
                    .inc_by(blocks.iter().map(|b| u64::from(b.count())).sum());
            }
            if self.appliers[at].push(task).is_err() {
                break; // stopping
            }
        }
        for task in effects.snapshot_tasks {
            if self.snapshot_tasks.push(task).is_err() {
                break; // stopping
            }
        }
        for (waiter, error) in effects.refused {
            drop(waiter.send(Err(error))); // a client that left needs no answer
        }
        for (waiter, result) in effects.reads {
            drop(waiter.send(result));
        }
        for answer in effects.answers {
            answer.deliver();
        }
        for (node, address) in effects.learned {
            self.parts.transport.set_peer(node, address);
        }
        for event in &effects.events {
            if let GroupEvent::MembershipChanged { membership, .. } = event {
                self.learn_addresses(membership);
            }
        }
        if !effects.events.is_empty() {
            let is_leader = |e: &&GroupEvent| {
                matches!(
                    e,
                    GroupEvent::LeaderUpdated {
                        leader: Some(_),
                        ..
                    }
                )
            };
            self.metrics
                .leader_changes
                .inc_by(effects.events.iter().filter(is_leader).count() as u64);
            self.parts.events.on_events(effects.events);
        }
    }

    fn run_applier(&self, at: usize) {
        self.apply_until_closed(at);
        // Its shard may not have come to its end yet. What it still hands over would lie here, and
        // the clients that wait for it would never be told.
        self.appliers[at].close();
        self.appliers[at].take(&mut Vec::new(), None);
    }

    fn apply_until_closed(&self, at: usize) {
        let mut applier = Applier::new(Arc::clone(&self.parts.machine));
        let mut tasks = Vec::new();
        while self.appliers[at].take(&mut tasks, None) {
            let round = match applier.run(std::mem::take(&mut tasks)) {
                Ok(round) => round,
                Err(error) => {
                    tracing::error!(%error, "the state machine failed: this node stops serving");
                    self.fence(&LogError::Fenced(Arc::new(std::io::Error::other(error))));
                    return;
                }
            };
            self.metrics.applied.inc_by(round.entries as u64);
            for (waiter, result) in round.completions {
                drop(waiter.send(result)); // a client that left needs no answer
            }
            if self.shards[at]
                .push(ShardInput::Applied(round.marks))
                .is_err()
            {
                return; // stopping
            }
            for task in round.snapshots {
                if self.snapshot_tasks.push(task).is_err() {
                    return; // stopping
                }
            }
        }
    }

    fn run_snapshots(&self) {
        let mut tasks = Vec::new();
        while self.snapshot_tasks.take_one(&mut tasks) {
            for task in tasks.drain(..) {
                let group = task.group();
                let done = match task.run(&*self.parts.machine, &*self.parts.snapshots) {
                    Ok(done) => done,
                    Err(error) => {
                        tracing::error!(%error, "the state machine failed: this node stops serving");
                        self.fence(&LogError::Fenced(Arc::new(std::io::Error::other(error))));
                        return;
                    }
                };
                let shard = &self.shards[self.shard_of(group)];
                if shard.push(ShardInput::SnapshotDone(group, done)).is_err() {
                    return; // stopping
                }
            }
        }
    }

    fn fence(&self, error: &LogError) {
        for shard in &self.shards {
            if shard.push(ShardInput::Fence(error.clone())).is_err() {
                tracing::debug!("fenced while stopping");
            }
        }
    }
}
