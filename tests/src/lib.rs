//! What the tests of multiraft are made of.
#![forbid(unsafe_code)]

pub mod caught;
pub mod corruptions;
pub mod crash_states;
pub mod fuzz;
pub mod linearize;
pub mod log_model;
pub mod power_cuts;
pub mod scenario;
pub mod sim;
