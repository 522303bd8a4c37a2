//! Snapshots between two nodes: the protocol, without sockets, threads and clocks.
//!
//! ```text
//! leader's node                                                    follower's node
//! SendingSnapshot ── Offer ──────────────────────────────────────▶ Incoming ─▶ SnapshotStore::receive
//!                 ◀───────────────────────────────── Resume(0) ──
//!                 ── Chunk(0) Chunk(1 MiB) Chunk(2 MiB) ──────────▶ append, append
//!                 ◀──────────────────── Ack(1 MiB) Ack(2 MiB) ──
//!        the connection breaks; Chunk(2 MiB) is lost
//!                 ── Offer, on a new connection ─────────────────▶
//!                 ◀───────────────────────────── Resume(2 MiB) ──  nothing acknowledged is sent again
//!                 ── Chunk(2 MiB) … ─────────────────────────────▶ append … finish: checked, durable
//!                 ◀────────────────────────────────────── Done ──  and the message is delivered
//! ```
//! A connection carries one transfer at a time, and is reliable until it breaks: frames are lost only
//! with all that came after them. [`crate::snapshot_net`] gives both ends sockets and timers; the
//! simulator calls them directly.
//!
//! Read [`wire`], [`sender`], [`receiver`], [`rate`].

pub mod hostile;
pub mod rate;
pub mod receiver;
pub mod sender;
pub mod wire;

pub use receiver::{Answer, Ends, Incoming, Receiver, Then};
pub use sender::SendingSnapshot;
pub use wire::{Frame, Offer, Refusal};
