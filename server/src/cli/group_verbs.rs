//! The verbs about groups: bootstrap, join, leave, status.

use multiraft_proto::admin::{StatusRequest, StatusResponse};
use multiraft_proto::node::{BootstrapRequest, GroupConfig, JoinRequest, LeaveRequest};

use super::client::Client;
use super::output::print_answer;
use super::{
    Failure, LeaveArgs, MembersArgs, StatusArgs, group_table, json_line, node_table, print_line,
};

fn group_config(args: &MembersArgs) -> GroupConfig {
    GroupConfig {
        group_id: args.group,
        members: args.members.clone(),
    }
}

/// Sends the same call to every endpoint. Repeating it after a failure is safe.
pub(super) async fn bootstrap(args: MembersArgs) -> Result<(), Failure> {
    for endpoint in &args.connection.endpoint {
        let client = Client::connect(endpoint, args.connection.timeout).await?;
        let mut node = client.node();
        let request = client.request(BootstrapRequest {
            group: Some(group_config(&args)),
        });
        let answer = client.answer("bootstrap", node.bootstrap(request)).await?;
        let text = format!("group {} runs at {endpoint}", args.group);
        print_answer("bootstrap", args.connection.json, &answer, &text)?;
    }
    Ok(())
}

pub(super) async fn join(args: MembersArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut node = client.node();
    let request = client.request(JoinRequest {
        group: Some(group_config(&args)),
    });
    let answer = client.answer("join", node.join(request)).await?;
    let text = format!("joined group {}", args.group);
    print_answer("join", args.connection.json, &answer, &text)
}

pub(super) async fn leave(args: LeaveArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut node = client.node();
    let request = client.request(LeaveRequest {
        group_id: args.group,
    });
    let answer = client.answer("leave", node.leave(request)).await?;
    let text = format!("left group {}", args.group);
    print_answer("leave", args.connection.json, &answer, &text)
}

/// Asks every endpoint, and shows what answered even if some did not.
pub(super) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut failed: Option<Failure> = None;
    for endpoint in &args.connection.endpoint {
        match status_of(endpoint, &args).await {
            Ok(answer) => answers.push(answer),
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    earlier.report();
                }
            }
        }
    }
    print_status(&answers, args.connection.json)?;
    failed.map_or(Ok(()), Err)
}

async fn status_of(endpoint: &str, args: &StatusArgs) -> Result<StatusResponse, Failure> {
    let client = Client::connect(endpoint, args.connection.timeout).await?;
    let mut admin = client.admin();
    let request = client.request(StatusRequest {
        group_ids: args.groups.clone(),
    });
    client.answer("status", admin.status(request)).await
}

fn print_status(answers: &[StatusResponse], json: bool) -> Result<(), Failure> {
    if json {
        return answers
            .iter()
            .try_for_each(|a| print_line(&json_line("status", a)?));
    }
    if answers.is_empty() {
        return Ok(());
    }
    print_line(&node_table(answers))?;
    print_line(&group_table(answers))
}
