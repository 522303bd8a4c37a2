//! A whole cluster in this process, to try things out.

use crate::cli::{DevArgs, Failure};

/// Runs a cluster until it is told to stop.
///
/// # Errors
/// What went wrong, ready to be reported.
pub async fn run(_args: DevArgs) -> Result<(), Failure> {
    std::future::ready(Err(Failure::node("dev", "this build has no node"))).await
}
