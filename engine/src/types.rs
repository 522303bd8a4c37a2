//! The words all crates share: ids, terms, indexes, hard state.

use std::fmt;
use std::num::NonZeroU32;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The value before the first.
            pub const ZERO: Self = Self(0);

            /// The next value. Panics at `u64::MAX`: input from outside is checked at the gate.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The value before, or zero.
            #[must_use]
            pub fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A Raft term (Raft §5.1). Zero: before the first election.
    Term
}
number! {
    /// The index of a log entry, from 1 (Raft §5.3). Zero: before the first entry.
    Index
}

/// The id of a Raft group. Zero is no group; the gates refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The id of a node, from 1. `Option<NodeId>` takes no more room than a `u32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NonZeroU32);

impl NodeId {
    /// The node with this id; `None` for 0, which stands for "no node" on every wire.
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(Self)
    }

    /// The id as a number, never 0.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a replica must never forget (Raft Figure 2, persistent state), and how far it committed.
///
/// Term and vote are promises: they are durable before the message that tells of them. `commit`
/// is only a hint that shortens a restart and may lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// The candidate that got this replica's vote in `term`.
    pub vote: Option<NodeId>,
    /// The commit index when this state was written.
    pub commit: Index,
}
