//! A cluster's whole life under clients that never stop writing: it grows, loses nodes and disks, shrinks,
//! loses its quorum and is recovered, backed up and restored. No acknowledged write is ever gone.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::{Duration, Instant};

use multiraft_proto::admin::GroupStatus;
use multiraft_proto::admin::group_status::Role;
use support::cli::{add, bootstrap, done, multiraft, refused, until};
use support::load::{Load, holds, read};
use support::{Cluster, PATIENCE, Process, group_status};

const GROUPS: u32 = 3;
/// What each client waits between two writes: the data stays small enough to be read whole again and again.
const PAUSE: Duration = Duration::from_millis(10);

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lives_under_load_and_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(8);
    for node in &cluster.nodes {
        node.channel().await;
    }
    let load = Load::new(GROUPS, PAUSE);
    let nodes = &cluster.nodes;
    for group in 1..=GROUPS {
        bootstrap(&[&nodes[0], &nodes[1], &nodes[2]], &group.to_string());
    }
    load.aim_at(&nodes[..3]);
    let mut writers = load.start();
    load.progress().await;

    println!("three nodes become five");
    for new in [3, 4] {
        for group in 1..=GROUPS {
            add(&[&nodes[0]], group, &nodes[new], "member");
        }
    }
    load.aim_at(&nodes[..5]);
    goes_on(&load, &nodes[..5]).await;

    println!("the leader of group 1 is killed, loses its disk, and joins again under its id");
    let victim = leader(&nodes[0], 1).await as usize - 1;
    cluster.nodes[victim].kill();
    load.progress().await;
    let lost = &mut cluster.nodes[victim];
    std::fs::remove_dir_all(&lost.data_dir).unwrap();
    lost.start();
    let nodes = &cluster.nodes;
    nodes[victim].channel().await;
    let other = &nodes[(victim + 1) % 5];
    for group in 1..=GROUPS {
        add(&[other], group, &nodes[victim], "member");
    }
    goes_on(&load, &nodes[..5]).await;

    println!("node 6 observes");
    for group in 1..=GROUPS {
        add(&[&nodes[0]], group, &nodes[5], "observer");
        let status = group_status(&nodes[5], group).await.unwrap();
        assert_eq!(status.role(), Role::Learner, "{status:?}");
    }
    load.holds([&nodes[5]]).await;

    println!("all nodes are restarted, one after the other");
    for at in 0..6 {
        let (drained, text) = multiraft(&[&cluster.nodes[at]], &["drain"]);
        assert!(drained, "{text}");
        let node = &mut cluster.nodes[at];
        assert_eq!(node.stop(), Some(0), "node {} stops in good order", node.id);
        node.start();
        node.channel().await;
        load.progress().await;
    }
    let nodes = &cluster.nodes;
    goes_on(&load, &nodes[..6]).await;

    println!("nodes 1 and 2 leave");
    for at in [0, 1] {
        for group in 1..=GROUPS {
            done(&[&nodes[at]], &["leave", "--group", &group.to_string()]);
            let text = refused(&[&nodes[at]], &["status", "--group", &group.to_string()]);
            assert!(text.contains("is not on this node"), "{text}");
        }
    }
    load.aim_at(&nodes[2..5]);
    goes_on(&load, &nodes[2..5]).await;

    println!("node 7 is a witness, and its vote makes up for a node that is gone");
    for group in 1..=GROUPS {
        add(&[&nodes[2]], group, &nodes[6], "witness");
        let group = group.to_string();
        done(&[&nodes[2]], &["remove", "--group", &group, "--node", "5"]);
    }
    load.aim_at(&nodes[2..4]);
    goes_on(&load, &nodes[2..4]).await;
    cluster.nodes[3].kill();
    goes_on(&load, [&cluster.nodes[2]]).await;
    let status = group_status(&cluster.nodes[2], 1).await.unwrap();
    assert_eq!(status.leader_id, 3, "only it has data and a vote");
    cluster.nodes[3].start();
    let nodes = &cluster.nodes;
    goes_on(&load, &nodes[2..4]).await;

    println!("the observer gets a vote in place of the witness");
    for group in 1..=GROUPS {
        let group = group.to_string();
        let promote = ["promote", "--group", &group, "--node", "6"];
        until("node 6 is promoted", || multiraft(&[&nodes[2]], &promote)).await;
        let remove = ["remove", "--group", &group, "--node", "7"];
        done(&[&nodes[2]], &remove);
    }
    load.aim_at([&nodes[2], &nodes[3], &nodes[5]]);
    goes_on(&load, [&nodes[2], &nodes[3], &nodes[5]]).await;

    println!("nodes 4 and 6 are lost for good, node 3 goes on alone");
    lose_all_but_the_leader(&mut cluster).await;
    let survivor = &cluster.nodes[2];
    for group in 1..=GROUPS {
        recover(survivor, group).await;
    }
    load.aim_at([survivor]);
    goes_on(&load, [survivor]).await;

    println!("group 1 is backed up, and restored as group 9 on nodes 1 and 8");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("group1.backup");
    let file = file.to_str().unwrap();
    let before = load.acknowledged().remove(&1).unwrap();
    done(&[survivor], &["export", file, "--group", "1"]);
    let [first, eighth] = [0, 7].map(|at| &cluster.nodes[at]);
    done(&[first, eighth], &["import", file, "--group", "9"]);
    for node in [first, eighth] {
        holds(&read(node, 9).await, &before, 9);
    }

    println!("the cluster grows to three again");
    for new in [0, 1] {
        for group in 1..=GROUPS {
            // Node 3 leads alone: whoever joins gets its state from there.
            add(&[survivor], group, &cluster.nodes[new], "member");
        }
    }
    let nodes = &cluster.nodes;
    load.aim_at(&nodes[..3]);
    goes_on(&load, &nodes[..3]).await;
    load.stop(&mut writers).await;
    load.agrees(&nodes[..3]).await;
    let written = load.count();
    println!("{written} acknowledged writes are all there");
}

/// Writes go on, and each of these nodes has what was acknowledged so far.
async fn goes_on<'a>(load: &Load, nodes: impl IntoIterator<Item = &'a Process>) {
    load.progress().await;
    load.holds(nodes).await;
}

/// Who leads a group, as soon as somebody does.
async fn leader(node: &Process, group: u32) -> u32 {
    let began = Instant::now();
    loop {
        let leader = group_status(node, group).await.unwrap().leader_id;
        if leader != 0 {
            return leader;
        }
        assert!(began.elapsed() < PATIENCE, "group {group} has no leader");
        tokio::time::sleep(support::load::LOOK).await;
    }
}

/// Kills nodes 4 and 6 while node 3 leads all groups: it has all that was acknowledged, since the leader of a
/// term has every entry that it acknowledges.
async fn lose_all_but_the_leader(cluster: &mut Cluster) {
    let began = Instant::now();
    loop {
        let survivor = &cluster.nodes[2];
        for group in 1..=GROUPS {
            let group = group.to_string();
            until("node 3 leads", || {
                multiraft(&[survivor], &["transfer", "--group", &group, "--to", "3"])
            })
            .await;
        }
        let before = statuses(survivor).await;
        cluster.nodes[3].kill();
        cluster.nodes[5].kill();
        let after = statuses(&cluster.nodes[2]).await;
        let led = before.iter().zip(&after);
        if led
            .clone()
            .all(|(b, a)| b.leader_id == 3 && b.term == a.term)
        {
            return;
        }
        // Somebody was elected meanwhile: its writes may be on the killed ones only.
        assert!(began.elapsed() < PATIENCE, "{before:?} {after:?}");
        for at in [3, 5] {
            cluster.nodes[at].start();
            cluster.nodes[at].channel().await;
        }
    }
}

async fn statuses(node: &Process) -> Vec<GroupStatus> {
    let mut statuses = Vec::new();
    for group in 1..=GROUPS {
        statuses.push(group_status(node, group).await.unwrap());
    }
    statuses
}

/// The two steps of a recovery with node 3 alone.
async fn recover(survivor: &Process, group: u32) {
    let group = group.to_string();
    let recover = ["recover-quorum", &group, "--survivors", "3"];
    until("a plan", || multiraft(&[survivor], &recover)).await;
    let began = Instant::now();
    loop {
        // Writes that nobody answers make the log longer, and each plan is for one state of it.
        let plan = done(&[survivor], &recover);
        let code = plan.trim_end().rsplit(' ').next().unwrap().to_owned();
        let confirmed = [&recover[..], &["--confirm", &code]].concat();
        let (is_done, text) = multiraft(&[survivor], &confirmed);
        if is_done {
            assert!(text.contains("its members are 3\n"), "{text}");
            return;
        }
        assert!(text.contains("not the code of the present plan"), "{text}");
        assert!(began.elapsed() < PATIENCE, "{text}");
    }
}
