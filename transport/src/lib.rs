//! multiraft.
