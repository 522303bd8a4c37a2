//! Who belongs to a group, as operators change it.

use std::collections::BTreeSet;
use std::time::Duration;

use multiraft_engine::error::ChangeMembershipError;
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{MemberRole, Membership};
use multiraft_engine::raft::recovery::Seen;
use multiraft_engine::shard::GroupStatus;
use multiraft_engine::types::{GroupId, Index, NodeId, Term};
use multiraft_proto::admin::{RecoverQuorumRequest, RecoverQuorumResponse};
use multiraft_proto::node::MemberConfig;
use tonic::Status;

use super::{AdminService, PATIENCE};
use crate::convert;

/// Between two tries of a change that the leader does not take yet.
const RETRY_PERIOD: Duration = Duration::from_millis(100);

impl AdminService {
    pub(super) async fn promote(
        &self,
        group: GroupId,
        node: NodeId,
    ) -> Result<Vec<MemberConfig>, Status> {
        match self.role(group, node).await? {
            Some(MemberRole::Learner | MemberRole::Voter) => {}
            Some(MemberRole::Witness) => {
                return Err(Status::failed_precondition(format!(
                    "node {node} is a witness of group {group}: it has no data. Remove it, then have it \
                     join as a member"
                )));
            }
            None => return Err(no_member(group, node)),
        }
        let is_voter = |m: &Membership| role_of(m, node) == Some(MemberRole::Voter);
        self.change(group, Change::Voter(node), is_voter).await
    }

    pub(super) async fn demote(
        &self,
        group: GroupId,
        node: NodeId,
    ) -> Result<Vec<MemberConfig>, Status> {
        match self.role(group, node).await? {
            Some(MemberRole::Learner | MemberRole::Voter) => {}
            Some(MemberRole::Witness) => {
                return Err(Status::failed_precondition(format!(
                    "node {node} is a witness of group {group}: it has no data to observe with. Remove \
                     it, then have it join as an observer"
                )));
            }
            None => return Err(no_member(group, node)),
        }
        self.lead_without(group, node).await?;
        let is_learner = |m: &Membership| role_of(m, node) == Some(MemberRole::Learner);
        self.change(group, Change::Learner(node), is_learner).await
    }

    pub(super) async fn remove(
        &self,
        group: GroupId,
        node: NodeId,
    ) -> Result<Vec<MemberConfig>, Status> {
        if self.role(group, node).await?.is_some() {
            self.lead_without(group, node).await?;
        }
        let is_gone = |m: &Membership| !m.members.contains_key(&node);
        self.change(group, Change::Remove(node), is_gone).await
    }

    async fn role(&self, group: GroupId, node: NodeId) -> Result<Option<MemberRole>, Status> {
        Ok(convert::role_in(&self.group(group).await?, node))
    }

    /// Sees to it that somebody can lead the group when `node` has no vote any more, and that it is not
    /// `node` that leads it.
    async fn lead_without(&self, group: GroupId, node: NodeId) -> Result<(), Status> {
        let status = self.group(group).await?;
        let is_heir =
            |id: &NodeId| *id != node && convert::role_in(&status, *id) == Some(MemberRole::Voter);
        let heirs = status.membership.members.keys().copied().filter(is_heir);
        let heirs: Vec<NodeId> = heirs.collect();
        if heirs.is_empty() && convert::role_in(&status, node) == Some(MemberRole::Voter) {
            return Err(Status::failed_precondition(format!(
                "node {node} is the last voter with data of group {group}: add or promote another one \
                 first, or end the group with `multiraft leave`"
            )));
        }
        if status.leader != Some(node) {
            return Ok(());
        }
        match best_heir(&status, &heirs) {
            Some(heir) => self.hand_over(group, heir).await.map(drop),
            None => Ok(()),
        }
    }

    /// Has the leader make a change, and asks again while it does not take it.
    async fn change(
        &self,
        group: GroupId,
        change: Change,
        is_so: impl Fn(&Membership) -> bool,
    ) -> Result<Vec<MemberConfig>, Status> {
        let mut reason = None;
        let asking = async {
            loop {
                let membership = self.group(group).await?.membership;
                if is_so(&membership) && membership.joint.is_none() {
                    return Ok(convert::member_configs(&membership));
                }
                let wanted = ConfChange {
                    expected: Some(membership.index),
                    ..ConfChange::new(Transition::Auto, vec![change])
                };
                match self.host.change_membership(group, wanted).await {
                    Ok(_) => continue,
                    Err(error @ ChangeMembershipError::UnknownGroup(_)) => {
                        return Err(Status::not_found(error.to_string()));
                    }
                    Err(
                        error @ (ChangeMembershipError::Fenced(_) | ChangeMembershipError::Stopped),
                    ) => return Err(Status::unavailable(error.to_string())),
                    Err(error) => reason = Some(error.to_string()),
                }
                tokio::time::sleep(RETRY_PERIOD).await;
            }
        };
        let asked = tokio::time::timeout(PATIENCE, asking).await;
        asked.unwrap_or_else(|_| {
            let reason = reason.unwrap_or_else(|| "the leader did not answer".to_owned());
            Err(Status::unavailable(format!(
                "the members of group {group} were not changed: {reason}"
            )))
        })
    }

    /// Goes on with what is left of a group.
    pub(super) async fn recover(
        &self,
        request: RecoverQuorumRequest,
    ) -> Result<RecoverQuorumResponse, Status> {
        let group = convert::group_id(request.group_id)?;
        let survivors = request.survivors.into_iter().map(convert::node_id);
        let survivors = survivors.collect::<Result<BTreeSet<NodeId>, Status>>()?;
        let seen = Seen {
            membership: Index(request.membership_index),
            last: (Index(request.last_index), Term(request.last_term)),
        };
        let begun = self.host.recover(group, survivors.clone(), seen).await;
        begun.map_err(|error| convert::recover_status(&error))?;
        let node = self.about.node;
        let is_so = |status: &GroupStatus| {
            status.leader == Some(node)
                && status.membership.joint.is_none()
                && status.membership.members.keys().eq(&survivors)
        };
        let status = self.insist(group, || {}, is_so).await?;
        Ok(RecoverQuorumResponse {
            term: status.term.0,
            members: convert::member_configs(&status.membership),
        })
    }
}

fn role_of(membership: &Membership, node: NodeId) -> Option<MemberRole> {
    membership.members.get(&node).map(|member| member.role)
}

fn no_member(group: GroupId, node: NodeId) -> Status {
    Status::not_found(format!("node {node} is no member of group {group}"))
}

/// Of those who can lead, the one that has most of the leader's log; the first if this node does not lead
/// and so does not know.
pub(super) fn best_heir(status: &GroupStatus, heirs: &[NodeId]) -> Option<NodeId> {
    let matched = |id: &NodeId| {
        let follower = status.followers.iter().find(|f| f.node == *id);
        follower.map_or(Index::ZERO, |f| f.matched)
    };
    let most = heirs.iter().map(matched).max()?;
    heirs.iter().copied().find(|id| matched(id) == most)
}
