//! The verbs that change who belongs to a group.

use std::collections::BTreeMap;

use multiraft_proto::admin::{
    DemoteMemberRequest, PromoteMemberRequest, RemoveMemberRequest, StatusRequest, StatusResponse,
};
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::{GroupConfig, JoinRequest, JoinResponse, MemberConfig};

use super::client::Client;
use super::output::{print_answer, print_line};
use super::status_table::members_text;
use super::upkeep_verbs::groups;
use super::values::parse_member;
use super::{AddArgs, ConnectionArgs, DecommissionArgs, Failure, MemberArgs};

pub(super) async fn promote(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(PromoteMemberRequest {
        group_id: args.group,
        node_id: args.node,
    });
    let answer = client
        .answer("promote", admin.promote_member(request))
        .await?;
    let text = members_are(args.group, &answer.members);
    print_answer("promote", args.connection.json, &answer, &text)
}

pub(super) async fn demote(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(DemoteMemberRequest {
        group_id: args.group,
        node_id: args.node,
    });
    let answer = client
        .answer("demote", admin.demote_member(request))
        .await?;
    let text = members_are(args.group, &answer.members);
    print_answer("demote", args.connection.json, &answer, &text)
}

pub(super) async fn remove(args: MemberArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(RemoveMemberRequest {
        group_id: args.group,
        node_id: args.node,
    });
    let answer = client
        .answer("remove", admin.remove_member(request))
        .await?;
    let text = members_are(args.group, &answer.members);
    print_answer("remove", args.connection.json, &answer, &text)
}

fn members_are(group: u32, members: &[MemberConfig]) -> String {
    format!("the members of group {group} are {}", members_text(members))
}

pub(super) async fn add(args: AddArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let status = status_of(&client, args.group).await?;
    let members = status.groups.into_iter().flat_map(|group| group.members);
    let new = join_as(&args, members.collect()).await?;
    let text = format!("node {} is in group {}", new.node_id, args.group);
    print_answer("add", args.connection.json, &JoinResponse {}, &text)
}

/// Has the node at `args.new` join a group of these members; returns what it is there.
pub(super) async fn join_as(
    args: &AddArgs,
    mut members: Vec<MemberConfig>,
) -> Result<MemberConfig, Failure> {
    let client = Client::connect(&args.new, args.connection.timeout).await?;
    let mut new = own_member(&client, args.raft_address.as_deref()).await?;
    new.role = Role::from(args.role).into();
    members.retain(|member| member.node_id != new.node_id);
    members.push(new.clone());
    let mut node = client.node();
    let request = client.request(JoinRequest {
        group: Some(GroupConfig {
            group_id: args.group,
            members,
        }),
    });
    client.answer("add", node.join(request)).await?;
    Ok(new)
}

/// A node as a member of a group, by what it says of itself.
pub(super) async fn own_member(
    client: &Client,
    raft_address: Option<&str>,
) -> Result<MemberConfig, Failure> {
    let mut admin = client.admin();
    let request = client.request(StatusRequest::default());
    let status = client.answer("status", admin.status(request)).await?;
    let address = raft_address.unwrap_or(&status.raft_address);
    let member = parse_member(&format!("{}={address}", status.node_id));
    let member = member.map_err(|reason| Failure::Usage {
        message: format!("--raft-address {address}: {reason}"),
    })?;
    if ["0.0.0.0", "::"].contains(&member.host.as_str()) {
        return Err(Failure::Usage {
            message: format!(
                "node {} listens on all addresses: say with --raft-address under which the others reach it",
                member.node_id
            ),
        });
    }
    Ok(member)
}

pub(super) async fn status_of(client: &Client, group: u32) -> Result<StatusResponse, Failure> {
    let mut admin = client.admin();
    let request = client.request(StatusRequest {
        group_ids: vec![group],
    });
    client.answer("status", admin.status(request)).await
}

/// Removes a node from all its groups, asking of each a member that is not the node itself if there is one.
pub(super) async fn decommission(args: DecommissionArgs) -> Result<(), Failure> {
    let (clients, statuses) = all_statuses(&args.connection).await?;
    let mut askable: BTreeMap<u32, usize> = BTreeMap::new();
    for (at, status) in statuses.iter().enumerate() {
        let has_node = |members: &[MemberConfig]| members.iter().any(|m| m.node_id == args.node);
        for group in status.groups.iter().filter(|g| has_node(&g.members)) {
            if status.node_id == args.node {
                askable.entry(group.group_id).or_insert(at);
            } else {
                askable.insert(group.group_id, at);
            }
        }
    }
    let (mut removed, mut left) = (0, 0);
    for (group_id, at) in askable {
        let client = &clients[at];
        let mut admin = client.admin();
        let request = client.request(RemoveMemberRequest {
            group_id,
            node_id: args.node,
        });
        let answer = client.answer("decommission", admin.remove_member(request));
        match answer.await {
            Ok(answer) => {
                removed += 1;
                let text = members_are(group_id, &answer.members);
                print_answer("decommission", args.connection.json, &answer, &text)?;
            }
            Err(failure) => {
                left += 1;
                failure.report();
            }
        }
    }
    if !args.connection.json {
        let node = args.node;
        print_line(&format!("node {node} was taken out of {}", groups(removed)))?;
    }
    match left {
        0 => Ok(()),
        left => Err(Failure::Incomplete {
            what: "decommission",
            left: format!("node {} is still in {}", args.node, groups(left)),
        }),
    }
}

/// The nodes at all endpoints that answer, and what they say. Those that do not are reported.
///
/// # Errors
/// The last failure, if nobody answers.
pub(super) async fn all_statuses(
    args: &ConnectionArgs,
) -> Result<(Vec<Client>, Vec<StatusResponse>), Failure> {
    let (mut clients, mut statuses) = (Vec::new(), Vec::new());
    let mut failures = Vec::new();
    for endpoint in &args.endpoint {
        let asked = async {
            let client = Client::connect(endpoint, args.timeout).await?;
            let mut admin = client.admin();
            let request = client.request(StatusRequest::default());
            let status = client.answer("status", admin.status(request)).await?;
            Ok((client, status))
        };
        match asked.await {
            Ok((client, status)) => {
                clients.push(client);
                statuses.push(status);
            }
            Err(failure) => failures.push(failure),
        }
    }
    if clients.is_empty()
        && let Some(failure) = failures.pop()
    {
        return Err(failure);
    }
    failures.iter().for_each(Failure::report);
    Ok((clients, statuses))
}
