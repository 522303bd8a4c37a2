//! A cluster and its time.

use std::collections::{BTreeMap, BTreeSet};

use multiraft_engine::error::ProposeError;
use multiraft_engine::events::GroupEvent;
use multiraft_engine::planted;
use multiraft_engine::raft::RoleName;
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::shard::{ApplyTask, GroupStatus, ShardInput, TurnEffects};
use multiraft_engine::state_machine::StateMachine;
use multiraft_engine::traits::{Log, PeerAddress};
use multiraft_engine::types::{GroupId, Index, NodeId};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

use super::client::{Ask, Clients, OpId};
use super::faults::{Counters, Fault, FaultSet};
use super::invariants::Invariants;
use super::machine::{Command, Key};
use super::network::Network;
use super::node::{Node, Task, limits};
use super::trace::{Kind, Trace};
use super::{Outcome, Plan};

/// Keys a group has: few, so that operations meet.
const KEYS: Key = 3;
/// Operations of a group under way at most.
const OPEN_OPERATIONS: usize = 6;
/// Operations that a client sends at once at most: logs that part by many entries need them.
const BURST: usize = 16;
/// Ticks after the heal within which everything must be settled: ten election timeouts of up to
/// twenty ticks.
const SETTLE_TICKS: u64 = 200;
/// Entries kept behind what every disk holds, because there is no snapshot that could help: a leader
/// may not know how far its peers are, and steps back by whole terms until it finds out.
const RETAINED_ENTRIES: u64 = 200;
/// Writes and reads served by each group after that.
const FINAL_OPERATIONS: usize = 10;

/// See the module's documentation.
pub struct World {
    plan: Plan,
    rng: SmallRng,
    tick: u64,
    nodes: Vec<Node>,
    groups: BTreeMap<GroupId, Membership>,
    network: Network,
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
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let limits = limits(&mut rng);
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
        let has_changes = plan.faults.has(Fault::Membership);
        Self {
            invariants: Invariants::new(voters.collect(), has_changes),
            plan: plan.clone(),
            rng,
            tick: 0,
            nodes,
            groups,
            network: Network::default(),
            clients: Clients::default(),
            counters: Counters::default(),
            faults: plan.faults,
            hash: 0xcbf2_9ce4_8422_2325,
            trace: Trace::new(traces),
            healed_ticks: 0,
        }
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
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.shuffle(&mut self.rng);
        for at in order {
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
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        if let Some(batch) = effects.write {
            self.invariants.on_write(id, &batch);
            let bytes = batch
                .writes
                .iter()
                .flat_map(|w| &w.blocks)
                .map(|b| b.bytes().len());
            let bytes: usize = bytes.sum();
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
        self.network.send(
            tick,
            effects.send,
            faults,
            &mut self.rng,
            &mut self.counters,
        );
        for task in &effects.apply {
            if let ApplyTask::Apply(group, blocks) = task {
                self.invariants.on_apply(id, *group, blocks);
            }
        }
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
        for (reply, result) in effects.bootstraps {
            reply(result);
        }
        for (reply, result) in effects.membership_replies {
            reply(result);
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
        if node.full_until > 0 && tick >= node.full_until {
            node.full_until = 0;
            node.disk.set_free_bytes(1 << 30);
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

    /// Every kind of fault in its own rhythm.
    fn break_something(&mut self) {
        for fault in self.plan.faults.iter() {
            let mean_ticks = match fault {
                Fault::Crash => 300,
                Fault::CrashAll => 4000,
                Fault::FailSync | Fault::StuckDisk => 1500,
                Fault::DiskFull => 1200,
                Fault::Partition | Fault::OneWay | Fault::Partial => 700,
                Fault::Reset | Fault::Pause | Fault::FalseEvidence | Fault::Membership => 250,
                Fault::ClockRate | Fault::Transfer => 400,
                Fault::Compact => 150,
                // These happen where frames are sent, disks turned and entries applied.
                Fault::Drop
                | Fault::Duplicate
                | Fault::Delay
                | Fault::SlowDisk
                | Fault::SlowApply => continue,
            };
            if self.rng.random_range(0..mean_ticks) == 0 {
                self.inject(fault);
            }
        }
        if !self.network.cut.is_empty() && self.rng.random_range(0..150) == 0 {
            self.network.cut.clear();
            self.note(None, Kind::Fault, || "links are back".to_owned());
        }
    }

    fn inject(&mut self, fault: Fault) {
        let at = self.rng.random_range(0..self.nodes.len());
        let other = self.rng.random_range(0..self.nodes.len());
        let (id, peer) = (self.nodes[at].id, self.nodes[other].id);
        let tick = self.tick;
        match fault {
            Fault::Crash => {
                if self.nodes[at].process.is_some() {
                    self.crash(at);
                    self.fault(fault, Some(id), String::new);
                }
            }
            Fault::CrashAll => {
                for at in 0..self.nodes.len() {
                    self.crash(at);
                }
                self.fault(fault, None, String::new);
            }
            Fault::FailSync => {
                self.nodes[at].disk.fail_next_sync();
                self.nodes[at].restart_at = 0;
                self.fault(fault, Some(id), String::new);
            }
            Fault::DiskFull => {
                self.nodes[at].disk.set_free_bytes(0);
                self.nodes[at].full_until = tick + self.rng.random_range(50..500);
                self.fault(fault, Some(id), String::new);
            }
            Fault::StuckDisk => {
                self.nodes[at].stuck_until = tick + self.rng.random_range(20..120);
                self.fault(fault, Some(id), String::new);
            }
            Fault::Partition | Fault::OneWay | Fault::Partial => {
                self.cut_links(fault, id);
                self.fault(fault, Some(id), String::new);
            }
            Fault::Reset => {
                self.network.reset(id, peer);
                self.fault(fault, Some(id), || format!("to n{peer}"));
            }
            Fault::ClockRate => {
                self.nodes[at].clock.0 = self.rng.random_range(500..=2000);
                self.fault(fault, Some(id), String::new);
            }
            Fault::Pause => {
                self.nodes[at].paused_until = tick + self.rng.random_range(5..80);
                self.fault(fault, Some(id), String::new);
            }
            Fault::FalseEvidence => {
                self.nodes[at].push_all(|| ShardInput::PeerDown(peer));
                self.fault(fault, Some(id), || format!("against n{peer}"));
            }
            Fault::Membership => self.change_membership(at),
            Fault::Transfer => {
                let group = self.any_group();
                self.nodes[at].push(group, ShardInput::TransferLeadership(group, peer));
                self.fault(fault, Some(id), || format!("g{group} to n{peer}"));
            }
            Fault::Compact => self.compact(at),
            Fault::Drop | Fault::Duplicate | Fault::Delay | Fault::SlowDisk | Fault::SlowApply => {}
        }
        if self.nodes[at].process.as_ref().is_some_and(|p| p.is_fenced) {
            self.crash(at); // who operates it starts it again
        }
    }

    fn any_group(&mut self) -> GroupId {
        let at = self.rng.random_range(0..self.groups.len());
        let group = self.groups.keys().nth(at).copied();
        group.expect("there are groups")
    }

    /// The process ends; what survives is drawn.
    fn crash(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.process.take().is_none() {
            return;
        }
        node.disk.crash(self.rng.random());
        node.machine.crash();
        node.restart_at = self.tick + self.rng.random_range(1..150);
        node.stuck_until = 0;
        node.paused_until = 0;
        let id = node.id;
        self.clients.on_crash(id);
        self.network.reset_node(id);
        for other in &mut self.nodes {
            if other.id != id && self.rng.random_bool(0.6) {
                other.push_all(|| ShardInput::PeerDown(id));
            }
        }
    }

    fn cut_links(&mut self, fault: Fault, node: NodeId) {
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let side: BTreeSet<NodeId> = ids.iter().copied().filter(|_| self.rng.random()).collect();
        let is_deaf: bool = self.rng.random();
        for &from in &ids {
            for &to in &ids {
                let cut = match fault {
                    Fault::OneWay if is_deaf => to == node,
                    Fault::OneWay => from == node,
                    Fault::Partial => from < to && self.rng.random_bool(0.4),
                    _ => side.contains(&from) != side.contains(&to),
                };
                if cut && from != to {
                    self.network.cut.insert((from, to));
                    if fault == Fault::Partial {
                        self.network.cut.insert((to, from));
                    }
                }
            }
        }
    }

    /// Somebody asks for another membership; the leader refuses what does not apply.
    fn change_membership(&mut self, at: usize) {
        let group = self.any_group();
        // A witness that left keeps its log of headers: as another member it would lack the data.
        let members = self.groups[&group].members.iter();
        let members = members.filter(|(_, member)| member.role != MemberRole::Witness);
        let members: Vec<NodeId> = members.map(|(&id, _)| id).collect();
        let transition = [Transition::Auto, Transition::Implicit, Transition::Explicit]
            [self.rng.random_range(0..3)];
        let mut changes = Vec::new();
        for _ in 0..self.rng.random_range(0..3) {
            let member = members[self.rng.random_range(0..members.len())];
            changes.push(match self.rng.random_range(0..5) {
                0..3 => Change::Voter(member),
                3 => Change::Learner(member),
                _ => Change::Remove(member),
            });
        }
        let change = if changes.is_empty() {
            ConfChange::default()
        } else {
            with_addresses(
                &self.groups[&group].members,
                ConfChange::new(transition, changes),
            )
        };
        let id = self.nodes[at].id;
        self.fault(Fault::Membership, Some(id), || {
            format!("g{group} {change:?}")
        });
        let reply = Box::new(|_| ());
        self.nodes[at].push(group, ShardInput::ChangeMembership(group, change, reply));
    }

    /// Up to what every disk holds and this machine would find again.
    fn compact(&mut self, at: usize) {
        let group = self.any_group();
        let flushed = self.nodes[at].machine.flushed(group);
        let held = self.invariants.held_by_all(group).min(flushed);
        let index = Index(held.0.saturating_sub(RETAINED_ENTRIES));
        if index > Index::ZERO {
            let id = self.nodes[at].id;
            self.nodes[at].push(group, ShardInput::Compact(group, index));
            self.fault(Fault::Compact, Some(id), || format!("g{group} to {index}"));
        }
    }

    /// Everything works again.
    fn heal(&mut self) {
        self.note(None, Kind::Fault, || "everything heals".to_owned());
        self.faults = FaultSet::of(&[]);
        self.network.cut.clear();
        for at in 0..self.nodes.len() {
            let is_fenced = self.nodes[at].process.as_ref().is_some_and(|p| p.is_fenced);
            let is_failing = self.plan.faults.has(Fault::FailSync);
            if is_fenced || is_failing {
                self.crash(at);
            }
            let node = &mut self.nodes[at];
            node.disk.set_free_bytes(1 << 30);
            node.clock.0 = 1000;
            (node.restart_at, node.paused_until, node.stuck_until) = (0, 0, 0);
        }
    }

    /// Leaders are found, memberships are as at the start, all replicas agree; then every group
    /// serves, and they agree again.
    fn settle(&mut self) {
        let start = self.tick;
        self.agree_soon();
        self.healed_ticks = self.tick - start;
        for round in 0..2 * FINAL_OPERATIONS {
            self.serve_everybody(round.is_multiple_of(2));
        }
        self.agree_soon();
    }

    fn agree_soon(&mut self) {
        // Changes of the membership take rounds of their own; they are not what is measured.
        let limit = if self.plan.faults.has(Fault::Membership) {
            20 * SETTLE_TICKS
        } else {
            SETTLE_TICKS
        };
        let start = self.tick;
        while self.tick < start + limit {
            self.advance();
            if self.tick.is_multiple_of(10) {
                self.restore_memberships();
                if self.differences().is_empty() {
                    return;
                }
            }
        }
        panic!(
            "not settled {limit} ticks after everything works again: {:?}",
            self.differences()
        );
    }

    /// One operation of every group, at any node, until it is answered.
    fn serve_everybody(&mut self, is_read: bool) {
        let mut waiting: BTreeMap<GroupId, u64> = BTreeMap::new();
        let answered = |clients: &Clients, group| clients.answered_in(group);
        for &group in self.groups.keys() {
            waiting.insert(group, answered(&self.clients, group));
        }
        let start = self.tick;
        while !waiting.is_empty() {
            for group in waiting.keys().copied().collect::<Vec<_>>() {
                if self.clients.open_in(group) == 0 {
                    let at = self.rng.random_range(0..self.nodes.len());
                    let value = self.clients.next_value();
                    let write = Ask::Write(Command::Put(0, value));
                    self.begin(at, group, if is_read { Ask::Read(0) } else { write });
                }
            }
            self.advance();
            waiting.retain(|&group, &mut before| answered(&self.clients, group) == before);
            assert!(
                self.tick < start + SETTLE_TICKS,
                "operations are not answered by a healthy cluster: groups {:?}, open {:?}",
                waiting.keys().collect::<Vec<_>>(),
                self.clients.open()
            );
        }
    }

    /// Asks the leaders for the memberships of the start, one step at a time.
    fn restore_memberships(&mut self) {
        for status in self.statuses() {
            let Some(leader) = status.iter().find(|(_, s)| s.role == RoleName::Leader) else {
                continue;
            };
            let (at, status) = (leader.0, leader.1.clone());
            let wanted = &self.groups[&status.group].members;
            let present = &status.membership;
            // Voters first: the last one with data cannot become anything else before.
            let is_wrong = |(id, m): &(&NodeId, &Member)| {
                present.members.get(id).map(|p| p.role) != Some(m.role)
            };
            let wrong = wanted.iter().filter(is_wrong);
            let wrong = wrong.min_by_key(|(_, m)| m.role != MemberRole::Voter);
            let change = match wrong {
                _ if present.joint.is_some() => ConfChange::default(),
                Some((&id, member)) => {
                    let change = match member.role {
                        MemberRole::Voter => Change::Voter(id),
                        MemberRole::Learner => Change::Learner(id),
                        MemberRole::Witness => Change::Witness(id),
                    };
                    with_addresses(wanted, ConfChange::new(Transition::Auto, vec![change]))
                }
                None => continue,
            };
            let reply = Box::new(|_| ());
            let input = ShardInput::ChangeMembership(status.group, change, reply);
            self.nodes[at].push(status.group, input);
        }
    }

    /// Every replica of each group, by the node's place.
    fn statuses(&mut self) -> Vec<Vec<(usize, GroupStatus)>> {
        let mut by_group: BTreeMap<GroupId, Vec<(usize, GroupStatus)>> = BTreeMap::new();
        for at in 0..self.nodes.len() {
            let found = Arc::new(Mutex::new(Vec::new()));
            let count = self.nodes[at]
                .process
                .as_ref()
                .map_or(0, |p| p.shards.len());
            for shard in 0..count {
                let Some(process) = &mut self.nodes[at].process else {
                    continue;
                };
                let into = Arc::clone(&found);
                let reply = Box::new(move |status: Vec<GroupStatus>| into.lock().extend(status));
                let effects = process.shards[shard].turn([ShardInput::Status(Vec::new(), reply)]);
                self.carry_out(at, shard, effects);
            }
            for status in found.lock().drain(..) {
                by_group.entry(status.group).or_default().push((at, status));
            }
        }
        by_group.into_values().collect()
    }

    fn differences(&mut self) -> Vec<String> {
        let mut differences = Vec::new();
        for replicas in self.statuses() {
            let Some((_, first)) = replicas.first() else {
                continue;
            };
            let group = first.group;
            let wanted = &self.groups[&group];
            let witnesses = wanted.configuration().witnesses;
            let leaders = replicas
                .iter()
                .filter(|(_, s)| s.role == RoleName::Leader)
                .count();
            let ends: BTreeSet<_> = replicas.iter().map(|(_, s)| (s.last, s.applied)).collect();
            let states: BTreeSet<String> = replicas
                .iter()
                .filter(|(at, _)| !witnesses.contains(&self.nodes[*at].id))
                .map(|(at, _)| format!("{:?}", self.nodes[*at].machine.state(group).keys))
                .collect();
            let is_member = replicas
                .iter()
                .all(|(_, s)| s.membership.members == wanted.members);
            let ended = ends.iter().all(|(last, applied)| last == applied);
            if leaders != 1 || ends.len() != 1 || !ended || states.len() != 1 || !is_member {
                differences.push(format!(
                    "g{group}: {leaders} leaders, (last, applied) {ends:?}, {} states, members as \
                     wanted: {is_member}, roles {:?}",
                    states.len(),
                    replicas
                        .iter()
                        .map(|(_, s)| (s.role, s.term))
                        .collect::<Vec<_>>()
                ));
            }
            let count = wanted.members.len();
            if replicas.len() != count {
                differences.push(format!("g{group}: {} of {count} replicas", replicas.len()));
            }
        }
        differences
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

/// Who comes back comes back to where it was.
fn with_addresses(members: &BTreeMap<NodeId, Member>, change: ConfChange) -> ConfChange {
    let nodes = change.changes.iter().map(|change| change.node());
    let addresses = nodes.map(|id| (id, members[&id].address.clone()));
    ConfChange {
        addresses: addresses.collect(),
        ..change
    }
}

/// Voters first, then perhaps a learner and a witness.
fn membership(ids: &[NodeId], rng: &mut SmallRng) -> Membership {
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
