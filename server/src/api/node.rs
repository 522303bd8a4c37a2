//! `atomix.multiraft.v1.Node`: groups are bootstrapped, joined, left and watched.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::host::Host;
use multiraft_engine::types::GroupId;
use multiraft_proto::node::node_server::Node;
use multiraft_proto::node::{
    BootstrapRequest, BootstrapResponse, Event, JoinRequest, JoinResponse, LeaveRequest,
    LeaveResponse, WatchRequest,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::convert;
use crate::events::EventHub;
use crate::events::feed::Lost;
use crate::kv::KvMachine;

/// How long a call waits for other nodes if its client sets no deadline. A client that goes away sooner
/// ends the call.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service on a running host.
pub struct NodeService {
    host: Arc<Host<KvMachine>>,
    events: Arc<EventHub>,
}

impl NodeService {
    /// Serves `host`; watchers see `events`.
    pub fn new(host: Arc<Host<KvMachine>>, events: Arc<EventHub>) -> Self {
        Self { host, events }
    }

    /// What became of a join that took too long.
    async fn join_timed_out(&self, group: GroupId) -> Status {
        let status = self.host.status(&[group]).await;
        if status.iter().any(|status| status.leader.is_some()) {
            Status::deadline_exceeded(format!(
                "this node is catching up with group {group}, and goes on: call again to have its role"
            ))
        } else {
            Status::unavailable(format!(
                "no leader of group {group} answered: are the members listed with their Raft \
                 addresses, and do they run?"
            ))
        }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let (group, membership) = convert::group(request.into_inner().group)?;
        let started = self.host.bootstrap(group, membership).await;
        started.map_err(|error| convert::bootstrap_status(&error))?;
        Ok(Response::new(BootstrapResponse {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let patience = convert::patience(request.metadata()).unwrap_or(PATIENCE);
        let (group, membership) = convert::group(request.into_inner().group)?;
        let joining = self.host.join(group, membership);
        let Ok(joined) = tokio::time::timeout(patience, joining).await else {
            return Err(self.join_timed_out(group).await);
        };
        joined.map_err(|error| convert::join_status(&error))?;
        Ok(Response::new(JoinResponse {}))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let patience = convert::patience(request.metadata()).unwrap_or(PATIENCE);
        let group = convert::group_id(request.into_inner().group_id)?;
        let leaving = tokio::time::timeout(patience, self.host.leave(group));
        let left = leaving.await.map_err(|_| {
            Status::unavailable(format!(
                "no quorum of group {group} answered: the replica here goes on; try again when more \
                 members run"
            ))
        })?;
        left.map_err(|error| convert::leave_status(&error))?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (present, live) = self.events.subscribe();
        let live = live.map(|event| {
            event.map_err(|Lost(lost)| {
                Status::resource_exhausted(format!(
                    "the watcher was too slow and lost {lost} events: watch again for the present \
                     state"
                ))
            })
        });
        let stream = tokio_stream::iter(present.into_iter().map(Ok)).chain(live);
        Ok(Response::new(Box::pin(stream)))
    }
}
