//! What a node tells by Watch, kept.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

use std::sync::Arc;
use std::time::Instant;

use multiraft_proto::node::event::Event as Kind;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{Event, WatchRequest};
use parking_lot::Mutex;

use super::load::LOOK;
use super::{PATIENCE, Process};

/// One watch of a node, until the node ends it.
#[derive(Clone)]
pub struct Watcher {
    node: u32,
    seen: Arc<Mutex<Vec<Event>>>,
}

impl Watcher {
    pub async fn start(node: &Process) -> Self {
        let mut client = NodeClient::new(node.channel().await);
        let mut events = client.watch(WatchRequest {}).await.unwrap().into_inner();
        let watcher = Self {
            node: node.id,
            seen: Arc::default(),
        };
        let seen = Arc::clone(&watcher.seen);
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.message().await {
                seen.lock().push(event);
            }
        });
        watcher
    }

    /// All events so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.seen.lock().clone()
    }

    /// What `pick` finds in the events so far, in order.
    pub fn all<T>(&self, pick: impl FnMut(&Kind) -> Option<T>) -> Vec<T> {
        let seen = self.seen.lock();
        let kinds = seen.iter().filter_map(|event| event.event.as_ref());
        kinds.filter_map(pick).collect()
    }

    /// The first that `pick` finds, as soon as there is one.
    pub async fn first<T>(&self, what: &str, pick: impl Fn(&Kind) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = self.all(&pick).into_iter().next() {
                return found;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "node {} does not tell of {what}: {:?}",
                self.node,
                self.events()
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}
