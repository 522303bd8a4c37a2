//! The arguments of the verbs that run nodes or look into their files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use multiraft_logdb::{Compression, DEFAULT_SPARES};

use super::values::parse_host;
use crate::config::{API_PORT, CLUSTER_ID, DEFAULT_GROUP, HOST, RAFT_PORT};

/// In `dev`, a node's Raft port is this much above its API port.
pub const RAFT_PORT_OFFSET: u16 = 100;

/// The arguments of `multiraft serve`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Each setting is taken from the first place that has it: flag, environment \
    variable, configuration file, default.\n\n\
    Examples:\n  \
    multiraft serve --node 1\n  \
    multiraft serve --node 2 --api-host 0.0.0.0 --raft-host 0.0.0.0 --data-dir /var/lib/multiraft\n  \
    multiraft serve --node 3 --config multiraft.json"
)]
pub struct ServeArgs {
    /// This node's id, from 1. No two nodes of a cluster share one.
    #[arg(long, env = "MULTIRAFT_NODE", value_name = "ID")]
    pub node: u32,
    /// A configuration file: the message `MultiRaftConfig` as JSON, or as TOML if its name ends in
    /// .toml. Its fields are heartbeatPeriod, electionTimeout, snapshotEntryThreshold,
    /// compactionRetainEntries and dataDir.
    #[arg(long, env = "MULTIRAFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The address that the API listens on. The default lets only this machine in, because the API
    /// asks nobody who they are. Use 0.0.0.0 on a network that you trust.
    #[arg(long, env = "MULTIRAFT_API_HOST", value_name = "HOST", default_value = HOST)]
    pub api_host: String,
    /// The port that the API listens on.
    #[arg(long, env = "MULTIRAFT_API_PORT", value_name = "PORT", default_value_t = API_PORT)]
    pub api_port: u16,
    /// The address that peers connect to for Raft. The default lets only this machine in. Use
    /// 0.0.0.0 on a network that you trust.
    #[arg(long, env = "MULTIRAFT_RAFT_HOST", value_name = "HOST", default_value = HOST)]
    pub raft_host: String,
    /// The port that peers connect to for Raft.
    #[arg(long, env = "MULTIRAFT_RAFT_PORT", value_name = "PORT", default_value_t = RAFT_PORT)]
    pub raft_port: u16,
    /// Where peers reach this node, if that is not where it listens: behind 0.0.0.0, an address
    /// translation or a proxy. Without a port: that of --raft-port.
    #[arg(long, env = "MULTIRAFT_RAFT_ADVERTISE", value_name = "HOST[:PORT]",
        value_parser = parse_host)]
    pub raft_advertise: Option<(String, Option<u16>)>,
    /// The directory of all that the node stores. The default is data/node-ID.
    #[arg(long, env = "MULTIRAFT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The cluster's id. Nodes of different clusters refuse each other.
    #[arg(long, env = "MULTIRAFT_CLUSTER_ID", value_name = "ID", default_value_t = CLUSTER_ID)]
    pub cluster_id: u64,
    /// Serve metrics over HTTP on this port. Without it there is no such page.
    #[arg(long, env = "MULTIRAFT_METRICS_PORT", value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// The group of a key-value request that names none.
    #[arg(long, env = "MULTIRAFT_DEFAULT_GROUP", value_name = "GROUP", default_value_t = DEFAULT_GROUP)]
    pub default_group: u32,
    /// When snapshots are made, and how fast they travel.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,
    /// How the log of all groups is stored.
    #[command(flatten)]
    pub segments: SegmentArgs,
    /// What is logged.
    #[command(flatten)]
    pub logging: LoggingArgs,
}

/// When snapshots are made, and how fast they travel.
#[derive(Debug, Clone, Copy, Args)]
pub struct SnapshotArgs {
    /// Make a snapshot of a group after so many applied entries. The default is 10000.
    #[arg(
        long,
        env = "MULTIRAFT_SNAPSHOT_ENTRY_THRESHOLD",
        value_name = "ENTRIES"
    )]
    pub snapshot_entry_threshold: Option<u64>,
    /// Make a snapshot of a group after so many bytes of applied entries, if that comes first. The
    /// default is 64MiB.
    #[arg(long, env = "MULTIRAFT_SNAPSHOT_BYTE_THRESHOLD", value_name = "SIZE")]
    pub snapshot_byte_threshold: Option<ByteSize>,
    /// Keep so many entries behind a snapshot, for members that are a little behind. The default is
    /// 1000.
    #[arg(
        long,
        env = "MULTIRAFT_COMPACTION_RETAIN_ENTRIES",
        value_name = "ENTRIES"
    )]
    pub compaction_retain_entries: Option<u64>,
    /// Send all snapshots together with at most so many bytes a second, such as 20MiB; 0: no limit.
    #[arg(
        long,
        env = "MULTIRAFT_SNAPSHOT_RATE",
        value_name = "SIZE",
        default_value = "0"
    )]
    pub snapshot_rate: ByteSize,
}

/// How the log of all groups is stored.
#[derive(Debug, Clone, Copy, Args)]
pub struct SegmentArgs {
    /// The size of the files that the log of all groups is written to, from 64KiB to 1GiB.
    #[arg(
        long,
        env = "MULTIRAFT_SEGMENT_SIZE",
        value_name = "SIZE",
        default_value = "32MiB"
    )]
    pub segment_size: ByteSize,
    /// Keep so many used-up files of the log, to be written to again, and delete the others.
    #[arg(
        long,
        env = "MULTIRAFT_SPARE_SEGMENTS",
        value_name = "FILES",
        default_value_t = DEFAULT_SPARES
    )]
    pub spare_segments: u32,
    /// Make so many files of the log ahead of need, beside the next one; at most --spare-segments.
    #[arg(
        long,
        env = "MULTIRAFT_PREALLOCATED_SEGMENTS",
        value_name = "FILES",
        default_value_t = 0
    )]
    pub preallocated_segments: u32,
    /// How entries are stored in the log. Compression costs time for each entry, and helps where the
    /// disk is slow or small and the values are text.
    #[arg(
        long,
        env = "MULTIRAFT_ENTRY_COMPRESSION",
        value_name = "METHOD",
        default_value = "none"
    )]
    pub entry_compression: EntryCompression,
}

/// How entries are stored in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EntryCompression {
    /// As they are.
    None,
    /// Compressed with LZ4.
    Lz4,
}

impl From<EntryCompression> for Compression {
    fn from(value: EntryCompression) -> Self {
        match value {
            EntryCompression::None => Self::None,
            EntryCompression::Lz4 => Self::Lz4,
        }
    }
}

/// What a node logs, and how. Logs go to standard error.
#[derive(Debug, Clone, Args)]
pub struct LoggingArgs {
    /// The least important messages to log: error, warn, info, debug or trace. Single parts can
    /// have a level of their own, as in `info,multiraft_engine=debug`.
    #[arg(
        long,
        env = "MULTIRAFT_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
    /// How to write log messages.
    #[arg(
        long,
        env = "MULTIRAFT_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How log messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A readable line for each message.
    Text,
    /// A JSON object for each message.
    Json,
}

/// The arguments of `multiraft dev`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Ports, all on 127.0.0.1: node i serves its API on BASE + i and Raft on \
    BASE + 100 + i; with the default, node 1 has API 7401 and Raft 7501.\n\n\
    Examples:\n  \
    multiraft dev\n  \
    multiraft dev --nodes 5 --groups 1000 --fresh\n  \
    multiraft put --endpoint 127.0.0.1:7401 greeting hello"
)]
pub struct DevArgs {
    /// The number of nodes.
    #[arg(long, env = "MULTIRAFT_NODES", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..i64::from(RAFT_PORT_OFFSET)))]
    pub nodes: u16,
    /// The number of groups, each with a replica on every node.
    #[arg(long, env = "MULTIRAFT_GROUPS", default_value_t = 16)]
    pub groups: u32,
    /// The directory of all that the nodes store, one directory in it for each node.
    #[arg(
        long,
        env = "MULTIRAFT_DATA_DIR",
        value_name = "DIR",
        default_value = "multiraft-data"
    )]
    pub data_dir: PathBuf,
    /// The port below the first: node i serves its API on BASE + i and Raft on BASE + 100 + i.
    #[arg(long, env = "MULTIRAFT_BASE_PORT", value_name = "BASE", default_value_t = 7400,
        value_parser = clap::value_parser!(u16).range(1..=65_336))]
    pub base_port: u16,
    /// Delete what an earlier run left in the data directory, and start anew.
    #[arg(long)]
    pub fresh: bool,
    /// What is logged.
    #[command(flatten)]
    pub logging: LoggingArgs,
}

/// The arguments of `multiraft log`.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to do with the log.
    #[command(subcommand)]
    pub command: LogCommand,
}

/// What can be done with the log of a stopped node.
#[derive(Debug, Clone, Subcommand)]
pub enum LogCommand {
    /// Lists the segments of a log and the groups in it.
    #[command(after_help = "Example:\n  multiraft log inspect data/node-1")]
    Inspect(LogDirArgs),
    /// Checks every checksum of a log. The exit code is 1 if anything is damaged.
    #[command(after_help = "Example:\n  multiraft log verify data/node-1")]
    Verify(LogDirArgs),
    /// Gives up the groups that a damaged log has lost something of, so that the node starts with the
    /// others.
    #[command(
        after_help = "Without --quarantine nothing is changed: it shows what is damaged and which \
        groups are hurt. With it the damaged segments are copied to a directory beside the log, nothing is \
        deleted, and the node takes no part in these groups from then on. When it runs again it asks their \
        other members to go on without it, and joins them anew, as an observer until it has caught up. They \
        must be a majority without it: look at `multiraft status` of the others first.\n\n\
        Examples:\n  \
        multiraft log repair data/node-3\n  \
        multiraft log repair data/node-3 --quarantine 7,12"
    )]
    Repair(RepairArgs),
    /// Prints entries, one on each line.
    #[command(after_help = "Examples:\n  \
        multiraft log dump data/node-1\n  \
        multiraft log dump data/node-1 --group 7 --from 100 --to 120 --json")]
    Dump(LogDumpArgs),
}

/// The arguments of `multiraft log repair`.
#[derive(Debug, Clone, Args)]
pub struct RepairArgs {
    /// The log and the form of the output.
    #[command(flatten)]
    pub log: LogDirArgs,
    /// The groups to give up here: all that are hurt, by name, or `none` if none is. Also groups that the log
    /// does not know any more, if it says that it may hide some.
    #[arg(long, value_name = "GROUP[,GROUP]", value_parser = parse_quarantine)]
    pub quarantine: Option<Quarantine>,
}

/// The groups that an operator gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine(pub BTreeSet<u32>);

fn parse_quarantine(text: &str) -> Result<Quarantine, String> {
    if text == "none" {
        return Ok(Quarantine(BTreeSet::new()));
    }
    let group = |id: &str| match id.trim().parse::<u32>() {
        Ok(id) if id > 0 => Ok(id),
        Ok(_) | Err(_) => Err(format!(
            "{id:?} is no group: name them as in 7,12, or say none"
        )),
    };
    let groups: Result<BTreeSet<u32>, String> = text.split(',').map(group).collect();
    groups.map(Quarantine)
}

/// The entries to print.
#[derive(Debug, Clone, Args)]
pub struct LogDumpArgs {
    /// Where they are.
    #[command(flatten)]
    pub log: LogDirArgs,
    /// The group whose entries are printed. Without it: all groups.
    #[arg(long)]
    pub group: Option<u32>,
    /// The first entry to print. The default is the group's first.
    #[arg(long, value_name = "INDEX", requires = "group")]
    pub from: Option<u64>,
    /// The last entry to print. The default is the group's last.
    #[arg(long, value_name = "INDEX", requires = "group")]
    pub to: Option<u64>,
}

/// The log to look into.
#[derive(Debug, Clone, Args)]
pub struct LogDirArgs {
    /// The data directory of a node that is not running, or the log in it.
    pub dir: PathBuf,
    /// Print JSON, one object on each line.
    #[arg(long)]
    pub json: bool,
}
