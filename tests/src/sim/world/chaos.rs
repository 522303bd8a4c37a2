//! What goes wrong, and who asks for changes.

use std::collections::{BTreeMap, BTreeSet};

use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{Member, MemberRole};
use multiraft_engine::shard::ShardInput;
use multiraft_engine::types::{GroupId, NodeId};
use rand::Rng;

use super::World;
use crate::sim::faults::Fault;
use crate::sim::trace::Kind;

impl World {
    /// Every kind of fault in its own rhythm.
    pub(super) fn break_something(&mut self) {
        for fault in self.plan.faults.iter() {
            let mean_ticks = match fault {
                Fault::Crash | Fault::Lose => 300,
                Fault::CrashAll => 4000,
                Fault::FailSync | Fault::StuckDisk => 1500,
                Fault::DiskFull => 1200,
                Fault::Partition | Fault::OneWay | Fault::Partial => 700,
                Fault::Reset | Fault::Pause | Fault::FalseEvidence | Fault::Membership => 250,
                Fault::ClockRate | Fault::Transfer => 400,
                Fault::Snapshot | Fault::Leave => 150,
                Fault::BreakTransfer => 5,
                Fault::Rot => 500,
                Fault::Wipe => 800,
                // These happen where frames are sent, disks turned and entries applied.
                Fault::Drop
                | Fault::Duplicate
                | Fault::Delay
                | Fault::SlowDisk
                | Fault::SlowApply
                | Fault::Join => continue,
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
                let node = &mut self.nodes[at];
                if self.rng.random_bool(0.2) {
                    node.snapshot_disk.fail_next_sync();
                } else {
                    node.disk.fail_next_sync();
                }
                node.restart_at = 0;
                self.fault(fault, Some(id), String::new);
            }
            Fault::DiskFull => {
                self.nodes[at].disk.set_free_bytes(0);
                self.nodes[at].snapshot_disk.set_free_bytes(0);
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
                self.transfers.reset(id, peer, tick);
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
            Fault::Snapshot => self.make_snapshot(at),
            Fault::BreakTransfer => self.break_transfer(),
            Fault::Rot => self.rot(at, |name| {
                let kind = name.rsplit_once('.').map(|(_, kind)| kind);
                kind == Some("snap")
            }),
            Fault::Wipe => self.wipe(at),
            Fault::Lose => self.lose(at),
            Fault::Leave => self.leave(at),
            Fault::Drop
            | Fault::Duplicate
            | Fault::Delay
            | Fault::SlowDisk
            | Fault::SlowApply
            | Fault::Join => {}
        }
        if self.nodes[at].process.as_ref().is_some_and(|p| p.is_fenced) {
            self.crash(at); // who operates it starts it again
        }
    }

    pub(super) fn any_group(&mut self) -> GroupId {
        let at = self.rng.random_range(0..self.groups.len());
        let group = self.groups.keys().nth(at).copied();
        group.expect("there are groups")
    }

    /// The process ends; what survives is drawn.
    pub(super) fn crash(&mut self, at: usize) {
        self.die_while_saving(at);
        let node = &mut self.nodes[at];
        if node.process.take().is_none() {
            return;
        }
        node.disk.crash(self.rng.random());
        node.snapshot_disk.crash(self.rng.random());
        node.machine.crash();
        node.restart_at = self.tick + self.rng.random_range(1..150);
        node.stuck_until = 0;
        node.paused_until = 0;
        let id = node.id;
        self.clients.on_crash(id);
        self.network.reset_node(id);
        self.transfers.on_crash(id);
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
}

/// Who comes back comes back to where it was.
pub(super) fn with_addresses(members: &BTreeMap<NodeId, Member>, change: ConfChange) -> ConfChange {
    let nodes = change.changes.iter().map(|change| change.node());
    let addresses = nodes.map(|id| (id, members[&id].address.clone()));
    ConfChange {
        addresses: addresses.collect(),
        ..change
    }
}
