//! Snapshots on demand, short logs, and a node that leads nothing.

use std::collections::BTreeMap;

use multiraft_engine::raft::RoleName;
use multiraft_engine::raft::membership::MemberRole;
use multiraft_engine::shard::GroupStatus;
use multiraft_engine::types::{GroupId, Index, NodeId};
use multiraft_proto::admin::{DrainResponse, KeptLeadership};
use tonic::Status;

use super::{AdminService, LOOK_PERIOD, LOOKS_PER_REQUEST, PATIENCE};

impl AdminService {
    /// Makes a snapshot of all that is applied of a group here, if there is none.
    pub(super) async fn snapshot_of(&self, group: GroupId) -> Result<GroupStatus, Status> {
        let status = self.group(group).await?;
        if status.member_role == Some(MemberRole::Witness) {
            return Err(Status::failed_precondition(format!(
                "node {} is a witness of group {group}: it has no state to make a snapshot of",
                self.about.node
            )));
        }
        let applied = status.applied;
        let ask = || self.host.make_snapshot(group);
        self.insist(group, ask, |s| s.snapshot >= applied).await
    }

    /// Forgets a group's log up to its newest snapshot, which has all that is applied; a witness, which has
    /// none, all that is applied. Returns the first entry that is left.
    pub(super) async fn compact(&self, group: GroupId) -> Result<Index, Status> {
        let status = self.group(group).await?;
        let end = if status.member_role == Some(MemberRole::Witness) {
            status.applied
        } else {
            self.snapshot_of(group).await?.snapshot
        };
        let ask = || self.host.compact(group, end);
        let status = self.insist(group, ask, |s| s.first > end).await?;
        Ok(status.first)
    }

    /// Hands over all that this node leads, all groups at once.
    pub(super) async fn lead_nothing(&self) -> DrainResponse {
        let mut moved = 0;
        let mut kept = BTreeMap::new();
        let mut led: Option<usize> = None;
        let mut looks = 0;
        let handing_over = async {
            loop {
                let groups = self.host.status(&[]).await;
                let leads = groups.iter().filter(|s| s.role == RoleName::Leader);
                let leads: Vec<&GroupStatus> = leads.collect();
                moved = led.get_or_insert(leads.len()).saturating_sub(leads.len());
                kept.clear();
                for status in leads {
                    let heir = self.heir(status);
                    if let (Ok(heir), 0) = (&heir, looks) {
                        self.host.transfer_leadership(status.group, *heir);
                    }
                    kept.insert(status.group, heir.err());
                }
                if kept.values().all(Option::is_some) {
                    return; // nobody is left to hand anything to
                }
                looks = (looks + 1) % LOOKS_PER_REQUEST;
                tokio::time::sleep(LOOK_PERIOD).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, handing_over).await.is_ok();
        tracing::info!(moved, kept = kept.len(), in_time, "drained");
        let kept = kept.into_iter().map(|(group, reason)| KeptLeadership {
            group_id: group.0,
            reason: reason.unwrap_or("no follower took over in time").to_owned(),
        });
        DrainResponse {
            moved: u32::try_from(moved).unwrap_or(u32::MAX),
            kept: kept.collect(),
        }
    }

    /// Who is to lead a group instead of this node: a voter with data that is connected, and of those who
    /// have all of the log another one for each group, so that one node does not get them all.
    fn heir(&self, status: &GroupStatus) -> Result<NodeId, &'static str> {
        let members = &status.membership.members;
        let may_lead = |id: &NodeId| members.get(id).map(|m| m.role) == Some(MemberRole::Voter);
        let voters = status.followers.iter().filter(|f| may_lead(&f.node));
        let voters: Vec<_> = voters.collect();
        if voters.is_empty() {
            return Err("it has no other voter with data");
        }
        let connected = self.events.connected();
        let reached = voters.iter().filter(|f| connected.contains(&f.node));
        let reached: Vec<_> = reached.collect();
        let most = reached.iter().map(|f| f.matched).max();
        let most = most.ok_or("no other voter with data is connected")?;
        let best: Vec<_> = reached.iter().filter(|f| f.matched == most).collect();
        Ok(best[status.group.0 as usize % best.len()].node)
    }
}
