//! `multiraft.admin.v1.Admin`: what operators ask a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::host::Host;
use multiraft_engine::raft::membership::MemberRole;
use multiraft_engine::shard::GroupStatus;
use multiraft_engine::types::{GroupId, NodeId};
use multiraft_proto::admin::admin_server::Admin;
use multiraft_proto::admin::{
    MakeSnapshotRequest, MakeSnapshotResponse, PeerStatus, StatusRequest, StatusResponse,
    TransferLeadershipRequest, TransferLeadershipResponse,
};
use tonic::{Request, Response, Status};

use crate::convert;
use crate::events::EventHub;
use crate::kv::KvMachine;

/// How long a call waits for what it has asked for, if its client does not give up sooner.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_PERIOD: Duration = Duration::from_millis(20);
/// Looks after which it asks again: a leader gives up handing over after an election timeout.
const LOOKS_PER_REQUEST: u32 = 50;

/// What does not change while a node runs.
#[derive(Debug, Clone)]
pub struct About {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster_id: u64,
    /// Drawn when its data directory was made.
    pub incarnation: u64,
    /// Where its gRPC services listen.
    pub api_address: String,
    /// Where its peers reach it.
    pub raft_address: String,
    /// Where its data is.
    pub data_dir: String,
}

/// The service on a running host.
pub struct AdminService {
    about: About,
    host: Arc<Host<KvMachine>>,
    events: Arc<EventHub>,
}

impl AdminService {
    /// Serves `host`.
    pub fn new(about: About, host: Arc<Host<KvMachine>>, events: Arc<EventHub>) -> Self {
        Self {
            about,
            host,
            events,
        }
    }

    /// The state of a group that must be here.
    async fn group(&self, group: GroupId) -> Result<GroupStatus, Status> {
        let found = self.host.status(&[group]).await.pop();
        found.ok_or_else(|| Status::not_found(format!("group {group} is not on this node")))
    }

    /// Asks for something until the group's state shows that it is so.
    async fn insist(
        &self,
        group: GroupId,
        ask: impl Fn(),
        is_so: impl Fn(&GroupStatus) -> bool,
    ) -> Result<GroupStatus, Status> {
        let insisting = async {
            let mut looks = 0;
            loop {
                let status = self.group(group).await?;
                if is_so(&status) {
                    return Ok(status);
                }
                if looks == 0 {
                    ask();
                }
                looks = (looks + 1) % LOOKS_PER_REQUEST;
                tokio::time::sleep(LOOK_PERIOD).await;
            }
        };
        let too_long = |_| {
            Status::unavailable(format!(
                "group {group} did not get there: look at its status"
            ))
        };
        tokio::time::timeout(PATIENCE, insisting)
            .await
            .map_err(too_long)?
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let wanted: Vec<GroupId> = request
            .into_inner()
            .group_ids
            .into_iter()
            .map(GroupId)
            .collect();
        let groups = self.host.status(&wanted).await;
        let found = |id: &&GroupId| !groups.iter().any(|g| g.group == **id);
        if let Some(missing) = wanted.iter().find(found) {
            return Err(Status::not_found(format!(
                "group {missing} is not on this node"
            )));
        }
        let connected = self.events.connected();
        let peers: BTreeMap<NodeId, PeerStatus> = groups
            .iter()
            .flat_map(|group| &group.membership.members)
            .filter(|(node, _)| **node != self.about.node)
            .map(|(&node, member)| {
                let address = member.address.to_string();
                let connected = connected.contains(&node);
                (
                    node,
                    PeerStatus {
                        node_id: node.get(),
                        address,
                        connected,
                    },
                )
            })
            .collect();
        Ok(Response::new(StatusResponse {
            node_id: self.about.node.get(),
            cluster_id: self.about.cluster_id,
            incarnation: self.about.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_address: self.about.api_address.clone(),
            raft_address: self.about.raft_address.clone(),
            data_dir: self.about.data_dir.clone(),
            groups: groups.iter().map(convert::group_status).collect(),
            peers: peers.into_values().collect(),
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let TransferLeadershipRequest { group_id, node_id } = request.into_inner();
        let group = convert::group_id(group_id)?;
        let to = NodeId::new(node_id)
            .ok_or_else(|| Status::invalid_argument("node_id must not be 0"))?;
        let status = self.group(group).await?;
        let role = status.membership.members.get(&to).map(|member| member.role);
        if role != Some(MemberRole::Voter) {
            return Err(Status::failed_precondition(format!(
                "node {to} cannot lead group {group}: it is no voter with data there"
            )));
        }
        let ask = || self.host.transfer_leadership(group, to);
        let status = self.insist(group, ask, |s| s.leader == Some(to)).await?;
        let term = status.term.0;
        Ok(Response::new(TransferLeadershipResponse { term }))
    }

    async fn make_snapshot(
        &self,
        request: Request<MakeSnapshotRequest>,
    ) -> Result<Response<MakeSnapshotResponse>, Status> {
        let group = convert::group_id(request.into_inner().group_id)?;
        let status = self.group(group).await?;
        if status.member_role == Some(MemberRole::Witness) {
            return Err(Status::failed_precondition(format!(
                "node {} is a witness of group {group}: it has no state to make a snapshot of",
                self.about.node
            )));
        }
        let applied = status.applied;
        let ask = || self.host.make_snapshot(group);
        let status = self.insist(group, ask, |s| s.snapshot >= applied).await?;
        let index = status.snapshot.0;
        Ok(Response::new(MakeSnapshotResponse { index }))
    }
}
