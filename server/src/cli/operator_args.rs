//! The arguments of the verbs with which operators care for groups and nodes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use multiraft_proto::node::member_config::Role;

use super::ConnectionArgs;

/// The arguments of `multiraft transfer`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  multiraft transfer --group 7 --to 2 --endpoint a:8080")]
pub struct TransferArgs {
    /// The group.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// The node that is to lead it: one of its voters.
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    pub to: u32,
    /// How to reach a node of the group.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft snapshot` and `multiraft compact`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A snapshot compacts the log behind it, but for the entries that \
    --compaction-retain-entries keeps for members that are a little behind; `compact` keeps none of \
    them.\n\nExamples:\n  multiraft snapshot --group 7 --endpoint a:8080\n  \
    multiraft compact --group 7 --endpoint a:8080"
)]
pub struct ReplicaArgs {
    /// The group.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft drain`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The node goes on serving, and may be elected again when another leader fails. A \
    rolling restart drains a node, restarts it, waits until it has caught up, and goes to the next.\n\n\
    Example:\n  multiraft drain --endpoint a:8080"
)]
pub struct DrainArgs {
    /// How to reach the node that is to lead nothing.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft promote`, `multiraft demote` and `multiraft remove`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Any node of the group takes the call, and repeating it is safe. A node that \
    leads is made to hand over first. A node that is removed deletes what it has of the group when it \
    learns of it; it need not run.\n\nExamples:\n  \
    multiraft promote --group 7 --node 4 --endpoint a:8080\n  \
    multiraft remove --group 7 --node 3 --endpoint a:8080,b:8080"
)]
pub struct MemberArgs {
    /// The group.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// The member's node.
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    pub node: u32,
    /// How to reach a node of the group.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// What a node is to be in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Has data and a vote.
    Member,
    /// Has data and no vote.
    Observer,
    /// Has a vote and no data.
    Witness,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Member => Self::Member,
            RoleName::Observer => Self::Observer,
            RoleName::Witness => Self::Witness,
        }
    }
}

/// The arguments of `multiraft add`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The same as `join`, but who the members are is asked of a node of the group, and who \
    the new node is, of that node. Returns when it has its role: raise --timeout if the group is large. \
    Repeating it is safe.\n\nExample:\n  multiraft add --group 7 --new d:8080 --endpoint a:8080"
)]
pub struct AddArgs {
    /// The group.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// The API address of the node that is to be a member.
    #[arg(long, value_name = "HOST:PORT")]
    pub new: String,
    /// What it is to be.
    #[arg(long, value_enum, default_value_t = RoleName::Member)]
    pub role: RoleName,
    /// The Raft address under which the others reach it; without it, what the node says.
    #[arg(long, value_name = "HOST:PORT")]
    pub raft_address: Option<String>,
    /// How to reach a node of the group.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft decommission`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Takes a node out of every group of which one of the endpoints is a member, whether the \
    node runs or not. What cannot be done without losing data is left, named, and makes the exit code 1: \
    add other members to those groups, then repeat it.\n\nExample:\n  \
    multiraft decommission 3 --endpoint a:8080,b:8080,c:8080"
)]
pub struct DecommissionArgs {
    /// The node.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    pub node: u32,
    /// How to reach the nodes that have groups in common with it.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft recover-quorum`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The last resort, when most voters of a group are lost for good. THIS CAN LOSE \
    ACKNOWLEDGED WRITES: what only the lost nodes had is gone. And a lost node that comes back with its \
    old data could form a second group: destroy its data, or be sure that it never starts again.\n\n\
    Without --confirm nothing is changed: the plan is shown, and the code that confirms it. The code holds \
    as long as the survivors stay as they are.\n\nExample:\n  \
    multiraft recover-quorum 7 --survivors 2,5 --endpoint b:8080,e:8080\n  \
    multiraft recover-quorum 7 --survivors 2,5 --endpoint b:8080,e:8080 --confirm 1f0c52aa"
)]
pub struct RecoverArgs {
    /// The group.
    #[arg(value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// All nodes of the group that are left, by id. All others are removed from it.
    #[arg(long, value_name = "NODE", value_delimiter = ',', required = true,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub survivors: Vec<u32>,
    /// The code that the plan has shown.
    #[arg(long, value_name = "CODE")]
    pub confirm: Option<String>,
    /// How to reach the survivors: the endpoints of all of them.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft export`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The file has all that was acknowledged before the call. It is written under another \
    name first: under this one it is whole.\n\nExample:\n  \
    multiraft export group7.backup --group 7 --endpoint a:8080"
)]
pub struct ExportArgs {
    /// The file to write.
    pub file: PathBuf,
    /// The group.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// How to reach a node with the group's data.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The arguments of `multiraft import`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Starts a new group from the file on the first endpoint; the nodes at the other endpoints \
    then join it, and get the state from there. The group may have another id than it had.\n\nExample:\n  \
    multiraft import group7.backup --group 7 --endpoint a:8080,b:8080,c:8080"
)]
pub struct ImportArgs {
    /// The file that `export` has written.
    pub file: PathBuf,
    /// The group to start.
    #[arg(long, value_name = "GROUP", value_parser = clap::value_parser!(u32).range(1..))]
    pub group: u32,
    /// How to reach the nodes that are to have it.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}
