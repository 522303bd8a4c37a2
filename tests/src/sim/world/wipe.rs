//! Disks that are replaced by empty ones, and nodes that leave and join for it.

use multiraft_engine::raft::membership::Membership;
use multiraft_engine::shard::GroupStatus;
use multiraft_engine::types::NodeId;
use rand::Rng;

use super::World;
use crate::sim::faults::Fault;

/// Ticks, on average, until the operators take the next step of a node's return.
const REJOIN_TICKS: u64 = 15;

impl World {
    /// Loses a node's disk. Only while everybody else has all of theirs, and knows which life of this
    /// node's data is the member: more than that is beyond what any quorum can bear, or within the
    /// hole that the core states. Not in runs whose memberships change for other reasons, where the
    /// rest of a group may be no quorum; nor the data beside a witness, which may be the only copy.
    pub(super) fn wipe(&mut self, at: usize) {
        let id = self.nodes[at].id;
        if !self.may_forget(id) {
            return;
        }
        self.crash(at);
        self.nodes[at].wipe();
        self.invariants.on_wipe(id);
        self.wiped.insert(id);
        self.fault(Fault::Wipe, Some(id), String::new);
    }

    /// Whether the others can bear that a node forgets something.
    pub(super) fn may_forget(&mut self, id: NodeId) -> bool {
        let has_other_witness = |membership: &Membership| {
            let witnesses = membership.configuration().witnesses;
            witnesses.iter().any(|&witness| witness != id)
        };
        !self.groups.values().any(has_other_witness)
            && self.wiped.is_empty()
            && self.lost.is_none()
            && self.away.is_empty()
            && self.stateless.is_empty()
            && !self.faults.has(Fault::Membership)
            && self.is_known_everywhere(id)
    }

    /// Whether every replica of every group, this node's own included, knows this life of its data: a
    /// replica that has not come so far in the log yet does not vote.
    pub(super) fn is_known_everywhere(&mut self, id: NodeId) -> bool {
        let (incarnation, count) = (self.node(id).incarnation, self.nodes.len());
        let statuses = self.statuses();
        statuses.len() == self.groups.len()
            && statuses.iter().all(|replicas| {
                let knows = |(_, status): &&(usize, GroupStatus)| {
                    status.membership.incarnations.get(&id) == Some(&incarnation)
                };
                replicas.iter().filter(knows).count() == count
            })
    }

    /// A member whose disk was replaced since the group admitted it.
    pub(super) fn forgotten_member(&self, membership: &Membership) -> Option<NodeId> {
        let is_other = |(id, known): &(&NodeId, &u64)| {
            let node = self.nodes.iter().find(|node| node.id == **id);
            node.is_some_and(|node| node.incarnation != **known)
        };
        let forgotten = membership.incarnations.iter().find(is_other);
        forgotten.map(|(&id, _)| id)
    }

    /// While something is broken, too, operators let nodes with new disks leave and join.
    pub(super) fn rejoin_sometimes(&mut self) {
        if self.wiped.is_empty() || self.rng.random_range(0..REJOIN_TICKS) > 0 {
            return;
        }
        self.restore_memberships();
        let back: Vec<NodeId> = self.wiped.iter().copied().collect();
        for id in back {
            if self.is_known_everywhere(id) && self.is_member_everywhere() {
                self.wiped.remove(&id);
            }
        }
    }

    fn is_member_everywhere(&mut self) -> bool {
        let statuses = self.statuses();
        statuses
            .iter()
            .flatten()
            .all(|(_, status)| status.membership.members == self.groups[&status.group].members)
    }
}
