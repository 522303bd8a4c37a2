//! `atomix.multiraft.v1.Node`: groups are bootstrapped and watched.

use std::pin::Pin;
use std::sync::Arc;

use multiraft_engine::host::Host;
use multiraft_proto::node::node_server::Node;
use multiraft_proto::node::{
    BootstrapRequest, BootstrapResponse, Event, JoinRequest, JoinResponse, LeaveRequest,
    LeaveResponse, WatchRequest,
};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::convert;
use crate::events::EventHub;
use crate::kv::KvMachine;

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
        let (group, _) = convert::group(request.into_inner().group)?;
        Err(Status::unimplemented(format!(
            "this version cannot join a running group: list every member of group {group} when it \
             is bootstrapped"
        )))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let group = convert::group_id(request.into_inner().group_id)?;
        if self.host.status(&[group]).await.is_empty() {
            return Err(Status::not_found(format!(
                "group {group} is not on this node"
            )));
        }
        Err(Status::unimplemented(format!(
            "this version cannot leave a running group: node and group {group} stay as they are"
        )))
    }

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (present, live) = self.events.subscribe();
        let live = BroadcastStream::new(live).map(|event| {
            event.map_err(|BroadcastStreamRecvError::Lagged(lost)| {
                Status::resource_exhausted(format!(
                    "the watcher was too slow and lost {lost} events: watch again for the present \
                     state"
                ))
            })
        });
        let stream = tokio_stream::iter(present.into_iter().map(Ok)).chain(until_error(live));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Ends a stream with its first error.
fn until_error<T>(
    stream: impl Stream<Item = Result<T, Status>>,
) -> impl Stream<Item = Result<T, Status>> {
    let mut failed = false;
    stream.take_while(move |item| {
        let go_on = !failed;
        failed = item.is_err();
        go_on
    })
}
