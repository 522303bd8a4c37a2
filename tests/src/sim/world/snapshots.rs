//! Snapshots in a simulated cluster: made, sent, taken over, broken on the way, rotten on the disk.

use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::shard::ShardInput;
use multiraft_engine::snapshot::{SnapshotDone, SnapshotStore, SnapshotTask};
use multiraft_engine::traits::GroupWrite;
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Disk, SnapshotDir};
use rand::Rng;

use super::World;
use crate::sim::faults::Fault;
use crate::sim::transfers::News;

/// Bytes at the end of a snapshot's file: the state of a few keys, and what ends the file.
const END_BYTES: usize = 64;

impl World {
    /// A node's shard has snapshots to send.
    pub(super) fn send_snapshots(&mut self, at: usize, envelopes: Vec<Envelope>) {
        for envelope in envelopes {
            let news = self.transfers.begin(&self.nodes[at], envelope, self.tick);
            self.tell(news);
        }
    }

    /// One round of all snapshots on their way.
    pub(super) fn turn_transfers(&mut self) {
        let network = &self.network;
        let is_open = |from, to| network.is_open(from, to);
        let news = self.transfers.turn(&mut self.nodes, self.tick, is_open);
        self.mix(news.len() as u64 + 4000);
        self.tell(news);
    }

    fn tell(&mut self, news: News) {
        for (id, input) in news {
            let group = match &input {
                ShardInput::SnapshotSending(sent, _) => sent.group,
                ShardInput::SnapshotReceived(envelope) => envelope.group,
                _ => continue,
            };
            self.node(id).push(group, input);
        }
    }

    /// Work for the threads beside the shards: it takes some time.
    pub(super) fn add_snapshot_tasks(&mut self, at: usize, tasks: Vec<SnapshotTask>) {
        for task in tasks {
            let done_at = self.tick + self.rng.random_range(0..10);
            if let Some(process) = &mut self.nodes[at].process {
                process.snapshot_tasks.push((done_at, task));
            }
        }
    }

    pub(super) fn turn_snapshots(&mut self, at: usize) {
        let tick = self.tick;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let is_due = |task: &mut (u64, SnapshotTask)| task.0 <= tick;
        let due: Vec<_> = process.snapshot_tasks.extract_if(.., is_due).collect();
        for (_, task) in due {
            if let SnapshotTask::Restore(group, snapshot) = &task
                && self.faults.has(Fault::Rot)
                && self.rng.random_bool(0.5)
            {
                self.rot(at, |name| {
                    name == &format!("{group}-{}.snap", snapshot.index)
                });
            }
            let group = task.group();
            let Some(done) = self.run_snapshot_task(at, task) else {
                return;
            };
            let replica = (group, self.nodes[at].id);
            match &done {
                SnapshotDone::Lost(_) => {
                    self.stateless.insert(replica);
                }
                SnapshotDone::Restored { .. } => {
                    self.stateless.remove(&replica);
                }
                SnapshotDone::Saved { .. }
                | SnapshotDone::NotSaved
                | SnapshotDone::Verified
                | SnapshotDone::Unusable(_)
                | SnapshotDone::Forgotten => {}
                SnapshotDone::Removed(_) => {
                    self.stateless.remove(&replica);
                    self.nodes[at].relied_on.remove(&group);
                }
            }
            self.mix(match &done {
                SnapshotDone::Saved { snapshot, .. } => snapshot.index.0 + 5000,
                SnapshotDone::Restored { snapshot, .. } => snapshot.index.0 + 6000,
                SnapshotDone::NotSaved => 1,
                SnapshotDone::Lost(_) => 2,
                SnapshotDone::Verified => 3,
                SnapshotDone::Unusable(_) => 4,
                SnapshotDone::Forgotten => 5,
                SnapshotDone::Removed(_) => 6,
            });
            self.nodes[at].push(group, ShardInput::SnapshotDone(group, done));
        }
    }

    /// Does the work, and notes which snapshot somebody relies on from now on: one that is told of, or
    /// one that the log has restarted behind. It may only be gone where files rot.
    fn run_snapshot_task(&mut self, at: usize, task: SnapshotTask) -> Option<SnapshotDone> {
        let is_rotten = self.plan.faults.has(Fault::Rot);
        let group = task.group();
        let node = &mut self.nodes[at];
        let process = node.process.as_ref()?;
        let taken_over = match &task {
            SnapshotTask::Restore(_, snapshot) => Some(snapshot.index),
            SnapshotTask::Save(..)
            | SnapshotTask::Verify(..)
            | SnapshotTask::Forget(_)
            | SnapshotTask::Remove(_) => None,
        };
        let Ok(done) = task.run(&*node.machine, &*process.store);
        let saved = match &done {
            SnapshotDone::Saved { snapshot, .. } => Some(snapshot.index),
            SnapshotDone::NotSaved
            | SnapshotDone::Restored { .. }
            | SnapshotDone::Lost(_)
            | SnapshotDone::Verified
            | SnapshotDone::Unusable(_)
            | SnapshotDone::Forgotten
            | SnapshotDone::Removed(_) => None,
        };
        if let Some(index) = saved.or(taken_over).filter(|_| !is_rotten) {
            let newest = node.relied_on.entry(group).or_default();
            *newest = index.max(*newest);
        }
        Some(done)
    }

    /// The log forgets entries only behind a snapshot that is durable; a witness has none.
    pub(super) fn check_compaction(&self, at: usize, writes: &[GroupWrite]) {
        let node = &self.nodes[at];
        let Some(process) = &node.process else {
            return;
        };
        for write in writes {
            let Some(index) = write.compact_to else {
                continue;
            };
            let configuration = self.groups[&write.group].configuration();
            let newest = process.store.of(write.group).pop();
            // One that rotted was there when it counted.
            let is_rotten = self.plan.faults.has(Fault::Rot);
            assert!(
                newest.is_some_and(|snapshot| index <= snapshot.index)
                    || configuration.witnesses.contains(&node.id)
                    || is_rotten,
                "node {} compacts group {} to {index} without a snapshot that covers it",
                node.id,
                write.group
            );
        }
    }

    pub(super) fn make_snapshot(&mut self, at: usize) {
        let group = self.any_group();
        let id = self.nodes[at].id;
        self.nodes[at].push(group, ShardInput::MakeSnapshot(group));
        self.fault(Fault::Snapshot, Some(id), || format!("of g{group}"));
    }

    pub(super) fn break_transfer(&mut self) {
        let connected = self.transfers.connected();
        if connected.is_empty() {
            return;
        }
        let (from, to) = connected[self.rng.random_range(0..connected.len())];
        self.transfers.reset(from, to, self.tick);
        self.fault(Fault::BreakTransfer, Some(from), || format!("to n{to}"));
    }

    /// One byte of one of these snapshots; who reads the file must see that. A replica whose log
    /// begins with it loses its state: not more of them than the others make up for. So not where only
    /// one member has data, because of a witness or a change of the membership, and not while others
    /// have lost theirs.
    pub(super) fn rot(&mut self, at: usize, is_meant: impl Fn(&String) -> bool) {
        let has_witness = |m: &Membership| !m.configuration().witnesses.is_empty();
        let is_bearable = self.stateless.is_empty()
            && self.wiped.is_empty()
            && self.lost.is_none()
            && self.away.is_empty()
            && !self.faults.has(Fault::Membership)
            && !self.groups.values().any(has_witness);
        if !is_bearable {
            return;
        }
        let disk = &self.nodes[at].snapshot_disk;
        let mut names = disk.names();
        names.retain(is_meant);
        if names.is_empty() {
            return;
        }
        let name = names.swap_remove(self.rng.random_range(0..names.len()));
        let before = disk.bytes(&name);
        let bytes = before.len();
        if bytes > 0 {
            // Half of them where the state is: the description before it is longer.
            let from = if self.rng.random() {
                bytes.saturating_sub(END_BYTES)
            } else {
                0
            };
            let byte = self.rng.random_range(from..bytes);
            let disk = &self.nodes[at].snapshot_disk;
            disk.flip(&name, byte);
            assert!(
                !is_taken(&name, &before) || !is_taken(&name, &disk.bytes(&name)),
                "byte {byte} of {name} has rotted, and nobody sees it"
            );
            let id = self.nodes[at].id;
            self.fault(Fault::Rot, Some(id), || format!("byte {byte} of {name}"));
        }
    }

    /// The process dies at some operation of the disk while it writes a snapshot.
    pub(super) fn die_while_saving(&mut self, at: usize) {
        let dies: bool = self.rng.random();
        let after = self.rng.random_range(0..12);
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else {
            return;
        };
        let is_save = |task: &mut (u64, SnapshotTask)| matches!(task.1, SnapshotTask::Save(..));
        let saves = process.snapshot_tasks.extract_if(.., is_save);
        if let Some((_, task)) = saves.last().filter(|_| dies) {
            node.snapshot_disk
                .fail_from(node.snapshot_disk.operations() + after);
            self.run_snapshot_task(at, task);
        }
    }
}

/// Whether a snapshot's file with these bytes is taken for whole when all of it is read.
fn is_taken(name: &str, bytes: &[u8]) -> bool {
    let disk = SimDisk::new();
    let file = disk.create(name, bytes.len() as u64);
    let written = file.and_then(|file| file.write_all_at(bytes, 0));
    written.expect("an empty disk has room");
    let Ok(store) = SnapshotDir::open(disk, 1) else {
        return false;
    };
    let newest = store.newest();
    let mut snapshots = newest.iter();
    snapshots.any(|(group, snapshot)| store.verify(*group, snapshot.index).is_ok())
}
