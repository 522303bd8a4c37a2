//! The rules of Raft for one group, as a pure function of its inputs.

pub mod message;
