//! One node in this process.

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Failure, ServeArgs};
use crate::config::Config;
use crate::node::Node;

/// Runs a node until it is told to stop: SIGINT or SIGTERM.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(&args)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let node = Node::start(&config)
        .await
        .map_err(|error| Failure::node("serve", error))?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    node.shut_down()
        .await
        .map_err(|error| Failure::node("serve", error))
}
