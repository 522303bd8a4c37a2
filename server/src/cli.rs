//! The command line: what can be said ([`Cli`]), and the verbs that talk to a running node.
//!
//! Invariants:
//! - Exit code 0: done; 1: it did not work; 2: the command line or configuration is wrong.
//! - Results go to standard output, errors and advice to standard error.
//! - A closed pipe ends the output quietly; nothing from a node is printed unescaped.

mod client;
mod client_args;
mod event_line;
mod failure;
mod group_verbs;
mod key_verbs;
mod logging;
mod node_args;
mod output;
mod status_table;
mod values;

use clap::{Parser, Subcommand};

pub use client_args::{
    ConnectionArgs, DelArgs, GetArgs, KeyArgs, LeaveArgs, MembersArgs, PutArgs, RangeArgs,
    SnapshotArgs, StatusArgs, TransferArgs, WatchArgs,
};
pub use event_line::{EventText, Tone, coloured_line, describe, plain_line};
pub use failure::Failure;
pub use logging::start_logging;
pub use node_args::{
    DevArgs, LogArgs, LogCommand, LogDirArgs, LogFormat, LoggingArgs, RAFT_PORT_OFFSET, ServeArgs,
};
pub use output::{escape, json_line, print_line, printable};
pub use status_table::{group_table, node_table, summary_table};

/// A storage node for thousands of Raft groups over one shared log.
#[derive(Debug, Parser)]
#[command(
    name = "multiraft",
    version,
    about,
    long_about = "A storage node for thousands of Raft groups over one shared log. Each group is a \
        replicated key-value store that every etcd v3 client can use.",
    after_help = "Examples:\n  \
        multiraft dev                     starts three nodes in this process, to try things out\n  \
        multiraft put greeting hello      stores a value in group 1\n  \
        multiraft get greeting            reads it\n  \
        multiraft status                  shows a node, its groups and its peers"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs one storage node until it is told to stop.
    Serve(Box<ServeArgs>),
    /// Runs a whole cluster in this process, to try things out.
    Dev(Box<DevArgs>),
    /// The verbs that talk to a running node.
    #[command(flatten)]
    Client(ClientCommand),
    /// Looks into the log of a stopped node.
    Log(LogArgs),
}

/// The verbs that talk to a running node.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Starts a new group on its member nodes.
    Bootstrap(MembersArgs),
    /// Makes a node a member of a running group.
    Join(MembersArgs),
    /// Makes a node leave a group and delete its replica.
    Leave(LeaveArgs),
    /// Hands leadership of a group to one of its voters.
    Transfer(TransferArgs),
    /// Makes a snapshot of a group on a node now, and compacts its log.
    Snapshot(SnapshotArgs),
    /// Prints what happens on a node, one line for each event.
    Watch(WatchArgs),
    /// Shows nodes, their groups and their peers.
    Status(StatusArgs),
    /// Sets a key.
    Put(PutArgs),
    /// Prints the value of a key.
    Get(GetArgs),
    /// Deletes a key, or a range of keys.
    Del(DelArgs),
    /// Lists keys and their values.
    Range(RangeArgs),
}

/// Does what a client verb asks for.
///
/// # Errors
/// What failed, ready to be reported.
pub async fn run_client(command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::Bootstrap(args) => group_verbs::bootstrap(args).await,
        ClientCommand::Join(args) => group_verbs::join(args).await,
        ClientCommand::Leave(args) => group_verbs::leave(args).await,
        ClientCommand::Transfer(args) => group_verbs::transfer(args).await,
        ClientCommand::Snapshot(args) => group_verbs::snapshot(args).await,
        ClientCommand::Watch(args) => group_verbs::watch(args).await,
        ClientCommand::Status(args) => group_verbs::status(args).await,
        ClientCommand::Put(args) => key_verbs::put(args).await,
        ClientCommand::Get(args) => key_verbs::get(args).await,
        ClientCommand::Del(args) => key_verbs::del(args).await,
        ClientCommand::Range(args) => key_verbs::range(args).await,
    }
}

#[cfg(test)]
mod tests;
