//! The engine of multiraft: the Raft core, the loop over many groups, the host that runs it.
//!
//! ```text
//! Host::propose ─▶ inbox ─▶ Shard::turn ─▶ write (Log) ─▶ send (Transport) ─▶ apply (StateMachine)
//!                    ▲                        │ durable marks, applied marks     │
//!                    └────────────────────────┴──────────────────────────────────┘
//! ```
//! Invariants: no message leaves before the state it promises is durable; a leader counts itself
//! only by its durable log; an entry is applied only when it is committed and durable here.
//!
//! Read [`types`], [`block`], [`traits`], [`raft`], [`shard`], [`apply`], [`host`].
#![forbid(unsafe_code)]

pub mod apply;
pub mod block;
pub mod config;
pub mod description;
pub mod error;
pub mod events;
pub mod host;
pub mod mailbox;
pub mod metrics;
pub mod planted;
pub mod raft;
pub mod shard;
pub mod snapshot;
pub mod start;
pub mod state_machine;
pub mod traits;
pub mod types;
