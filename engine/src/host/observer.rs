//! What log and transport tell a host.

use std::sync::Weak;

use super::Inner;
use crate::mailbox::Lane;
use crate::raft::message::Envelope;
use crate::shard::ShardInput;
use crate::snapshot::{SnapshotSending, Travelling};
use crate::state_machine::StateMachine;
use crate::traits::{
    ConnectionKind, ConnectionState, LogError, LogObserver, PeerAddress, TransportObserver,
};
use crate::types::{GroupId, Index, NodeId};

/// What log and transport tell goes to the shards' mailboxes. Weak, so that they do not keep a host
/// alive that they belong to.
pub(super) struct Observer<M: StateMachine>(pub Weak<Inner<M>>);

impl<M: StateMachine> LogObserver for Observer<M> {
    fn on_durable(&self, shard: u32, ticket: u64) {
        if let Some(inner) = self.0.upgrade()
            && let Some(shard) = inner.shards.get(shard as usize)
            && shard.push(ShardInput::Durable(ticket)).is_err()
        {
            tracing::debug!("durable while stopping");
        }
    }

    fn on_fenced(&self, error: &LogError) {
        if let Some(inner) = self.0.upgrade() {
            inner.fence(error);
        }
    }

    fn on_reclaimed(&self, group: GroupId, index: Index) {
        if let Some(inner) = self.0.upgrade() {
            let shard = &inner.shards[inner.shard_of(group)];
            if shard.push(ShardInput::Reclaimed(group, index)).is_err() {
                tracing::debug!(%group, "space reclaimed while stopping");
            }
        }
    }
}

impl<M: StateMachine> TransportObserver for Observer<M> {
    fn on_messages(&self, envelopes: Vec<Envelope>) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        let mut by_shard: Vec<Vec<Envelope>> = inner.shards.iter().map(|_| Vec::new()).collect();
        for envelope in envelopes {
            by_shard[inner.shard_of(envelope.group)].push(envelope);
        }
        let limit = inner.config.inbox_messages;
        for (shard, envelopes) in inner.shards.iter().zip(by_shard) {
            let count = envelopes.len();
            let input = ShardInput::Messages(envelopes);
            if count > 0
                && shard
                    .push_bounded(input, Lane::Messages, count, limit)
                    .is_err()
            {
                inner.metrics.dropped_messages.inc_by(count as u64);
            }
        }
    }

    fn on_connection(
        &self,
        node: NodeId,
        address: &PeerAddress,
        kind: ConnectionKind,
        state: ConnectionState,
    ) {
        if let Some(inner) = self.0.upgrade() {
            let connections = &inner.parts.connections;
            connections.on_connection(node, address, kind, state);
        }
    }

    fn on_snapshot_sending(&self, snapshot: Travelling, sending: SnapshotSending) {
        if let Some(inner) = self.0.upgrade() {
            let shard = &inner.shards[inner.shard_of(snapshot.group)];
            if shard
                .push(ShardInput::SnapshotSending(snapshot, sending))
                .is_err()
            {
                tracing::debug!(group = %snapshot.group, "a snapshot sent while stopping");
            }
        }
    }

    fn on_snapshot_received(&self, envelope: Envelope) {
        if let Some(inner) = self.0.upgrade() {
            let group = envelope.group;
            let shard = &inner.shards[inner.shard_of(group)];
            if shard.push(ShardInput::SnapshotReceived(envelope)).is_err() {
                tracing::debug!(%group, "a snapshot received while stopping");
            }
        }
    }

    fn on_peer_down(&self, node: NodeId) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        for shard in &inner.shards {
            if shard.push(ShardInput::PeerDown(node)).is_err() {
                tracing::debug!(%node, "peer down while stopping");
            }
        }
    }
}
