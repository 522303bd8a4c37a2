//! The loop over many groups: one synchronous turn, called by a thread in production and by tests.
//!
//! A shard owns some of the node's groups. [`Shard::turn`] takes everything that happened since the
//! last turn and returns everything to be done, already in order: write, send, apply, answer.
//! It never reads a clock, never waits, never touches a file or a socket but to fetch old log
//! entries through [`Log::read`].
//!
//! `P` and `R` are the waiting proposals and reads: one-shot senders in production.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::block::Block;
use crate::config::Config;
use crate::error::{BootstrapError, ProposeError, ReadError};
use crate::events::GroupEvent;
use crate::raft::effects::{Effects, Input, ProposalOutcome, ReadOutcome};
use crate::raft::membership::{MemberRole, Membership};
use crate::raft::message::Envelope;
use crate::raft::{Group, Limits, RoleName};
use crate::traits::{GroupWrite, Log, LogError, StoredGroup, WriteBatch};
use crate::types::{GroupId, HardState, Index, NodeId, Term};

/// Answers a bootstrap.
pub type BootstrapReply = Box<dyn FnOnce(Result<(), BootstrapError>) + Send>;
/// Answers a question for the state of groups.
pub type StatusReply = Box<dyn FnOnce(Vec<GroupStatus>) + Send>;

/// What may happen to a shard.
pub enum ShardInput<P, R> {
    /// One tick passed for all groups.
    Tick,
    /// Messages of peers, for groups of this shard.
    Messages(Vec<Envelope>),
    /// A client proposes.
    Propose(GroupId, bytes::Bytes, P),
    /// A client reads.
    Read(GroupId, R),
    /// All batches up to this ticket are durable.
    Durable(u64),
    /// The apply stage is done up to these indexes.
    Applied(Vec<(GroupId, Index)>),
    /// A node is gone.
    PeerDown(NodeId),
    /// Start a group with these members.
    Bootstrap(GroupId, Membership, BootstrapReply),
    /// Tell the state of these groups; of all if empty.
    Status(Vec<GroupId>, StatusReply),
    /// The log or the state machine failed: stop serving, for good.
    Fence(LogError),
}

/// Work of the apply stage, in order.
#[derive(Debug)]
pub enum ApplyTask<P> {
    /// Who waits for the output of an entry.
    Await(GroupId, Index, Term, P),
    /// Committed and durable entries.
    Apply(GroupId, Vec<Block>),
}

/// Everything one turn asks for, in the order in which it is to be done.
#[must_use = "dropped effects are lost writes and lost messages"]
pub struct TurnEffects<P, R> {
    /// For the log.
    pub write: Option<WriteBatch>,
    /// For the transport.
    pub send: Vec<Envelope>,
    /// For the apply stage.
    pub apply: Vec<ApplyTask<P>>,
    /// Proposals that have no result.
    pub refused: Vec<(P, ProposeError)>,
    /// Reads that may be served now, or not at all.
    pub reads: Vec<(R, Result<Index, ReadError>)>,
    /// What happened, for watchers.
    pub events: Vec<GroupEvent>,
    /// Groups started or refused.
    pub bootstraps: Vec<(BootstrapReply, Result<(), BootstrapError>)>,
}

impl<P, R> Default for TurnEffects<P, R> {
    fn default() -> Self {
        Self {
            write: None,
            send: Vec::new(),
            apply: Vec::new(),
            refused: Vec::new(),
            reads: Vec::new(),
            events: Vec::new(),
            bootstraps: Vec::new(),
        }
    }
}

/// The state of one group on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// What the replica is.
    pub role: RoleName,
    /// Its role in the membership; `None` if it is no member.
    pub member_role: Option<MemberRole>,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Committed up to.
    pub commit: Index,
    /// Applied up to.
    pub applied: Index,
    /// First index in the log.
    pub first: Index,
    /// Last index in the log.
    pub last: Index,
    /// Everyone in it.
    pub membership: Membership,
}

struct Replica<P, R> {
    raft: Group,
    membership: Membership,
    /// Proposals that the core or another node has, by number.
    proposals: BTreeMap<u64, (u64, P)>,
    /// Reads that have no index yet, by number; a number stands for all reads of one turn.
    reads: BTreeMap<u64, (u64, Vec<R>)>,
    /// Reads that wait until their index is applied.
    unserved: Vec<(Index, R)>,
    /// Reads of this turn, not yet given to the core.
    arrived: Vec<R>,
}

/// A batch on its way to the disk.
struct BatchInFlight {
    ticket: u64,
    /// The group writes in it, by their groups' numbers.
    writes: Vec<(GroupId, u64)>,
    /// The bootstraps that wait for it.
    replies: Vec<BootstrapReply>,
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
    created: Vec<(GroupWrite, BootstrapReply)>,
    /// Bootstraps of this turn for groups that are here already.
    repeated: Vec<BootstrapReply>,
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
            repeated: Vec::new(),
            fenced: None,
            out: TurnEffects::default(),
        }
    }

    /// A group that the log holds, with what its state machine has applied.
    pub fn restore(&mut self, stored: &StoredGroup, membership: Membership, applied: Index) {
        self.insert(stored, membership, applied);
    }

    fn insert(&mut self, stored: &StoredGroup, membership: Membership, applied: Index) {
        let group = stored.group;
        let first = membership.first_candidate(group.0) == Some(self.config.node);
        let seed =
            self.next_request ^ (u64::from(group.0) << 32) ^ u64::from(self.config.node.get());
        let configuration = membership.configuration();
        let limits: Limits = self.config.limits;
        let raft = Group::restore(
            self.config.node,
            stored,
            configuration,
            applied,
            limits,
            first,
            seed,
        );
        self.out.events.push(GroupEvent::MemberReady {
            group,
            membership: membership.clone(),
        });
        let replica = Replica {
            raft,
            membership,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            unserved: Vec::new(),
            arrived: Vec::new(),
        };
        self.groups.insert(group, replica);
        self.dirty.insert(group);
    }

    /// One round: all of `inbox` in, everything that follows out.
    pub fn turn(&mut self, inbox: impl IntoIterator<Item = ShardInput<P, R>>) -> TurnEffects<P, R> {
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
            ShardInput::Applied(marks) => {
                for (group, index) in marks {
                    self.step(group, Input::Applied(index));
                    self.serve_reads(group, index);
                }
            }
            _ if self.fenced.is_some() => {} // silent, so that the others elect
            ShardInput::Tick => self.on_tick(),
            ShardInput::Messages(envelopes) => {
                for envelope in envelopes {
                    self.step(envelope.group, Input::Message(envelope));
                }
            }
            ShardInput::Durable(ticket) => self.on_durable(ticket),
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
        let member = |r: &&Replica<P, R>| r.membership.members.contains_key(&node);
        self.groups
            .iter()
            .filter(|(_, r)| member(r))
            .map(|(&g, _)| g)
            .collect()
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

    /// A forwarded request whose answer is lost must not wait for ever, nor fill memory.
    fn expire_requests(&mut self) {
        let limit = self
            .ticks
            .saturating_sub(u64::from(self.config.forward_ticks));
        for replica in self.groups.values_mut() {
            while let Some(entry) = replica
                .proposals
                .first_entry()
                .filter(|e| e.get().0 <= limit)
            {
                self.out
                    .refused
                    .push((entry.remove().1, ProposeError::Unknown));
            }
            while let Some(entry) = replica.reads.first_entry().filter(|e| e.get().0 <= limit) {
                let lost = entry
                    .remove()
                    .1
                    .into_iter()
                    .map(|r| (r, Err(ReadError::Lost)));
                self.out.reads.extend(lost);
            }
        }
    }

    fn on_propose(&mut self, group: GroupId, payload: bytes::Bytes, waiter: P) {
        if let Some(error) = &self.fenced {
            self.out
                .refused
                .push((waiter, ProposeError::Fenced(error.clone())));
            return;
        }
        let Some(replica) = self.groups.get_mut(&group) else {
            self.out
                .refused
                .push((waiter, ProposeError::UnknownGroup(group)));
            return;
        };
        let request = self.next_request;
        self.next_request += 1;
        replica.proposals.insert(request, (self.ticks, waiter));
        replica.raft.step(Input::Propose { request, payload });
        self.dirty.insert(group);
    }

    fn on_read(&mut self, group: GroupId, waiter: R) {
        if let Some(error) = &self.fenced {
            self.out
                .reads
                .push((waiter, Err(ReadError::Fenced(error.clone()))));
            return;
        }
        let Some(replica) = self.groups.get_mut(&group) else {
            self.out
                .reads
                .push((waiter, Err(ReadError::UnknownGroup(group))));
            return;
        };
        replica.arrived.push(waiter);
        self.dirty.insert(group);
    }

    /// All reads of a group in one turn are one question to the leader.
    fn start_reads(&mut self) {
        for &group in &self.dirty {
            let Some(replica) = self.groups.get_mut(&group) else {
                continue;
            };
            if replica.arrived.is_empty() {
                continue;
            }
            let request = self.next_request;
            self.next_request += 1;
            let readers = std::mem::take(&mut replica.arrived);
            replica.reads.insert(request, (self.ticks, readers));
            replica.raft.step(Input::Read { request });
        }
    }

    fn serve_reads(&mut self, group: GroupId, applied: Index) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let served = replica
            .unserved
            .extract_if(.., |(index, _)| *index <= applied);
        self.out
            .reads
            .extend(served.map(|(index, waiter)| (waiter, Ok(index))));
    }

    fn on_bootstrap(&mut self, group: GroupId, membership: Membership, reply: BootstrapReply) {
        if let Err(error) = self.check_bootstrap(group, &membership) {
            self.out.bootstraps.push((reply, Err(error)));
            return;
        }
        if self.groups.contains_key(&group) {
            // The same call again: it holds once all that was written so far is durable.
            self.repeated.push(reply);
            return;
        }
        let meta = membership.encode();
        let stored = StoredGroup {
            group,
            meta: meta.clone(),
            hard_state: HardState::default(),
            compacted: (Index::ZERO, Term::ZERO),
            terms: Vec::new(),
        };
        self.insert(&stored, membership, Index::ZERO);
        let write = GroupWrite {
            meta: Some(meta),
            ..GroupWrite::new(group)
        };
        self.created.push((write, reply));
    }

    fn check_bootstrap(
        &self,
        group: GroupId,
        membership: &Membership,
    ) -> Result<(), BootstrapError> {
        if let Some(error) = &self.fenced {
            return Err(BootstrapError::Fenced(error.clone()));
        }
        membership.check()?;
        if !membership.members.contains_key(&self.config.node) {
            return Err(BootstrapError::NotAMember);
        }
        match self.groups.get(&group) {
            Some(replica) if replica.membership != *membership => {
                Err(BootstrapError::Exists(group))
            }
            None if !self.log.has_room() => Err(BootstrapError::DiskFull),
            Some(_) | None => Ok(()),
        }
    }

    fn on_durable(&mut self, ticket: u64) {
        while self
            .in_flight
            .front()
            .is_some_and(|batch| batch.ticket <= ticket)
        {
            let Some(BatchInFlight {
                writes, replies, ..
            }) = self.in_flight.pop_front()
            else {
                return;
            };
            for (group, number) in writes {
                self.step(group, Input::Durable(number));
            }
            self.out
                .bootstraps
                .extend(replies.into_iter().map(|reply| (reply, Ok(()))));
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
        }
        for BatchInFlight { replies, .. } in self.in_flight.drain(..) {
            let fenced = || Err(BootstrapError::Fenced(error.clone()));
            self.out
                .bootstraps
                .extend(replies.into_iter().map(|reply| (reply, fenced())));
        }
        let created = self.created.drain(..).map(|(_, reply)| reply);
        for reply in created.chain(self.repeated.drain(..)) {
            self.out
                .bootstraps
                .push((reply, Err(BootstrapError::Fenced(error.clone()))));
        }
        for (&group, replica) in &self.groups {
            let term = replica.raft.term();
            self.out.events.push(GroupEvent::LeaderUpdated {
                group,
                term,
                leader: None,
            });
        }
        self.fenced = Some(error);
    }

    /// Gathers what the dirty groups want, in one batch.
    fn collect(&mut self) {
        let mut writes = Vec::new();
        let mut numbers = Vec::new();
        let mut replies = Vec::new();
        for (write, reply) in self.created.drain(..) {
            replies.push(reply);
            writes.push(write);
        }
        let created = writes.len();
        for group in std::mem::take(&mut self.dirty) {
            if self.fenced.is_some() {
                continue;
            }
            let Some(replica) = self.groups.get_mut(&group) else {
                continue;
            };
            let log = &self.log;
            let mut effects = replica
                .raft
                .take_effects(&mut |first, last, bytes| log.read(group, first, last, bytes));
            if let Some((number, write)) = effects.write.take() {
                numbers.push((group, number));
                merge(&mut writes, created, write);
            }
            self.on_effects(group, effects);
        }
        replies.append(&mut self.repeated);
        if !writes.is_empty() {
            self.ticket += 1;
            let batch = BatchInFlight {
                ticket: self.ticket,
                writes: numbers,
                replies,
            };
            self.in_flight.push_back(batch);
            self.out.write = Some(WriteBatch {
                shard: self.id,
                ticket: self.ticket,
                writes,
            });
        } else if let Some(batch) = self.in_flight.back_mut() {
            batch.replies.append(&mut replies);
        } else {
            self.out
                .bootstraps
                .extend(replies.into_iter().map(|reply| (reply, Ok(()))));
        }
    }

    fn on_effects(&mut self, group: GroupId, effects: Effects) {
        self.out.send.extend(effects.send);
        for outcome in effects.proposals {
            self.on_outcome(group, outcome);
        }
        if !effects.apply.is_empty() {
            self.out.apply.push(ApplyTask::Apply(group, effects.apply));
        }
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
    }

    fn on_outcome(&mut self, group: GroupId, outcome: ProposalOutcome) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        match outcome {
            ProposalOutcome::Appended {
                request,
                index,
                term,
            } => {
                if let Some((_, waiter)) = replica.proposals.remove(&request) {
                    self.out
                        .apply
                        .push(ApplyTask::Await(group, index, term, waiter));
                }
            }
            ProposalOutcome::Refused { request, reason } => {
                if let Some((_, waiter)) = replica.proposals.remove(&request) {
                    self.out
                        .refused
                        .push((waiter, ProposeError::Refused(reason)));
                }
            }
        }
    }

    fn on_read_outcome(&mut self, group: GroupId, request: u64, index: &Result<Index, ReadError>) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let Some((_, readers)) = replica.reads.remove(&request) else {
            return;
        };
        let applied = replica.raft.log().applied();
        for reader in readers {
            match index {
                Ok(index) if *index > applied => replica.unserved.push((*index, reader)),
                result => self.out.reads.push((reader, result.clone())),
            }
        }
    }

    fn status(&self, groups: &[GroupId]) -> Vec<GroupStatus> {
        let wanted = |g: &GroupId| groups.is_empty() || groups.contains(g);
        let replicas = self.groups.iter().filter(|(g, _)| wanted(g));
        let node = self.config.node;
        replicas
            .map(|(&group, replica)| GroupStatus {
                group,
                role: replica.raft.role(),
                member_role: replica.membership.members.get(&node).map(|m| m.role),
                term: replica.raft.term(),
                leader: replica.raft.leader(),
                commit: replica.raft.log().commit(),
                applied: replica.raft.log().applied(),
                first: replica.raft.log().first(),
                last: replica.raft.log().last(),
                membership: replica.membership.clone(),
            })
            .collect()
    }
}

/// One unit per group: what a group wrote in the turn that created it joins its creation, which is
/// among the first `created` writes.
fn merge(writes: &mut Vec<GroupWrite>, created: usize, write: GroupWrite) {
    match writes[..created]
        .iter_mut()
        .find(|w| w.group == write.group)
    {
        Some(creation) => {
            creation.truncate_from = write.truncate_from;
            creation.blocks = write.blocks;
            creation.hard_state = write.hard_state;
        }
        None => writes.push(write),
    }
}
