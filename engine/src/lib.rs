//! The engine of multiraft: the Raft core, the shard loop over many groups, the host.
#![forbid(unsafe_code)]

pub mod block;
pub mod raft;
pub mod traits;
pub mod types;
