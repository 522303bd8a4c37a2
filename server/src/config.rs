//! One checked [`Config`] for a node: defaults < configuration file < environment < flags.
//!
//! The file holds the message `atomix.multiraft.v1.MultiRaftConfig` ([`file`] reads it); flags and
//! environment are [`ServeArgs`]. A `Config` from [`Config::load`] has passed
//! [`Config::validate`].

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use multiraft_engine::types::{GroupId, NodeId};
use multiraft_logdb::{Compression, DEFAULT_SPARES, Identity, Options};
use multiraft_transport::SnapshotLimits;

use crate::cli::{SegmentArgs, ServeArgs, SnapshotArgs};

/// Where a node listens unless told otherwise: only its own machine can reach it there, which is
/// safe as long as the ports ask nobody who they are.
pub const HOST: &str = "127.0.0.1";
/// The port of the API unless told otherwise.
pub const API_PORT: u16 = 8080;
/// The port of the Raft transport unless told otherwise.
pub const RAFT_PORT: u16 = 5000;
/// The cluster id unless told otherwise.
pub const CLUSTER_ID: u64 = 1;
/// The group of a key-value request that names none, unless told otherwise.
pub const DEFAULT_GROUP: u32 = 1;
/// Heartbeat periods that must fit into an election timeout: one lost heartbeat must not start an
/// election (Raft §5.6).
pub const HEARTBEATS_PER_ELECTION: u32 = 3;

/// How one node is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's id.
    pub node: NodeId,
    /// Nodes of different clusters refuse each other.
    pub cluster_id: u64,
    /// The address or host name that the API listens on.
    pub api_host: String,
    /// The port that the API listens on; 0: any free one.
    pub api_port: u16,
    /// The address or host name that the Raft transport listens on.
    pub raft_host: String,
    /// The port that the Raft transport listens on; 0: any free one.
    pub raft_port: u16,
    /// Where peers reach this node, if not where it listens: host, and port; without one that of
    /// `raft_port`.
    pub raft_advertise: Option<(String, Option<u16>)>,
    /// The directory of all that the node stores.
    pub data_dir: PathBuf,
    /// The time between two heartbeats of a leader; default 100 ms.
    pub heartbeat_period: Duration,
    /// The time without word from a leader after which a follower starts an election; default 1 s,
    /// at least [`HEARTBEATS_PER_ELECTION`] heartbeat periods.
    pub election_timeout: Duration,
    /// Entries applied since the last snapshot after which the next is made; default 10,000.
    pub snapshot_entry_threshold: u64,
    /// Bytes of entries applied since the last snapshot after which the next is made; default 64 MiB.
    pub snapshot_bytes: u64,
    /// Bytes a second of all snapshots that this node sends, together; default 0, no limit.
    pub snapshot_rate: u64,
    /// Entries kept below a snapshot for peers slightly behind; default 1,000.
    pub compaction_retain_entries: u64,
    /// Bytes of a segment of the log; default 32 MiB.
    pub segment_bytes: u64,
    /// Used-up segments that are kept to be written to again; default 8.
    pub spare_segments: u32,
    /// Segments made ahead of need; default 0.
    pub preallocated_segments: u32,
    /// How entries are stored in the log; default as they are.
    pub entry_compression: Compression,
    /// The port of the metrics page; `None`: no page.
    pub metrics_port: Option<u16>,
    /// The group of a key-value request that names none.
    pub default_group: GroupId,
}

/// Why there is no usable configuration. The texts say what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ConfigError {
    /// The file is not there, or not ours to read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is no JSON.
    #[error("{}: not valid JSON: {source} (a TOML file must be named *.toml)", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// The file is no TOML.
    #[error("{}: not valid TOML: {source}", path.display())]
    Toml {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    /// The file is valid JSON, but a list, a number or the like.
    #[error("{}: must be one object, {{\"dataDir\": …}}", path.display())]
    NoObject { path: PathBuf },
    /// The file has a field that means nothing.
    #[error("{}: there is no field `{field}`; the fields are {known}", path.display())]
    UnknownField {
        path: PathBuf,
        field: String,
        known: String,
    },
    /// The same field twice, as `dataDir` and `data_dir`.
    #[error("{}: field `{field}` is there twice; leave one out", path.display())]
    DuplicateField { path: PathBuf, field: String },
    /// A field holds what it cannot hold.
    #[error("{}: field `{field}`: {source}; {expected}", path.display())]
    Field {
        path: PathBuf,
        field: String,
        source: serde_json::Error,
        expected: &'static str,
    },
    /// A duration below zero, or beyond any clock.
    #[error("{}: field `{field}`: {seconds} s is no span of time; give a positive one", path.display())]
    Duration {
        path: PathBuf,
        field: &'static str,
        seconds: i64,
    },
    #[error("node 0 is no node: give this node an id from 1 with --node or MULTIRAFT_NODE")]
    NodeZero,
    #[error("group 0 is no group: give an id from 1 with --default-group")]
    DefaultGroupZero,
    #[error("{field} is zero: give a time such as \"{example}\"")]
    ZeroDuration {
        field: &'static str,
        example: &'static str,
    },
    #[error(
        "election_timeout {election:?} is shorter than {HEARTBEATS_PER_ELECTION} heartbeat \
         periods of {heartbeat:?}, so that lost heartbeats would start elections: raise it to at \
         least {minimum:?}, or lower heartbeat_period"
    )]
    ElectionTooShort {
        election: Duration,
        heartbeat: Duration,
        minimum: Duration,
    },
    #[error("{field} is zero: give a number from 1, or leave it out")]
    Zero { field: &'static str },
    #[error(
        "--snapshot-rate {rate} is so slow that transfers would be given up for it: give at least \
         {minimum}, or 0 for no limit"
    )]
    SlowSnapshots { rate: ByteSize, minimum: ByteSize },
    #[error("{flag} is {value}: allowed is {allowed}")]
    Log {
        flag: &'static str,
        value: u64,
        allowed: &'static str,
    },
    #[error("the log's options: {0}")]
    LogOptions(#[source] multiraft_logdb::Error),
    #[error(
        "--raft-port 0 is drawn anew at each start: say with --raft-advertise HOST:PORT which port the \
         others shall use"
    )]
    NoAdvertisedPort,
    #[error("{flag} is empty: give a value, or leave it out")]
    Empty { flag: &'static str },
    #[error("{first} and {second} are both port {port}: give each a port of its own")]
    SamePort {
        first: &'static str,
        second: &'static str,
        port: u16,
    },
}

/// What the log says of its options, in the words of the flags.
fn log_error(error: multiraft_logdb::Error) -> ConfigError {
    let multiraft_logdb::Error::Options {
        option,
        value,
        allowed,
    } = error
    else {
        return ConfigError::LogOptions(error);
    };
    let flag = match option {
        "segment_bytes" => "--segment-size, in bytes,",
        "max_spares" => "--spare-segments",
        "preallocated" => "--preallocated-segments",
        other => other,
    };
    ConfigError::Log {
        flag,
        value,
        allowed,
    }
}

impl Config {
    /// The defaults for a node.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            cluster_id: CLUSTER_ID,
            api_host: HOST.to_owned(),
            api_port: API_PORT,
            raft_host: HOST.to_owned(),
            raft_port: RAFT_PORT,
            raft_advertise: None,
            data_dir: PathBuf::from(format!("data/node-{node}")),
            heartbeat_period: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            snapshot_entry_threshold: 10_000,
            snapshot_bytes: 64 << 20,
            snapshot_rate: 0,
            compaction_retain_entries: 1_000,
            segment_bytes: 32 << 20,
            spare_segments: DEFAULT_SPARES,
            preallocated_segments: 0,
            entry_compression: Compression::None,
            metrics_port: None,
            default_group: GroupId(DEFAULT_GROUP),
        }
    }

    /// The configuration that flags, environment, file and defaults make, checked.
    ///
    /// # Errors
    /// The first thing that is wrong, naming the file and field, or the flag.
    pub fn load(args: &ServeArgs) -> Result<Self, ConfigError> {
        let node = NodeId::new(args.node).ok_or(ConfigError::NodeZero)?;
        let mut config = Self::new(node);
        if let Some(path) = &args.config {
            file::apply(path, &mut config)?;
        }
        config.apply_args(args);
        config.validate()?;
        Ok(config)
    }

    fn apply_args(&mut self, args: &ServeArgs) {
        self.cluster_id = args.cluster_id;
        self.api_host.clone_from(&args.api_host);
        self.api_port = args.api_port;
        self.raft_host.clone_from(&args.raft_host);
        self.raft_port = args.raft_port;
        self.metrics_port = args.metrics_port;
        self.default_group = GroupId(args.default_group);
        self.raft_advertise.clone_from(&args.raft_advertise);
        if let Some(data_dir) = &args.data_dir {
            self.data_dir.clone_from(data_dir);
        }
        let SnapshotArgs {
            snapshot_entry_threshold,
            snapshot_byte_threshold,
            compaction_retain_entries,
            snapshot_rate,
        } = args.snapshots;
        self.snapshot_rate = snapshot_rate.as_u64();
        let SegmentArgs {
            segment_size,
            spare_segments,
            preallocated_segments,
            entry_compression,
        } = args.segments;
        self.segment_bytes = segment_size.as_u64();
        self.spare_segments = spare_segments;
        self.preallocated_segments = preallocated_segments;
        self.entry_compression = entry_compression.into();
        for (setting, flag) in [
            (&mut self.snapshot_entry_threshold, snapshot_entry_threshold),
            (
                &mut self.snapshot_bytes,
                snapshot_byte_threshold.map(|b| b.as_u64()),
            ),
            (
                &mut self.compaction_retain_entries,
                compaction_retain_entries,
            ),
        ] {
            *setting = flag.unwrap_or(*setting);
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first thing that is wrong, with what to do about it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_times()?;
        for (field, value) in [
            ("snapshot_entry_threshold", self.snapshot_entry_threshold),
            ("--snapshot-byte-threshold", self.snapshot_bytes),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        let minimum = SnapshotLimits::default().min_bytes_per_second();
        if self.snapshot_rate != 0 && self.snapshot_rate < minimum {
            return Err(ConfigError::SlowSnapshots {
                rate: ByteSize(self.snapshot_rate),
                minimum: ByteSize(minimum),
            });
        }
        self.log_options(PathBuf::new())
            .validate()
            .map_err(log_error)?;
        if self.raft_port == 0 && matches!(self.raft_advertise, Some((_, None))) {
            return Err(ConfigError::NoAdvertisedPort);
        }
        if self.default_group == GroupId(0) {
            return Err(ConfigError::DefaultGroupZero);
        }
        for (flag, empty) in [
            ("--api-host", self.api_host.is_empty()),
            ("--raft-host", self.raft_host.is_empty()),
            ("--data-dir", self.data_dir.as_os_str().is_empty()),
        ] {
            if empty {
                return Err(ConfigError::Empty { flag });
            }
        }
        self.check_ports()
    }

    /// How the log in this directory is opened.
    pub fn log_options(&self, dir: PathBuf) -> Options {
        let identity = Identity {
            cluster_id: self.cluster_id,
            node: self.node,
        };
        Options {
            segment_bytes: self.segment_bytes,
            max_spares: self.spare_segments,
            preallocated: self.preallocated_segments,
            compression: self.entry_compression,
            ..Options::new(dir, identity)
        }
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let (heartbeat, election) = (self.heartbeat_period, self.election_timeout);
        if heartbeat.is_zero() {
            return Err(ConfigError::ZeroDuration {
                field: "heartbeat_period",
                example: "0.1s",
            });
        }
        if election.is_zero() {
            return Err(ConfigError::ZeroDuration {
                field: "election_timeout",
                example: "1s",
            });
        }
        let minimum = heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION);
        if election < minimum {
            return Err(ConfigError::ElectionTooShort {
                election,
                heartbeat,
                minimum,
            });
        }
        Ok(())
    }

    /// Hosts may differ, but then equal ports are still more often a slip than a plan.
    fn check_ports(&self) -> Result<(), ConfigError> {
        let api = ("--api-port", self.api_port);
        let raft = ("--raft-port", self.raft_port);
        let metrics = ("--metrics-port", self.metrics_port.unwrap_or(0));
        for ((first, port), (second, other)) in [(api, raft), (api, metrics), (raft, metrics)] {
            if port == other && port != 0 {
                return Err(ConfigError::SamePort {
                    first,
                    second,
                    port,
                });
            }
        }
        Ok(())
    }
}
