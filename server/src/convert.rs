//! API types to engine types and back: the only file that knows both.

use std::collections::BTreeMap;
use std::time::Duration;

use multiraft_engine::error::{BootstrapError, ImportError, JoinError, LeaveError, RecoverError};
use multiraft_engine::raft::RoleName;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::progress::ProgressState;
use multiraft_engine::raft::recovery::RecoveryRefusal;
use multiraft_engine::shard::{FollowerStatus, GroupStatus};
use multiraft_engine::snapshot::SnapshotError;
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{GroupId, Index, NodeId};
use multiraft_proto::admin;
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::{GroupConfig, MemberConfig};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// The longest host name there is (RFC 1035), bytes.
const MAX_HOST_BYTES: usize = 255;

/// A checked group: its id and members.
pub fn group(config: Option<GroupConfig>) -> Result<(GroupId, Membership), Status> {
    let Some(config) = config else {
        return Err(invalid(
            "the request has no group: set `group` with its id and members",
        ));
    };
    let group = group_id(config.group_id)?;
    if config.members.is_empty() {
        return Err(invalid(format!(
            "group {group} has no members: list every member"
        )));
    }
    let mut members = BTreeMap::new();
    for config in config.members {
        let (node, member) = self::member(config)?;
        if members.insert(node, member).is_some() {
            return Err(invalid(format!(
                "node {node} is listed twice: list each member once"
            )));
        }
    }
    let membership = Membership::new(members);
    membership
        .check()
        .map_err(|error| invalid(error.to_string()))?;
    Ok((group, membership))
}

/// A checked group id.
pub fn group_id(id: u32) -> Result<GroupId, Status> {
    if id == 0 {
        return Err(invalid(
            "group_id must not be 0: groups are numbered from 1",
        ));
    }
    Ok(GroupId(id))
}

/// A checked node id.
pub fn node_id(id: u32) -> Result<NodeId, Status> {
    NodeId::new(id).ok_or_else(|| invalid("node_id must not be 0: nodes are numbered from 1"))
}

/// What a node is in a group, as this replica knows it.
pub fn role_in(status: &GroupStatus, node: NodeId) -> Option<MemberRole> {
    let member = status.membership.members.get(&node);
    member.map(|member| member.role)
}

fn member(config: MemberConfig) -> Result<(NodeId, Member), Status> {
    let role = config.role;
    let MemberConfig {
        node_id,
        host,
        port,
        ..
    } = config;
    let Some(node) = NodeId::new(node_id) else {
        return Err(invalid(
            "a member's node_id must not be 0: nodes are numbered from 1",
        ));
    };
    if host.is_empty() || host.len() > MAX_HOST_BYTES {
        let bytes = host.len();
        return Err(invalid(format!(
            "node {node}: the host must have 1 to {MAX_HOST_BYTES} bytes, it has {bytes}"
        )));
    }
    let port = u16::try_from(port)
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| {
            invalid(format!(
                "node {node}: port {port} is outside 1..=65535: give its Raft port"
            ))
        })?;
    let role = match Role::try_from(role) {
        Ok(Role::Member) => MemberRole::Voter,
        Ok(Role::Observer) => MemberRole::Learner,
        Ok(Role::Witness) => MemberRole::Witness,
        Ok(Role::Unknown) | Err(_) => {
            return Err(invalid(format!(
                "node {node}: role {role} is none of MEMBER, OBSERVER, WITNESS"
            )));
        }
    };
    Ok((
        node,
        Member {
            role,
            address: PeerAddress { host, port },
        },
    ))
}

/// A group's members as the API shows them.
pub fn member_configs(membership: &Membership) -> Vec<MemberConfig> {
    let to_config = |(node, member): (&NodeId, &Member)| MemberConfig {
        node_id: node.get(),
        host: member.address.host.clone(),
        port: i32::from(member.address.port),
        role: match member.role {
            MemberRole::Voter => Role::Member,
            MemberRole::Learner => Role::Observer,
            MemberRole::Witness => Role::Witness,
        }
        .into(),
    };
    membership.members.iter().map(to_config).collect()
}

/// A group's state as the API shows it; `log_bytes` is what it needs of the node's log.
pub fn group_status(status: &GroupStatus, log_bytes: u64) -> admin::GroupStatus {
    use admin::group_status::Role as Shown;
    let role = match (status.member_role, status.role) {
        _ if status.is_joining => Shown::Joining,
        (Some(MemberRole::Learner), _) => Shown::Learner,
        (Some(MemberRole::Witness), _) => Shown::Witness,
        (_, RoleName::Leader) => Shown::Leader,
        (_, RoleName::Candidate) => Shown::Candidate,
        (_, RoleName::PreCandidate) => Shown::PreCandidate,
        (_, RoleName::Follower) => Shown::Follower,
    };
    admin::GroupStatus {
        group_id: status.group.0,
        role: role.into(),
        term: status.term.0,
        leader_id: status.leader.map_or(0, NodeId::get),
        commit_index: status.commit.0,
        applied_index: status.applied.0,
        first_index: status.first.0,
        last_index: status.last.0,
        members: member_configs(&status.membership),
        snapshot_index: status.snapshot.0,
        last_term: status.seen.last.1.0,
        membership_index: status.seen.membership.0,
        log_bytes,
        followers: (status.followers.iter())
            .map(|follower| follower_status(follower, status.last))
            .collect(),
    }
}

fn follower_status(follower: &FollowerStatus, last: Index) -> admin::FollowerStatus {
    use admin::follower_status::State as Shown;
    let state = match follower.state {
        ProgressState::Probe => Shown::Probe,
        ProgressState::Replicate => Shown::Replicate,
        ProgressState::Snapshot(_) => Shown::Snapshot,
    };
    admin::FollowerStatus {
        node_id: follower.node.get(),
        match_index: follower.matched.0,
        lag: last.0.saturating_sub(follower.matched.0),
        state: state.into(),
    }
}

/// Why a bootstrap was refused, as the API says it.
pub fn bootstrap_status(error: &BootstrapError) -> Status {
    let text = error.to_string();
    match error {
        BootstrapError::Membership(_) => invalid(text),
        BootstrapError::NotAMember => invalid(format!(
            "{text}: send the call to each of the nodes that it lists"
        )),
        BootstrapError::Exists(_) => Status::already_exists(text),
        BootstrapError::HasLeft(_) => Status::failed_precondition(text),
        BootstrapError::DiskFull => {
            Status::resource_exhausted(format!("{text}: free space, the node resumes by itself"))
        }
        _ => Status::unavailable(text),
    }
}

/// Why a node did not join, as the API says it.
pub fn join_status(error: &JoinError) -> Status {
    let text = error.to_string();
    match error {
        JoinError::Membership(_) => invalid(text),
        JoinError::NotAMember => invalid(format!(
            "{text}: list the node that gets the call too, with its role and Raft address"
        )),
        JoinError::NobodyToAsk => invalid(format!("{text}: list at least one that runs")),
        JoinError::Refused(_) => Status::failed_precondition(text),
        JoinError::Removed(_) => Status::aborted(text),
        JoinError::DiskFull => {
            Status::resource_exhausted(format!("{text}: free space, the node resumes by itself"))
        }
        _ => Status::unavailable(text),
    }
}

/// Why a node did not leave, as the API says it.
pub fn leave_status(error: &LeaveError) -> Status {
    let text = error.to_string();
    match error {
        LeaveError::NotAMember(_) => Status::not_found(text),
        LeaveError::LastVoter => Status::failed_precondition(format!(
            "{text}: let the others leave first, or make one of them a voter"
        )),
        _ => Status::unavailable(text),
    }
}

/// Why a group does not go on without its quorum, as the API says it.
pub fn recover_status(error: &RecoverError) -> Status {
    let text = error.to_string();
    match error {
        RecoverError::UnknownGroup(_) => Status::not_found(text),
        RecoverError::Refused(RecoveryRefusal::Changed) => Status::aborted(text),
        RecoverError::Refused(_) => Status::failed_precondition(text),
        _ => Status::unavailable(text),
    }
}

/// Why a group was not started from a copy, as the API says it.
pub fn import_status(error: &ImportError) -> Status {
    let text = error.to_string();
    match error {
        ImportError::Bootstrap(error) => bootstrap_status(error),
        ImportError::Snapshot(SnapshotError::NoRoom { .. }) => Status::resource_exhausted(text),
        ImportError::Snapshot(SnapshotError::Io(source))
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            Status::resource_exhausted(text)
        }
        _ => invalid(text),
    }
}

fn invalid(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// How long to wait for others in a call: a little less than its caller gives it, so that the answer says why
/// it took too long. From `grpc-timeout` (at most eight digits and a unit, as gRPC over HTTP/2 has it); `None`
/// if the caller sets none.
pub fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    let given = unit * number;
    Some(given / 20 * 19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_calls_says_how_long_to_wait() {
        let second = Duration::from_secs(1);
        for (text, given) in [
            ("1H", Some(3600 * second)),
            ("30M", Some(1800 * second)),
            ("60000000u", Some(60 * second)),
            ("20S", Some(20 * second)),
            ("500m", Some(second / 2)),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789m", None),
            ("S", None),
            ("", None),
            ("1 S", None),
            ("-1S", None),
            ("1\u{fc}", None),
        ] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = text.parse() {
                metadata.insert("grpc-timeout", value);
            }
            let expected = given.map(|given| given / 20 * 19);
            assert_eq!(patience(&metadata), expected, "{text}");
        }
    }
}
