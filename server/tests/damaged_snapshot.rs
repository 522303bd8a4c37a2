//! A node whose snapshot is damaged, and whose store is lost, gets the group's state from a peer: it serves
//! nothing wrong and needs no hand.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use multiraft_proto::node::event::Event as Kind;
use support::cli::{bootstrap, done};
use support::load::read;
use support::watching::Watcher;
use support::{Cluster, put};

const KEYS: usize = 40;

/// The snapshot of the only group.
fn file(data_dir: &Path) -> PathBuf {
    let files = fs::read_dir(data_dir.join("snapshots")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut whole = files.filter(|path| path.extension().is_some_and(|e| e == "snap"));
    whole.next().expect("there is one snapshot")
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_fetched_again() {
    let mut cluster = Cluster::start(3);
    let [a, b, c] = [0, 1, 2].map(|at| &cluster.nodes[at]);
    for node in [a, b, c] {
        node.channel().await;
    }
    bootstrap(&[a, b, c], "1");
    let damages = [
        ("a bit flipped", flip as fn(&Path)),
        ("cut short", cut),
        ("deleted", |path| fs::remove_file(path).unwrap()),
    ];
    for (round, (what, damage)) in damages.into_iter().enumerate() {
        let a = &cluster.nodes[0];
        let value = "v".repeat(20_000);
        for key in 0..KEYS {
            let key = format!("{round} {key:02}");
            put(a.channel().await, 1, &key, &value).await.unwrap();
        }
        for node in [a, &cluster.nodes[2]] {
            read(node, 1).await;
            done(&[node], &["snapshot", "--group", "1"]);
            done(&[node], &["compact", "--group", "1"]);
        }
        let node = &mut cluster.nodes[2];
        node.kill();
        damage(&file(&node.data_dir));
        fs::remove_dir_all(node.data_dir.join("kv")).unwrap();
        node.start();
        let node = &cluster.nodes[2];
        let watcher = Watcher::start(node).await;
        let found = read(node, 1).await;
        let expected = read(&cluster.nodes[1], 1).await;
        assert!(
            found == expected,
            "{what}: {} of {}",
            found.len(),
            expected.len()
        );
        assert_eq!(found.len(), (round + 1) * KEYS, "{what}");
        let received = |kind: &Kind| match kind {
            Kind::SnapshotReceived(event) => Some(event.index),
            _ => None,
        };
        watcher.first("a snapshot from a peer", received).await;
    }
}
