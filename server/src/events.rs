//! Watch: present state first, then what happens, in order, to any number of watchers.
//!
//! Invariants: a watcher sees each event once, none twice and none before the state it changes,
//! since subscribing and publishing hold one lock; a watcher that cannot keep up loses its place
//! in a bounded ring ([`feed`]) and is told how much it lost; it slows nobody, and many do not either.

pub mod feed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use multiraft_engine::events::{EventSink, GroupEvent, SnapshotEvent};
use multiraft_engine::host::ConnectionSink;
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress};
use multiraft_engine::types::{GroupId, NodeId, Term};
use multiraft_proto::node::event::Event as Kind;
use multiraft_proto::node::{
    ConnectionEstablishedEvent, ConnectionFailedEvent, ConnectionInfo, Event, LeaderUpdatedEvent,
    LogCompactedEvent, LogDbCompactedEvent, MemberReadyEvent, MembershipChangedEvent,
    SendSnapshotAbortedEvent, SendSnapshotCompletedEvent, SendSnapshotStartedEvent,
    SnapshotCompactedEvent, SnapshotCreatedEvent, SnapshotReceivedEvent, SnapshotRecoveredEvent,
};
use parking_lot::Mutex;

use feed::{Feed, Watcher};

/// See the module's documentation.
pub struct EventHub {
    node: NodeId,
    present: Mutex<Present>,
    feed: Arc<Feed>,
}

/// What a new watcher is told first; each event as it was sent when it happened.
#[derive(Default)]
struct Present {
    groups: BTreeMap<GroupId, PresentGroup>,
    connections: BTreeMap<(NodeId, ConnectionKind), Event>,
}

#[derive(Default)]
struct PresentGroup {
    members: Vec<Event>,
    leader: Option<(Term, Option<NodeId>, Event)>,
}

impl EventHub {
    /// A hub without watchers, of the node with this id.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            present: Mutex::default(),
            feed: Arc::default(),
        }
    }

    /// What has to run for watchers to be woken; it never ends.
    pub fn waking(&self) -> impl Future<Output = ()> + Send + 'static {
        let feed = Arc::clone(&self.feed);
        async move { feed.wake_watchers().await }
    }

    /// The present state, and all that happens from then on.
    pub fn subscribe(&self) -> (Vec<Event>, Watcher) {
        let present = self.present.lock();
        let groups = present.groups.values().flat_map(|group| {
            group
                .members
                .iter()
                .chain(group.leader.iter().map(|leader| &leader.2))
        });
        let connections = present.connections.values();
        (
            groups.chain(connections).cloned().collect(),
            self.feed.watch(),
        )
    }

    /// The peers that this node's connections reach now.
    pub fn connected(&self) -> Vec<NodeId> {
        let present = self.present.lock();
        let connections = present.connections.keys();
        let for_messages = connections.filter(|(_, kind)| *kind == ConnectionKind::Messages);
        for_messages.map(|(node, _)| *node).collect()
    }

    /// The newest term seen of a group; `None` if it has no replica here.
    pub fn term(&self, group: GroupId) -> Option<Term> {
        let present = self.present.lock();
        let group = present.groups.get(&group)?;
        Some(group.leader.as_ref().map_or(Term::ZERO, |leader| leader.0))
    }

    /// Whether a replica of the group is here and has its state.
    pub fn is_ready(&self, group: GroupId) -> bool {
        let present = self.present.lock();
        let group = present.groups.get(&group);
        let is_ready = |event: &Event| matches!(event.event, Some(Kind::MemberReady(_)));
        group.is_some_and(|group| group.members.iter().any(is_ready))
    }
}

fn membership_changed(group: GroupId, node: NodeId) -> Kind {
    Kind::MembershipChanged(MembershipChangedEvent {
        group_id: group.0,
        node_id: u64::from(node.get()),
    })
}

fn snapshot_event(group_id: u32, index: u64, event: SnapshotEvent) -> Kind {
    let peer = |node: NodeId| u64::from(node.get());
    match event {
        SnapshotEvent::Created => Kind::SnapshotCreated(SnapshotCreatedEvent { group_id, index }),
        SnapshotEvent::Compacted => {
            Kind::SnapshotCompacted(SnapshotCompactedEvent { group_id, index })
        }
        SnapshotEvent::SendStarted(to) => Kind::SendSnapshotStarted(SendSnapshotStartedEvent {
            group_id,
            index,
            to: peer(to),
        }),
        SnapshotEvent::SendCompleted(to) => {
            Kind::SendSnapshotCompleted(SendSnapshotCompletedEvent {
                group_id,
                index,
                to: peer(to),
            })
        }
        SnapshotEvent::SendAborted(to) => Kind::SendSnapshotAborted(SendSnapshotAbortedEvent {
            group_id,
            index,
            to: peer(to),
        }),
        SnapshotEvent::Received(from) => Kind::SnapshotReceived(SnapshotReceivedEvent {
            group_id,
            index,
            from: peer(from),
        }),
        SnapshotEvent::Recovered => {
            Kind::SnapshotRecovered(SnapshotRecoveredEvent { group_id, index })
        }
        SnapshotEvent::LogCompacted => Kind::LogCompacted(LogCompactedEvent { group_id, index }),
        SnapshotEvent::LogDbCompacted => {
            Kind::LogdbCompacted(LogDbCompactedEvent { group_id, index })
        }
    }
}

impl EventSink for EventHub {
    fn on_events(&self, events: Vec<GroupEvent>) {
        let mut present = self.present.lock();
        let now = SystemTime::now(); // under the lock: times are in the order of the events
        for event in events {
            match event {
                GroupEvent::MemberReady { group, membership } => {
                    let ready = MemberReadyEvent {
                        group_id: group.0,
                        node_id: u64::from(self.node.get()),
                    };
                    let nodes = membership.members.keys();
                    let changed = nodes.map(|&node| membership_changed(group, node));
                    let kinds = std::iter::once(Kind::MemberReady(ready)).chain(changed);
                    let members: Vec<Event> = kinds.map(|kind| stamped(now, kind)).collect();
                    for event in &members {
                        self.feed.publish(event.clone());
                    }
                    present.groups.entry(group).or_default().members = members;
                }
                GroupEvent::MembershipChanged {
                    group,
                    membership,
                    changed,
                } => {
                    for node in changed {
                        self.feed
                            .publish(stamped(now, membership_changed(group, node)));
                    }
                    let members = &mut present.groups.entry(group).or_default().members;
                    members.retain(|e| matches!(e.event, Some(Kind::MemberReady(_))));
                    let nodes = membership.members.keys();
                    let nodes = nodes.map(|&node| stamped(now, membership_changed(group, node)));
                    members.extend(nodes);
                }
                GroupEvent::LeaderUpdated {
                    group,
                    term,
                    leader,
                } => {
                    let known = &mut present.groups.entry(group).or_default().leader;
                    if known.as_ref().is_some_and(|k| (k.0, k.1) == (term, leader)) {
                        continue;
                    }
                    let updated = LeaderUpdatedEvent {
                        group_id: group.0,
                        term: term.0,
                        leader: leader.map_or(0, |node| u64::from(node.get())),
                    };
                    let event = stamped(now, Kind::LeaderUpdated(updated));
                    *known = Some((term, leader, event.clone()));
                    self.feed.publish(event);
                }
                GroupEvent::Left { group } => {
                    present.groups.remove(&group);
                }
                GroupEvent::Snapshot {
                    group,
                    index,
                    event,
                } => self
                    .feed
                    .publish(stamped(now, snapshot_event(group.0, index.0, event))),
            }
        }
    }
}

impl ConnectionSink for EventHub {
    fn on_connection(
        &self,
        node: NodeId,
        address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    ) {
        let info = Some(ConnectionInfo {
            address: address.to_string(),
            snapshot: kind == ConnectionKind::Snapshots,
        });
        let mut present = self.present.lock();
        let now = SystemTime::now();
        let event = match state {
            ConnectionState::Established => {
                let established = ConnectionEstablishedEvent { info };
                let event = stamped(now, Kind::ConnectionEstablished(established));
                present.connections.insert((node, kind), event.clone());
                event
            }
            ConnectionState::Failed => {
                present.connections.remove(&(node, kind));
                stamped(now, Kind::ConnectionFailed(ConnectionFailedEvent { info }))
            }
        };
        self.feed.publish(event);
    }
}

fn stamped(at: SystemTime, kind: Kind) -> Event {
    Event {
        timestamp: Some(at.into()),
        event: Some(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tokio_stream::Stream;

    use super::*;

    fn node(id: u32) -> NodeId {
        NodeId::new(id).expect("not 0")
    }

    fn leader(term: u64, leader: u32) -> GroupEvent {
        GroupEvent::LeaderUpdated {
            group: GroupId(7),
            term: Term(term),
            leader: NodeId::new(leader),
        }
    }

    #[test]
    fn a_new_watcher_sees_the_present_and_then_each_change_once() {
        let hub = EventHub::new(node(1));
        hub.on_events(vec![leader(1, 0), leader(1, 2)]);
        let address = PeerAddress {
            host: "h".into(),
            port: 9,
        };
        let kind = ConnectionKind::Messages;
        hub.on_connection(node(2), &address, kind, ConnectionState::Established);
        let (present, mut live) = hub.subscribe();
        assert_eq!(present.len(), 2, "the last leader and the connection");
        hub.on_events(vec![leader(1, 2), leader(2, 3)]);
        let mut look = || Pin::new(&mut live).poll_next(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(Ok(event))) = look() else {
            panic!("no event")
        };
        let Some(Kind::LeaderUpdated(event)) = event.event else {
            panic!("not a leader event")
        };
        assert_eq!((event.group_id, event.term, event.leader), (7, 2, 3));
        assert!(look().is_pending(), "the repeated leader is no news");
    }
}
