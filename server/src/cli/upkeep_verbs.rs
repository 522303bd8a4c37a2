//! The verbs that care for groups without changing who belongs to them.

use multiraft_proto::admin::{
    CompactLogRequest, DrainRequest, MakeSnapshotRequest, TransferLeadershipRequest,
};

use super::client::Client;
use super::output::print_answer;
use super::{DrainArgs, Failure, ReplicaArgs, TransferArgs};

pub(super) async fn transfer(args: TransferArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(TransferLeadershipRequest {
        group_id: args.group,
        node_id: args.to,
    });
    let answer = admin.transfer_leadership(request);
    let answer = client.answer("transfer", answer).await?;
    let text = format!(
        "node {} leads group {} in term {}",
        args.to, args.group, answer.term
    );
    print_answer("transfer", args.connection.json, &answer, &text)
}

pub(super) async fn snapshot(args: ReplicaArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(MakeSnapshotRequest {
        group_id: args.group,
    });
    let answer = client
        .answer("snapshot", admin.make_snapshot(request))
        .await?;
    let text = format!(
        "the snapshot of group {} covers entry {}",
        args.group, answer.index
    );
    print_answer("snapshot", args.connection.json, &answer, &text)
}

pub(super) async fn compact(args: ReplicaArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let request = client.request(CompactLogRequest {
        group_id: args.group,
    });
    let answer = client.answer("compact", admin.compact_log(request)).await?;
    let text = format!(
        "the log of group {} begins with entry {}",
        args.group, answer.first_index
    );
    print_answer("compact", args.connection.json, &answer, &text)
}

/// Fails if the node still leads something: a script that goes on to stop it should not.
pub(super) async fn drain(args: DrainArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut admin = client.admin();
    let answer = admin.drain(client.request(DrainRequest {}));
    let answer = client.answer("drain", answer).await?;
    let kept = answer.kept.iter();
    let kept = kept.map(|k| format!("\nstill leads group {}: {}", k.group_id, k.reason));
    let kept: String = kept.collect();
    let text = format!("handed over {}{kept}", groups(answer.moved as usize));
    print_answer("drain", args.connection.json, &answer, &text)?;
    match answer.kept.len() {
        0 => Ok(()),
        count => Err(Failure::Incomplete {
            what: "drain",
            left: format!("the node still leads {}", groups(count)),
        }),
    }
}

/// A number of groups, in words.
pub(super) fn groups(count: usize) -> String {
    match count {
        1 => "1 group".to_owned(),
        count => format!("{count} groups"),
    }
}
