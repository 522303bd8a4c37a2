//! A cluster and its time.

mod chaos;
mod joining;
mod lose;
mod settle;
mod snapshots;
mod wipe;

use std::collections::{BTreeMap, BTreeSet};

use multiraft_engine::error::ProposeError;
use multiraft_engine::events::GroupEvent;
use multiraft_engine::planted;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::shard::{ApplyTask, ShardInput, TurnEffects};
use multiraft_engine::state_machine::StateMachine;
use multiraft_engine::traits::{Log, PeerAddress};
use multiraft_engine::types::{GroupId, Index, NodeId};
use multiraft_transport::codec::Item;
use rand::Rng;
use rand::seq::SliceRandom;

use self::joining::Away;
use super::client::{Ask, Clients, OpId};
use super::dice::Dice;
use super::faults::{Counters, Fault, FaultSet};
use super::invariants::Invariants;
use super::machine::{Command, Key};
use super::network::Network;
use super::node::{Node, Task, limits};
use super::trace::{Kind, Trace};
use super::transfers::Transfers;
use super::{Outcome, Plan};

/// Keys a group has: few, so that operations meet.
const KEYS: Key = 3;
/// Operations of a group under way at most.
const OPEN_OPERATIONS: usize = 6;
/// Operations that a client sends at once at most: logs that part by many entries need them.
const BURST: usize = 16;

/// See the module's documentation.
pub struct World {
    plan: Plan,
    rng: Dice,
    tick: u64,
    nodes: Vec<Node>,
    groups: BTreeMap<GroupId, Membership>,
    network: Network,
    transfers: Transfers,
    /// Nodes whose replaced disk is not a member of all its groups again.
    wiped: BTreeSet<NodeId>,
    /// A group that was given up in the log of a node, and is not back yet.
    lost: Option<(GroupId, NodeId)>,
    /// Nodes that were asked to leave a group, and are not back yet.
    away: BTreeMap<GroupId, Away>,
    /// Replicas that have lost their state, but not their log.
    stateless: BTreeSet<(GroupId, NodeId)>,
    clients: Clients,
    invariants: Invariants,
    counters: Counters,
    faults: FaultSet,
    hash: u64,
    trace: Trace,
    healed_ticks: u64,
}

impl World {
    /// Draws everything that a plan leaves open.
    pub fn new(plan: &Plan, traces: bool) -> Self {
        Self::with_dice(plan, Dice::seeded(plan.seed), traces)
    }

    /// The same, drawn from elsewhere.
    pub fn with_dice(plan: &Plan, mut rng: Dice, traces: bool) -> Self {
        let limits = limits(&mut rng, plan.faults);
        let ids: Vec<NodeId> = (1..=plan.nodes).filter_map(NodeId::new).collect();
        let mut nodes: Vec<Node> = ids
            .iter()
            .map(|&id| Node::new(id, &mut rng, limits))
            .collect();
        if plan.faults.has(Fault::ClockRate) {
            for node in &mut nodes {
                node.clock.0 = rng.random_range(500..=2000);
            }
        }
        let draw = |group| (GroupId(group), membership(&ids, &mut rng));
        let groups: BTreeMap<GroupId, Membership> = (1..=plan.groups).map(draw).collect();
        let voters = |m: &Membership| m.configuration().voters;
        let voters = groups.iter().map(|(&group, m)| (group, voters(m)));
        let changing = [Fault::Membership, Fault::Wipe, Fault::Leave, Fault::Lose];
        let has_changes = changing.iter().any(|&fault| plan.faults.has(fault));
        Self {
            invariants: Invariants::new(voters.collect(), has_changes),
            plan: plan.clone(),
            rng,
            tick: 0,
            nodes,
            groups,
            network: Network::default(),
            transfers: Transfers::default(),
            wiped: BTreeSet::new(),
            lost: None,
            away: BTreeMap::new(),
            stateless: BTreeSet::new(),
            clients: Clients::default(),
            counters: Counters::default(),
            faults: plan.faults,
            hash: 0xcbf2_9ce4_8422_2325,
            trace: Trace::new(traces),
            healed_ticks: 0,
        }
    }

    /// Runs, and gives all messages that one node sent another in one turn.
    pub fn run_and_listen(&mut self) -> Vec<Vec<Item>> {
        self.network.heard = Some(Vec::new());
        self.run();
        self.network.heard.take().unwrap_or_default()
    }

    /// What was noted.
    pub fn take_trace(&mut self) -> Trace {
        std::mem::take(&mut self.trace)
    }

    /// The whole run; panics when a rule is broken.
    pub fn run(&mut self) -> Outcome {
        for at in 0..self.nodes.len() {
            self.start(at);
        }
        self.bootstrap();
        for _ in 0..self.plan.ticks {
            let sings = planted!("canary");
            assert!(!sings, "the canary has sung");
            self.advance();
            self.break_something();
            self.rejoin_sometimes();
            self.find_again_sometimes();
            self.return_sometimes();
            self.ask_something();
        }
        self.heal();
        self.settle();
        self.check_end();
        Outcome {
            hash: self.hash,
            counters: self.counters.clone(),
            committed: self.invariants.committed,
            acknowledged: self.clients.acknowledged,
            healed_ticks: self.healed_ticks,
        }
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0100_0000_01b3);
    }

    fn note(&mut self, node: Option<NodeId>, kind: Kind, text: impl FnOnce() -> String) {
        self.trace.note(self.tick, node, kind, text);
    }

    fn fault(&mut self, fault: Fault, node: Option<NodeId>, text: impl FnOnce() -> String) {
        self.counters.count(fault);
        self.mix(fault as u64 + 1000);
        self.note(node, Kind::Fault, || format!("{fault} {}", text()));
    }

    fn bootstrap(&mut self) {
        for (&group, membership) in &self.groups {
            for node in &mut self.nodes {
                if membership.members.contains_key(&node.id) {
                    let reply = Box::new(|_| ());
                    node.push(
                        group,
                        ShardInput::Bootstrap(group, membership.clone(), reply),
                    );
                }
            }
        }
    }

    /// One tick: frames arrive, then each node does its work, in any order.
    fn advance(&mut self) {
        self.tick += 1;
        for envelopes in self.network.arrivals(self.tick) {
            let Some(to) = envelopes.first().map(|e| e.to) else {
                continue;
            };
            self.mix(u64::from(to.get()) << 32 | envelopes.len() as u64);
            self.node(to).receive(envelopes);
        }
        self.turn_transfers();
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.shuffle(&mut self.rng);
        for at in order {
            self.nodes[at].free_disk(self.tick);
            if self.nodes[at].process.is_none() && self.tick >= self.nodes[at].restart_at {
                self.start(at);
            }
            if self.nodes[at].is_awake(self.tick) {
                self.work(at);
            }
        }
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.get() as usize - 1]
    }

    fn start(&mut self, at: usize) {
        let seed = self.rng.random();
        let node = &mut self.nodes[at];
        let Some(stored) = node.start(seed) else {
            node.restart_at = self.tick + 5;
            return;
        };
        let id = node.id;
        self.invariants.on_restart(id, &stored);
        self.mix(stored.len() as u64 + 2000);
        self.note(Some(id), Kind::Fault, || "starts".to_owned());
        if stored.len() < self.groups.len() {
            self.bootstrap(); // who crashed before it was durable gets the same call again
        }
    }

    /// A node's share of a tick.
    fn work(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.clock.1 += node.clock.0;
        while node.clock.1 >= 1000 {
            node.clock.1 -= 1000;
            node.push_all(|| ShardInput::Tick);
        }
        for _ in 0..self.rng.random_range(1..4) {
            self.turn_shards(at);
            self.turn_disk(at);
            self.turn_machine(at);
            self.turn_snapshots(at);
        }
    }

    fn turn_shards(&mut self, at: usize) {
        let count = self.nodes[at]
            .process
            .as_ref()
            .map_or(0, |p| p.shards.len());
        for shard in 0..count {
            let mut wants_turn = true;
            while wants_turn {
                let Some(process) = &mut self.nodes[at].process else {
                    return;
                };
                let inbox = std::mem::take(&mut process.inboxes[shard]);
                let is_message = |input: &&_| matches!(input, ShardInput::Messages(_));
                process.waiting_messages -= inbox.iter().filter(is_message).count();
                let effects = process.shards[shard].turn(inbox);
                wants_turn = effects.wants_turn;
                self.carry_out(at, shard, effects);
            }
        }
    }

    /// As the host does it, in the same order.
    fn carry_out(&mut self, at: usize, shard: usize, effects: TurnEffects<OpId, OpId>) {
        let id = self.nodes[at].id;
        if self.nodes[at].process.is_none() {
            return;
        }
        if let Some(batch) = effects.write {
            self.invariants.on_write(id, &batch);
            let bytes = batch
                .writes
                .iter()
                .flat_map(|w| &w.blocks)
                .map(|b| b.bytes().len());
            let bytes: usize = bytes.sum();
            self.check_compaction(at, &batch.writes);
            let Some(process) = &mut self.nodes[at].process else {
                return;
            };
            if let Err(error) = process.log.append(batch) {
                process.is_fenced = true;
                self.nodes[at].push_all(|| ShardInput::Fence(error.clone()));
                return;
            }
            self.mix(bytes as u64);
        }
        for envelope in &effects.send {
            self.invariants.on_send(envelope);
        }
        let (faults, tick) = (self.faults, self.tick);
        let incarnation = self.nodes[at].incarnation;
        self.network.send(
            tick,
            incarnation,
            effects.send,
            faults,
            &mut self.rng,
            &mut self.counters,
        );
        self.send_snapshots(at, effects.send_snapshots);
        for task in &effects.apply {
            match task {
                ApplyTask::Apply(group, blocks) => self.invariants.on_apply(id, *group, blocks),
                ApplyTask::Restore(group, snapshot) => {
                    self.invariants.on_restore(id, *group, snapshot);
                }
                ApplyTask::Pass(..)
                | ApplyTask::Save(..)
                | ApplyTask::Remove(..)
                | ApplyTask::Await(..)
                | ApplyTask::GiveUp => {}
            }
        }
        self.add_snapshot_tasks(at, effects.snapshot_tasks);
        if let Some(process) = &mut self.nodes[at].process {
            process.tasks[shard].extend(effects.apply);
        }
        for (operation, error) in effects.refused {
            self.on_refused(operation, &error);
        }
        for (operation, result) in effects.reads {
            match result {
                Ok(index) => self.serve(at, operation, index),
                Err(_) => self.clients.on_failed(operation),
            }
        }
        for event in effects.events {
            self.on_event(id, &event);
        }
        for answer in effects.answers {
            answer.deliver();
        }
    }

    fn on_event(&mut self, id: NodeId, event: &GroupEvent) {
        match event {
            GroupEvent::LeaderUpdated {
                group,
                term,
                leader,
            } => {
                self.mix(term.0 << 8 | u64::from(leader.map_or(0, NodeId::get)));
                self.note(Some(id), Kind::Election, || {
                    let leader = leader.map_or("nobody".to_owned(), |l| format!("n{l}"));
                    format!("g{group} term {term}: {leader} leads")
                });
            }
            GroupEvent::MembershipChanged {
                group, membership, ..
            } => self.note(Some(id), Kind::Election, || {
                format!(
                    "g{group} membership {}: {:?}",
                    membership.index,
                    membership.configuration()
                )
            }),
            GroupEvent::Snapshot {
                group,
                index,
                event,
            } => {
                self.mix(u64::from(group.0) << 50 | index.0);
                self.note(Some(id), Kind::Snapshot, || {
                    format!("g{group} {event:?} {index}")
                });
            }
            GroupEvent::Left { group } => {
                self.mix(u64::from(group.0) + 7000);
                self.note(Some(id), Kind::Election, || format!("g{group} is left"));
            }
            GroupEvent::MemberReady { .. } => {}
        }
    }

    fn on_refused(&mut self, operation: OpId, error: &ProposeError) {
        match error {
            ProposeError::Unknown | ProposeError::Stopped => self.clients.on_unknown(operation),
            _ => self.clients.on_failed(operation),
        }
    }

    /// A read is served from the node's own machine.
    fn serve(&mut self, at: usize, operation: OpId, index: Index) {
        let Some(open) = self.clients.get(operation) else {
            return;
        };
        let state = self.nodes[at].machine.state(open.group);
        assert!(state.applied >= index, "a read before its index is applied");
        if let Ask::Read(key) = open.ask {
            let value = state.keys.get(&key).copied().unwrap_or(0);
            self.clients.on_read(operation, value);
        }
    }

    fn turn_disk(&mut self, at: usize) {
        let is_slow = self.faults.has(Fault::SlowDisk) && at.is_multiple_of(2);
        let chance = if is_slow { 0.08 } else { 0.9 };
        let tick = self.tick;
        let is_turned = self.rng.random_bool(chance);
        let node = &mut self.nodes[at];
        if !is_turned {
            if is_slow {
                self.counters.count(Fault::SlowDisk);
            }
            return;
        }
        if tick < node.stuck_until {
            return;
        }
        if let Some(process) = &node.process {
            // A disk without room says so; the log goes on with what it has.
            process.log.prepare().ok();
        }
        let id = node.id;
        for (shard, ticket) in node.turn_writer() {
            self.invariants.on_durable(id, shard, ticket);
        }
    }

    fn turn_machine(&mut self, at: usize) {
        if self.faults.has(Fault::SlowApply) && self.rng.random_bool(0.7) {
            self.counters.count(Fault::SlowApply);
            return;
        }
        if self.rng.random_bool(0.05) {
            let Ok(()) = self.nodes[at].machine.flush();
        }
        let count = self.nodes[at]
            .process
            .as_ref()
            .map_or(0, |p| p.shards.len());
        for shard in 0..count {
            let Some(process) = &mut self.nodes[at].process else {
                return;
            };
            let tasks = std::mem::take(&mut process.tasks[shard]);
            if tasks.is_empty() {
                continue;
            }
            self.apply(at, shard, tasks);
        }
    }

    fn apply(&mut self, at: usize, shard: usize, tasks: Vec<Task>) {
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let Ok(round) = process.appliers[shard].run(tasks);
        for &(group, index) in &round.marks {
            self.mix(u64::from(group.0) << 40 | index.0);
            let id = self.nodes[at].id;
            self.note(Some(id), Kind::Commit, || {
                format!("g{group} applied {index}")
            });
        }
        for (operation, result) in round.completions {
            match result {
                Ok(output) => {
                    let id = self.nodes[at].id;
                    let text = || format!("operation {operation} done: {output:?}");
                    self.note(Some(id), Kind::Client, text);
                    self.clients.on_written(operation, output);
                }
                Err(error) => self.on_refused(operation, &error),
            }
        }
        if let Some(process) = &mut self.nodes[at].process {
            process.inboxes[shard].push(ShardInput::Applied(round.marks));
        }
        self.add_snapshot_tasks(at, round.snapshots);
    }

    /// Clients ask any node that runs.
    fn ask_something(&mut self) {
        if !self.rng.random_bool(0.3) {
            return;
        }
        // Half of all goes to one group: what needs many entries happens there.
        let is_hot = self.rng.random();
        let at = self.rng.random_range(0..self.groups.len());
        let Some((&group, _)) = self.groups.iter().nth(if is_hot { 0 } else { at }) else {
            return;
        };
        if self.clients.open_in(group) < OPEN_OPERATIONS {
            let at = self.rng.random_range(0..self.nodes.len());
            let is_burst = self.rng.random_bool(0.1);
            let count = if is_burst {
                self.rng.random_range(2..=BURST)
            } else {
                1
            };
            for _ in 0..count {
                self.ask(at, group);
            }
        }
    }

    /// One operation of a group at a node.
    fn ask(&mut self, at: usize, group: GroupId) {
        let key = self.rng.random_range(0..KEYS);
        let value = self.clients.next_value();
        let ask = match self.rng.random_range(0..10) {
            0..4 => Ask::Read(key),
            4..8 => Ask::Write(Command::Put(key, value)),
            8 => {
                let old = self.nodes[at].machine.state(group).keys.get(&key).copied();
                Ask::Write(Command::Swap(key, old.unwrap_or(0), value))
            }
            _ => Ask::Write(Command::Delete(key, value)),
        };
        self.begin(at, group, ask);
    }

    fn begin(&mut self, at: usize, group: GroupId, ask: Ask) {
        let node = &mut self.nodes[at];
        let Some(process) = &node.process else {
            return;
        };
        // As the host does: a full disk takes no proposals, a witness has nothing to read.
        let is_witness = self.groups[&group]
            .configuration()
            .witnesses
            .contains(&node.id);
        if is_witness || (matches!(ask, Ask::Write(_)) && !process.log.has_room()) {
            return;
        }
        let id = node.id;
        let operation = self.clients.begin(id, group, ask);
        let input = match ask {
            Ask::Write(command) => ShardInput::Propose(group, command.encode(), operation),
            Ask::Read(_) => ShardInput::Read(group, operation),
        };
        self.nodes[at].push(group, input);
        self.note(Some(id), Kind::Client, || format!("g{group} {ask:?}"));
    }

    fn check_end(&mut self) {
        for &(group, index, command) in &self.clients.writes {
            self.invariants.check_write(group, index, command);
        }
        self.clients.check();
        let committed = self.invariants.committed;
        self.mix(committed);
    }
}

/// Voters first, then perhaps a learner and a witness.
fn membership(ids: &[NodeId], rng: &mut Dice) -> Membership {
    let mut roles = vec![MemberRole::Voter; ids.len()];
    let last = roles.len() - 1;
    if ids.len() > 3 && rng.random_bool(0.3) {
        roles[last] = MemberRole::Learner;
    }
    if rng.random_bool(0.25) {
        roles[last - 1] = MemberRole::Witness;
    }
    roles.rotate_left(rng.random_range(0..ids.len()));
    let member = |(&id, role): (&NodeId, MemberRole)| {
        let address = PeerAddress {
            host: format!("n{id}"),
            port: 1,
        };
        (id, Member { role, address })
    };
    Membership::new(ids.iter().zip(roles).map(member).collect())
}
