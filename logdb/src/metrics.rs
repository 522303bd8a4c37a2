//! What the log counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Figures of one log.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Calls of `fdatasync` for batches.
    pub syncs: Counter,
    /// How long each took, seconds.
    pub sync_seconds: Histogram,
    /// Batches (turns of shards) made durable.
    pub batches: Counter,
    /// Batches in one sync.
    pub batches_per_sync: Histogram,
    /// Bytes in one sync.
    pub sync_bytes: Histogram,
    /// Bytes written.
    pub written_bytes: Counter,
    /// Segments in use.
    pub segments: Gauge,
    /// Segments freed.
    pub freed_segments: Counter,
    /// Bytes moved out of segments that were nearly dead.
    pub moved_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            syncs: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            batches: Counter::default(),
            batches_per_sync: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            sync_bytes: Histogram::new(exponential_buckets(512.0, 4.0, 10)),
            written_bytes: Counter::default(),
            segments: Gauge::default(),
            freed_segments: Counter::default(),
            moved_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    /// Names the figures in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("log");
        registry.register("fsyncs", "Syncs of batches", self.syncs.clone());
        registry.register("fsync_seconds", "Time of a sync", self.sync_seconds.clone());
        registry.register("batches", "Batches made durable", self.batches.clone());
        registry.register(
            "batches_per_fsync",
            "Batches in a sync",
            self.batches_per_sync.clone(),
        );
        registry.register("fsync_bytes", "Bytes in a sync", self.sync_bytes.clone());
        registry.register("written_bytes", "Bytes written", self.written_bytes.clone());
        registry.register("segments", "Segments in use", self.segments.clone());
        registry.register(
            "freed_segments",
            "Segments freed",
            self.freed_segments.clone(),
        );
        registry.register(
            "moved_bytes",
            "Live bytes moved to free segments",
            self.moved_bytes.clone(),
        );
    }
}
