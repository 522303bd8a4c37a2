//! The command line: what can be said ([`Cli`]), and the verbs that talk to a running node.
//!
//! Invariants:
//! - Exit code 0: done; 1: it did not work; 2: the command line or configuration is wrong.
//! - Results go to standard output, errors and advice to standard error.
//! - A closed pipe ends the output quietly; nothing from a node is printed unescaped.

mod backup_verbs;
mod bench_args;
mod client;
mod client_args;
mod event_line;
mod failure;
mod group_verbs;
mod key_verbs;
mod logging;
mod member_verbs;
mod node_args;
mod operator_args;
mod output;
mod recover_verb;
mod status_table;
mod upkeep_verbs;
mod values;
mod watch_verb;

use clap::{Parser, Subcommand};

pub use bench_args::{
    AppendBenchArgs, BenchArgs, BenchCommand, BenchLogArgs, BenchPlaceArgs, CompactBenchArgs,
    LoadArgs, LoadBenchArgs, LogWorkload, ReadBenchArgs, RecoverBenchArgs, Variant, WritesArg,
};
pub use client_args::{
    ConnectionArgs, DelArgs, GetArgs, KeyArgs, LeaveArgs, MembersArgs, PutArgs, RangeArgs,
    StatusArgs,
};
pub use event_line::{EventText, Tone, coloured_line, describe, plain_line};
pub use failure::Failure;
pub use logging::start_logging;
pub use node_args::{
    DevArgs, LogArgs, LogCommand, LogDirArgs, LogDumpArgs, LogFormat, LoggingArgs, Quarantine,
    RAFT_PORT_OFFSET, RepairArgs, SegmentArgs, ServeArgs, SnapshotArgs,
};
pub use operator_args::{
    AddArgs, DecommissionArgs, DrainArgs, ExportArgs, ImportArgs, MemberArgs, RecoverArgs,
    ReplicaArgs, RoleName, TransferArgs,
};
pub use output::{escape, json_line, print_line, printable};
pub use status_table::{group_table, node_table, summary_table};
pub use watch_verb::WatchArgs;

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
    /// Measures what this program does on a disk.
    Bench(BenchArgs),
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
    /// Has a node join a group, without naming all its members.
    Add(AddArgs),
    /// Gives an observer of a group a vote, when it has caught up.
    Promote(MemberArgs),
    /// Takes a member's vote: it is an observer then.
    Demote(MemberArgs),
    /// Takes a member out of a group, whether its node runs or not.
    Remove(MemberArgs),
    /// Makes a snapshot of a group on a node now, and compacts its log.
    Snapshot(ReplicaArgs),
    /// Forgets the whole log of a group on a node before its newest snapshot.
    Compact(ReplicaArgs),
    /// Hands over leadership of all groups that a node leads, for maintenance.
    Drain(DrainArgs),
    /// Takes a node out of all its groups.
    Decommission(DecommissionArgs),
    /// Goes on with what is left of a group that has lost its quorum for good. Can lose data.
    RecoverQuorum(RecoverArgs),
    /// Copies the state of a group into a file.
    Export(ExportArgs),
    /// Starts a new group with the state of such a file.
    Import(ImportArgs),
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
        ClientCommand::Transfer(args) => upkeep_verbs::transfer(args).await,
        ClientCommand::Add(args) => member_verbs::add(args).await,
        ClientCommand::Promote(args) => member_verbs::promote(args).await,
        ClientCommand::Demote(args) => member_verbs::demote(args).await,
        ClientCommand::Remove(args) => member_verbs::remove(args).await,
        ClientCommand::Snapshot(args) => upkeep_verbs::snapshot(args).await,
        ClientCommand::Compact(args) => upkeep_verbs::compact(args).await,
        ClientCommand::Drain(args) => upkeep_verbs::drain(args).await,
        ClientCommand::Decommission(args) => member_verbs::decommission(args).await,
        ClientCommand::RecoverQuorum(args) => recover_verb::recover_quorum(args).await,
        ClientCommand::Export(args) => backup_verbs::export(args).await,
        ClientCommand::Import(args) => backup_verbs::import(args).await,
        ClientCommand::Watch(args) => watch_verb::watch(args).await,
        ClientCommand::Status(args) => group_verbs::status(args).await,
        ClientCommand::Put(args) => key_verbs::put(args).await,
        ClientCommand::Get(args) => key_verbs::get(args).await,
        ClientCommand::Del(args) => key_verbs::del(args).await,
        ClientCommand::Range(args) => key_verbs::range(args).await,
    }
}

#[cfg(test)]
mod tests;
