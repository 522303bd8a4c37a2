//! One node in this process.

use crate::cli::{Failure, ServeArgs};
use crate::config::Config;
use crate::node::Node;
use crate::stop::StopSignals;

/// Runs a node until it is told to stop: SIGINT or SIGTERM.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(&args)?;
    let mut signals = StopSignals::new()?;
    let node = Node::start(&config)
        .await
        .map_err(|error| Failure::node("serve", error))?;
    signals.recv().await;
    tracing::info!("stopping");
    node.shut_down()
        .await
        .map_err(|error| Failure::node("serve", error))
}
