//! Everything works again: what must come of it, and how soon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use multiraft_engine::raft::RoleName;
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{Member, MemberRole};
use multiraft_engine::shard::{GroupStatus, ShardInput};
use multiraft_engine::types::{GroupId, NodeId};
use parking_lot::Mutex;
use rand::Rng;

use super::World;
use super::chaos::with_addresses;
use crate::sim::client::{Ask, Clients};
use crate::sim::faults::{Fault, FaultSet};
use crate::sim::machine::Command;
use crate::sim::trace::Kind;

/// Ticks after the heal within which everything must be settled: ten election timeouts of up to
/// twenty ticks.
const SETTLE_TICKS: u64 = 200;
/// Writes and reads served by each group after that.
const FINAL_OPERATIONS: usize = 10;

impl World {
    /// Everything works again.
    pub(super) fn heal(&mut self) {
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
            for disk in [&node.disk, &node.snapshot_disk] {
                disk.set_free_bytes(1 << 30);
                disk.mend();
            }
            node.clock.0 = 1000;
            (node.restart_at, node.paused_until, node.stuck_until) = (0, 0, 0);
        }
    }

    /// Leaders are found, memberships are as at the start, all replicas agree; then every group
    /// serves, and they agree again.
    pub(super) fn settle(&mut self) {
        let start = self.tick;
        self.agree_soon();
        self.healed_ticks = self.tick - start;
        for round in 0..2 * FINAL_OPERATIONS {
            self.serve_everybody(round.is_multiple_of(2));
        }
        self.agree_soon();
    }

    fn agree_soon(&mut self) {
        // Changes of the membership take rounds of their own, and so do snapshots; they are not what
        // is measured.
        let faults = self.plan.faults;
        let changing = [Fault::Membership, Fault::Wipe, Fault::Leave, Fault::Lose];
        let limit = if changing.iter().any(|&fault| faults.has(fault)) {
            20 * SETTLE_TICKS
        } else {
            2 * SETTLE_TICKS
        };
        let start = self.tick;
        while self.tick < start + limit {
            self.advance();
            if self.tick.is_multiple_of(10) {
                self.restore_memberships();
                self.join_absent();
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
    pub(super) fn restore_memberships(&mut self) {
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
            let forgotten = self.forgotten_member(present);
            let change = match wrong {
                _ if present.joint.is_some() => ConfChange::default(),
                _ if let Some(id) = forgotten => {
                    ConfChange::new(Transition::Auto, vec![Change::Remove(id)])
                }
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
    pub(super) fn statuses(&mut self) -> Vec<Vec<(usize, GroupStatus)>> {
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
            let is_member = replicas.iter().all(|(_, s)| {
                s.membership.members == wanted.members
                    && self.forgotten_member(&s.membership).is_none()
            });
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
}
