//! Clusters of the real core over a lossy network and disks that finish late, all drawn from one
//! seed: crashes lose what was not durable, and what was committed must never change.
//!
//! `MULTIRAFT_SEED=N cargo test -p multiraft-engine --test cluster` replays one seed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::description::Description;
use multiraft_engine::raft::effects::Input;
use multiraft_engine::raft::incarnation::Identity;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::message::{AppendResponse, Envelope, Message};
use multiraft_engine::raft::{Group, Limits, RoleName};
use multiraft_engine::traits::{GroupWrite, PeerAddress, StoredGroup};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 1000;
const STEPS: usize = 3000;
/// Rounds after the network heals within which everything must be settled.
const HEALED_ROUNDS: usize = 400;

type Entries = Vec<(Term, EntryKind, Bytes)>;

/// What a node's disk holds, and what is on its way there.
#[derive(Default)]
struct Disk {
    entries: Entries,
    hard_state: HardState,
    /// With the promises that each makes true.
    in_flight: VecDeque<(u64, GroupWrite, Vec<Envelope>)>,
}

fn store(entries: &mut Entries, write: &GroupWrite) {
    if let Some(from) = write.truncate_from {
        entries.truncate(usize::try_from(from.0).unwrap() - 1);
    }
    for block in &write.blocks {
        assert_eq!(
            block.first().0,
            entries.len() as u64 + 1,
            "writes are gapless"
        );
        entries.extend(block.entries().map(|e| (e.term, e.kind, e.payload)));
    }
}

impl Disk {
    fn finish_one(&mut self) -> Option<(u64, Vec<Envelope>)> {
        let (number, write, promises) = self.in_flight.pop_front()?;
        store(&mut self.entries, &write);
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
        Some((number, promises))
    }

    /// As the log would answer: with what was handed to it, durable or not.
    fn read(&self, first: Index, last: Index) -> Vec<Block> {
        let mut entries = self.entries.clone();
        self.in_flight
            .iter()
            .for_each(|(_, write, _)| store(&mut entries, write));
        let one = |i: u64| {
            let (term, kind, payload) = entries[usize::try_from(i).unwrap() - 1].clone();
            Block::encode(Index(i), term, &[(kind, payload)])
        };
        (first.0..=last.0).map(one).collect()
    }
}

struct Node {
    raft: Group,
    disk: Disk,
    /// Survives crashes, but is never ahead of the durable log.
    applied: Entries,
}

struct Cluster {
    rng: SmallRng,
    membership: Membership,
    nodes: BTreeMap<NodeId, Node>,
    network: Vec<Envelope>,
    cut: Option<(NodeId, NodeId)>,
    loss: f64,
    /// What any node applied at each index: never changes.
    committed: Entries,
    leaders: BTreeMap<Term, NodeId>,
    serial: u64,
}

fn id(number: u32) -> NodeId {
    NodeId::new(number).unwrap()
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let voters = [1, 2, 3, 3, 3, 4, 5][rng.random_range(0..7)];
        let mut roles = vec![MemberRole::Voter; voters];
        if rng.random_bool(0.3) {
            roles.push(MemberRole::Learner);
        }
        if voters > 1 && rng.random_bool(0.3) {
            roles[voters - 1] = MemberRole::Witness;
        }
        let member = |(at, role): (u32, MemberRole)| {
            let address = PeerAddress {
                host: format!("n{at}"),
                port: 1,
            };
            (id(at), Member { role, address })
        };
        let members = (1..).zip(roles).map(member).collect();
        let membership = Membership::new(members);
        let loss = [0.0, 0.05, 0.3][rng.random_range(0..3)];
        let mut cluster = Self {
            rng,
            membership,
            nodes: BTreeMap::new(),
            network: Vec::new(),
            cut: None,
            loss,
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            serial: 0,
        };
        for node in cluster
            .membership
            .members
            .keys()
            .copied()
            .collect::<Vec<_>>()
        {
            cluster.boot(node, Disk::default(), Vec::new());
        }
        cluster
    }

    fn boot(&mut self, node: NodeId, disk: Disk, applied: Entries) {
        let mut terms: Vec<(Index, Index, Term)> = Vec::new();
        for (index, entry) in (1..).map(Index).zip(&disk.entries) {
            match terms.last_mut().filter(|run| run.2 == entry.0) {
                Some(run) => run.1 = index,
                None => terms.push((index, index, entry.0)),
            }
        }
        let stored = StoredGroup {
            group: GroupId(1),
            meta: Bytes::new(),
            hard_state: disk.hard_state,
            compacted: (Index::ZERO, Term::ZERO),
            terms,
        };
        let first = self.membership.first_candidate(1) == Some(node);
        let limits = Limits {
            cache_bytes: 200,
            append_bytes: 300,
            ..Limits::default()
        };
        let applied_to = Index(applied.len() as u64);
        let seed = self.rng.random();
        let raft = Group::restore(
            Identity::new(node),
            &stored,
            Description::member(self.membership.clone(), node),
            applied_to,
            limits,
            first,
            seed,
        );
        self.nodes.insert(
            node,
            Node {
                raft,
                disk,
                applied,
            },
        );
    }

    fn crash(&mut self, node: NodeId) {
        let mut old = self.nodes.remove(&node).unwrap();
        let keep = self.rng.random_range(0..=old.disk.in_flight.len());
        for _ in 0..keep {
            old.disk.finish_one(); // written, though nobody was told
        }
        old.disk.in_flight.clear();
        let kept = self.rng.random_range(0..=old.applied.len());
        old.applied.truncate(kept);
        self.boot(node, old.disk, old.applied);
        self.settle(node);
    }

    fn step(&mut self, node: NodeId, input: Input) {
        self.nodes.get_mut(&node).unwrap().raft.step(input);
        self.settle(node);
    }

    /// Carries out what a node asks for, and checks what must hold.
    fn settle(&mut self, node: NodeId) {
        loop {
            let it = self.nodes.get_mut(&node).unwrap();
            let disk = &it.disk;
            let effects = it
                .raft
                .take_effects(&mut |first, last, _| Ok(disk.read(first, last)));
            self.network.extend(effects.send);
            let promises = effects.send_when_durable;
            if let Some((number, write)) = effects.write {
                it.disk.in_flight.push_back((number, write, promises));
            } else if let Some(newest) = it.disk.in_flight.back_mut() {
                newest.2.extend(promises);
            } else {
                self.network.extend(promises);
            }
            let Some(last) = effects.apply.last().map(Block::last) else {
                break;
            };
            for block in &effects.apply {
                assert!(
                    block.last().0 <= it.disk.entries.len() as u64,
                    "applied before durable"
                );
                it.applied
                    .extend(block.entries().map(|e| (e.term, e.kind, e.payload)));
            }
            it.raft.step(Input::Applied(last));
        }
        self.check(node);
    }

    fn check(&mut self, node: NodeId) {
        let it = &self.nodes[&node];
        let witness = self.membership.members[&node].role == MemberRole::Witness;
        if it.raft.role() == RoleName::Leader {
            assert!(!witness, "a witness leads");
            let leader = *self.leaders.entry(it.raft.term()).or_insert(node);
            assert_eq!(leader, node, "two leaders in term {}", it.raft.term());
        }
        for (at, entry) in it
            .applied
            .iter()
            .enumerate()
            .skip(self.committed.len().saturating_sub(8))
        {
            match self.committed.get_mut(at) {
                None => self.committed.push(entry.clone()),
                // A witness has no payloads: whoever has one tells what was committed.
                Some(known) if known.2.is_empty() && !witness => {
                    assert_eq!((known.0, known.1), (entry.0, entry.1), "index {}", at + 1);
                    *known = entry.clone();
                }
                Some(known) if witness => assert_eq!(known.0, entry.0, "index {}", at + 1),
                Some(known) => assert_eq!(known, entry, "committed entry {} changed", at + 1),
            }
        }
    }

    fn any(&mut self) -> NodeId {
        let at = self.rng.random_range(0..self.nodes.len());
        *self.nodes.keys().nth(at).unwrap()
    }

    fn deliver(&mut self, at: usize) {
        let envelope = self.network.swap_remove(at);
        let cut = self.cut == Some((envelope.from, envelope.to));
        if cut || self.rng.random_bool(self.loss) {
            return;
        }
        if self.rng.random_bool(self.loss / 4.0) {
            self.network.push(envelope.clone());
        }
        self.step(envelope.to, Input::Message(envelope));
    }

    fn propose(&mut self, node: NodeId) -> Bytes {
        self.serial += 1;
        let payload = Bytes::from(format!("command {}", self.serial));
        self.step(
            node,
            Input::Propose {
                request: self.serial,
                payload: payload.clone(),
            },
        );
        payload
    }

    fn random_step(&mut self) {
        let node = self.any();
        match self.rng.random_range(0..100) {
            0..30 => self.step(node, Input::Tick),
            30..70 if !self.network.is_empty() => {
                let at = self.rng.random_range(0..self.network.len());
                self.deliver(at);
            }
            70..85 => self.finish_write(node),
            85..95 => drop(self.propose(node)),
            95 => self.crash(node),
            96 => self.cut = Some((node, self.any())),
            97 => self.cut = None,
            98 => self.step(node, Input::Read { request: 1 << 40 }),
            99 => {
                let down = self.any();
                self.step(node, Input::PeerDown(down));
            }
            _ => {}
        }
    }

    fn finish_write(&mut self, node: NodeId) {
        let finished = self.nodes.get_mut(&node).unwrap().disk.finish_one();
        if let Some((number, promises)) = finished {
            self.network.extend(promises);
            self.step(node, Input::Durable(number));
        }
    }

    /// Everything works again: a round ticks every node and empties network and disks.
    fn healed_round(&mut self) {
        (self.cut, self.loss) = (None, 0.0);
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.step(node, Input::Tick);
        }
        for _ in 0..20 {
            while !self.network.is_empty() {
                self.deliver(0);
            }
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                while !self.nodes[&node].disk.in_flight.is_empty() {
                    self.finish_write(node);
                }
            }
            if self.network.is_empty() {
                return;
            }
        }
    }

    fn settles(&mut self) {
        let mut wanted: Option<Bytes> = None;
        for _ in 0..HEALED_ROUNDS {
            self.healed_round();
            let leader = self
                .nodes
                .iter()
                .find(|(_, n)| n.raft.role() == RoleName::Leader);
            let committed = |wanted: &Bytes| self.committed.iter().any(|e| e.2 == *wanted);
            if wanted.as_ref().is_some_and(committed) {
                let length = self.committed.len();
                if self.nodes.values().all(|node| node.applied.len() == length) {
                    return;
                }
            } else if let Some((&leader, _)) = leader {
                wanted = Some(self.propose(leader));
            }
        }
        panic!("not settled {HEALED_ROUNDS} rounds after everything works again");
    }
}

fn run(seed: u64) -> Entries {
    let mut cluster = Cluster::new(seed);
    (0..STEPS).for_each(|_| cluster.random_step());
    cluster.settles();
    cluster.committed
}

#[test]
fn what_is_committed_never_changes_and_healed_clusters_settle() {
    if let Ok(seed) = std::env::var("MULTIRAFT_SEED") {
        run(seed.parse().unwrap());
        return;
    }
    let mut entries = 0;
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| run(seed));
        let committed = result.unwrap_or_else(|_| {
            panic!("replay: MULTIRAFT_SEED={seed} cargo test -p multiraft-engine --test cluster")
        });
        entries += committed.len();
    }
    assert!(
        entries > 20 * usize::try_from(SEEDS).unwrap(),
        "little happened: {entries} entries"
    );
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// Extreme values of a peer reach every role; none may panic or move what is committed.
#[test]
fn hostile_messages_change_nothing_committed() {
    let extremes = [0, 1, 7, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        (0..300).for_each(|_| cluster.random_step());
        for node in cluster.nodes.keys().copied().collect::<Vec<_>>() {
            for (&a, &b) in extremes
                .iter()
                .flat_map(|a| extremes.iter().map(move |b| (a, b)))
            {
                let from = cluster.any();
                let rejected = AppendResponse::Rejected {
                    prev: Index(a),
                    hint_index: Index(b),
                    hint_term: Term(a),
                    last: Index(b),
                };
                let never_sent = AppendResponse::Accepted {
                    last: Index(a.max(u64::MAX / 2)),
                };
                let count = u32::MAX;
                let messages = [
                    Message::AppendEntriesResponse(rejected),
                    Message::AppendEntriesResponse(never_sent),
                    Message::ProposeResponse {
                        first_request: a,
                        count,
                        index: None,
                    },
                    Message::HeartbeatResponse { read_round: a },
                    Message::ProposeResponse {
                        first_request: a,
                        count: 3,
                        index: Some(Index(b)),
                    },
                    Message::ReadIndexResponse {
                        request: a,
                        index: Some(Index(b)),
                    },
                    Message::ReadIndex { request: a },
                ];
                for message in messages {
                    let term = cluster.nodes[&node].raft.term();
                    let envelope = Envelope {
                        group: GroupId(1),
                        from,
                        to: node,
                        term,
                        incarnation: 0,
                        message,
                    };
                    cluster.step(node, Input::Message(envelope));
                }
            }
        }
    }
}
