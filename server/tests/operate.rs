//! What operators do to groups and nodes, with the command line, on nodes in processes of their own.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::Instant;

use support::cli::{bootstrap, done, multiraft, refused, until};
use support::load::LOOK;
use support::{Cluster, PATIENCE, Process, all, put};
use tokio::time::sleep;

/// Writes until it is acknowledged.
async fn write(node: &Process, group: u32, key: &str, value: &str) {
    let began = Instant::now();
    while let Err(status) = put(node.channel().await, group, key, value).await {
        assert!(began.elapsed() < PATIENCE, "{status}");
        sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_as_an_operator_says() {
    let mut cluster = Cluster::start(3);
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    for node in [a, b, c] {
        node.channel().await;
    }
    bootstrap(&[a, b], "1");
    write(a, 1, "key", "value").await;
    let new = format!("127.0.0.1:{}", c.api_port);
    let add = ["add", "--group", "1", "--new", &new, "--role", "observer"];
    assert!(done(&[a], &add).contains("node 3 is in group 1"));
    assert!(
        done(&[a], &add).contains("node 3 is in group 1"),
        "again is no error"
    );
    let promote = ["promote", "--group", "1", "--node", "3"];
    for _ in 0..2 {
        let text = done(&[b], &promote);
        assert!(
            text.contains("the members of group 1 are 1 2 3\n"),
            "{text}"
        );
    }
    // A member that does not run is taken out by the others, and learns of it when it comes back.
    cluster.nodes[1].kill();
    let [a, _, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    let remove = ["remove", "--group", "1", "--node", "2"];
    for _ in 0..2 {
        let text = done(&[a], &remove);
        assert!(text.contains("the members of group 1 are 1 3\n"), "{text}");
    }
    // Whoever leads hands over before it loses its vote.
    done(&[a], &["transfer", "--group", "1", "--to", "3"]);
    let text = done(&[a], &["demote", "--group", "1", "--node", "3"]);
    assert!(text.contains("1 3:observer\n"), "{text}");
    let text = refused(&[a], &["demote", "--group", "1", "--node", "1"]);
    assert!(text.contains("last voter with data"), "{text}");
    let text = refused(&[a], &["remove", "--group", "1", "--node", "1"]);
    assert!(text.contains("last voter with data"), "{text}");
    let text = refused(&[a], &["promote", "--group", "1", "--node", "9"]);
    assert!(text.contains("node 9 is no member of group 1"), "{text}");
    assert_eq!(all(c.channel().await, 1).await.unwrap().len(), 1);
    cluster.nodes[1].start();
    let b = &cluster.nodes[1];
    b.channel().await;
    until("node 2 forgets the group", || {
        let (has_it, text) = multiraft(&[b], &["status", "--group", "1"]);
        (
            !has_it && text.contains("group 1 is not on this node"),
            text,
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_compacted_and_taken_out_of_service() {
    let cluster = Cluster::start(3);
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    for node in [a, b, c] {
        node.channel().await;
    }
    for group in 1..=6 {
        bootstrap(&[a, b, c], &group.to_string());
        write(a, group, "key", "value").await;
        done(
            &[a],
            &["transfer", "--group", &group.to_string(), "--to", "1"],
        );
    }
    let text = done(&[a], &["drain"]);
    assert!(text.starts_with("handed over 6 groups"), "{text}");
    let text = done(&[a], &["drain"]);
    assert!(text.starts_with("handed over 0 groups"), "{text}");
    let first = |text: &str| -> u64 {
        let number = text.trim_end().rsplit(' ').next();
        number.unwrap().parse().unwrap()
    };
    let compact = ["compact", "--group", "2"];
    let began = first(&done(&[a], &compact));
    write(b, 2, "more", "value").await;
    assert!(first(&done(&[a], &compact)) > began && began > 1);
    assert_eq!(all(a.channel().await, 2).await.unwrap().len(), 2);

    bootstrap(&[a], "7"); // nobody could take it over
    write(a, 7, "key", "value").await;
    let text = refused(&[a], &["drain"]);
    assert!(
        text.contains("still leads group 7: it has no other voter with data"),
        "{text}"
    );
    let text = refused(&[a, b, c], &["decommission", "1"]);
    assert!(
        text.contains("taken out of 6 groups") && text.contains("still in 1 group"),
        "{text}"
    );
    assert!(done(&[b], &["status", "--group", "3"]).contains("2 3"));
    let new = format!("127.0.0.1:{}", b.api_port);
    done(&[a], &["add", "--group", "7", "--new", &new]);
    let text = done(&[a, b, c], &["decommission", "1"]);
    assert!(text.contains("node 1 was taken out of 1 group\n"), "{text}");
    assert_eq!(all(b.channel().await, 7).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_of_three_goes_on_with_all_that_it_has() {
    let mut cluster = Cluster::start(3);
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    for node in [a, b, c] {
        node.channel().await;
    }
    bootstrap(&[a, b, c], "1");
    for at in 0..20 {
        write(a, 1, &format!("key-{at:02}"), "value").await;
    }
    let recover = ["recover-quorum", "1", "--survivors", "1"];
    let text = refused(&[a], &recover);
    assert!(text.contains("Nothing is to be recovered"), "{text}");
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let a = &cluster.nodes[0];
    until("a plan", || multiraft(&[a], &recover)).await;
    let plan = done(&[a], &recover);
    assert!(
        plan.contains("nothing is changed yet") && plan.contains("ARE LOST"),
        "{plan}"
    );
    assert!(
        plan.contains("Removed from the group: node 2, node 3."),
        "{plan}"
    );
    let code = plan.trim_end().rsplit(' ').next().unwrap();
    let confirmed = [&recover[..], &["--confirm", code]].concat();
    let text = refused(&[a], &[&recover[..], &["--confirm", "00000000"]].concat());
    assert!(text.contains("not the code of the present plan"), "{text}");
    let text = refused(&[a], &["recover-quorum", "1", "--survivors", "1,2"]);
    assert!(text.contains("node 2 did not tell of group 1"), "{text}");
    let text = done(&[a], &confirmed);
    assert!(text.contains("its members are 1\n"), "{text}");
    let text = refused(&[a], &confirmed);
    assert!(text.contains("Nothing is to be recovered"), "{text}");
    write(a, 1, "key-20", "value").await;
    // It is a group like any other: it survives a crash, and grows again.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    let lost = &mut cluster.nodes[1];
    std::fs::remove_dir_all(&lost.data_dir).unwrap();
    lost.start();
    let [a, b] = [0, 1].map(|at| &cluster.nodes[at]);
    write(a, 1, "key-21", "value").await;
    b.channel().await;
    let new = format!("127.0.0.1:{}", b.api_port);
    done(&[a], &["add", "--group", "1", "--new", &new]);
    let keys = all(b.channel().await, 1).await.unwrap();
    let expected = (0..22).map(|at| (format!("key-{at:02}"), "value".to_owned()));
    assert_eq!(keys, expected.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_starts_the_group_on_other_nodes() {
    let mut cluster = Cluster::start(4);
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| &cluster.nodes[at]);
    for node in [a, b, c, d] {
        node.channel().await;
    }
    bootstrap(&[a, b], "1");
    for at in 0..50 {
        write(a, 1, &format!("key-{at:02}"), &"v".repeat(20_000)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = path("group1.backup");
    let text = done(&[b], &["export", &file, "--group", "1"]);
    let hash = text.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(hash.len(), 64, "{text}");
    assert!(!std::fs::exists(path("group1.backup.partial")).unwrap());

    // Damaged or cut short, it starts nothing.
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let bad = path("bad.backup");
    for bytes in [
        &flipped[..],
        &whole[..whole.len() / 2],
        &whole[..whole.len() - 60],
        b"hello",
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let text = refused(&[c], &["import", &bad, "--group", "9"]);
        assert!(text.contains("backup"), "{text}");
        let text = refused(&[c], &["status", "--group", "9"]);
        assert!(text.contains("group 9 is not on this node"), "{text}");
    }
    let import = ["import", &file, "--group", "9"];
    let text = done(&[c, d], &import);
    assert!(
        text.contains(&hash) && text.contains("node 4 is in group 9"),
        "{text}"
    );
    let text = refused(&[c], &import);
    assert!(text.contains("ALREADY_EXISTS"), "{text}");
    write(c, 9, "new", "value").await;
    for at in [2, 3] {
        cluster.nodes[at].kill();
        cluster.nodes[at].start();
    }
    let [a, _, c, d] = [0, 1, 2, 3].map(|at| &cluster.nodes[at]);
    write(d, 9, "newer", "value").await;
    let mut expected = all(a.channel().await, 1).await.unwrap();
    expected.extend(["new", "newer"].map(|key| (key.to_owned(), "value".to_owned())));
    for node in [c, d] {
        assert_eq!(all(node.channel().await, 9).await.unwrap(), expected);
    }
}
