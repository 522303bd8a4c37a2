//! Why a log directory could not be opened or inspected.

use std::path::PathBuf;

use multiraft_engine::types::{GroupId, Index, NodeId};

use crate::options::MIN_SEGMENT_BYTES;
use crate::segment::SegmentId;

/// Why a log directory was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Error {
    /// Stop the other process, or use another directory.
    #[error("another process holds {}", path.display())]
    Locked { path: PathBuf },
    /// The directory of another node was mounted or copied here.
    #[error("{} belongs to node {found}, this is node {expected}: check --node and --data-dir", dir.display())]
    OtherNode {
        dir: PathBuf,
        found: NodeId,
        expected: NodeId,
    },
    /// The directory of a node of another cluster.
    #[error("{} belongs to cluster {found}, this is cluster {expected}: check --cluster-id and --data-dir", dir.display())]
    OtherCluster {
        dir: PathBuf,
        found: u64,
        expected: u64,
    },
    /// Start the newer program again, or export with it.
    #[error("{} has log format {found}, this program knows up to {known}", dir.display())]
    NewerFormat {
        dir: PathBuf,
        found: u32,
        known: u32,
    },
    /// The snapshots were made beside another log, which is gone: this node forgot its votes. Restore
    /// that log, or delete the snapshots' directory and let the node join its groups anew.
    #[error(
        "the snapshots belong to a log with incarnation {found:016x}, this one has {expected:016x}"
    )]
    OtherIncarnation { found: u64, expected: u64 },
    /// Start the newer program again.
    #[error("snapshot {name} has format {found}, this program knows up to {known}")]
    NewerSnapshot {
        name: String,
        found: u32,
        known: u32,
    },
    /// The identity file is not what this program wrote; restore it.
    #[error("{} is damaged", path.display())]
    IdentityDamaged { path: PathBuf },
    /// Segments without their identity: the checksums cannot be verified. Restore the file.
    #[error("{} holds segments but no IDENTITY file", dir.display())]
    IdentityMissing { dir: PathBuf },
    /// Nothing to inspect.
    #[error("{} is not a log directory: that of a node is `log` in its data directory", dir.display())]
    NotALog { dir: PathBuf },
    /// Bytes that were promised to be durable no longer verify. Nothing was changed:
    /// [`repair`](crate::repair) quarantines the groups, and their peers have them.
    #[error(
        "segment {segment}: promised bytes at offset {offset} are damaged, groups hurt: {} \
         (see `multiraft log repair`)",
        names(groups)
    )]
    Corrupt {
        segment: SegmentId,
        offset: u64,
        /// As far as the damaged bytes tell; empty if they do not.
        groups: Vec<GroupId>,
    },
    /// What was given up of this log in a repair can no longer be read. Restore the file: its copy beside the
    /// damaged segments will do.
    #[error("the file REPAIR is damaged")]
    RepairFileDamaged,
    /// These groups may have lost something too, and were not named. Nothing was changed.
    #[error(
        "these groups may have lost something, and must be quarantined too: {}",
        names(groups)
    )]
    NotNamed { groups: Vec<GroupId> },
    /// These groups are whole. Nothing was changed.
    #[error(
        "these groups have lost nothing, and must not be quarantined: {}",
        names(groups)
    )]
    NotHurt { groups: Vec<GroupId> },
    /// A segment that the last batch still needs is gone. Restore the file.
    #[error("segment {segment} is needed and missing")]
    MissingSegment { segment: SegmentId },
    /// A segment file is not as long as it was made, so batches may be gone with every proof that they were there.
    /// Restore the file; without it, only a node that joins its groups anew is sure to have forgotten nothing.
    #[error(
        "segment {segment}: the file has {bytes} bytes, and {} when it was made: restore it, or let the node \
         join its groups anew with an empty directory",
        expected.map_or_else(|| format!("at least {MIN_SEGMENT_BYTES}"), |bytes| bytes.to_string())
    )]
    WrongLength {
        segment: SegmentId,
        bytes: u64,
        /// `None`: no batch in it tells.
        expected: Option<u64>,
    },
    /// The batches verify but do not add up; a bug, or files of different times mixed.
    #[error("group {group}: entry {index} is missing between stored entries")]
    Gap { group: GroupId, index: Index },
    /// The options contradict themselves.
    #[error("option {option} is {value}, allowed is {allowed}")]
    Options {
        option: &'static str,
        value: u64,
        allowed: &'static str,
    },
    /// The directory cannot be made there. Choose another, or let this user write there.
    #[error("cannot create {}: {source}", dir.display())]
    CannotCreate {
        dir: PathBuf,
        source: std::io::Error,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps an IO error with what was being done, for `map_err`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

fn names(groups: &[GroupId]) -> String {
    if groups.is_empty() {
        return "unknown".to_owned();
    }
    let names: Vec<_> = groups.iter().map(ToString::to_string).collect();
    names.join(", ")
}
