//! Where log messages go.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::{Failure, LogFormat, LoggingArgs};

/// Sends the process's log messages to standard error from now on. Call it once.
///
/// # Errors
/// A level that does not exist.
pub fn start_logging(args: &LoggingArgs) -> Result<(), Failure> {
    // The store's own log is for its developers; a level given for it comes later and wins.
    let level = format!("fjall=warn,lsm_tree=warn,{}", args.log_level);
    let filter = EnvFilter::try_new(level).map_err(|error| Failure::Usage {
        message: format!("--log-level {}: {error}", args.log_level),
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
