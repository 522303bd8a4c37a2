//! `multiraft.admin.v1.Admin`: what operators ask a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use multiraft_engine::host::Host;
use multiraft_engine::types::{GroupId, NodeId};
use multiraft_proto::admin::admin_server::Admin;
use multiraft_proto::admin::{PeerStatus, StatusRequest, StatusResponse};
use tonic::{Request, Response, Status};

use crate::convert;
use crate::events::EventHub;
use crate::kv::KvMachine;

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
}
