//! The state of nodes and groups as tables.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use multiraft_proto::admin::group_status::Role;
use multiraft_proto::admin::{GroupStatus, StatusResponse};
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
        "node", "version", "cluster", "API", "Raft", "data", "groups", "leads", "peers up",
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
        "log",
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
            log_text(group),
            members_text(group),
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
            members_text(newest),
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

fn members_text(group: &GroupStatus) -> String {
    let members: Vec<String> = group.members.iter().map(member_text).collect();
    members.join(" ")
}

/// An unknown role, of a newer node, as its number.
fn role_text(group: &GroupStatus) -> String {
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
    use multiraft_proto::admin::PeerStatus;

    use super::*;

    fn member(node_id: u32, role: MemberRole) -> MemberConfig {
        MemberConfig {
            node_id,
            host: "h".to_owned(),
            port: 1,
            role: role.into(),
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
            first_index: 1,
            last_index: 9,
            members: members.clone(),
            ..GroupStatus::default()
        };
        let peers = vec![PeerStatus {
            node_id: 3,
            connected: true,
            ..PeerStatus::default()
        }];
        let groups = vec![group(7), group(8)];
        StatusResponse {
            node_id,
            groups,
            peers,
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
            rows[0][3..10],
            ["leader", "1", "4", "0", "0", "1 to 9", "1 2:witness"].map(str::to_owned)
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
    }
}
