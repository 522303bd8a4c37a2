//! What must hold at every moment (Raft Figure 3, and the promises to the disk), checked from outside:
//! from what goes over the wire, into the logs and to the machines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use multiraft_engine::block::Block;
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::message::{AppendResponse, Envelope, Message};
use multiraft_engine::traits::{GroupWrite, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};

use super::machine::Command;

/// A log entry as far as it matters here: its term and a hash of its payload, or none on a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    term: Term,
    hash: Option<u32>,
}

/// What a group's log holds, kept beside the real one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shadow {
    hard_state: HardState,
    compacted: Index,
    entries: VecDeque<Seen>,
    /// Nothing of the group is left, not even a vote.
    is_gone: bool,
}

impl Shadow {
    fn last(&self) -> Index {
        Index(self.compacted.0 + self.entries.len() as u64)
    }

    fn get(&self, index: Index) -> Option<Seen> {
        let at = index.0.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?).copied()
    }

    fn cut(&mut self, from: Index) {
        let keep = from.0.saturating_sub(self.compacted.0 + 1);
        self.entries
            .truncate(usize::try_from(keep).expect("in memory"));
    }

    fn write(&mut self, write: &GroupWrite) {
        if write.remove {
            let (state, kept) = (self.hard_state, write.hard_state);
            assert!(
                kept.map_or(state.term == Term::ZERO, |kept| kept.term >= state.term),
                "who has voted leaves and forgets it"
            );
            *self = Self {
                hard_state: HardState {
                    commit: Index::ZERO,
                    ..state
                },
                ..Self::default()
            };
        }
        self.is_gone = write.meta.is_none() && (write.remove || self.is_gone);
        if let Some((index, _)) = write.restart_after {
            self.entries.clear();
            self.compacted = index;
        }
        if let Some(index) = write.compact_to {
            while self.compacted < index && self.entries.pop_front().is_some() {
                self.compacted = self.compacted.next();
            }
        }
        if let Some(from) = write.truncate_from {
            self.cut(from);
        }
        for block in &write.blocks {
            assert!(block.first() == self.last().next(), "a write with a gap");
            self.entries.extend(seen(block));
        }
        if let Some(state) = write.hard_state {
            let old = self.hard_state;
            assert!(state.term >= old.term, "a term went back");
            assert!(state.commit >= old.commit, "a commit index went back");
            let revoked = state.term == old.term && old.vote.is_some() && state.vote != old.vote;
            assert!(!revoked, "a vote was changed in term {}", state.term);
            self.hard_state = state;
        }
    }

    /// Whether the real log, read back, says the same.
    fn matches(&self, stored: &StoredGroup) -> bool {
        let last = stored.terms.last().map_or(stored.compacted.0, |run| run.1);
        let terms = stored.terms.iter();
        let has_terms = terms.into_iter().all(|&(first, last, term)| {
            let indexes = first.0..=last.0;
            indexes
                .into_iter()
                .all(|i| self.get(Index(i)).is_some_and(|e| e.term == term))
        });
        last == self.last()
            && stored.compacted.0 == self.compacted
            && stored.hard_state == self.hard_state
            && has_terms
    }
}

fn seen(block: &Block) -> impl Iterator<Item = Seen> {
    let term = block.term();
    let is_whole = *block != block.headers_only();
    let entries: Vec<_> = block.entries().collect();
    entries.into_iter().map(move |entry| Seen {
        term,
        hash: is_whole.then(|| crc32fast::hash(&entry.payload)),
    })
}

/// A node's logs as they must be.
#[derive(Default)]
struct Disk {
    durable: BTreeMap<GroupId, Shadow>,
    /// With what is on its way.
    written: BTreeMap<GroupId, Shadow>,
    pending: VecDeque<WriteBatch>,
}

/// What was seen of a group, over all nodes and all time.
#[derive(Default)]
struct History {
    /// Entries that some machine was given, from index 1.
    committed: Vec<Seen>,
    /// Who leads a term, and after how many starts of its process.
    leaders: BTreeMap<Term, (NodeId, u32)>,
    /// Of each life of each node's data.
    votes: BTreeMap<(Term, NodeId, u32), NodeId>,
    /// What some log held at an index, by the entry's term.
    entries: BTreeMap<(Index, Term), u32>,
}

impl History {
    /// Log matching: an index and a term name one entry, in all logs and for ever (Raft §5.3).
    fn check_matching(&mut self, node: NodeId, group: GroupId, block: &Block) {
        for (index, entry) in (block.first().0..).zip(seen(block)) {
            let Some(hash) = entry.hash else {
                continue; // on a witness
            };
            let known = *self
                .entries
                .entry((Index(index), entry.term))
                .or_insert(hash);
            assert!(
                known == hash,
                "node {node} writes another entry {index} of term {} into group {group} than \
                 somebody did before",
                entry.term
            );
        }
    }
}

/// The judge.
pub struct Invariants {
    disks: BTreeMap<NodeId, Disk>,
    groups: BTreeMap<GroupId, History>,
    /// Who votes in each group, while that does not change.
    voters: BTreeMap<GroupId, BTreeSet<NodeId>>,
    /// Whether memberships change in this run.
    has_changes: bool,
    /// How often each node's process has started.
    starts: BTreeMap<NodeId, u32>,
    /// How often each node's disk was replaced.
    wipes: BTreeMap<NodeId, u32>,
    /// How often a group was given up in a node's log.
    losses: BTreeMap<(NodeId, GroupId), u32>,
    /// Entries committed, over all groups.
    pub committed: u64,
}

impl Invariants {
    /// Nothing has happened yet.
    pub fn new(voters: BTreeMap<GroupId, BTreeSet<NodeId>>, has_changes: bool) -> Self {
        Self {
            disks: BTreeMap::new(),
            groups: BTreeMap::new(),
            voters,
            has_changes,
            starts: BTreeMap::new(),
            wipes: BTreeMap::new(),
            losses: BTreeMap::new(),
            committed: 0,
        }
    }

    /// A batch goes to a node's log.
    pub fn on_write(&mut self, node: NodeId, batch: &WriteBatch) {
        let disk = self.disks.entry(node).or_default();
        for write in &batch.writes {
            disk.written.entry(write.group).or_default().write(write);
            let history = self.groups.entry(write.group).or_default();
            for block in &write.blocks {
                history.check_matching(node, write.group, block);
            }
        }
        disk.pending.push_back(batch.clone());
    }

    /// The log says that a shard's batches up to `ticket` are durable.
    pub fn on_durable(&mut self, node: NodeId, shard: u32, ticket: u64) {
        let disk = self.disks.entry(node).or_default();
        let is_done = |batch: &WriteBatch| batch.shard == shard && batch.ticket <= ticket;
        let (done, rest): (VecDeque<_>, _) = std::mem::take(&mut disk.pending)
            .into_iter()
            .partition(is_done);
        disk.pending = rest;
        for write in done.iter().flat_map(|batch| &batch.writes) {
            disk.durable.entry(write.group).or_default().write(write);
        }
    }

    /// A node's disk is replaced: it has promised nothing.
    pub fn on_wipe(&mut self, node: NodeId) {
        self.disks.remove(&node);
        *self.wipes.entry(node).or_default() += 1;
    }

    /// A group was given up in a node's log, while the node was down: it has promised nothing but this.
    pub fn on_lose(&mut self, node: NodeId, group: GroupId, hard_state: HardState) {
        let lost = Shadow {
            hard_state,
            ..Shadow::default()
        };
        let disk = self.disks.entry(node).or_default();
        disk.durable.insert(group, lost);
        for batch in &mut disk.pending {
            batch.writes.retain(|write| write.group != group);
        }
        *self.losses.entry((node, group)).or_default() += 1;
    }

    /// A node's machine is to take a snapshot over: it stands for entries that are committed, and the
    /// node's log goes on behind it, durably.
    pub fn on_restore(&self, node: NodeId, group: GroupId, snapshot: &Snapshot) {
        let at = usize::try_from(snapshot.index.0 - 1).expect("in memory");
        let known = self.groups.get(&group).and_then(|h| h.committed.get(at));
        let index = snapshot.index;
        assert!(
            known.is_some_and(|entry| entry.term == snapshot.term),
            "node {node} takes over a snapshot of group {group} up to {index} of term {}, where \
             {known:?} was committed",
            snapshot.term
        );
        let durable = self.disks.get(&node).and_then(|d| d.durable.get(&group));
        let is_durable = durable.is_some_and(|d| {
            d.compacted >= index || d.get(index).is_some_and(|e| e.term == snapshot.term)
        });
        assert!(
            is_durable,
            "node {node} takes over a snapshot of group {group} up to {index} before its log has \
             restarted behind it"
        );
    }

    /// A node reads its log after a crash: everything durable is there, and of what was on its way
    /// a prefix. Nothing else, and nothing cut has come back.
    pub fn on_restart(&mut self, node: NodeId, stored: &[StoredGroup]) {
        *self.starts.entry(node).or_default() += 1;
        let disk = self.disks.entry(node).or_default();
        let pending = std::mem::take(&mut disk.pending);
        for (&group, durable) in &mut disk.durable {
            let found = stored.iter().find(|s| s.group == group);
            let mut state = durable.clone();
            let mut writes = pending.iter().flat_map(|batch| &batch.writes);
            while !found.map_or(state.is_gone, |found| state.matches(found)) {
                let write = writes.by_ref().find(|write| write.group == group);
                let write = write.unwrap_or_else(|| {
                    panic!(
                        "node {node}, group {group}: after a crash the log holds neither what was \
                         durable nor more of what was written: found {found:?}, durable up to {} \
                         with {:?}",
                        durable.last(),
                        durable.hard_state
                    )
                });
                state.write(write);
            }
            *durable = state;
        }
        disk.durable.retain(|_, durable| !durable.is_gone);
        for found in stored {
            // Its creation was on its way when the node crashed.
            let group = found.group;
            disk.durable.entry(group).or_insert_with(|| {
                let mut state = Shadow::default();
                let mut writes = pending.iter().flat_map(|batch| &batch.writes);
                while !state.matches(found) {
                    let write = writes.by_ref().find(|write| write.group == group);
                    state.write(write.expect("a group that nobody wrote"));
                }
                state
            });
        }
        disk.written = disk.durable.clone();
    }

    /// A message leaves a node: all that it promises must be durable by now.
    pub fn on_send(&mut self, envelope: &Envelope) {
        let Envelope {
            group,
            from,
            to,
            term,
            message,
            ..
        } = envelope;
        let nothing = Shadow::default();
        let durable = self.disks.get(from).and_then(|d| d.durable.get(group));
        let durable = durable.unwrap_or(&nothing);
        // Who is durably in a newer term has moved on after the promise: nothing it could still do
        // breaks it.
        let has_moved_on = durable.hard_state.term > *term;
        match message {
            Message::RequestVoteResponse { granted: true, .. } => {
                assert!(
                    has_moved_on
                        || (durable.hard_state.term, durable.hard_state.vote) == (*term, Some(*to)),
                    "node {from} told a vote for node {to} in term {term} of group {group} that is \
                     not durable: {:?}",
                    durable.hard_state
                );
                let votes = &mut self.groups.entry(*group).or_default().votes;
                let losses = self.losses.get(&(*from, *group));
                let life =
                    self.wipes.get(from).copied().unwrap_or(0) + losses.copied().unwrap_or(0);
                let vote = *votes.entry((*term, *from, life)).or_insert(*to);
                assert!(
                    vote == *to,
                    "node {from} voted for nodes {vote} and {to} in term {term} of group {group}"
                );
            }
            Message::AppendEntriesResponse(AppendResponse::Accepted { last }) => {
                assert!(
                    has_moved_on || (durable.last() >= *last && durable.hard_state.term == *term),
                    "node {from} acknowledged entry {last} of group {group}, its disk has {}",
                    durable.last()
                );
            }
            Message::AppendEntries { .. } | Message::Heartbeat { .. } => {
                self.on_leader(*group, *from, *term);
            }
            _ => {}
        }
    }

    /// Election safety and leader completeness (Raft §5.2, §5.4.3).
    fn on_leader(&mut self, group: GroupId, node: NodeId, term: Term) {
        let history = self.groups.entry(group).or_default();
        let starts = self.starts.get(&node).copied().unwrap_or(0);
        if let Some(&(leader, before)) = history.leaders.get(&term) {
            assert!(
                leader == node,
                "nodes {leader} and {node} lead group {group} in term {term}"
            );
            assert!(
                before == starts,
                "node {node} leads group {group} in term {term} again after a restart"
            );
            return;
        }
        history.leaders.insert(term, (node, starts));
        let written = self.disks.get(&node).and_then(|d| d.written.get(&group));
        let last = Index(history.committed.len() as u64);
        let Some(committed) = history.committed.last() else {
            return;
        };
        // A leader of an old term that was slow to speak may lack what newer ones committed.
        let is_newest = history.leaders.keys().next_back() == Some(&term);
        if is_newest && committed.term < term {
            let has = written.and_then(|w| w.get(last));
            let is_compacted = written.is_some_and(|w| w.compacted >= last);
            assert!(
                is_compacted || has.is_some_and(|entry| entry.term == committed.term),
                "node {node} leads group {group} in term {term} without committed entry {last} of \
                 term {}: it has {has:?}",
                committed.term
            );
        }
    }

    /// A node's machine is given entries: they are durable there, on a quorum of disks, and the same
    /// everywhere and for ever (state machine safety, Raft §5.4.3).
    pub fn on_apply(&mut self, node: NodeId, group: GroupId, blocks: &[Block]) {
        let entries = blocks
            .iter()
            .flat_map(|block| (block.first().0..).zip(seen(block)));
        for (index, entry) in entries {
            let index = Index(index);
            let durable = self.disks.get(&node).and_then(|d| d.durable.get(&group));
            let is_durable = durable
                .and_then(|d| d.get(index))
                .is_some_and(|e| e.term == entry.term);
            let is_compacted = durable.is_some_and(|d| d.compacted >= index);
            assert!(
                is_durable || is_compacted,
                "node {node} applies entry {index} of group {group} before its own disk has it"
            );
            self.on_committed(node, group, index, entry);
        }
    }

    fn on_committed(&mut self, node: NodeId, group: GroupId, index: Index, entry: Seen) {
        let at = usize::try_from(index.0 - 1).expect("in memory");
        let history = self.groups.entry(group).or_default();
        let known = history.committed.get_mut(at);
        if let Some(known) = known {
            let same_hash =
                known.hash.is_none() || entry.hash.is_none() || known.hash == entry.hash;
            assert!(
                known.term == entry.term && same_hash,
                "entry {index} of group {group} was committed as {known:?}, node {node} applies {entry:?}"
            );
            known.hash = known.hash.or(entry.hash);
            return;
        }
        assert!(history.committed.len() == at, "applied ahead of everybody");
        history.committed.push(entry);
        self.committed += 1;
        if self.has_changes {
            return;
        }
        let voters = &self.voters[&group];
        let holds = |id: &&NodeId| {
            let durable = self.disks.get(id).and_then(|d| d.durable.get(&group));
            let held = durable.and_then(|d| d.get(index));
            held.is_some_and(|e| e.term == entry.term)
                || durable.is_some_and(|d| d.compacted >= index)
        };
        let holders = voters.iter().filter(holds).count();
        assert!(
            holders > voters.len() / 2,
            "entry {index} of group {group} is applied at node {node}, but only {holders} of {} \
             voters have it on their disks",
            voters.len()
        );
    }

    /// An acknowledged write is in the log where its client was told.
    pub fn check_write(&self, group: GroupId, index: Index, command: Command) {
        let at = usize::try_from(index.0 - 1).expect("in memory");
        let entry = self.groups.get(&group).and_then(|h| h.committed.get(at));
        let hash = entry.and_then(|entry| entry.hash);
        assert!(
            hash == Some(crc32fast::hash(&command.encode())),
            "group {group}: {command:?} was acknowledged at {index}, where another entry is"
        );
    }
}
