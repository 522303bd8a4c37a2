//! One segmented log for all Raft groups of a node, and one fsync for all that waits.
//!
//! ```text
//!  log/  LOCK  IDENTITY  0000000000000001.seg  0000000000000002.seg …  spare-….tmp
//!
//!  segment:  | header 4096 | batch | batch | batch | zeros …           written full size ahead, so
//!                            512-aligned, rising sequence              that a sync writes no metadata
//!  batch:    | header 64 | item | item | …                             one turn of one shard
//! ```
//! A crash keeps any part of what was written since the last sync: sectors of 512 bytes, whole or
//! not at all, in any order. A finished sync is believed; a failed one is final.
//!
//! Invariants:
//! - A durable mark is given only after the sync that covers its batch, in order for each shard.
//! - The retained segments are a suffix of all that was ever written: a segment is freed only when
//!   it is the oldest and holds nothing live (see [`mod@compact`] for what else would revive).
//! - Bytes are believed only in a batch whose header names this segment and follows its
//!   predecessor's sequence, and whose checksums hold.
//! - Damage to what a later batch proves to have been synced is refused, never cut.
//!
//! Read [`format`](mod@format), [`writer`], [`recover`], [`compact`], [`db`].
#![forbid(unsafe_code)]

pub mod compact;
pub mod db;
pub mod directory;
pub mod disk;
pub mod error;
pub mod format;
pub mod index;
pub mod inspect;
pub mod metrics;
pub mod recover;
pub mod writer;

pub use db::{LogDb, Options};
pub use directory::Identity;
pub use disk::{Disk, RealDisk};
pub use error::Error;
