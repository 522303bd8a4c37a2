//! Nodes that join groups and leave them, as processes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::admin::group_status::Role as Shown;
use multiraft_proto::admin::{GroupStatus, MakeSnapshotRequest, TransferLeadershipRequest};
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{GroupConfig, JoinRequest, LeaveRequest, MemberConfig};
use support::{Cluster, PATIENCE, Process, all, bootstrap, free_ports, group_status, put};
use tonic::{Code, Status};

const GROUP: u32 = 1;

fn member(node: &Process, role: Role) -> MemberConfig {
    MemberConfig {
        node_id: node.id,
        host: "127.0.0.1".to_owned(),
        port: i32::from(node.raft_port),
        role: role.into(),
    }
}

async fn bootstrap_on(nodes: &[Process]) {
    let members = nodes.iter().map(|node| member(node, Role::Member));
    let members: Vec<MemberConfig> = members.collect();
    for node in nodes {
        let group = GroupConfig {
            group_id: GROUP,
            members: members.clone(),
        };
        bootstrap(node, group).await.unwrap();
    }
}

/// Asks for as long as the answer is that now is no time for it.
async fn patiently<F: Future<Output = Result<(), Status>>>(
    call: impl Fn() -> F,
) -> Result<(), Status> {
    let asking = async {
        loop {
            match call().await {
                Err(status)
                    if [Code::Unavailable, Code::DeadlineExceeded].contains(&status.code()) => {}
                result => return result,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("in time")
}

/// `node` joins by asking `other`.
async fn join(node: &Process, other: &Process, role: Role) -> Result<(), Status> {
    patiently(|| async {
        let members = vec![member(other, Role::Member), member(node, role)];
        let group = Some(GroupConfig {
            group_id: GROUP,
            members,
        });
        let mut client = NodeClient::new(node.channel().await);
        client.join(JoinRequest { group }).await.map(|_| ())
    })
    .await
}

async fn leave(node: &Process, group_id: u32) -> Result<(), Status> {
    patiently(|| async {
        let mut client = NodeClient::new(node.channel().await);
        client.leave(LeaveRequest { group_id }).await.map(|_| ())
    })
    .await
}

async fn status(node: &Process) -> Option<GroupStatus> {
    group_status(node, GROUP).await
}

/// What a node is in the group, and who else is in it; `None`: it has nothing of it.
async fn role(node: &Process) -> Option<(Shown, Vec<u32>)> {
    let group = status(node).await?;
    let members = group.members.iter().map(|member| member.node_id);
    Some((group.role(), members.collect()))
}

async fn write(node: &Process, key: &str) {
    patiently(|| async {
        put(node.channel().await, GROUP, key, "value")
            .await
            .map(|_| ())
    })
    .await
    .unwrap();
}

async fn keys(node: &Process) -> Vec<String> {
    let data = all(node.channel().await, GROUP).await.unwrap();
    data.into_iter().map(|(key, _)| key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_join_at_once_both_become_members_that_count() {
    let mut cluster = Cluster::start(5);
    bootstrap_on(&cluster.nodes[..3]).await;
    write(&cluster.nodes[0], "before").await;
    let nodes = &cluster.nodes;
    // Each asks another member, and one change has to wait for the other.
    let (fourth, fifth) = tokio::join!(
        join(&nodes[3], &nodes[0], Role::Member),
        join(&nodes[4], &nodes[1], Role::Member)
    );
    fourth.unwrap();
    fifth.unwrap();
    for node in &nodes[3..] {
        assert_eq!(keys(node).await, ["before"]);
    }
    // Three of five decide, also if two of them are new.
    for node in &mut cluster.nodes[..2] {
        node.kill();
    }
    write(&cluster.nodes[4], "after").await;
    for node in &cluster.nodes[2..] {
        let (shown, members) = role(node).await.unwrap();
        assert!(
            matches!(shown, Shown::Leader | Shown::Follower),
            "{shown:?}"
        );
        assert_eq!(members, [1, 2, 3, 4, 5]);
        assert_eq!(keys(node).await, ["after", "before"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moves_to_other_nodes_and_back_with_all_its_data() {
    let mut cluster = Cluster::start(5);
    bootstrap_on(&cluster.nodes[..3]).await;
    write(&cluster.nodes[0], "a").await;
    let nodes = &cluster.nodes;
    // By the node with the highest id, which nobody knows.
    join(&nodes[4], &nodes[0], Role::Member).await.unwrap();
    join(&nodes[4], &nodes[0], Role::Member)
        .await
        .expect("again is no error");
    join(&nodes[3], &nodes[1], Role::Observer).await.unwrap();
    assert_eq!(keys(&nodes[4]).await, ["a"]);
    assert_eq!(
        role(&nodes[3]).await,
        Some((Shown::Learner, vec![1, 2, 3, 4, 5]))
    );
    // Observers are promoted by asking again.
    join(&nodes[3], &nodes[4], Role::Member).await.unwrap();
    for node in &nodes[..3] {
        write(node, &format!("before {} leaves", node.id)).await;
        leave(node, GROUP).await.unwrap();
        leave(node, GROUP).await.expect("again is no error");
        assert_eq!(role(node).await, None, "nothing is left of it");
    }
    assert_eq!(role(&nodes[3]).await.map(|role| role.1), Some(vec![4, 5]));
    write(&nodes[3], "on the new nodes").await;
    join(&nodes[0], &nodes[4], Role::Member).await.unwrap();
    assert_eq!(keys(&nodes[0]).await.len(), 5);
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    let nodes = &cluster.nodes;
    write(&nodes[0], "after a restart").await;
    assert_eq!(keys(&nodes[4]).await.len(), 6);
    assert_eq!(role(&nodes[1]).await, None, "it has left, and knows it");
    let members = nodes[..3].iter().map(|node| member(node, Role::Member));
    let group = GroupConfig {
        group_id: GROUP,
        members: members.collect(),
    };
    let again = bootstrap(&nodes[1], group).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_and_snapshots_come_when_an_operator_asks() {
    let cluster = Cluster::start(3);
    bootstrap_on(&cluster.nodes[..2]).await;
    let nodes = &cluster.nodes;
    join(&nodes[2], &nodes[0], Role::Witness).await.unwrap();
    write(&nodes[0], "a").await;
    let mut admin = AdminClient::new(nodes[0].channel().await);
    for to in [2, 1, 2] {
        let request = TransferLeadershipRequest {
            group_id: GROUP,
            node_id: to,
        };
        admin.transfer_leadership(request).await.unwrap();
        let status = status(&nodes[0]).await.unwrap();
        assert_eq!(status.leader_id, to);
    }
    for (group_id, node_id, code) in [
        (0, 1, Code::InvalidArgument),
        (GROUP, 0, Code::InvalidArgument),
        (9, 1, Code::NotFound),
        (GROUP, 3, Code::FailedPrecondition),
        (GROUP, 4, Code::FailedPrecondition),
    ] {
        let request = TransferLeadershipRequest { group_id, node_id };
        let refused = admin.transfer_leadership(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{group_id} to {node_id}: {refused}");
    }
    let request = MakeSnapshotRequest { group_id: GROUP };
    let made = admin.make_snapshot(request).await.unwrap().into_inner();
    let status = status(&nodes[0]).await.unwrap();
    assert!(
        made.index > 0 && made.index == status.snapshot_index,
        "{status:?}"
    );
    let mut of_witness = AdminClient::new(nodes[2].channel().await);
    let refused = of_witness.make_snapshot(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let nowhere = MakeSnapshotRequest { group_id: 9 };
    let absent = admin.make_snapshot(nowhere).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_joins_again_under_its_id() {
    let mut cluster = Cluster::start(3);
    bootstrap_on(&cluster.nodes).await;
    write(&cluster.nodes[0], "a").await;
    let lost = &mut cluster.nodes[2];
    lost.kill();
    std::fs::remove_dir_all(&lost.data_dir).unwrap();
    lost.start();
    let nodes = &cluster.nodes;
    write(&nodes[0], "b").await;
    join(&nodes[2], &nodes[0], Role::Member).await.unwrap();
    assert_eq!(keys(&nodes[2]).await, ["a", "b"]);
    // Its vote counts again.
    cluster.nodes[1].kill();
    write(&cluster.nodes[2], "c").await;
}

/// By the lowest id, which dials the others, and by the highest, which is dialled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moves_tells_its_group_where_it_is() {
    let mut cluster = Cluster::start(3);
    bootstrap_on(&cluster.nodes).await;
    write(&cluster.nodes[0], "a").await;
    for (moved, key) in [(0, "b"), (2, "c")] {
        let node = &mut cluster.nodes[moved];
        node.kill();
        node.raft_port = free_ports(1)[0];
        node.start();
        let nodes = &cluster.nodes;
        join(&nodes[moved], &nodes[1], Role::Member).await.unwrap();
        for other in nodes {
            let is_told = async {
                let port = i32::from(nodes[moved].raft_port);
                let is_it = |m: &MemberConfig| m.node_id == nodes[moved].id && m.port == port;
                while !status(other).await.unwrap().members.iter().any(is_it) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, is_told)
                .await
                .expect("it learns the new address");
        }
        write(&nodes[moved], key).await;
    }
    // Both that have moved make a quorum, and find each other after a restart by the log alone.
    for node in &mut cluster.nodes {
        node.kill();
    }
    for at in [0, 2] {
        cluster.nodes[at].start();
    }
    write(&cluster.nodes[2], "d").await;
    assert_eq!(keys(&cluster.nodes[0]).await, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_join_or_leave_is_told_why_and_nothing_is_left() {
    let mut cluster = Cluster::start(3);
    bootstrap_on(&cluster.nodes[..2]).await;
    write(&cluster.nodes[0], "a").await;
    let port = i32::from(free_ports(1)[0]);
    let nodes = &cluster.nodes;
    let gone = MemberConfig {
        port,
        ..member(&nodes[0], Role::Member)
    };
    let group = Some(GroupConfig {
        group_id: GROUP,
        members: vec![gone, member(&nodes[2], Role::Member)],
    });
    let mut client = NodeClient::new(nodes[2].channel().await);
    let mut request = tonic::Request::new(JoinRequest { group });
    request.set_timeout(std::time::Duration::from_millis(500));
    client.join(request).await.expect_err("nobody is there");
    let is_gone = async {
        while role(&nodes[2]).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_gone)
        .await
        .expect("nothing half-done stays");

    assert_eq!(
        leave(&nodes[2], 9).await.unwrap_err().code(),
        Code::NotFound
    );
    join(&nodes[2], &nodes[0], Role::Witness).await.unwrap();
    let other = join(&nodes[2], &nodes[0], Role::Member).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition, "{other}");
    // Its vote counts: with it two of three go on.
    cluster.nodes[1].kill();
    write(&cluster.nodes[0], "b").await;
    cluster.nodes[1].start();
    let nodes = &cluster.nodes;
    leave(&nodes[1], GROUP).await.unwrap();
    let last = leave(&nodes[0], GROUP).await.unwrap_err();
    assert_eq!(last.code(), Code::FailedPrecondition, "{last}");
    leave(&nodes[2], GROUP).await.unwrap();
    assert_eq!(keys(&nodes[0]).await, ["a", "b"]);
    leave(&nodes[0], GROUP)
        .await
        .expect("the last one ends the group");
}
