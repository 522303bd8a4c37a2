//! What the log counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Counters and histograms of one log. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Syncs of batches; appends per sync is the point of the whole crate.
    pub syncs: Counter,
    /// Duration of each sync, seconds.
    pub sync_seconds: Histogram,
    /// Bytes written to segments, padding included.
    pub written_bytes: Counter,
    /// Batches written.
    pub batches: Counter,
    /// Appends that became durable by one sync.
    pub appends_per_sync: Histogram,
    /// Bytes of each batch, padding included.
    pub batch_bytes: Histogram,
    /// Batches that were found damaged while the log was open, by the check after a crash.
    pub damaged_batches: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            syncs: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
            written_bytes: Counter::default(),
            batches: Counter::default(),
            appends_per_sync: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            batch_bytes: Histogram::new(exponential_buckets(4096.0, 2.0, 14)),
            damaged_batches: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics known under names that begin with `log_`.
    pub fn register(&self, registry: &mut Registry) {
        let log = registry.sub_registry_with_prefix("log");
        log.register("fsyncs", "Syncs of batches", self.syncs.clone());
        let sync_seconds = self.sync_seconds.clone();
        log.register("fsync_seconds", "Duration of each sync", sync_seconds);
        let written = self.written_bytes.clone();
        log.register("written_bytes", "Bytes written to segments", written);
        log.register("batches", "Batches written", self.batches.clone());
        let appends = self.appends_per_sync.clone();
        log.register("appends_per_fsync", "Appends that share a sync", appends);
        let batch_bytes = self.batch_bytes.clone();
        log.register("batch_bytes", "Bytes of each batch", batch_bytes);
        log.register(
            "damaged_batches",
            "Batches found damaged by the check after a crash",
            self.damaged_batches.clone(),
        );
    }

    pub(crate) fn on_batch(&self, bytes: u64, appends: u32, sync: Duration) {
        self.syncs.inc();
        self.batches.inc();
        self.written_bytes.inc_by(bytes);
        self.sync_seconds.observe(sync.as_secs_f64());
        self.appends_per_sync.observe(f64::from(appends));
        // A batch is of less than 4 GiB.
        self.batch_bytes
            .observe(f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)));
    }
}
