//! The state of a node and its groups.

use std::collections::BTreeMap;

use multiraft_engine::shard::GroupStatus;
use multiraft_engine::traits::Log;
use multiraft_engine::types::{GroupId, NodeId};
use multiraft_proto::admin::{LogStatus, PeerStatus, StatusResponse};
use tonic::Status;

use super::AdminService;
use crate::convert;

impl AdminService {
    /// What this node knows of itself and of these groups, or of all if none is named.
    pub(super) async fn tell_status(&self, wanted: &[GroupId]) -> Result<StatusResponse, Status> {
        let groups = self.host.status(wanted).await;
        let is_missing = |id: &&GroupId| !groups.iter().any(|g| g.group == **id);
        if let Some(missing) = wanted.iter().find(is_missing) {
            return Err(Status::not_found(format!(
                "group {missing} is not on this node"
            )));
        }
        let space = self.log.space();
        let shown = groups.iter().map(|group| {
            let log_bytes = space.groups.get(&group.group).copied();
            convert::group_status(group, log_bytes.unwrap_or_default())
        });
        let (pinned_by, pinned_bytes) = space.pinned_by.unwrap_or((GroupId(0), 0));
        Ok(StatusResponse {
            node_id: self.about.node.get(),
            cluster_id: self.about.cluster_id,
            incarnation: self.about.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_address: self.about.api_address.clone(),
            raft_address: self.about.raft_address.clone(),
            data_dir: self.about.data_dir.clone(),
            groups: shown.collect(),
            peers: self.peers(&groups),
            log: Some(LogStatus {
                file_bytes: space.file_bytes,
                live_bytes: space.live_bytes,
                pinned_by: pinned_by.0,
                pinned_bytes,
                free_bytes: space.free_bytes,
                has_room: self.log.has_room(),
            }),
        })
    }

    /// The other members of these groups.
    fn peers(&self, groups: &[GroupStatus]) -> Vec<PeerStatus> {
        let connected = self.events.connected();
        let members = groups.iter().flat_map(|group| &group.membership.members);
        let others = members.filter(|(node, _)| **node != self.about.node);
        let peers: BTreeMap<NodeId, PeerStatus> = others
            .map(|(&node, member)| {
                let peer = PeerStatus {
                    node_id: node.get(),
                    address: member.address.to_string(),
                    connected: connected.contains(&node),
                };
                (node, peer)
            })
            .collect();
        peers.into_values().collect()
    }
}
