//! One file for each gRPC service: translate, call the host, translate back.

pub mod admin;
pub mod node;
