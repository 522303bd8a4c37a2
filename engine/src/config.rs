//! The engine's limits with their defaults, and what makes them wrong.

use std::time::Duration;

use crate::raft::Limits;
use crate::types::NodeId;

/// How a [`crate::host::Host`] runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// What this node's data directory drew when it was made; 0 in tests that have none.
    pub incarnation: u64,
    /// Threads that run groups; default: the number of cores.
    pub shards: u32,
    /// The unit of all Raft timing; one heartbeat period. Default 100 ms.
    pub tick: Duration,
    /// Timing and limits of each group.
    pub limits: Limits,
    /// Requests that may wait in a shard's inbox; more are refused as busy.
    pub inbox_requests: usize,
    /// Messages of peers that may wait in a shard's inbox; more are dropped, and Raft resends.
    pub inbox_messages: usize,
    /// Entries applied since a group's last snapshot after which the next is made.
    pub snapshot_entries: u64,
    /// Bytes of entries applied since a group's last snapshot after which the next is made.
    pub snapshot_bytes: u64,
    /// Entries kept in the log behind a snapshot, for peers slightly behind.
    pub retain_entries: u64,
    /// Threads that write snapshots and take them over.
    pub snapshot_threads: u32,
    /// Ticks after which a forwarded request without an answer counts as lost.
    pub forward_ticks: u32,
    /// Seeds the election timeouts; `None` draws one. Tests set it.
    pub seed: Option<u64>,
}

/// Why a configuration cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No thread would run the groups.
    #[error("shards must be at least 1")]
    NoShard,
    /// Time would stand still.
    #[error("the heartbeat period must be longer than zero")]
    ZeroTick,
    /// One lost heartbeat must not start an election (Raft §5.6).
    #[error("the election timeout is {0} heartbeat periods: it must be at least 3")]
    ElectionTooShort(u32),
    /// Every request would be refused.
    #[error("inbox_requests must be at least 1")]
    NoInbox,
    /// Nothing would ever be compacted, or a snapshot made after each entry.
    #[error("snapshot_entries, snapshot_bytes and snapshot_threads must be at least 1")]
    NoSnapshots,
}

impl Config {
    /// The defaults for a node.
    pub fn new(node: NodeId) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            node,
            incarnation: 0,
            shards: u32::try_from(cores).unwrap_or(1),
            tick: Duration::from_millis(100),
            limits: Limits::default(),
            inbox_requests: 16 << 10,
            inbox_messages: 256 << 10,
            snapshot_entries: 10_000,
            snapshot_bytes: 64 << 20,
            retain_entries: 1_000,
            snapshot_threads: 2,
            forward_ticks: 100,
            seed: None,
        }
    }

    /// Refuses what could not run safely.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.shards == 0 {
            return Err(ConfigError::NoShard);
        }
        if self.tick.is_zero() {
            return Err(ConfigError::ZeroTick);
        }
        if self.limits.election_ticks < 3 * self.limits.heartbeat_ticks {
            return Err(ConfigError::ElectionTooShort(self.limits.election_ticks));
        }
        if self.inbox_requests == 0 {
            return Err(ConfigError::NoInbox);
        }
        if self.snapshot_entries == 0 || self.snapshot_bytes == 0 || self.snapshot_threads == 0 {
            return Err(ConfigError::NoSnapshots);
        }
        Ok(())
    }
}
