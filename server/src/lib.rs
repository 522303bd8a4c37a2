//! The multiraft storage node, as a library below a thin `main`.

#![forbid(unsafe_code)]

pub mod api;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod config;
pub mod convert;
pub mod dev;
pub mod events;
pub mod kv;
pub mod log_repair;
pub mod log_tool;
pub mod metrics_http;
pub mod node;
pub mod serve;
pub mod stop;
