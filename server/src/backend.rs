//! The key-value service's way to the groups of this node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::error::{ProposeError, ReadError};
use multiraft_engine::host::Host;
use multiraft_engine::raft::effects::Refusal;
use multiraft_engine::types::{GroupId, Index};
use tokio::time::Instant;

use crate::api::admin::About;
use crate::config::Config;
use crate::events::EventHub;
use crate::kv::{ApplyOutcome, Backend, BackendError, HeaderInfo, KvMachine};

/// How many election timeouts a request waits for a leader, and for its result.
const PATIENCE_ELECTIONS: u32 = 5;
/// The pause before a request is tried again while there is no leader.
const RETRY: Duration = Duration::from_millis(20);

/// See the module's documentation.
pub struct HostBackend {
    host: Arc<Host<KvMachine>>,
    events: Arc<EventHub>,
    about: About,
    default_group: GroupId,
    patience: Duration,
}

impl HostBackend {
    /// Serves the groups of `host`.
    pub fn new(
        host: Arc<Host<KvMachine>>,
        events: Arc<EventHub>,
        about: About,
        config: &Config,
    ) -> Self {
        let patience = PATIENCE_ELECTIONS * config.election_timeout.max(Duration::from_secs(1));
        Self {
            host,
            events,
            about,
            default_group: config.default_group,
            patience,
        }
    }
}

impl Backend for HostBackend {
    async fn propose(&self, group: GroupId, command: Bytes) -> Result<ApplyOutcome, BackendError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let proposal = self.host.propose(group, command.clone());
            match tokio::time::timeout_at(deadline, proposal).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(ProposeError::Refused(Refusal::NoLeader) | ProposeError::Replaced))
                    if Instant::now() + RETRY < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Err(error)) => return Err(propose_error(error)),
                Err(_) => return Err(BackendError::Timeout),
            }
        }
    }

    async fn read_barrier(&self, group: GroupId) -> Result<(), BackendError> {
        let deadline = Instant::now() + self.patience;
        loop {
            match tokio::time::timeout_at(deadline, self.host.read_index(group)).await {
                Ok(Ok(Index(_))) => return Ok(()),
                Ok(Err(ReadError::Refused(Refusal::NoLeader) | ReadError::Lost))
                    if Instant::now() + RETRY < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Err(error)) => return Err(read_error(error)),
                Err(_) => {
                    let text = "no leader confirmed the read in time: try again";
                    return Err(BackendError::Unavailable(text.to_owned()));
                }
            }
        }
    }

    fn check_local(&self, group: GroupId) -> Result<(), BackendError> {
        if self.events.is_ready(group) {
            return Ok(());
        }
        match self.events.term(group) {
            None => Err(BackendError::UnknownGroup(group)),
            Some(_) => Err(BackendError::Unavailable(format!(
                "the state of group {group} is on its way to this node: try again, or ask another"
            ))),
        }
    }

    fn header_info(&self) -> HeaderInfo {
        let member_id = u64::from(self.about.node.get());
        HeaderInfo {
            cluster_id: self.about.cluster_id,
            member_id,
        }
    }

    fn machine(&self) -> &KvMachine {
        self.host.machine()
    }

    fn term(&self, group: GroupId) -> u64 {
        self.events.term(group).unwrap_or_default().0
    }

    fn default_group(&self) -> GroupId {
        self.default_group
    }
}

fn propose_error(error: ProposeError) -> BackendError {
    match error {
        ProposeError::UnknownGroup(group) => BackendError::UnknownGroup(group),
        ProposeError::Refused(Refusal::NoLeader) => BackendError::NoLeader,
        ProposeError::Refused(Refusal::Busy) => BackendError::Busy,
        ProposeError::DiskFull => BackendError::DiskFull,
        ProposeError::Unknown => BackendError::Timeout,
        ProposeError::Fenced(_) => BackendError::Fenced,
        ProposeError::Stopped => BackendError::Stopped,
        error => BackendError::Unavailable(error.to_string()),
    }
}

fn read_error(error: ReadError) -> BackendError {
    match error {
        ReadError::UnknownGroup(group) => BackendError::UnknownGroup(group),
        ReadError::Refused(Refusal::NoLeader) => BackendError::NoLeader,
        ReadError::Refused(Refusal::Busy) => BackendError::Busy,
        ReadError::Fenced(_) => BackendError::Fenced,
        ReadError::Stopped => BackendError::Stopped,
        error => BackendError::Unavailable(error.to_string()),
    }
}
