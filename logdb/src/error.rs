//! Why a log could not be opened or used.

use std::path::PathBuf;

use multiraft_engine::types::{GroupId, Index, NodeId};

/// See the variants: each says who should do what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Error {
    /// End the other process.
    #[error("{} is locked: another process uses this data directory; end it first", lock.display())]
    Locked { lock: PathBuf },
    #[error("{} belongs to node {found}, not to node {wanted}: check --node and --data-dir", path.display())]
    ForeignNode {
        path: PathBuf,
        found: u32,
        wanted: NodeId,
    },
    #[error(
        "{} belongs to cluster {found}, not to {wanted}: check --cluster-id and --data-dir",
        path.display()
    )]
    ForeignCluster {
        path: PathBuf,
        found: u64,
        wanted: u64,
    },
    #[error("{} has format {found}, this version reads up to {known}: use a newer version", path.display())]
    NewerFormat {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error("{} is damaged: {source}", path.display())]
    Identity {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} holds segments but no IDENTITY: it is incomplete, restore the file", path.display())]
    NoIdentity { path: PathBuf },
    #[error("{} holds no log", path.display())]
    NoLog { path: PathBuf },
    /// Bytes that were promised durable are gone. Nothing was changed.
    #[error(
        "segment {segment:016x} is damaged at byte {offset}, but later batches prove that batch \
         {sequence} was durable: restore this node's data, or remove it and rejoin"
    )]
    Corrupt {
        segment: u64,
        offset: u64,
        sequence: u64,
    },
    /// The batches are whole but do not fit together.
    #[error("group {group}: entry {index} does not follow the entries before it")]
    Gap { group: GroupId, index: Index },
    #[error("segment_bytes is {bytes}: it must be at least {minimum}")]
    SegmentTooSmall { bytes: u64, minimum: u64 },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Error {
    /// An IO error at a path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
