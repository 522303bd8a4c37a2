//! The state of nodes and groups as tables.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use indicatif::HumanBytes;
use multiraft_proto::admin::follower_status::State;
use multiraft_proto::admin::group_status::Role;
use multiraft_proto::admin::{GroupStatus, LogStatus, StatusResponse};
use multiraft_proto::node::MemberConfig;
use multiraft_proto::node::member_config::Role as MemberRole;

use super::escape;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// A row for each node: who it is, where it listens, what it holds, whom it reaches.
pub fn node_table(nodes: &[StatusResponse]) -> String {
    let mut table = table(&[
        "node", "version", "cluster", "API", "Raft", "data", "groups", "leads", "peers up", "log",
        "free",
    ]);
    for node in nodes {
        let led = node
            .groups
            .iter()
            .filter(|group| group.role() == Role::Leader)
            .count();
        let connected = node.peers.iter().filter(|peer| peer.connected).count();
        table.add_row([
            node.node_id.to_string(),
            escape(node.version.as_bytes()),
            node.cluster_id.to_string(),
            escape(node.api_address.as_bytes()),
            escape(node.raft_address.as_bytes()),
            escape(node.data_dir.as_bytes()),
            node.groups.len().to_string(),
            led.to_string(),
            format!("{connected} of {}", node.peers.len()),
            node.log.as_ref().map_or_else(String::new, log_space),
            node.log.as_ref().map_or_else(String::new, free_space),
        ]);
    }
    table.to_string()
}

/// A row for each replica, those of one group together.
pub fn group_table(nodes: &[StatusResponse]) -> String {
    let mut table = table(&[
        "group",
        "node",
        "role",
        "leader",
        "term",
        "committed",
        "applied",
        "behind",
        "log",
        "size",
        "snapshot",
        "members",
    ]);
    let mut replicas: Vec<(u32, &GroupStatus)> = nodes
        .iter()
        .flat_map(|node| node.groups.iter().map(|group| (node.node_id, group)))
        .collect();
    replicas.sort_by_key(|(node, group)| (group.group_id, *node));
    for (node, group) in replicas {
        table.add_row([
            group.group_id.to_string(),
            node.to_string(),
            role_text(group),
            leader_text(group),
            group.term.to_string(),
            group.commit_index.to_string(),
            group.applied_index.to_string(),
            behind_text(group),
            log_text(group),
            HumanBytes(group.log_bytes).to_string(),
            snapshot_text(group),
            members_text(&group.members),
        ]);
    }
    table.to_string()
}

/// A row for each group: who is in it, who leads it in which term, and how far it is.
pub fn summary_table(nodes: &[StatusResponse], groups: u32) -> String {
    let mut table = table(&["group", "members", "leader", "term", "committed"]);
    for id in 1..=groups {
        let replicas = nodes.iter().flat_map(|node| &node.groups);
        let replicas: Vec<_> = replicas.filter(|group| group.group_id == id).collect();
        let Some(newest) = replicas.iter().max_by_key(|group| group.term) else {
            continue;
        };
        let committed = replicas.iter().map(|group| group.commit_index).max();
        table.add_row([
            id.to_string(),
            members_text(&newest.members),
            leader_text(newest),
            newest.term.to_string(),
            committed.unwrap_or_default().to_string(),
        ]);
    }
    table.to_string()
}

fn leader_text(group: &GroupStatus) -> String {
    match group.leader_id {
        0 => "none".to_owned(),
        id => id.to_string(),
    }
}

pub(super) fn members_text(members: &[MemberConfig]) -> String {
    let members: Vec<String> = members.iter().map(member_text).collect();
    members.join(" ")
}

/// An unknown role, of a newer node, as its number.
pub(super) fn role_text(group: &GroupStatus) -> String {
    match Role::try_from(group.role) {
        Ok(Role::Unknown) => "unknown",
        Ok(Role::Leader) => "leader",
        Ok(Role::Follower) => "follower",
        Ok(Role::Candidate) => "candidate",
        Ok(Role::PreCandidate) => "pre-candidate",
        Ok(Role::Learner) => "learner",
        Ok(Role::Witness) => "witness",
        Ok(Role::Joining) => "joining",
        Err(_) => return group.role.to_string(),
    }
    .to_owned()
}

/// Live bytes of the node's log, its size, and the group that keeps the oldest segment from being given
/// back.
fn log_space(log: &LogStatus) -> String {
    let (live, file) = (HumanBytes(log.live_bytes), HumanBytes(log.file_bytes));
    let pin = match log.pinned_by {
        0 => String::new(),
        group => format!(
            ", pinned by group {group}: {}",
            HumanBytes(log.pinned_bytes)
        ),
    };
    format!("{live} of {file}{pin}")
}

fn free_space(log: &LogStatus) -> String {
    let free = HumanBytes(log.free_bytes);
    if log.has_room {
        free.to_string()
    } else {
        format!("{free}, FULL")
    }
}

/// The committed entries that are not applied here, and of a leader the followers that lack entries.
fn behind_text(group: &GroupStatus) -> String {
    let unapplied = group.commit_index.saturating_sub(group.applied_index);
    let own = (unapplied > 0).then(|| format!("{unapplied} to apply"));
    let followers = group.followers.iter().filter_map(|follower| {
        let node = follower.node_id;
        match follower.state() {
            State::Snapshot => Some(format!("{node}: snapshot")),
            _ if follower.lag > 0 => Some(format!("{node}: {}", follower.lag)),
            State::Unknown | State::Probe | State::Replicate => None,
        }
    });
    let all: Vec<String> = own.into_iter().chain(followers).collect();
    all.join(", ")
}

fn snapshot_text(group: &GroupStatus) -> String {
    match group.snapshot_index {
        0 => "none".to_owned(),
        index => index.to_string(),
    }
}

fn log_text(group: &GroupStatus) -> String {
    if group.last_index < group.first_index {
        return "empty".to_owned();
    }
    format!("{} to {}", group.first_index, group.last_index)
}

/// A node id, with the role if it is not the usual one.
fn member_text(member: &MemberConfig) -> String {
    match MemberRole::try_from(member.role) {
        Ok(MemberRole::Member) => member.node_id.to_string(),
        Ok(MemberRole::Observer) => format!("{}:observer", member.node_id),
        Ok(MemberRole::Witness) => format!("{}:witness", member.node_id),
        Ok(MemberRole::Unknown) | Err(_) => format!("{}:role-{}", member.node_id, member.role),
    }
}

#[cfg(test)]
mod tests {
    use multiraft_proto::admin::{FollowerStatus, PeerStatus};

    use super::*;

    fn member(node_id: u32, role: MemberRole) -> MemberConfig {
        MemberConfig {
            node_id,
            host: "h".to_owned(),
            port: 1,
            role: role.into(),
        }
    }

    fn follower(node_id: u32, state: State, lag: u64) -> FollowerStatus {
        FollowerStatus {
            node_id,
            lag,
            state: state.into(),
            ..FollowerStatus::default()
        }
    }

    fn status(node_id: u32, role: Role) -> StatusResponse {
        let members = vec![
            member(1, MemberRole::Member),
            member(2, MemberRole::Witness),
        ];
        let group = |group_id| GroupStatus {
            group_id,
            role: role.into(),
            term: 4,
            leader_id: 1,
            commit_index: 7,
            applied_index: 5,
            first_index: 1,
            last_index: 9,
            log_bytes: 1024,
            followers: vec![
                follower(2, State::Replicate, 4),
                follower(3, State::Snapshot, 9),
                follower(4, State::Probe, 0),
            ],
            members: members.clone(),
            ..GroupStatus::default()
        };
        let peers = vec![PeerStatus {
            node_id: 3,
            connected: true,
            ..PeerStatus::default()
        }];
        let groups = vec![group(7), group(8)];
        let log = LogStatus {
            file_bytes: 64 << 20,
            live_bytes: 12 << 20,
            pinned_by: 7,
            pinned_bytes: 3 << 10,
            free_bytes: 2 << 30,
            has_room: false,
        };
        StatusResponse {
            node_id,
            groups,
            peers,
            log: Some(log),
            ..StatusResponse::default()
        }
    }

    /// The cells of the rows below the header.
    fn cells(table: &str) -> Vec<Vec<String>> {
        let rows = table.lines().filter(|line| line.starts_with('│')).skip(1);
        rows.map(|row| {
            row.split(['│', '┆'])
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
    }

    #[test]
    fn replicas_of_a_group_stand_together() {
        let rows = cells(&group_table(&[
            status(2, Role::Witness),
            status(1, Role::Leader),
        ]));
        let ids: Vec<_> = rows
            .iter()
            .map(|row| (row[1].as_str(), row[2].as_str()))
            .collect();
        assert_eq!(ids, [("7", "1"), ("7", "2"), ("8", "1"), ("8", "2")]);
        assert_eq!(
            rows[0][3..],
            [
                "leader",
                "1",
                "4",
                "7",
                "5",
                "2 to apply, 2: 4, 3: snapshot",
                "1 to 9",
                "1.00 KiB",
                "none",
                "1 2:witness",
                ""
            ]
            .map(str::to_owned)
        );
        assert_eq!(rows[1][3], "witness");
    }

    #[test]
    fn a_node_tells_how_many_groups_it_leads() {
        let rows = cells(&node_table(&[
            status(1, Role::Leader),
            status(2, Role::Follower),
        ]));
        assert_eq!(rows[0][7..10], ["2", "2", "1 of 1"].map(str::to_owned));
        assert_eq!(rows[1][7..10], ["2", "0", "1 of 1"].map(str::to_owned));
        assert_eq!(
            rows[0][10..12],
            [
                "12.00 MiB of 64.00 MiB, pinned by group 7: 3.00 KiB",
                "2.00 GiB, FULL"
            ]
            .map(str::to_owned)
        );
    }
}
