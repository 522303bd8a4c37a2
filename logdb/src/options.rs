//! What an operator can choose, with defaults and limits.

use std::path::PathBuf;

use multiraft_engine::types::NodeId;

use crate::disk::Writes;
use crate::error::Error;
use crate::format::PAGE_BYTES;
use crate::pack::Compression;

/// Smallest segment, bytes.
pub const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// Largest segment, bytes: recovery holds one in memory.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// Used-up segments that are kept unless told otherwise.
pub const DEFAULT_SPARES: u32 = 8;

/// Whose log it is. A directory serves one identity for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; nodes of different clusters never share data.
    pub cluster_id: u64,
    /// The node.
    pub node: NodeId,
}

/// How to open a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// The log's own directory, created if it is missing.
    pub dir: PathBuf,
    /// Whose it must be.
    pub identity: Identity,
    /// Size of a segment file; default 32 MiB. A multiple of 4 KiB from 64 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Dead segments kept for reuse beside the prepared next one; default 8. More are deleted.
    pub max_spares: u32,
    /// Segments made of zeros ahead of need, beside the prepared next one, so that a log that grows does not
    /// wait for them; at most `max_spares`; default 0.
    pub preallocated: u32,
    /// Largest write in bytes before a new batch is begun; default 4 MiB. A single larger
    /// group write still goes out whole, for it is atomic.
    pub batch_bytes: u64,
    /// Memory for the batches that were written last, bytes; default 64 MiB. Batches that are not yet
    /// durable are always in memory.
    pub cache_bytes: u64,
    /// Free bytes of the file system below which [`has_room`](multiraft_engine::traits::Log::has_room)
    /// says no; default 256 MiB.
    pub min_free_bytes: u64,
    /// How batches are written; default [`Writes::Direct`].
    pub writes: Writes,
    /// How blocks of entries are stored; default [`Compression::None`]. May be changed at each start.
    pub compression: Compression,
}

impl Options {
    /// The defaults for one directory and node.
    pub fn new(dir: impl Into<PathBuf>, identity: Identity) -> Self {
        Self {
            dir: dir.into(),
            identity,
            segment_bytes: 32 << 20,
            max_spares: DEFAULT_SPARES,
            preallocated: 0,
            batch_bytes: 4 << 20,
            cache_bytes: 64 << 20,
            min_free_bytes: 256 << 20,
            writes: Writes::default(),
            compression: Compression::default(),
        }
    }

    /// Checks the limits stated at each field.
    ///
    /// # Errors
    /// [`Error::Options`] names the first option out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let in_range = (MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes);
        if !in_range || !self.segment_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Error::Options {
                option: "segment_bytes",
                value: self.segment_bytes,
                allowed: "a multiple of 4096 from 65536 to 1073741824",
            });
        }
        if !(PAGE_BYTES..=MAX_SEGMENT_BYTES).contains(&self.batch_bytes) {
            return Err(Error::Options {
                option: "batch_bytes",
                value: self.batch_bytes,
                allowed: "from 4096 to 1073741824",
            });
        }
        if self.max_spares > 64 {
            return Err(Error::Options {
                option: "max_spares",
                value: self.max_spares.into(),
                allowed: "at most 64",
            });
        }
        if self.preallocated > self.max_spares {
            return Err(Error::Options {
                option: "preallocated",
                value: self.preallocated.into(),
                allowed: "at most the number of spare segments",
            });
        }
        Ok(())
    }
}
