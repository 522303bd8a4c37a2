//! A connection to a node's API.

use std::future::Future;
use std::time::Duration;

use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::etcdserverpb::kv_client::KvClient;
use multiraft_proto::node::node_client::NodeClient;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{ConnectionArgs, Failure};

/// The metadata key that chooses the group of a key-value request.
const GROUP_KEY: &str = "multiraft-group";
/// The largest answer taken. A range without a limit can be large; a node's own limits are lower.
const ANSWER_BYTES: usize = 256 << 20;

/// A connection to one node.
pub(super) struct Client {
    channel: Channel,
    endpoint: String,
    timeout: Duration,
}

impl Client {
    /// Connects to this node.
    pub(super) async fn connect(endpoint: &str, timeout: Duration) -> Result<Self, Failure> {
        let uri = if endpoint.contains("://") {
            endpoint.to_owned()
        } else {
            format!("http://{endpoint}")
        };
        let target = Endpoint::from_shared(uri).map_err(|_| Failure::Usage {
            message: format!("--endpoint {endpoint}: write HOST:PORT, as in 127.0.0.1:8080"),
        })?;
        let endpoint = endpoint.to_owned();
        match target.connect_timeout(timeout).connect().await {
            Ok(channel) => Ok(Self {
                channel,
                endpoint,
                timeout,
            }),
            Err(source) => Err(Failure::Connect { endpoint, source }),
        }
    }

    /// Connects to the first node that can be reached.
    pub(super) async fn connect_any(args: &ConnectionArgs) -> Result<Self, Failure> {
        let mut last = Failure::Usage {
            message: "--endpoint is empty".to_owned(),
        };
        for endpoint in &args.endpoint {
            match Self::connect(endpoint, args.timeout).await {
                Ok(client) => return Ok(client),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    pub(super) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub(super) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    /// A request that also tells the node how long we wait.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// A request to one group's key-value store.
    pub(super) fn group_request<T>(&self, group: u32, message: T) -> Request<T> {
        let mut request = self.request(message);
        request
            .metadata_mut()
            .insert(GROUP_KEY, MetadataValue::from(group));
        request
    }

    /// Waits for the answer of a call, and no longer than the timeout.
    pub(super) async fn answer<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // Nobody but tonic's own timer cancels; it runs in parallel to ours.
            Ok(Err(status)) if status.code() != Code::Cancelled => Err(self.failure(what, status)),
            Ok(Err(_)) | Err(_) => Err(self.timed_out(what)),
        }
    }

    /// Waits for the next message of a stream, each time no longer than the timeout.
    pub(super) async fn next<T>(
        &self,
        what: &'static str,
        stream: &mut Streaming<T>,
    ) -> Result<Option<T>, Failure> {
        match tokio::time::timeout(self.timeout, stream.message()).await {
            Ok(next) => next.map_err(|status| self.failure(what, status)),
            Err(_) => Err(self.timed_out(what)),
        }
    }

    fn timed_out(&self, what: &'static str) -> Failure {
        let (endpoint, timeout) = (self.endpoint.clone(), self.timeout);
        Failure::Timeout {
            what,
            endpoint,
            timeout,
        }
    }

    /// A status of this node as a failure.
    pub(super) fn failure(&self, what: &'static str, status: Status) -> Failure {
        Failure::Status {
            what,
            endpoint: self.endpoint.clone(),
            status: Box::new(status),
        }
    }
}
