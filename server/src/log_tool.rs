//! Looks into the log of a stopped node.

use crate::cli::{Failure, LogArgs};

/// Does what the arguments ask for.
///
/// # Errors
/// What went wrong, ready to be reported.
pub fn run(_args: LogArgs) -> Result<(), Failure> {
    Err(Failure::node("log", "this build cannot read logs"))
}
