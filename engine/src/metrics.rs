//! What the engine counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of one host, over all groups.
#[derive(Debug, Default, Clone)]
pub struct Metrics {
    /// Proposals taken into a shard's inbox.
    pub proposals: Counter,
    /// Proposals refused before that.
    pub refused: Counter,
    /// Committed entries handed to the apply stage.
    pub committed: Counter,
    /// Entries applied.
    pub applied: Counter,
    /// Changes of a group's leader as known here, to a leader.
    pub leader_changes: Counter,
    /// Turns of all shards.
    pub turns: Counter,
    /// Messages of peers dropped at a full inbox.
    pub dropped_messages: Counter,
}

impl Metrics {
    /// Names the counters in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("engine");
        let mut add =
            |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        add(
            "proposals",
            "Proposals taken from clients of this node",
            &self.proposals,
        );
        add(
            "refused_proposals",
            "Proposals refused as busy or for a full disk",
            &self.refused,
        );
        add(
            "committed_entries",
            "Committed entries handed to the apply stage",
            &self.committed,
        );
        add(
            "applied_entries",
            "Entries applied to the state machine",
            &self.applied,
        );
        add(
            "leader_changes",
            "New leaders seen, over all groups",
            &self.leader_changes,
        );
        add("turns", "Turns of all shards", &self.turns);
        add(
            "dropped_messages",
            "Messages dropped at a full inbox",
            &self.dropped_messages,
        );
    }
}
