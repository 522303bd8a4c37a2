//! The arguments of the verbs that talk to a running node.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use multiraft_proto::node::MemberConfig;

use super::values::{parse_duration, parse_member};
use crate::config::DEFAULT_GROUP;

/// How to reach a node, and how to print what it says.
#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    /// The API address of a node. Several may be given, separated by commas: `bootstrap` and
    /// `status` talk to each of them, all other verbs to the first that can be reached.
    #[arg(
        long,
        env = "MULTIRAFT_ENDPOINT",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:8080"
    )]
    pub endpoint: Vec<String>,
    /// How long to wait for a connection and for an answer, as in 500ms, 5s or 2m.
    #[arg(
        long,
        env = "MULTIRAFT_TIMEOUT",
        value_name = "TIME",
        default_value = "5s",
        value_parser = parse_duration
    )]
    pub timeout: Duration,
    /// Print answers as proto3 JSON, one object on each line (keys and values in base64).
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `multiraft bootstrap` and `multiraft join`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "`bootstrap` must reach every member node: name all their endpoints. \
    `join` goes to the node that is to join, which must be among the members.\n\n\
    Examples:\n  \
    multiraft bootstrap --group 1 --endpoint a:8080,b:8080,c:8080 \\\n    \
    --member 1=a:5000 --member 2=b:5000 --member 3=c:5000:witness\n  \
    multiraft join --group 1 --endpoint d:8080 --member 1=a:5000 --member 4=d:5000:observer"
)]
pub struct MembersArgs {
    /// The group's id, from 1.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// A member: its node id, its Raft address, and its role (member, observer or witness; member
    /// if left out). Give it once for each member.
    #[arg(
        long = "member",
        value_name = "ID=HOST:PORT[:ROLE]",
        required = true,
        value_parser = parse_member
    )]
    pub members: Vec<MemberConfig>,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft leave`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  multiraft leave --group 7 --endpoint d:8080")]
pub struct LeaveArgs {
    /// The group to leave.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft status`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  multiraft status\n  \
    multiraft status --group 1 --group 2 --endpoint a:8080,b:8080,c:8080")]
pub struct StatusArgs {
    /// A group to show; can be given more than once. Without it, all groups are shown.
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<u32>,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// What all key-value verbs share.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// The group whose keys are meant.
    #[arg(long, env = "MULTIRAFT_GROUP", value_name = "GROUP", default_value_t = DEFAULT_GROUP,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft put`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  multiraft put greeting hello --group 7")]
pub struct PutArgs {
    /// The key.
    pub key: OsString,
    /// Its new value.
    pub value: OsString,
    /// Group and node.
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// The arguments of `multiraft get`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The exit code is 1 if there is no such key. A value that is not plain \
    UTF-8 text is printed with escapes such as \\xff.\n\nExample:\n  multiraft get greeting"
)]
pub struct GetArgs {
    /// The key.
    pub key: OsString,
    /// Group and node.
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// The arguments of `multiraft del`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    multiraft del greeting            deletes one key\n  \
    multiraft del a c                 deletes the keys from a up to, not including, c\n  \
    multiraft del user/ --prefix      deletes the keys that start with user/")]
pub struct DelArgs {
    /// The key, or the first key of the range.
    pub key: OsString,
    /// Delete a range that ends before this key.
    #[arg(conflicts_with = "prefix")]
    pub end: Option<OsString>,
    /// Delete all keys that start with KEY.
    #[arg(long)]
    pub prefix: bool,
    /// Group and node.
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// The arguments of `multiraft range`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Each line is a key, a tab, and its value, with control characters, \
    backslashes and bytes that are not UTF-8 escaped.\n\nExamples:\n  \
    multiraft range                   lists all keys\n  \
    multiraft range a                 lists the keys from a on\n  \
    multiraft range a c               lists the keys from a up to, not including, c\n  \
    multiraft range user/ --prefix --keys-only --limit 10"
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct RangeArgs {
    /// The first key; without it, all keys are listed.
    pub key: Option<OsString>,
    /// List a range that ends before this key; without it, the keys from KEY on are listed.
    #[arg(conflicts_with = "prefix")]
    pub end: Option<OsString>,
    /// List the keys that start with KEY.
    #[arg(long, requires = "key")]
    pub prefix: bool,
    /// The most keys to list; 0 is no limit.
    #[arg(long, value_name = "COUNT", default_value_t = 0,
        value_parser = clap::value_parser!(i64).range(0..))]
    pub limit: i64,
    /// Read at this revision; 0 is the newest.
    #[arg(long, value_name = "REVISION", default_value_t = 0,
        value_parser = clap::value_parser!(i64).range(0..))]
    pub rev: i64,
    /// List keys without values.
    #[arg(long, conflicts_with = "count_only")]
    pub keys_only: bool,
    /// Print only the number of keys.
    #[arg(long)]
    pub count_only: bool,
    /// Read what the node itself has: faster, but perhaps not the newest.
    #[arg(long)]
    pub serializable: bool,
    /// Group and node.
    #[command(flatten)]
    pub keys: KeyArgs,
}
