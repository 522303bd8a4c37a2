//! Connections between nodes: one for each pair, for all groups, and others for snapshots.
//!
//! ```text
//! Host ─ send(envelopes) ─▶ a bounded queue a peer ─▶ frames ─▶ one TCP connection ─▶ frames ─▶ observer
//!
//! frame:  | header 16 | meta: heartbeat lists, messages | blocks, as they lie in the log |
//!           lengths     checksummed with the header       each with its own checksum
//! ```
//! Of two nodes the one with the lower id dials, the other accepts; messages go both ways. A frame
//! names no sender and no receiver: those are the ends of the connection, named once in the
//! [`mod@handshake`], so a peer can speak for itself only. A higher id that is not dialled tells the
//! lower where it is ([`mod@introduce`]).
//!
//! Files of snapshots travel on connections of their own, which the sender dials ([`snapshot`]), so
//! that no heartbeat waits behind a chunk.
//!
//! Invariants: the messages to one peer keep their order, but heartbeats may overtake; what cannot
//! be queued or sent is dropped and counted, never waited for; bytes from a peer are checked before
//! they are believed, and lengths before anything is allocated.
//!
//! Read [`codec`], [`frame`], [`mod@handshake`], [`address`], [`peer`], [`mod@introduce`], [`tcp`]; then [`snapshot`], [`snapshot_net`].
#![forbid(unsafe_code)]

pub mod address;
mod backoff;
pub mod codec;
pub mod config;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod introduce;
pub mod metrics;
pub mod peer;
pub mod snapshot;
pub mod snapshot_net;
pub mod tcp;

pub use config::{Config, SnapshotLimits};
pub use error::Error;
pub use tcp::TcpTransport;
