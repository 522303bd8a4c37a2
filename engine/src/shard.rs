//! The loop over many groups: one synchronous turn, called by a thread in production and by tests.
//!
//! A shard owns some of the node's groups. [`Shard::turn`] takes everything that happened since the
//! last turn and returns everything to be done, already in order: write, send, apply, answer.
//! It never reads a clock, never waits, never touches a file or a socket but to fetch old log
//! entries through [`Log::read`].
//!
//! `P` and `R` are the waiting proposals and reads: one-shot senders in production.

mod bootstrap;
mod joining;
mod membership;
mod removal;
mod requests;
mod snapshots;
mod status;
mod turn;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use self::removal::Removing;
use self::snapshots::{ReplicaSource, Snapshots};
pub use self::status::{FollowerStatus, GroupStatus};
pub use self::turn::{
    Answer, ApplyTask, BootstrapReply, JoinReply, LeaveReply, MembershipReply, RecoverReply,
    ShardInput, StatusReply, TurnEffects,
};
use crate::config::Config;
use crate::description::Description;
use crate::error::{
    BootstrapError, ChangeMembershipError, JoinError, LeaveError, ProposeError, ReadError,
};
use crate::events::{GroupEvent, SnapshotEvent};
use crate::raft::conf_change::ConfChange;
use crate::raft::effects::{Effects, Input, ReadOutcome, Snapshot};
use crate::raft::incarnation::Identity;
use crate::raft::membership::{Member, Membership};
use crate::raft::message::Envelope;
use crate::raft::{Group, Limits};
use crate::snapshot::Travelling;
use crate::traits::{GroupWrite, Log, LogError, StoredGroup, WriteBatch};
use crate::types::{GroupId, HardState, Index, NodeId, Term};

struct Replica<P, R> {
    raft: Group,
    /// Proposals that the core or another node has, by number.
    proposals: BTreeMap<u64, (u64, P)>,
    /// Reads that have no index yet, by number; a number stands for all reads of one turn.
    reads: BTreeMap<u64, (u64, Vec<R>)>,
    /// Reads that wait until their index is applied.
    unserved: Vec<(Index, R)>,
    /// Reads of this turn, not yet given to the core.
    arrived: Vec<R>,
    /// Configuration changes that the apply stage has come to, for the next turn.
    due: Vec<(Index, ConfChange)>,
    /// What is to be applied once the membership before it is durable.
    held: Option<Vec<ApplyTask<P>>>,
    /// Memberships on their way to the disk.
    meta_writes: u32,
    /// Who wants to know what became of a change that the core or another node has, by number.
    changes: BTreeMap<u64, (u64, MembershipReply)>,
    /// The same once its place in the log is known.
    placed_changes: BTreeMap<Index, (Term, MembershipReply)>,
    /// Who waits for this node to have a place in the group.
    joiners: Vec<(Member, JoinReply)>,
    /// Who waits for this node to be out of it.
    leavers: Vec<LeaveReply>,
    snapshots: Snapshots,
    /// It keeps no state.
    is_witness: bool,
    /// It has told that it can serve.
    is_ready: bool,
}

impl<P, R> Replica<P, R> {
    fn new(raft: Group, newest: Option<Snapshot>) -> Self {
        Self {
            raft,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            unserved: Vec::new(),
            arrived: Vec::new(),
            due: Vec::new(),
            held: None,
            meta_writes: 0,
            changes: BTreeMap::new(),
            placed_changes: BTreeMap::new(),
            joiners: Vec::new(),
            leavers: Vec::new(),
            snapshots: Snapshots::new(newest),
            is_witness: false,
            is_ready: false,
        }
    }

    /// The state machine does not have what the log says is applied: another's snapshot is on its way into
    /// it, or has to come. Nothing is read meanwhile. Else: 1. a node comes back without its store, and its
    /// snapshot is damaged; 2. the leader confirms a read at an entry that is compacted here; 3. the
    /// read finds nothing.
    fn awaits_state(&self) -> bool {
        !self.is_witness && self.raft.log().has_pending_snapshot()
    }
}

/// What is known of a group besides its log when the node starts.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// As the log describes it.
    pub description: Description,
    /// What the state machine has applied; of a witness, which has none, where its log begins.
    pub applied: Index,
    /// The newest snapshot that belongs to the log.
    pub newest: Option<Snapshot>,
    /// The snapshot from which the state machine has just been restored, if it had to be.
    pub recovered: Option<Index>,
}

/// A batch on its way to the disk.
#[derive(Default)]
struct BatchInFlight {
    ticket: u64,
    /// The group writes in it, by their groups' numbers.
    writes: Vec<(GroupId, u64)>,
    /// The promises that it, or an earlier batch, makes true.
    messages: Vec<Envelope>,
    /// The bootstraps that wait for it.
    replies: Vec<BootstrapReply>,
    /// Groups whose changed membership is in it.
    memberships: Vec<GroupId>,
    /// Snapshots that the state machine may take over then.
    installs: Vec<(GroupId, Snapshot)>,
    /// Groups that the log has forgotten then.
    removals: Vec<GroupId>,
}

/// Some of a node's groups.
pub struct Shard<P, R> {
    id: u32,
    config: Config,
    log: Arc<dyn Log>,
    groups: BTreeMap<GroupId, Replica<P, R>>,
    dirty: BTreeSet<GroupId>,
    /// Numbers proposals and reads; starts anew at each start of the node, so it begins at a drawn
    /// value: an answer to a number of the node's last life must not be taken for one of this.
    next_request: u64,
    ticks: u64,
    ticket: u64,
    in_flight: VecDeque<BatchInFlight>,
    /// Groups of this turn.
    created: Vec<(GroupWrite, Option<BootstrapReply>)>,
    /// Replicas that end with the next turn, and the memberships without them.
    leaving: BTreeMap<GroupId, Membership>,
    /// What the log is to forget with this turn.
    removals: Vec<GroupWrite>,
    /// Replicas that are being deleted.
    removing: BTreeMap<GroupId, Removing>,
    /// Groups that this node has left: what it promised, and the membership by which it is gone.
    left: BTreeMap<GroupId, (HardState, Membership)>,
    /// Bootstraps of this turn for groups that are here already.
    repeated: Vec<BootstrapReply>,
    /// Memberships that changed in this turn.
    memberships: BTreeMap<GroupId, bytes::Bytes>,
    /// Empty writes of the last turn with nothing before them on its way to the disk.
    settled: Vec<(GroupId, u64)>,
    /// The same for snapshots to be taken over.
    settled_installs: Vec<(GroupId, Snapshot)>,
    /// Snapshots on their way to peers, whose beginning was told.
    sending: BTreeSet<Travelling>,
    fenced: Option<LogError>,
    out: TurnEffects<P, R>,
}

impl<P, R> Shard<P, R> {
    /// An empty shard. `seed` feeds the election timeouts and the request numbers.
    pub fn new(id: u32, config: Config, log: Arc<dyn Log>, seed: u64) -> Self {
        Self {
            id,
            config,
            log,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next_request: seed >> 1,
            ticks: 0,
            ticket: 0,
            in_flight: VecDeque::new(),
            created: Vec::new(),
            leaving: BTreeMap::new(),
            removals: Vec::new(),
            removing: BTreeMap::new(),
            left: BTreeMap::new(),
            repeated: Vec::new(),
            memberships: BTreeMap::new(),
            settled: Vec::new(),
            settled_installs: Vec::new(),
            sending: BTreeSet::new(),
            fenced: None,
            out: TurnEffects::default(),
        }
    }

    /// A group that the log holds, with what its state machine has applied and its newest snapshot.
    pub fn restore(&mut self, stored: &StoredGroup, loaded: Loaded) {
        let group = stored.group;
        if let Some(index) = loaded.recovered {
            self.out.events.push(GroupEvent::Snapshot {
                group,
                index,
                event: SnapshotEvent::Recovered,
            });
        }
        self.insert(stored, loaded);
        if let Some(wish) = self.wish_of_lost(group) {
            self.step(group, Input::Wish(Some(wish)));
        }
    }

    fn insert(&mut self, stored: &StoredGroup, loaded: Loaded) {
        let Loaded {
            description,
            applied,
            newest,
            ..
        } = loaded;
        let group = stored.group;
        let first = description.membership.first_candidate(group.0) == Some(self.config.node);
        let seed =
            self.next_request ^ (u64::from(group.0) << 32) ^ u64::from(self.config.node.get());
        let limits: Limits = self.config.limits;
        let own = Identity {
            node: self.config.node,
            incarnation: self.config.incarnation,
        };
        let is_witness = description.is_witness;
        let raft = Group::restore(own, stored, description, applied, limits, first, seed);
        let is_missing = raft.log().is_state_missing();
        let mut replica = Replica::new(raft, newest);
        replica.is_witness = is_witness;
        self.groups.insert(group, replica);
        self.dirty.insert(group);
        if !is_missing {
            self.on_ready(group);
        }
    }

    /// The replica has its state; told once.
    fn on_ready(&mut self, group: GroupId) {
        if let Some(replica) = self.groups.get_mut(&group)
            && !std::mem::replace(&mut replica.is_ready, true)
        {
            let membership = replica.raft.membership().clone();
            self.out
                .events
                .push(GroupEvent::MemberReady { group, membership });
        }
    }

    /// One round: all of `inbox` in, everything that follows out.
    pub fn turn(&mut self, inbox: impl IntoIterator<Item = ShardInput<P, R>>) -> TurnEffects<P, R> {
        self.remove_leaving();
        for (group, number) in std::mem::take(&mut self.settled) {
            self.step(group, Input::Durable(number));
        }
        for (group, snapshot) in std::mem::take(&mut self.settled_installs) {
            self.restore_state(group, snapshot);
        }
        self.change_memberships();
        for input in inbox {
            self.on_input(input);
        }
        self.start_reads();
        self.collect();
        std::mem::take(&mut self.out)
    }

    fn on_input(&mut self, input: ShardInput<P, R>) {
        match input {
            ShardInput::Status(groups, reply) => reply(self.status(&groups)),
            ShardInput::Fence(error) => self.on_fence(error),
            ShardInput::Propose(group, payload, waiter) => self.on_propose(group, payload, waiter),
            ShardInput::Read(group, waiter) => self.on_read(group, waiter),
            ShardInput::Bootstrap(group, membership, reply) => {
                self.on_bootstrap(group, membership, reply);
            }
            ShardInput::Import(group, snapshot, reply) => self.on_import(group, snapshot, reply),
            ShardInput::ChangeMembership(group, change, reply) => {
                self.on_change_membership(group, change, reply);
            }
            ShardInput::Join(group, membership, reply) => self.on_join(group, membership, reply),
            ShardInput::Leave(group, reply) => self.on_leave(group, reply),
            ShardInput::Recover(group, survivors, seen, reply) => {
                self.on_recover(group, survivors, seen, reply);
            }
            ShardInput::Applied(marks) => {
                for (group, index) in marks {
                    self.step(group, Input::Applied(index));
                    self.serve_reads(group, index);
                    self.compact_witness(group);
                }
            }
            ShardInput::SnapshotDone(group, done) => self.on_snapshot_done(group, done),
            ShardInput::SnapshotSending(sent, sending) => self.on_snapshot_sending(sent, sending),
            _ if self.fenced.is_some() => {} // silent, so that the others elect
            ShardInput::Tick => self.on_tick(),
            ShardInput::Messages(envelopes) => {
                for envelope in envelopes {
                    self.on_message(envelope);
                }
            }
            ShardInput::SnapshotReceived(envelope) => self.on_snapshot_received(envelope),
            ShardInput::MakeSnapshot(group) => self.save(group),
            ShardInput::GiveUp(group) => self.on_give_up(group),
            ShardInput::Durable(ticket) => self.on_durable(ticket),
            ShardInput::TransferLeadership(group, to) => {
                self.step(group, Input::TransferLeadership(to));
            }
            ShardInput::Compact(group, index) => self.compact(group, index),
            ShardInput::Reclaimed(group, index) => self.on_reclaimed(group, index),
            ShardInput::PeerDown(node) => {
                for group in self.members_of(node) {
                    self.step(group, Input::PeerDown(node));
                }
            }
        }
    }

    fn step(&mut self, group: GroupId, input: Input) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        replica.raft.step(input);
        self.dirty.insert(group);
    }

    fn members_of(&self, node: NodeId) -> Vec<GroupId> {
        let groups = self.groups.iter();
        let with_node = groups.filter(|(_, r)| r.raft.configuration().contains(node));
        with_node.map(|(&group, _)| group).collect()
    }

    fn on_tick(&mut self) {
        self.ticks += 1;
        for (&group, replica) in &mut self.groups {
            replica.raft.step(Input::Tick);
            self.dirty.insert(group);
        }
        if self
            .ticks
            .is_multiple_of(u64::from(self.config.forward_ticks.max(1)))
        {
            self.expire_requests();
        }
    }

    fn on_durable(&mut self, ticket: u64) {
        while self
            .in_flight
            .front()
            .is_some_and(|batch| batch.ticket <= ticket)
        {
            let Some(batch) = self.in_flight.pop_front() else {
                return;
            };
            for (group, number) in batch.writes {
                self.step(group, Input::Durable(number));
            }
            self.out.send.extend(batch.messages);
            for group in batch.memberships {
                self.on_membership_durable(group);
            }
            for (group, snapshot) in batch.installs {
                self.restore_state(group, snapshot);
            }
            self.on_removals_durable(batch.removals);
            let replies = batch.replies.into_iter();
            let started = replies.map(|reply| Answer::Bootstrap(reply, Ok(())));
            self.out.answers.extend(started);
        }
    }

    /// Nothing becomes durable any more: promise nothing, serve nothing, say so.
    fn on_fence(&mut self, error: LogError) {
        for replica in self.groups.values_mut() {
            for (_, (_, waiter)) in std::mem::take(&mut replica.proposals) {
                self.out.refused.push((waiter, ProposeError::Unknown));
            }
            let waiting = std::mem::take(&mut replica.reads)
                .into_values()
                .flat_map(|r| r.1);
            let unserved = std::mem::take(&mut replica.unserved)
                .into_iter()
                .map(|r| r.1);
            let reads = waiting
                .chain(unserved)
                .chain(std::mem::take(&mut replica.arrived));
            self.out
                .reads
                .extend(reads.map(|r| (r, Err(ReadError::Fenced(error.clone())))));
            let changes = std::mem::take(&mut replica.changes).into_values();
            let placed = std::mem::take(&mut replica.placed_changes).into_values();
            let unknown = changes.map(|c| c.1).chain(placed.map(|c| c.1));
            let unknown =
                unknown.map(|reply| Answer::Membership(reply, Err(ChangeMembershipError::Unknown)));
            self.out.answers.extend(unknown);
            let fenced = || error.clone();
            let joiners = replica.joiners.drain(..);
            let joiners = joiners.map(|(_, r)| Answer::Join(r, Err(JoinError::Fenced(fenced()))));
            let leavers = replica.leavers.drain(..);
            let leavers = leavers.map(|r| Answer::Leave(r, Err(LeaveError::Fenced(fenced()))));
            self.out.answers.extend(joiners.chain(leavers));
        }
        self.fence_removals(&error);
        let in_flight = self.in_flight.drain(..).flat_map(|batch| batch.replies);
        let created = self.created.drain(..).filter_map(|(_, reply)| reply);
        for reply in in_flight.chain(created).chain(self.repeated.drain(..)) {
            let fenced = Err(BootstrapError::Fenced(error.clone()));
            self.out.answers.push(Answer::Bootstrap(reply, fenced));
        }
        for (&group, replica) in &self.groups {
            let term = replica.raft.term();
            self.out.events.push(GroupEvent::LeaderUpdated {
                group,
                term,
                leader: None,
            });
        }
        self.out.apply.push(ApplyTask::GiveUp);
        self.fenced = Some(error);
    }

    /// Gathers what the dirty groups want, in one batch.
    fn collect(&mut self) {
        let mut batch = BatchInFlight::default();
        let mut writes = Vec::new();
        self.take_removals(&mut batch, &mut writes);
        for (write, reply) in self.created.drain(..) {
            batch.replies.extend(reply);
            writes.push(write);
        }
        let changed = std::mem::take(&mut self.memberships);
        for (group, meta) in changed {
            batch.memberships.push(group);
            writes.push(GroupWrite {
                meta: Some(meta),
                ..GroupWrite::new(group)
            });
        }
        let with_meta = writes.len();
        for group in std::mem::take(&mut self.dirty) {
            let Some(mut effects) = self.take_effects(group) else {
                continue;
            };
            if let (Some(snapshot), Some((_, write))) = (effects.install.take(), &mut effects.write)
            {
                self.on_install(group, snapshot, &mut batch, write);
            }
            if let Some((number, write)) = effects.write.take() {
                batch.writes.push((group, number));
                if !write.is_empty() {
                    merge(&mut writes, with_meta, write);
                }
            }
            batch.messages.append(&mut effects.send_when_durable);
            self.on_effects(group, effects);
        }
        batch.replies.append(&mut self.repeated);
        self.hand_out(batch, writes);
    }

    fn take_effects(&mut self, group: GroupId) -> Option<Effects> {
        if self.fenced.is_some() {
            return None;
        }
        let replica = self.groups.get_mut(&group)?;
        let mut source = ReplicaSource {
            group,
            log: &*self.log,
            snapshots: &mut replica.snapshots,
        };
        Some(replica.raft.take_effects(&mut source))
    }

    /// What waits for the disk goes with this turn's batch; without one, with the newest on its
    /// way; and at once when everything is durable.
    fn hand_out(&mut self, mut batch: BatchInFlight, writes: Vec<GroupWrite>) {
        if !writes.is_empty() {
            self.ticket += 1;
            batch.ticket = self.ticket;
            self.in_flight.push_back(batch);
            self.out.write = Some(WriteBatch {
                shard: self.id,
                ticket: self.ticket,
                writes,
            });
        } else if let Some(newest) = self.in_flight.back_mut() {
            newest.writes.append(&mut batch.writes);
            newest.messages.append(&mut batch.messages);
            newest.replies.append(&mut batch.replies);
            newest.installs.append(&mut batch.installs);
        } else {
            self.out.wants_turn |= !batch.writes.is_empty() || !batch.installs.is_empty();
            self.settled = batch.writes;
            self.settled_installs = batch.installs;
            self.out.send.append(&mut batch.messages);
            let replies = batch.replies.into_iter();
            let started = replies.map(|reply| Answer::Bootstrap(reply, Ok(())));
            self.out.answers.extend(started);
        }
    }

    fn on_effects(&mut self, group: GroupId, effects: Effects) {
        self.send(group, effects.send);
        for outcome in effects.proposals {
            self.on_outcome(group, outcome);
        }
        self.apply(group, effects.apply);
        for ReadOutcome { request, index } in effects.reads {
            self.on_read_outcome(group, request, &index.map_err(ReadError::from));
        }
        if let Some((term, leader)) = effects.leader {
            self.out.events.push(GroupEvent::LeaderUpdated {
                group,
                term,
                leader,
            });
        }
        self.out.learned.extend(effects.learned);
        if let Some(membership) = effects.left {
            self.leaving.insert(group, membership);
            self.out.wants_turn = true;
        }
        self.answer_joiners(group, effects.join_refused);
        self.maybe_save(group); // a peer may need one
    }
}

/// One unit per group: what a group wrote in the turn that created it or changed its membership
/// joins that, which is among the first `with_meta` writes.
fn merge(writes: &mut Vec<GroupWrite>, with_meta: usize, write: GroupWrite) {
    let first = &mut writes[..with_meta];
    match first.iter_mut().find(|w| w.group == write.group) {
        Some(place) => {
            *place = GroupWrite {
                meta: write.meta.or(place.meta.take()),
                ..write
            };
        }
        None => writes.push(write),
    }
}
