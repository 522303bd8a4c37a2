//! Where log messages go.

use std::io;

use tracing_subscriber::EnvFilter;

use super::{Failure, LogFormat, LoggingArgs};

/// Sends the process's log messages to standard error from now on. Call it once.
///
/// # Errors
/// A level that does not exist.
pub fn start_logging(args: &LoggingArgs) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&args.log_level).map_err(|error| Failure::Usage {
        message: format!("--log-level {}: {error}", args.log_level),
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
