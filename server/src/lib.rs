//! The multiraft storage node, as a library below a thin `main`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod dev;
pub mod log_tool;
pub mod serve;
