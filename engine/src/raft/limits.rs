//! The timing and limits of a group.

use super::log::ApplyRule;
use super::progress::Window;
use super::read_index::ReadMode;

/// The timing and limits of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ticks without word from a leader before an election; the timeout in use is drawn from
    /// `election_ticks..2 * election_ticks` (Raft §5.2).
    pub election_ticks: u32,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Ticks after which a leader steps down whose oldest write is still not durable: a disk that
    /// hangs must not keep one alive that can promise nothing. A slow sync must not end it either.
    pub stuck_disk_ticks: u32,
    /// Ask before campaigning (thesis §9.6).
    pub pre_vote: bool,
    /// A leader without a live quorum steps down; a follower with a live leader votes for nobody
    /// (thesis §6.2, §4.2.3).
    pub check_quorum: bool,
    /// How much may be in flight to one peer.
    pub window: Window,
    /// Bytes of blocks in one append; a single larger block still goes.
    pub append_bytes: usize,
    /// Bytes of one proposal at most; far below what a block may hold.
    pub proposal_bytes: usize,
    /// Bytes of proposals a leader holds uncommitted before it refuses more.
    pub uncommitted_bytes: usize,
    /// Bytes of recent blocks kept in memory, besides those that are not durable yet.
    pub cache_bytes: usize,
    /// Bytes that the apply stage may have at a time.
    pub apply_bytes: usize,
    /// When committed entries may be applied.
    pub apply_rule: ApplyRule,
    /// How a leader makes sure that it still is one before it serves a read.
    pub reads: ReadMode,
    /// Who should lead, if it can: 0 campaigns first, each step more waits one election timeout
    /// longer. No rule of safety depends on it.
    pub election_priority: u32,
    /// What a leader does that a configuration change removes or demotes.
    pub on_removal: OnRemoval,
    /// Log configuration changes without checking that none is under way: for tests of what the
    /// check prevents.
    pub unchecked_conf_changes: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            election_ticks: 10,
            heartbeat_ticks: 1,
            stuck_disk_ticks: 20,
            pre_vote: true,
            check_quorum: true,
            window: Window {
                messages: 256,
                bytes: 8 << 20,
            },
            append_bytes: 1 << 20,
            proposal_bytes: 2 << 20,
            uncommitted_bytes: 64 << 20,
            cache_bytes: 256 << 10,
            apply_bytes: 4 << 20,
            apply_rule: ApplyRule::Durable,
            reads: ReadMode::Index,
            election_priority: 0,
            on_removal: OnRemoval::StepDown,
            unchecked_conf_changes: false,
        }
    }
}

/// What a leader does when it applies a change that takes its vote away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRemoval {
    /// It steps down (Raft §6).
    #[default]
    StepDown,
    /// It leads on, without a vote, until somebody else is elected (thesis §4.2.2).
    LeadOn,
}
