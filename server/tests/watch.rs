//! A watcher that does not read is cut off, and nobody else notices.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use multiraft_proto::node::event::Event as Kind;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{Event, GroupConfig, WatchRequest};
use multiraft_server::events::feed::RING_EVENTS;
use support::{Cluster, PATIENCE, put};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Each group brings three events or more: together they are more than the ring and what the
/// connection itself can hold.
const GROUPS: u32 = 8_000;

/// What the stuck watcher's connection takes without being read.
const NARROW_BYTES: u32 = 16 << 10;

async fn watch(channel: Channel) -> Streaming<Event> {
    let mut client = NodeClient::new(channel);
    client.watch(WatchRequest {}).await.unwrap().into_inner()
}

async fn until_its_end(mut events: Streaming<Event>) -> (usize, Status) {
    let mut count = 0;
    loop {
        match events.message().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("the watch ended without a word"),
            Err(status) => return (count, status),
        }
    }
}

/// Reads until every group was seen to have a leader; counts the events.
async fn all_leaders(mut events: Streaming<Event>) -> usize {
    let mut led = std::collections::BTreeSet::new();
    let mut count = 0;
    while led.len() < GROUPS as usize {
        let event = events.message().await.unwrap().unwrap();
        count += 1;
        if let Some(Kind::LeaderUpdated(updated)) = event.event {
            led.extend((updated.leader != 0).then_some(updated.group_id));
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_watcher_is_told_its_loss_and_disturbs_nobody() {
    let cluster = Cluster::start(1);
    let channel = cluster.nodes[0].channel().await;
    let reading = tokio::spawn(all_leaders(watch(channel.clone()).await));
    let endpoint = format!("http://127.0.0.1:{}", cluster.nodes[0].api_port);
    let endpoint = Channel::from_shared(endpoint).unwrap();
    let narrow = endpoint.initial_stream_window_size(NARROW_BYTES);
    let stuck = watch(narrow.connect().await.unwrap()).await;
    let members = cluster.members();
    let mut calls = JoinSet::new();
    for group_id in 1..=GROUPS {
        let members = members.clone();
        let group = Some(GroupConfig { group_id, members });
        let mut client = NodeClient::new(channel.clone());
        let request = multiraft_proto::node::BootstrapRequest { group };
        calls.spawn(async move { client.bootstrap(request).await.map(|_| ()) });
        if calls.len() > 500 {
            calls.join_next().await.unwrap().unwrap().unwrap();
        }
    }
    while let Some(called) = calls.join_next().await {
        called.unwrap().unwrap();
    }
    let read = tokio::time::timeout(PATIENCE, reading).await.unwrap();
    let read = read.expect("the other watcher sees everything");
    assert!(
        read > RING_EVENTS,
        "{read} events are too few for this test"
    );
    put(channel, 1, "k", "v").await.expect("the node serves");
    let (got, status) = until_its_end(stuck).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let words: Vec<&str> = status.message().split(' ').collect();
    let lost = words.iter().find_map(|word| word.parse::<usize>().ok());
    let lost = lost.expect("the number lost is told");
    assert!(lost > 0 && got + lost < read, "{got} + {lost} of {read}");
}
