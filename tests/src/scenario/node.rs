//! One replica of a scenario: the real core over a disk that is a list of entries.

use std::collections::VecDeque;

use bytes::Bytes;
use multiraft_engine::block::{Block, Entry, EntryKind};
use multiraft_engine::description::{Description, Standing};
use multiraft_engine::raft::conf_change::ConfChange;
use multiraft_engine::raft::effects::{Effects, Input, ProposalOutcome, Snapshot, Source};
use multiraft_engine::raft::incarnation::Identity;
use multiraft_engine::raft::joining::Wish;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::raft::{Group, Limits};
use multiraft_engine::traits::{GroupWrite, LogError, StoredGroup};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};

/// What a node finds again after a crash.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The entry before the first one kept.
    pub compacted: (Index, Term),
    /// From there on.
    pub entries: Vec<Entry>,
    /// Term, vote, commit index.
    pub hard_state: HardState,
    /// The state machine's: the newest snapshot is always of what is applied.
    pub snapshot: Snapshot,
    /// What this node is to the group.
    pub standing: Standing,
}

impl Disk {
    /// Index of the first entry.
    pub fn first(&self) -> Index {
        self.compacted.0.next()
    }

    /// Index of the last entry; before the first if there is none.
    pub fn last(&self) -> Index {
        self.entries.last().map_or(self.compacted.0, |e| e.index)
    }

    fn write(&mut self, write: &GroupWrite) {
        if let Some(after) = write.restart_after {
            self.entries.clear();
            self.compacted = after;
        }
        if let Some(index) = write.compact_to {
            self.compact(index);
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        for block in &write.blocks {
            assert_eq!(block.first(), self.last().next(), "writes are gapless");
            self.entries.extend(block.entries());
        }
        if let Some(state) = write.hard_state {
            self.hard_state = state;
        }
    }

    fn compact(&mut self, index: Index) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.index == index) {
            self.compacted = (index, entry.term);
            self.entries.retain(|entry| entry.index > index);
        }
    }

    fn stored(&self) -> StoredGroup {
        let mut terms: Vec<(Index, Index, Term)> = Vec::new();
        for entry in &self.entries {
            match terms.last_mut().filter(|run| run.2 == entry.term) {
                Some(run) => run.1 = entry.index,
                None => terms.push((entry.index, entry.index, entry.term)),
            }
        }
        StoredGroup {
            group: GroupId(1),
            meta: Bytes::new(),
            hard_state: self.hard_state,
            compacted: self.compacted,
            terms,
        }
    }
}

impl Source for Disk {
    fn blocks(&mut self, first: Index, last: Index, _: usize) -> Result<Vec<Block>, LogError> {
        let wanted = self
            .entries
            .iter()
            .filter(|e| (first..=last).contains(&e.index));
        let one = |e: &Entry| Block::encode(e.index, e.term, &[(e.kind, e.payload.clone())]);
        Ok(wanted.map(one).collect())
    }

    fn snapshot(&mut self, from: Index) -> Option<Snapshot> {
        Some(self.snapshot.clone()).filter(|snapshot| snapshot.index >= from)
    }
}

/// What the append thread has to do: a write, if there is one, then what it makes true.
pub struct AppendWork {
    /// With the number by which the core knows it.
    pub write: Option<(u64, GroupWrite)>,
    /// To send afterwards.
    pub messages: Vec<Envelope>,
    /// A snapshot to take over afterwards.
    pub install: Option<Snapshot>,
}

/// How a node is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its limits.
    pub limits: Limits,
    /// Whether append and apply are steps of their own.
    pub is_async: bool,
    /// What it boots from.
    pub snapshot: Snapshot,
    /// Whether the lives of its data are told apart.
    pub has_incarnations: bool,
}

/// Incarnations of a node's data: its id, then which life.
const LIVES: u64 = 10;

/// One replica.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// The real core.
    pub raft: Group,
    /// Its disk.
    pub disk: Disk,
    /// Work of the append thread, in order.
    pub append_work: VecDeque<AppendWork>,
    /// Work of the apply thread, in order.
    pub apply_work: VecDeque<Vec<Block>>,
    /// Crashed and not restarted, or its disk failed.
    pub is_down: bool,
    /// The next write fails.
    pub fails_sync: bool,
    /// The incarnation of its data.
    life: u64,
    setup: Setup,
    /// What was handed to the append thread last.
    handed: HardState,
}

impl Node {
    /// A node that boots from a snapshot, or empty.
    pub fn new(id: NodeId, setup: Setup) -> Self {
        let snapshot = setup.snapshot.clone();
        let disk = Disk {
            compacted: (snapshot.index, snapshot.term),
            entries: Vec::new(),
            hard_state: HardState {
                commit: snapshot.index,
                ..HardState::default()
            },
            snapshot,
            standing: Standing::Member,
        };
        let life = if setup.has_incarnations {
            u64::from(id.get()) * LIVES
        } else {
            0
        };
        let raft = Self::boot(id, life, &disk, &setup);
        Self {
            id,
            life,
            raft,
            handed: disk.hard_state,
            disk,
            append_work: VecDeque::new(),
            apply_work: VecDeque::new(),
            is_down: false,
            fails_sync: false,
            setup,
        }
    }

    fn boot(id: NodeId, life: u64, disk: &Disk, setup: &Setup) -> Group {
        let description = Description {
            standing: disk.standing,
            is_witness: false, // nobody asks here
            membership: disk.snapshot.membership.clone(),
        };
        let applied = disk.snapshot.index;
        let seed = u64::from(id.get());
        let first_candidate = false;
        let own = Identity {
            node: id,
            incarnation: life,
        };
        Group::restore(
            own,
            &disk.stored(),
            description,
            applied,
            setup.limits,
            first_candidate,
            seed,
        )
    }

    /// Loses everything but the disk.
    pub fn crash(&mut self) {
        self.append_work.clear();
        self.apply_work.clear();
        self.raft = Self::boot(self.id, self.life, &self.disk, &self.setup);
        self.handed = self.disk.hard_state;
        self.is_down = true;
        self.fails_sync = false;
    }

    /// Loses the disk too, and is started as at the beginning: what an operator must not do.
    pub fn wipe(&mut self) {
        let life = self.life;
        *self = Self::new(self.id, self.setup.clone());
        if life > 0 {
            self.life = life + 1;
            self.raft = Self::boot(self.id, self.life, &self.disk, &self.setup);
        }
    }

    /// The group goes on without this node. What it was last can still be shown.
    pub fn go(&mut self, membership: Membership) {
        self.disk.standing = Standing::Left;
        self.disk.snapshot.membership = membership;
        self.append_work.clear();
        self.apply_work.clear();
        self.is_down = true;
    }

    /// Begins to join a group whose members are said to be these. Who has left has kept term and vote,
    /// and by which configuration it is gone.
    pub fn join(&mut self, mut told: Membership) {
        if self.disk.standing == Standing::Left {
            told.index = self.disk.snapshot.membership.index;
        }
        let member = told.members[&self.id].clone();
        let hard_state = HardState {
            commit: Index::ZERO,
            ..self.disk.hard_state
        };
        self.disk = Disk {
            compacted: (Index::ZERO, Term::ZERO),
            entries: Vec::new(),
            hard_state,
            snapshot: Snapshot {
                index: Index::ZERO,
                term: Term::ZERO,
                membership: told,
            },
            standing: Standing::Joining,
        };
        self.crash();
        self.is_down = false;
        self.step(Input::Wish(Some(Wish::Join(member))));
    }

    /// Loses the state machine's state and its snapshot, but not the log.
    pub fn lose_state(&mut self) {
        self.disk.snapshot.index = Index::ZERO;
        self.crash();
        self.is_down = false;
    }

    /// Loses log, term and vote, as after a repair that gave the group up, and starts again: the membership
    /// is all that it knows.
    pub fn lose_log(&mut self) {
        let membership = self.disk.snapshot.membership.clone();
        let place = membership.members[&self.id].clone();
        self.disk = Disk {
            compacted: (Index::ZERO, Term::ZERO),
            entries: Vec::new(),
            hard_state: HardState::default(),
            snapshot: Snapshot {
                index: Index::ZERO,
                term: Term::ZERO,
                membership,
            },
            standing: Standing::Lost,
        };
        self.crash();
        self.is_down = false;
        self.step(Input::Wish(Some(Wish::Join(place))));
    }

    /// One input, and the messages that follow from it alone.
    pub fn step(&mut self, input: Input) {
        self.raft.step(input);
        self.raft.send_appends(&mut self.disk);
    }

    /// Drops entries from disk and memory.
    pub fn compact(&mut self, index: Index) {
        self.step(Input::Compact(index));
        self.disk.compact(index.min(self.raft.log().applied()));
    }

    /// Whether [`Node::take_batch`] would give something.
    pub fn has_work(&self) -> bool {
        !self.is_down && (self.raft.has_effects() || self.raft.hard_state() != self.handed)
    }

    /// One batch of effects, split by who does it.
    pub fn take_batch(&mut self) -> (Effects, Option<AppendWork>) {
        let mut effects = self.raft.take_effects(&mut self.disk);
        let hard_state = self.raft.hard_state();
        // The core answers a pre-vote at once, for it promises nothing; in the order of a scenario
        // all answers follow what was asked.
        let is_answer = |e: &mut Envelope| matches!(e.message, Message::PreVoteResponse { .. });
        effects.send = effects.send.into_iter().flat_map(one_by_one).collect();
        let mut messages: Vec<Envelope> = effects.send.extract_if(.., is_answer).collect();
        messages.append(&mut effects.send_when_durable);
        for envelope in effects.send.iter_mut().chain(&mut messages) {
            envelope.incarnation = self.life; // as the connection would say
        }
        let work = AppendWork {
            write: effects.write.take(),
            messages,
            install: effects.install.take(),
        };
        let is_work = work.write.is_some() || !work.messages.is_empty();
        let has_work = is_work || hard_state != self.handed;
        self.handed = hard_state;
        (effects, has_work.then_some(work))
    }

    /// Makes a write durable. False: the disk fails, and the node with it.
    pub fn write(&mut self, work: &AppendWork) -> bool {
        let Some((_, write)) = &work.write else {
            return true;
        };
        if self.fails_sync {
            self.crash(); // what was not durable is lost, and nothing of it was promised
            return false;
        }
        self.disk.write(write);
        if let Some(snapshot) = &work.install {
            self.disk.snapshot = snapshot.clone();
            self.disk.standing = Standing::Member;
        }
        true
    }

    /// Applies entries: configuration changes count from here on.
    pub fn apply(&mut self, blocks: &[Block]) -> Option<Index> {
        for entry in blocks.iter().flat_map(|b| b.entries().collect::<Vec<_>>()) {
            if entry.kind == EntryKind::ConfChange
                && let Ok(change) = ConfChange::decode(&entry.payload)
            {
                self.step(Input::ConfChange(entry.index, change));
            }
            self.disk.snapshot = Snapshot {
                index: entry.index,
                term: entry.term,
                membership: self.raft.membership().clone(),
            };
        }
        blocks.last().map(Block::last)
    }

    /// Whether the last proposal was refused.
    pub fn was_refused(&mut self) -> bool {
        let outcomes = self.raft.take_outcomes();
        let refused = |o: &ProposalOutcome| matches!(o, ProposalOutcome::Refused { .. });
        outcomes.iter().any(refused)
    }

    /// Whether commands go through threads of their own.
    pub fn is_async(&self) -> bool {
        self.setup.is_async
    }
}

/// The core gathers the proposals that it forwards in a turn; in a scenario each travels alone.
fn one_by_one(envelope: Envelope) -> Vec<Envelope> {
    let Message::Propose {
        first_request,
        payloads,
    } = &envelope.message
    else {
        return vec![envelope];
    };
    let alone = |(request, payload): (u64, &Bytes)| Envelope {
        message: Message::Propose {
            first_request: request,
            payloads: vec![payload.clone()],
        },
        ..envelope
    };
    (*first_request..).zip(payloads).map(alone).collect()
}
