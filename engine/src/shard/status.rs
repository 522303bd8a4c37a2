//! What a shard tells of its groups.

use std::collections::BTreeSet;

use super::{Answer, RecoverReply, Shard};
use crate::error::RecoverError;
use crate::raft::RoleName;
use crate::raft::effects::Input;
use crate::raft::membership::{MemberRole, Membership};
use crate::raft::progress::ProgressState;
use crate::raft::recovery::Seen;
use crate::types::{GroupId, Index, NodeId, Term};

/// The state of one group on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// What the replica is.
    pub role: RoleName,
    /// Its role in the membership; `None` if it is no member.
    pub member_role: Option<MemberRole>,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Committed up to.
    pub commit: Index,
    /// Applied up to.
    pub applied: Index,
    /// First index in the log.
    pub first: Index,
    /// Last index in the log.
    pub last: Index,
    /// The last entry that the newest snapshot here covers; zero if there is none.
    pub snapshot: Index,
    /// Everyone in it.
    pub membership: Membership,
    /// It waits for the group's state after joining; the membership is what it was told.
    pub is_joining: bool,
    /// What somebody who decides to go on without a quorum is to have seen.
    pub seen: Seen,
    /// The other members as this replica sees them if it leads; else empty.
    pub followers: Vec<FollowerStatus>,
}

/// What a leader knows of another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Who.
    pub node: NodeId,
    /// Up to where its log is known to be like ours, durably.
    pub matched: Index,
    /// How it is sent to.
    pub state: ProgressState,
}

impl<P, R> Shard<P, R> {
    /// The state of these groups, or of all if none is named.
    pub(super) fn status(&self, groups: &[GroupId]) -> Vec<GroupStatus> {
        let wanted = |g: &GroupId| groups.is_empty() || groups.contains(g);
        let replicas = self.groups.iter().filter(|(g, _)| wanted(g));
        let node = self.config.node;
        replicas
            .map(|(&group, replica)| GroupStatus {
                group,
                role: replica.raft.role(),
                member_role: replica.raft.membership().members.get(&node).map(|m| m.role),
                term: replica.raft.term(),
                leader: replica.raft.leader(),
                commit: replica.raft.log().commit(),
                applied: replica.raft.log().applied(),
                first: replica.raft.log().first(),
                last: replica.raft.log().last(),
                snapshot: replica.snapshots.index(),
                membership: replica.raft.membership().clone(),
                is_joining: replica.raft.is_joining(),
                seen: replica.raft.seen(),
                followers: (replica.raft.progress())
                    .map(|(node, progress)| FollowerStatus {
                        node,
                        matched: progress.matched,
                        state: progress.state,
                    })
                    .collect(),
            })
            .collect()
    }

    /// An operator says that only these are left of a group. Answered at once: the rest shows in its
    /// status.
    pub(super) fn on_recover(
        &mut self,
        group: GroupId,
        survivors: BTreeSet<NodeId>,
        seen: Seen,
        reply: RecoverReply,
    ) {
        let checked = match (&self.fenced, self.groups.get(&group)) {
            (Some(error), _) => Err(RecoverError::Fenced(error.clone())),
            (None, None) => Err(RecoverError::UnknownGroup(group)),
            (None, Some(replica)) => {
                (replica.raft.check_recovery(&survivors, seen)).map_err(RecoverError::Refused)
            }
        };
        if checked.is_ok() {
            self.step(group, Input::Recover(survivors));
        }
        self.out.answers.push(Answer::Recover(reply, checked));
    }
}
