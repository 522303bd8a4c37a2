//! What the key-value service asks of the node it runs on.

use std::future::Future;

use bytes::Bytes;
use multiraft_engine::types::GroupId;
use tonic::{Code, Status};

use super::machine::{ApplyOutcome, KvMachine};

/// Who answers, for response headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderInfo {
    /// The cluster.
    pub cluster_id: u64,
    /// This node.
    pub member_id: u64,
}

/// The node below the service: its groups, their logs, and the machine they apply to.
pub trait Backend: Send + Sync + 'static {
    /// Puts a command into the group's log, and waits until this node applied it.
    fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> impl Future<Output = Result<ApplyOutcome, BackendError>> + Send;

    /// Waits until the machine here has all that was committed when this was called (thesis §6.4).
    fn read_barrier(&self, group: GroupId)
    -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Whether the group has a replica here whose state may be read, however old it is.
    fn check_local(&self, group: GroupId) -> Result<(), BackendError>;

    /// Who this is.
    fn header_info(&self) -> HeaderInfo;

    /// Where this node's groups apply.
    fn machine(&self) -> &KvMachine;

    /// The group's term as known here.
    fn term(&self, group: GroupId) -> u64;

    /// The group of requests that name none.
    fn default_group(&self) -> GroupId;
}

/// Why the node did not do what the service asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No replica of the group is here. Ask another node, or start the group.
    #[error(
        "group {0} is not on this node: start it with Bootstrap of atomix.multiraft.v1.Node on \
         each of its members, or ask a node that has it (metadata multiraft-group, or host name \
         g{0}.…, chooses the group)"
    )]
    UnknownGroup(GroupId),
    /// Not accepted: a queue is full. Try again later.
    #[error("etcdserver: too many requests")]
    Busy,
    /// Not accepted: the log has no room.
    #[error("etcdserver: mvcc: database space exceeded")]
    DiskFull,
    /// Not accepted: the group has no leader now.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// Not now; the text tells why.
    #[error("multiraft: {0}")]
    Unavailable(String),
    /// No answer in time; the outcome is unknown.
    #[error("multiraft: no answer in time; a write may or may not take effect, read to find out")]
    Timeout,
    /// The node is stopping.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The node's log is fenced after a failed write or sync; ask another node.
    #[error("multiraft: this node's log failed and takes no more writes; ask another node")]
    Fenced,
}

impl From<BackendError> for Status {
    fn from(error: BackendError) -> Self {
        let code = match error {
            BackendError::UnknownGroup(_) => Code::NotFound,
            BackendError::Busy | BackendError::DiskFull => Code::ResourceExhausted,
            BackendError::Timeout => Code::DeadlineExceeded,
            BackendError::NoLeader
            | BackendError::Unavailable(_)
            | BackendError::Stopped
            | BackendError::Fenced => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}
