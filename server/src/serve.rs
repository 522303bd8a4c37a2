//! One node in this process.

use crate::cli::{Failure, ServeArgs};
use crate::config::Config;

/// Runs a node until it is told to stop.
///
/// # Errors
/// What went wrong, ready to be reported.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    Config::load(&args)?;
    std::future::ready(Err(Failure::node("serve", "this build has no node"))).await
}
