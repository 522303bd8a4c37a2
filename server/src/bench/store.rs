//! What the append workload needs of what it measures: the log, or a bare file.

use super::BenchError;

/// Entries of a group that one append makes durable, with its hard state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Append {
    pub(super) group: u32,
    /// Index of its first entry.
    pub(super) first: u64,
    /// Number of entries.
    pub(super) count: u64,
    /// The last entry that the group no longer needs, if it says so with this append.
    pub(super) compact_to: Option<u64>,
}

impl Append {
    /// Index of its last entry.
    pub(super) fn last(&self) -> u64 {
        self.first + self.count - 1
    }

    /// The commit index of its hard state: all before it.
    pub(super) fn commit(&self) -> u64 {
        self.first - 1
    }
}

/// Something that makes appends of many threads durable.
pub(super) trait Store: Sync {
    /// What one thread appends with.
    fn writer(&self, number: u32) -> impl Writer;

    /// Sync calls so far.
    fn syncs(&self) -> u64;

    /// Refuses when it cannot go on.
    fn check(&self) -> Result<(), BenchError>;
}

/// One thread's way in.
pub(super) trait Writer {
    /// Appends all; they are durable when it returns.
    fn append(&mut self, round: &[Append]) -> Result<(), BenchError>;
}
