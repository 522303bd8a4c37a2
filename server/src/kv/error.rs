//! What can go wrong, by who has to act: the client ([`Refusal`]), the node ([`StoreError`]), or
//! whoever drives the machine ([`KvError`]).

use multiraft_engine::types::{GroupId, Index};
use tonic::{Code, Status};

use super::check::{MAX_KEY_BYTES, MAX_REQUEST_BYTES};

/// A request that the machine refuses, the same way on each replica.
///
/// Codes and texts are etcd's (`api/v3rpc/rpctypes/error.go`) where etcd has them: its clients
/// recognise errors by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A key is required.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// Ours: the store below bounds keys, etcd does not.
    #[error("multiraft: key or range_end is longer than {MAX_KEY_BYTES} bytes")]
    KeyTooLong,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// A sort order or target that is none.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// `ignore_value` or `ignore_lease` for a key that is not there.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// There is no such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A read at a revision that is not there yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The payload of a log entry is no command; the entry changed nothing.
    #[error("multiraft: the log entry is not a command of the key-value machine")]
    Undecodable,
}

const _: () = assert!(MAX_KEY_BYTES < MAX_REQUEST_BYTES);

impl Refusal {
    /// The gRPC code, as etcd gives it.
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyTooLong
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::InvalidSortOption
            | Self::TooLarge
            | Self::KeyNotFound => Code::InvalidArgument,
            Self::LeaseNotFound => Code::NotFound,
            Self::FutureRevision => Code::OutOfRange,
            Self::Undecodable => Code::Internal,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}

/// The embedded store failed. Nothing of the call that met it took effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Reading or writing failed. After a failed write the store takes no more: restart the node
    /// when the disk is mended, the log has all that was applied.
    #[error("key-value store: {0}")]
    Storage(#[from] fjall::Error),
    /// Its directory cannot be made or looked into: free space, or look at the permissions.
    #[error("key-value store: its directory: {0}")]
    Directory(#[from] std::io::Error),
    /// A row does not decode: the disk lost or changed bytes. Remove the replica, and let it be
    /// filled again by its peers.
    #[error("key-value store: group {group}: a damaged row in {keyspace}")]
    Damaged {
        /// Whose row.
        group: GroupId,
        /// Where: `keys`, `revisions` or `groups`.
        keyspace: &'static str,
    },
}

/// Why a call of the machine failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum KvError {
    /// The client's mistake.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The node's trouble: stop applying.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A newer version wrote the entry. Skipping it would make replicas differ, so the replica
    /// stops here; nothing of the call was applied. Upgrade the node.
    #[error("group {group}: entry {index} is a command this version does not know")]
    UnknownCommand { group: GroupId, index: Index },
    /// The caller left entries out; nothing of the call was applied.
    #[error("group {group}: entry {index} does not follow the applied index {applied}")]
    Gap {
        group: GroupId,
        applied: Index,
        index: Index,
    },
    /// The group's rows are being deleted; it can be started anew afterwards.
    #[error("group {0}: its data is being removed")]
    BeingRemoved(GroupId),
    /// The group's rows are being replaced by a snapshot's, or are gone until one is taken over:
    /// read later, or on another node.
    #[error(
        "group {0}: its data is being restored from a snapshot; try again later, or ask another \
         node"
    )]
    BeingRestored(GroupId),
}
