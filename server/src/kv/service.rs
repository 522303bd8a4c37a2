//! The gRPC service `etcdserverpb.KV` of all groups of a node.
//!
//! Requests are checked before they cost anything, writes go through the group's log, reads wait
//! for a barrier unless they are serializable. The store blocks, so that reads of it run on
//! threads that may block.

use std::sync::Arc;

use multiraft_engine::types::GroupId;
use multiraft_proto::etcdserverpb::kv_server::Kv;
use multiraft_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use tonic::{Code, Request, Response as Reply, Status};

use super::backend::Backend;
use super::check::{check_delete, check_put, check_range};
use super::command::{Change, encode_command};
use super::error::KvError;
use super::machine::Response;
use super::route::group_of;

/// The service; give it to `KvServer::new`, and add [`super::AuthorityLayer`] to the server.
#[derive(Debug)]
pub struct KvService<B> {
    backend: Arc<B>,
}

impl<B> Clone for KvService<B> {
    fn clone(&self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
        }
    }
}

impl<B: Backend> KvService<B> {
    /// A service on top of `backend`.
    pub fn new(backend: Arc<B>) -> Self {
        Self { backend }
    }

    fn group<T>(&self, request: &Request<T>) -> Result<GroupId, Status> {
        group_of(request, self.backend.default_group())
    }

    async fn propose(&self, group: GroupId, change: Change) -> Result<Response, Status> {
        let command = encode_command(change)?;
        let outcome = self.backend.propose(group, command).await?;
        Ok(outcome.result?)
    }

    /// Adds to a header of the machine who answers.
    fn sign(&self, header: &mut Option<ResponseHeader>) {
        let info = self.backend.header_info();
        let header = header.get_or_insert_default();
        header.cluster_id = info.cluster_id;
        header.member_id = info.member_id;
    }
}

#[tonic::async_trait]
impl<B: Backend> Kv for KvService<B> {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Reply<RangeResponse>, Status> {
        let group = self.group(&request)?;
        let request = request.into_inner();
        check_range(&request)?;
        if request.serializable {
            self.backend.check_local(group)?;
        } else {
            self.backend.read_barrier(group).await?;
        }
        let backend = Arc::clone(&self.backend);
        let read = move || backend.machine().range(group, &request);
        let mut response = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Status::internal(format!("the read did not end: {error}")))??;
        self.sign(&mut response.header);
        if let Some(header) = &mut response.header {
            header.raft_term = self.backend.term(group);
        }
        Ok(Reply::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Reply<PutResponse>, Status> {
        let group = self.group(&request)?;
        let request = request.into_inner();
        check_put(&request)?;
        match self.propose(group, Change::Put(request)).await? {
            Response::Put(mut response) => {
                self.sign(&mut response.header);
                Ok(Reply::new(response))
            }
            other => Err(mismatched(group, &other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Reply<DeleteRangeResponse>, Status> {
        let group = self.group(&request)?;
        let request = request.into_inner();
        check_delete(&request)?;
        match self.propose(group, Change::DeleteRange(request)).await? {
            Response::DeleteRange(mut response) => {
                self.sign(&mut response.header);
                Ok(Reply::new(response))
            }
            other => Err(mismatched(group, &other)),
        }
    }

    async fn txn(&self, _request: Request<TxnRequest>) -> Result<Reply<TxnResponse>, Status> {
        Err(Status::unimplemented(
            "multiraft: transactions are not supported yet; Range, Put and DeleteRange are",
        ))
    }

    async fn compact(
        &self,
        _request: Request<CompactionRequest>,
    ) -> Result<Reply<CompactionResponse>, Status> {
        Err(Status::unimplemented(
            "multiraft: compaction of revisions is not supported yet; all revisions are kept",
        ))
    }
}

/// The backend answered with another entry's outcome: a fault of ours, not of the client.
fn mismatched(group: GroupId, response: &Response) -> Status {
    tracing::error!(%group, ?response, "the outcome is not that of the request");
    Status::internal("multiraft: the outcome is not that of the request; it may have taken effect")
}

impl From<KvError> for Status {
    fn from(error: KvError) -> Self {
        let code = match error {
            KvError::Refused(refusal) => return refusal.into(),
            // Passes by itself: clients may meet it often, and the log need not tell each time.
            KvError::BeingRemoved(_) | KvError::BeingRestored(_) => {
                return Self::unavailable(error.to_string());
            }
            KvError::Store(_) => Code::Internal,
            KvError::UnknownCommand { .. } | KvError::Gap { .. } => Code::Unavailable,
        };
        tracing::error!(%error, "a request met trouble of the store");
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests;
