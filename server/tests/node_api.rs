//! The Node API and the key-value API of a running node: every refusal, and that it goes on after.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use multiraft_proto::node::event::Event as Kind;
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{
    BootstrapRequest, GroupConfig, JoinRequest, LeaveRequest, MemberConfig, WatchRequest,
};
use support::{Cluster, all, bootstrap, put};
use tonic::Code;

fn member(node_id: u32, host: &str, port: i32, role: Role) -> MemberConfig {
    MemberConfig {
        node_id,
        host: host.to_owned(),
        port,
        role: role.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_bootstrap_is_refused_with_words_and_the_node_goes_on() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let own = cluster.members().remove(0);
    let voter = |id, port| member(id, "h", port, Role::Member);
    let unknown = MemberConfig {
        role: 99,
        ..own.clone()
    };
    let wrong: Vec<(&str, u32, Vec<MemberConfig>)> = vec![
        ("group_id", 0, vec![own.clone()]),
        ("no members", 1, vec![]),
        (
            "listed twice",
            1,
            vec![
                own.clone(),
                MemberConfig {
                    port: 9,
                    ..own.clone()
                },
            ],
        ),
        (
            "same address",
            1,
            vec![
                own.clone(),
                MemberConfig {
                    node_id: 2,
                    ..own.clone()
                },
            ],
        ),
        ("node_id", 1, vec![own.clone(), voter(0, 9)]),
        ("port 0", 1, vec![own.clone(), voter(2, 0)]),
        ("port 65536", 1, vec![own.clone(), voter(2, 65536)]),
        ("port -1", 1, vec![own.clone(), voter(2, -1)]),
        ("host", 1, vec![own.clone(), member(2, "", 9, Role::Member)]),
        ("role", 1, vec![member(1, "h", 9, Role::Unknown)]),
        ("role", 1, vec![unknown]),
        ("voting member", 1, vec![member(1, "h", 9, Role::Observer)]),
        ("not among the members", 1, vec![voter(2, 9)]),
    ];
    for (words, group_id, members) in wrong {
        let group = GroupConfig { group_id, members };
        let status = bootstrap(node, group.clone()).await.expect_err(words);
        assert_eq!(status.code(), Code::InvalidArgument, "{group:?}: {status}");
        assert!(status.message().contains(words), "{group:?}: {status}");
    }
    let mut client = NodeClient::new(node.channel().await);
    let status = client
        .bootstrap(BootstrapRequest { group: None })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    put_and_read(node).await;
}

/// The node serves: a group starts, takes a write and gives it back.
async fn put_and_read(node: &support::Process) {
    let own = member(
        node.id,
        "127.0.0.1",
        i32::from(node.raft_port),
        Role::Member,
    );
    let group = GroupConfig {
        group_id: 1,
        members: vec![own],
    };
    bootstrap(node, group).await.unwrap();
    let channel = node.channel().await;
    put(channel.clone(), 1, "k", "v").await.unwrap();
    assert_eq!(
        all(channel, 1).await.unwrap(),
        [("k".to_owned(), "v".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_do_not_fit_the_running_groups_are_refused() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let own = cluster.members().remove(0);
    let voter = |id, port| member(id, "h", port, Role::Member);
    let mut client = NodeClient::new(node.channel().await);
    let group = GroupConfig {
        group_id: 1,
        members: vec![own.clone()],
    };
    bootstrap(node, group.clone()).await.unwrap();
    bootstrap(node, group)
        .await
        .expect("the same call again is no error");
    let other = GroupConfig {
        group_id: 1,
        members: vec![own.clone(), voter(2, 9)],
    };
    assert_eq!(
        bootstrap(node, other).await.unwrap_err().code(),
        Code::AlreadyExists
    );

    let join = JoinRequest {
        group: Some(GroupConfig {
            group_id: 2,
            members: vec![own],
        }),
    };
    let alone = client.join(join).await.unwrap_err();
    assert_eq!(alone.code(), Code::InvalidArgument, "{alone}");
    let absent = client
        .leave(LeaveRequest { group_id: 7 })
        .await
        .unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);

    let channel = node.channel().await;
    assert_eq!(
        put(channel.clone(), 9, "k", "v").await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        put(channel.clone(), 1, "", "v").await.unwrap_err().code(),
        Code::InvalidArgument
    );
    put(channel.clone(), 1, "k", "v").await.unwrap();
    assert_eq!(
        all(channel, 1).await.unwrap(),
        [("k".to_owned(), "v".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_through_each_node_is_read_through_the_others_and_survives_a_restart() {
    let mut cluster = Cluster::start(3);
    cluster.bootstrap(1).await;
    for writer in &cluster.nodes {
        let key = format!("from {}", writer.id);
        put(writer.channel().await, 1, &key, "value").await.unwrap();
        for reader in &cluster.nodes {
            let data = all(reader.channel().await, 1).await.unwrap();
            assert!(
                data.iter().any(|(k, _)| *k == key),
                "{key} through node {}",
                reader.id
            );
        }
    }
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    for node in &cluster.nodes {
        assert_eq!(
            all(node.channel().await, 1).await.unwrap().len(),
            3,
            "no new Bootstrap"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begins_with_the_present_state() {
    let cluster = Cluster::start(3);
    cluster.bootstrap(1).await;
    put(cluster.nodes[0].channel().await, 1, "k", "v")
        .await
        .unwrap();
    let client = NodeClient::new(cluster.nodes[0].channel().await);
    let watch = { client }.watch(WatchRequest {}).await.unwrap();
    let mut events = watch.into_inner();
    let mut kinds = Vec::new();
    for _ in 0..5 {
        let event = events.message().await.unwrap().unwrap();
        assert!(event.timestamp.is_some());
        kinds.push(event.event.unwrap());
    }
    assert!(matches!(&kinds[0], Kind::MemberReady(e) if (e.group_id, e.node_id) == (1, 1)));
    for (kind, id) in kinds[1..4].iter().zip(1..) {
        assert!(matches!(kind, Kind::MembershipChanged(e) if e.node_id == id));
    }
    assert!(matches!(&kinds[4], Kind::LeaderUpdated(e) if e.term > 0 && e.leader > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_and_a_taken_port_are_refused_by_name() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    node.channel().await;
    let fails = |arguments: &[&str]| {
        let output = node.command().args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let locked = fails(&[]);
    assert!(locked.contains("LOCK"), "{locked}");
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    let other = other.to_str().unwrap();
    let run = |raft_port: &str, api_port: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_multiraft"))
            .args(["serve", "--node", "2", "--data-dir", other])
            .args(["--raft-port", raft_port, "--api-port", api_port])
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let api = run("0", &node.api_port.to_string());
    assert!(api.contains("--api-port"), "{api}");
    let raft = run(&node.raft_port.to_string(), "0");
    assert!(raft.contains("--raft-port"), "{raft}");
}

#[test]
fn a_directory_of_another_node_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let identity = |node: &str, cluster: &str| {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_multiraft"))
            .args(["serve", "--node", node, "--cluster-id", cluster])
            .args([
                "--raft-port",
                "0",
                "--api-port",
                "0",
                "--data-dir",
                data.to_str().unwrap(),
            ])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
        while std::io::BufRead::read_line(&mut reader, &mut text).unwrap() > 0 {
            if text.contains("ready") {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        text
    };
    assert!(identity("1", "1").contains("ready"));
    let foreign = identity("2", "1");
    assert!(
        foreign.contains("belongs to node 1") && foreign.contains("--node"),
        "{foreign}"
    );
    let foreign = identity("1", "5");
    assert!(foreign.contains("belongs to cluster 1"), "{foreign}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_its_log_is_refused_and_kept() {
    let mut cluster = Cluster::start(1);
    put_and_read(&cluster.nodes[0]).await;
    let node = &mut cluster.nodes[0];
    node.kill();
    let (log, aside) = (node.data_dir.join("log"), node.data_dir.join("aside"));
    std::fs::rename(&log, &aside).unwrap();
    let output = node.command().output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("group 1"),
        "{text}"
    );
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    node.start();
    let data = all(node.channel().await, 1).await.unwrap();
    assert_eq!(data, [("k".to_owned(), "v".to_owned())]);
}
