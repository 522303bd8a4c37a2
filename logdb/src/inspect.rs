//! Looking into the log of a stopped node. Changes nothing.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::directory::Directory;
use crate::disk::RealDisk;
use crate::error::Error;
use crate::recover::{self, Recovered};

/// What a log holds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The log's directory.
    pub dir: PathBuf,
    /// Sequence of the last batch.
    pub last_sequence: u64,
    /// Bytes after it that a start would cut off.
    pub torn_bytes: u64,
    /// By id.
    pub segments: Vec<SegmentReport>,
    /// By id.
    pub groups: Vec<GroupReport>,
}

/// One segment.
#[derive(Debug, Serialize)]
pub struct SegmentReport {
    /// Its id.
    pub segment: u64,
    /// Size of its file.
    pub bytes: u64,
    /// Bytes that batches fill.
    pub used_bytes: u64,
    /// Bytes of blocks that are still part of a group's log.
    pub live_bytes: u64,
    /// How many batches.
    pub batches: u64,
}

/// One group.
#[derive(Debug, Serialize)]
pub struct GroupReport {
    /// Its id.
    pub group: u32,
    /// First index; one past `last` if it has no entries.
    pub first: u64,
    /// Last index.
    pub last: u64,
    /// `(first index, last index, term)` of each run.
    pub terms: Vec<(u64, u64, u64)>,
    /// Hard state: term.
    pub term: u64,
    /// Hard state: vote, 0 = none.
    pub vote: u32,
    /// Hard state: commit index when it was written.
    pub commit: u64,
    /// Blocks that hold its entries.
    pub blocks: usize,
}

/// Lists segments and groups of a node's data directory, or of its `log` directory. Reading them
/// checks every byte of every batch.
pub fn inspect(dir: &Path) -> Result<Report, Error> {
    let below = dir.join("log");
    let dir = if below.is_dir() {
        below
    } else {
        dir.to_owned()
    };
    let directory = Directory::open_stopped(&dir)?;
    let recovered = recover::read(&RealDisk::new(directory.path()))?;
    Ok(report(dir, &recovered))
}

fn report(dir: PathBuf, recovered: &Recovered) -> Report {
    let segments = recovered
        .segments
        .iter()
        .map(|(&segment, s)| SegmentReport {
            segment,
            bytes: s.bytes,
            used_bytes: s.end,
            live_bytes: recovered.index.live.get(&segment).copied().unwrap_or(0),
            batches: s.batches,
        });
    let groups = recovered.index.groups.iter().map(|(&group, index)| {
        let stored = index.stored(group);
        GroupReport {
            group: group.0,
            first: index.compacted.0.next().0,
            last: index.last().0,
            terms: stored.terms.iter().map(|t| (t.0.0, t.1.0, t.2.0)).collect(),
            term: stored.hard_state.term.0,
            vote: stored
                .hard_state
                .vote
                .map_or(0, multiraft_engine::types::NodeId::get),
            commit: stored.hard_state.commit.0,
            blocks: index.blocks.len(),
        }
    });
    Report {
        dir,
        last_sequence: recovered.sequence,
        torn_bytes: recovered.torn_bytes,
        segments: segments.collect(),
        groups: groups.collect(),
    }
}
