//! A byte rots in one node's log: the start refuses and names it, the operator gives the hurt group up, and the
//! group comes back from its peers while the others serve.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use multiraft_proto::admin::group_status::Role;
use multiraft_proto::node::member_config::Role as MemberRole;
use support::cli::bootstrap;
use support::load::{LOOK, read};
use support::{Cluster, PATIENCE, Process, group_status, put};

const GROUPS: u32 = 3;
const HURT: u32 = 2;
const KEYS: usize = 30;

/// `multiraft log repair` for a node: whether its exit code was 0, and all that it printed.
fn log(verb: &str, node: &Process, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(["log", verb])
        .arg(node.data_dir.join("log"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// The segments of a node, and what they hold.
fn segments(node: &Process) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(node.data_dir.join("log")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let segments = paths.filter(|path| path.extension().is_some_and(|e| e == "seg"));
    segments
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// Flips a bit of a value where the log holds it; returns the segment's file.
fn rot(node: &Process, value: &str) -> PathBuf {
    for (path, mut bytes) in segments(node) {
        let found = bytes
            .windows(value.len())
            .position(|w| w == value.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            return path;
        }
    }
    panic!("the log does not hold {value}");
}

fn copies(data_dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(data_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    all.filter(|path| name(path).starts_with("quarantine-"))
        .collect()
}

async fn write_keys(node: &Process, group: u32, prefix: &str) {
    for key in 0..KEYS {
        let key = format!("{prefix} {key:02}");
        let value = format!("value of {key} in group {group}");
        put(node.channel().await, group, &key, &value)
            .await
            .unwrap();
    }
}

/// Waits until a node is a full member of a group by its own word.
async fn until_member(node: &Process, group: u32) {
    let began = Instant::now();
    loop {
        let status = group_status(node, group).await;
        let has_vote = status.as_ref().is_some_and(|status| {
            let own = status.members.iter().find(|m| m.node_id == node.id);
            let is_voter = own.is_some_and(|m| m.role() == MemberRole::Member);
            is_voter && matches!(status.role(), Role::Follower | Role::Leader)
        });
        if has_vote {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "group {group}: {status:?}");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_log_rots_is_given_up_and_comes_back_from_its_peers() {
    let mut cluster = Cluster::start(3);
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    for node in [a, b, c] {
        node.channel().await;
    }
    for group in 1..=GROUPS {
        bootstrap(&[a, b, c], &group.to_string());
        write_keys(a, group, "before").await;
        assert_eq!(read(c, group).await.len(), KEYS, "node 3 has all of it");
    }
    let c = &mut cluster.nodes[2];
    c.kill(); // after a shutdown a start would not read it
    let rotten = rot(c, &format!("value of before 17 in group {HURT}"));
    let damaged = segments(c);

    let start = c.command().output().unwrap();
    let said = String::from_utf8(start.stderr).unwrap();
    assert!(!start.status.success());
    let name = rotten.file_stem().unwrap().to_str().unwrap();
    for part in [name, "offset", "groups hurt: 2", "log repair"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    let (is_done, said) = log("repair", c, &[]);
    assert!(is_done && said.contains("--quarantine 2"), "{said}");
    let (is_done, said) = log("repair", c, &["--json"]);
    assert!(is_done && said.contains(r#""hurt":[2]"#), "{said}");
    for wrong in ["none", "1", "1,3"] {
        let (is_done, said) = log("repair", c, &["--quarantine", wrong]);
        assert!(!is_done && said.contains("quarantined too: 2"), "{said}");
    }
    assert!(
        !log("repair", c, &["--quarantine", "1,2"]).0,
        "group 1 is whole"
    );
    assert!(copies(&c.data_dir).is_empty() && !c.data_dir.join("log/REPAIR").exists());
    assert_eq!(segments(c), damaged, "a look changes nothing");

    let (is_done, said) = log("repair", c, &["--quarantine", "2"]);
    assert!(is_done && said.contains("repaired"), "{said}");
    assert_eq!(segments(c), damaged, "nothing is deleted or changed");
    let kept = copies(&c.data_dir);
    let copy = kept[0].join(rotten.file_name().unwrap());
    assert_eq!(fs::read(copy).unwrap(), damaged[&rotten]);
    let (is_done, said) = log("repair", c, &[]);
    assert!(is_done && said.contains("nothing to repair"), "{said}");
    let (is_done, said) = log("verify", c, &[]);
    assert!(is_done && said.contains("given up by a repair"), "{said}");

    let [a, _, c] = &mut cluster.nodes[..] else {
        panic!("three nodes");
    };
    write_keys(a, HURT, "meanwhile").await;
    c.start();
    for group in [1, 3] {
        assert_eq!(read(c, group).await.len(), KEYS, "group {group} is whole");
    }
    until_member(c, HURT).await;
    assert_eq!(read(c, HURT).await, read(a, HURT).await);
    assert_eq!(read(c, HURT).await.len(), 2 * KEYS);

    // It counts again: with node 1 gone, nodes 2 and 3 are the majority of each group.
    a.kill();
    let [_, b, c] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    for group in 1..=GROUPS {
        let began = Instant::now();
        while put(b.channel().await, group, "after", "all").await.is_err() {
            assert!(began.elapsed() < PATIENCE, "group {group} has no majority");
            tokio::time::sleep(LOOK).await;
        }
        assert_eq!(read(c, group).await["after"], "all");
    }
}
