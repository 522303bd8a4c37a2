//! `multiraft.admin.v1.Admin`: what operators ask a node.
//!
//! A call returns when what it asked for is so, as this node knows it; until then it asks again. So
//! repeating a call that was cut off is safe.

mod backup;
mod members;
mod status;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::host::Host;
use multiraft_engine::raft::membership::MemberRole;
use multiraft_engine::shard::GroupStatus;
use multiraft_engine::types::{GroupId, NodeId};
use multiraft_logdb::LogDb;
use multiraft_proto::admin::admin_server::Admin;
use multiraft_proto::admin::{
    BackupPart, CompactLogRequest, CompactLogResponse, DemoteMemberRequest, DemoteMemberResponse,
    DrainRequest, DrainResponse, ExportRequest, ImportRequest, ImportResponse, MakeSnapshotRequest,
    MakeSnapshotResponse, PromoteMemberRequest, PromoteMemberResponse, RecoverQuorumRequest,
    RecoverQuorumResponse, RemoveMemberRequest, RemoveMemberResponse, StatusRequest,
    StatusResponse, TransferLeadershipRequest, TransferLeadershipResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

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
    log: Arc<LogDb>,
    events: Arc<EventHub>,
}

impl AdminService {
    /// Serves `host`, whose log this is.
    pub fn new(
        about: About,
        host: Arc<Host<KvMachine>>,
        log: Arc<LogDb>,
        events: Arc<EventHub>,
    ) -> Self {
        Self {
            about,
            host,
            log,
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

    /// Has `to` lead a group.
    async fn hand_over(&self, group: GroupId, to: NodeId) -> Result<GroupStatus, Status> {
        let ask = || self.host.transfer_leadership(group, to);
        self.insist(group, ask, |s| s.leader == Some(to)).await
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    type ExportStream = ReceiverStream<Result<BackupPart, Status>>;

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let wanted = request.into_inner().group_ids.into_iter().map(GroupId);
        let wanted: Vec<GroupId> = wanted.collect();
        self.tell_status(&wanted).await.map(Response::new)
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let TransferLeadershipRequest { group_id, node_id } = request.into_inner();
        let (group, to) = (convert::group_id(group_id)?, convert::node_id(node_id)?);
        let status = self.group(group).await?;
        if convert::role_in(&status, to) != Some(MemberRole::Voter) {
            return Err(Status::failed_precondition(format!(
                "node {to} cannot lead group {group}: it is no voter with data there"
            )));
        }
        let term = self.hand_over(group, to).await?.term.0;
        Ok(Response::new(TransferLeadershipResponse { term }))
    }

    async fn make_snapshot(
        &self,
        request: Request<MakeSnapshotRequest>,
    ) -> Result<Response<MakeSnapshotResponse>, Status> {
        let group = convert::group_id(request.into_inner().group_id)?;
        let index = self.snapshot_of(group).await?.snapshot.0;
        Ok(Response::new(MakeSnapshotResponse { index }))
    }

    async fn promote_member(
        &self,
        request: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        let PromoteMemberRequest { group_id, node_id } = request.into_inner();
        let (group, node) = (convert::group_id(group_id)?, convert::node_id(node_id)?);
        let members = self.promote(group, node).await?;
        Ok(Response::new(PromoteMemberResponse { members }))
    }

    async fn demote_member(
        &self,
        request: Request<DemoteMemberRequest>,
    ) -> Result<Response<DemoteMemberResponse>, Status> {
        let DemoteMemberRequest { group_id, node_id } = request.into_inner();
        let (group, node) = (convert::group_id(group_id)?, convert::node_id(node_id)?);
        let members = self.demote(group, node).await?;
        Ok(Response::new(DemoteMemberResponse { members }))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        let RemoveMemberRequest { group_id, node_id } = request.into_inner();
        let (group, node) = (convert::group_id(group_id)?, convert::node_id(node_id)?);
        let members = self.remove(group, node).await?;
        Ok(Response::new(RemoveMemberResponse { members }))
    }

    async fn compact_log(
        &self,
        request: Request<CompactLogRequest>,
    ) -> Result<Response<CompactLogResponse>, Status> {
        let group = convert::group_id(request.into_inner().group_id)?;
        let first_index = self.compact(group).await?.0;
        Ok(Response::new(CompactLogResponse { first_index }))
    }

    async fn drain(
        &self,
        _request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        Ok(Response::new(self.lead_nothing().await))
    }

    async fn recover_quorum(
        &self,
        request: Request<RecoverQuorumRequest>,
    ) -> Result<Response<RecoverQuorumResponse>, Status> {
        self.recover(request.into_inner()).await.map(Response::new)
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let group = convert::group_id(request.into_inner().group_id)?;
        self.copy_out(group).await.map(Response::new)
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        self.copy_in(request.into_inner()).await.map(Response::new)
    }
}
