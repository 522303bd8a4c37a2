//! Nodes that leave groups and join them again, as their operators ask them to.

use multiraft_engine::raft::membership::{MemberRole, Membership};
use multiraft_engine::shard::{GroupStatus, ShardInput};
use multiraft_engine::types::{GroupId, Index, NodeId};
use rand::Rng;

use super::World;
use crate::sim::faults::Fault;

/// Ticks, on average, until the operators let a node come back to a group that it has left.
const RETURN_TICKS: u64 = 40;
/// Ticks after which nothing is on its way any more of a wish that was given up.
const CALM_TICKS: u64 = 100;

/// A node that was asked to leave a group.
pub(super) struct Away {
    node: NodeId,
    /// When everybody was a member and the node was told to stay, if it was.
    calm_since: Option<u64>,
    /// Where the longest log ended some time after that: what is still in a log of the wish, though given up, is
    /// up to there.
    last: Option<Index>,
}

impl World {
    /// A node leaves a group, or its operator thinks better of it. One at a time, and only while all
    /// others are members: the last ones to leave would end the group.
    pub(super) fn leave(&mut self, at: usize) {
        let group = self.any_group();
        let id = self.nodes[at].id;
        if self.rng.random_bool(0.2) {
            self.nodes[at].push(group, ShardInput::GiveUp(group));
            return;
        }
        let is_busy = self.away.contains_key(&group)
            || !self.wiped.is_empty()
            || self.lost.is_some()
            || self.faults.has(Fault::Membership)
            || !self.is_complete(group);
        if is_busy {
            return;
        }
        let away = Away {
            node: id,
            calm_since: None,
            last: None,
        };
        self.away.insert(group, away);
        let reply = Box::new(|_| ());
        self.nodes[at].push(group, ShardInput::Leave(group, reply));
        self.fault(Fault::Leave, Some(id), || format!("g{group}"));
    }

    /// Whether everybody who should be is a member of the group, by everybody's own word.
    pub(super) fn is_complete(&mut self, group: GroupId) -> bool {
        let wanted = self.groups[&group].members.clone();
        let statuses = self.statuses();
        let replicas = statuses
            .iter()
            .find(|replicas| replicas[0].1.group == group);
        let is_complete =
            |(_, s): &(usize, GroupStatus)| !s.is_joining && s.membership.members == wanted;
        replicas.is_some_and(|replicas| {
            replicas.len() == wanted.len() && replicas.iter().all(is_complete)
        })
    }

    /// While something is broken, too, operators let nodes that have left join again.
    pub(super) fn return_sometimes(&mut self) {
        if self.rng.random_range(0..RETURN_TICKS) > 0 {
            return;
        }
        self.join_absent();
        let away: Vec<GroupId> = self.away.keys().copied().collect();
        for group in away {
            self.end_leave(group);
        }
    }

    /// A node is back when everybody is a member again; or it has not gone yet, and stays.
    fn end_leave(&mut self, group: GroupId) {
        let is_complete = self.is_complete(group);
        let (longest, applied) = self.ends(group);
        let tick = self.tick;
        let Some(away) = self.away.get_mut(&group) else {
            return;
        };
        if !is_complete {
            (away.calm_since, away.last) = (None, None);
        } else if away.last.is_some_and(|last| last <= applied) {
            self.away.remove(&group);
        } else if away.calm_since.is_none() {
            away.calm_since = Some(tick);
            let node = away.node;
            self.node(node).push(group, ShardInput::GiveUp(group));
        } else if away
            .calm_since
            .is_some_and(|since| since + CALM_TICKS <= tick)
        {
            away.last = away.last.or(Some(longest));
        }
    }

    /// The end of the longest log of a group, and what all replicas have applied.
    fn ends(&mut self, group: GroupId) -> (Index, Index) {
        let statuses = self.statuses();
        let of_group = statuses.iter().flatten().map(|(_, status)| status);
        let of_group = of_group.filter(|status| status.group == group);
        let longest = of_group.clone().map(|status| status.last).max();
        let applied = of_group.map(|status| status.applied).min();
        (longest.unwrap_or_default(), applied.unwrap_or_default())
    }

    /// Every node without a replica of a group, or without its role in it, is asked to join.
    pub(super) fn join_absent(&mut self) {
        for replicas in self.statuses() {
            let group = replicas[0].1.group;
            let wanted = self.groups[&group].clone();
            for (&id, member) in &wanted.members {
                let own = replicas.iter().find(|(at, _)| self.nodes[*at].id == id);
                let is_there = own.is_some_and(|(_, status)| {
                    !status.is_joining && status.member_role == Some(member.role)
                });
                if !is_there && own.is_none_or(|(_, status)| is_learning(status, member.role)) {
                    self.join(id, group, wanted.clone());
                }
            }
        }
    }

    fn join(&mut self, id: NodeId, group: GroupId, wanted: Membership) {
        let is_running = self.node(id).process.is_some();
        if is_running {
            let reply = Box::new(|_| ());
            self.node(id)
                .push(group, ShardInput::Join(group, wanted, reply));
            self.fault(Fault::Join, Some(id), || format!("g{group}"));
        }
    }
}

/// Whether a replica is on its way to a role.
fn is_learning(status: &GroupStatus, role: MemberRole) -> bool {
    status.is_joining
        || (status.member_role == Some(MemberRole::Learner) && role == MemberRole::Voter)
}
