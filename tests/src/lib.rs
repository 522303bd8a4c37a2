//! What the tests of multiraft are made of.
#![forbid(unsafe_code)]

pub mod fuzz;
pub mod linearize;
pub mod scenario;
pub mod sim;
