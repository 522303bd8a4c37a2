//! The key-value state machine: every group an etcd.
//!
//! ```text
//! gRPC ─▶ service ── check, encode ──▶ Backend::propose ─▶ the group's log ─▶ KvMachine::apply ─┐
//!            │                                                                 (draft)          ▼
//!            └──── Backend::read_barrier ─▶ KvMachine::range (read) ◀── a view ──────────── store (fjall)
//! ```
//!
//! Files in reading order: [`error`] what is refused; [`check`] what is checked before a proposal;
//! [`command`] the payload of a log entry; `rows` bytes on disk; `store` the embedded store;
//! `draft` what one apply call changes; [`machine`] the whole; `read` ranges; `snapshot` a group's
//! state as one stream; `machine/replace` groups that are restored or removed; [`backend`] what the
//! service asks of the node; [`route`] which group a request means; [`service`] gRPC.
//!
//! Invariants:
//! - The log decides: equal logs give equal rows, byte by byte, whatever the batches or crashes.
//! - A group's rows and its applied index change in one atomic batch, so that replaying the log
//!   from `applied + 1` after any crash is right without a sync in between.
//! - A read sees one view of the store: never half of an apply call, nor of a snapshot.

pub mod backend;
pub mod check;
pub mod command;
mod draft;
mod engine;
pub mod error;
pub mod machine;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod read;
pub mod route;
mod rows;
pub mod service;
mod snapshot;
mod store;

pub use backend::{Backend, BackendError, HeaderInfo};
pub use error::{KvError, Refusal, StoreError};
pub use machine::{ApplyOutcome, KvConfig, KvMachine, Response};
pub use route::AuthorityLayer;
pub use service::KvService;
