//! What the benchmarks print: one JSON object a run, with the same fields for every store that is
//! compared.

use serde::Serialize;

use super::append::{Compaction, Plan, Seen};
use super::measure::{Figure, Latency, MIB, count_f64};

/// The name of this log among those it is compared with.
pub(super) const BACKEND: &str = "multiraft";
pub(super) const DEFAULT_VARIANT: &str = "default";
const FSYNC_COUNTER: &str =
    "the log's Disk interface: syncs, and writes that are durable by themselves (O_DSYNC)";

/// Of `append`. The figures cover the seconds after the warm-up.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct AppendReport {
    pub bench: &'static str,
    pub backend: &'static str,
    pub variant: &'static str,
    pub groups: u32,
    pub writers: u32,
    pub batch: u64,
    pub payload: u32,
    pub depth: u32,
    pub io_threads: u32,
    pub seconds: Figure,
    pub appends_per_s: Figure,
    pub entries_per_s: Figure,
    pub payload_mib_per_s: Figure,
    pub latency_us: Latency,
    pub fsyncs: u64,
    pub fsyncs_per_s: Figure,
    pub fsyncs_per_append: Figure,
    pub appends_per_fsync: Figure,
    pub fsync_counter: &'static str,
    pub disk_bytes_written_per_payload_byte: Figure,
    pub cpu_s_per_million_appends: Figure,
    pub cpu_cores_used: Figure,
    pub max_rss_mib: Figure,
    pub file_bytes_on_disk: u64,
    pub file_bytes_apparent: u64,
    pub device_bytes_written_per_payload_byte: Figure,
    pub device_flushes_per_s: Figure,
    /// Bytes that the log wrote into its segments, padding included.
    pub log_bytes_per_append: Figure,
    /// Sync calls of the whole process, warm-up and the raw file included.
    pub fsyncs_of_run: u64,
    /// The bare file in the same directory.
    pub raw: Option<RawAppend>,
}

/// The same appends into a bare file.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct RawAppend {
    pub appends_per_s: Figure,
    pub latency_us: Latency,
    pub fsyncs: u64,
    pub appends_per_fsync: Figure,
    pub cpu_s_per_million_appends: Figure,
    /// How close the log comes: 1 is all that the file can do.
    pub log_per_raw: Figure,
}

/// Of the files and the whole process.
pub(super) struct Process {
    pub(super) max_rss_mib: f64,
    pub(super) file_bytes: (u64, u64),
    /// That the log wrote in the time that counts.
    pub(super) log_bytes: u64,
}

impl AppendReport {
    pub(super) fn new(plan: &Plan, payload: u32, seen: &Seen, process: &Process) -> Self {
        let seconds = plan.seconds.as_secs_f64();
        let appends = count_f64(seen.appends);
        let entries = appends * count_f64(plan.batch);
        let bytes = entries * f64::from(payload);
        let syncs = count_f64(seen.spent.syncs);
        let (device_bytes, device_flushes) = seen.spent.device();
        Self {
            bench: "append",
            backend: BACKEND,
            variant: match plan.compaction {
                Compaction::Never => DEFAULT_VARIANT,
                Compaction::Steady => "steady",
            },
            groups: plan.groups,
            writers: plan.writers,
            batch: plan.batch,
            payload,
            depth: plan.depth,
            io_threads: 1,
            seconds: Figure(seconds),
            appends_per_s: Figure(appends / seconds),
            entries_per_s: Figure(entries / seconds),
            payload_mib_per_s: Figure(bytes / seconds / MIB),
            latency_us: Latency::of(&seen.latency),
            fsyncs: seen.spent.syncs,
            fsyncs_per_s: Figure(syncs / seconds),
            fsyncs_per_append: Figure(syncs / appends),
            appends_per_fsync: Figure(appends / syncs),
            fsync_counter: FSYNC_COUNTER,
            disk_bytes_written_per_payload_byte: Figure(count_f64(seen.spent.write_bytes) / bytes),
            cpu_s_per_million_appends: Figure(seen.spent.cpu_s / appends * 1e6),
            cpu_cores_used: Figure(seen.spent.cpu_s / seconds),
            max_rss_mib: Figure(process.max_rss_mib),
            file_bytes_on_disk: process.file_bytes.0,
            file_bytes_apparent: process.file_bytes.1,
            device_bytes_written_per_payload_byte: Figure(count_f64(device_bytes) / bytes),
            device_flushes_per_s: Figure(count_f64(device_flushes) / seconds),
            log_bytes_per_append: Figure(count_f64(process.log_bytes) / appends),
            fsyncs_of_run: 0,
            raw: None,
        }
    }

    /// Puts the ceiling beside it.
    pub(super) fn compare(&mut self, raw: &Seen) {
        let appends = count_f64(raw.appends);
        let per_s = appends / self.seconds.0;
        self.raw = Some(RawAppend {
            appends_per_s: Figure(per_s),
            latency_us: Latency::of(&raw.latency),
            fsyncs: raw.spent.syncs,
            appends_per_fsync: Figure(appends / count_f64(raw.spent.syncs)),
            cpu_s_per_million_appends: Figure(raw.spent.cpu_s / appends * 1e6),
            log_per_raw: Figure(self.appends_per_s.0 / per_s),
        });
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let latency = &self.latency_us;
        let line = format!(
            "{:.0} appends/s, {:.1} for each fsync; latency p50 {:.0} µs, p99 {:.0} µs",
            self.appends_per_s.0, self.appends_per_fsync.0, latency.p50.0, latency.p99.0
        );
        match &self.raw {
            None => line,
            Some(raw) => format!(
                "{line}; {:.0} % of the {:.0} that a bare file takes here",
                raw.log_per_raw.0 * 100.0,
                raw.appends_per_s.0
            ),
        }
    }
}

/// What all workloads on loaded data say.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct LoadFields {
    pub bench: &'static str,
    pub backend: &'static str,
    pub variant: &'static str,
    pub groups: u32,
    pub entries: u64,
    pub payload: u32,
    pub batch: u64,
    pub cold: bool,
    pub load_s: Figure,
}

/// Of `recover`.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct RecoverReport {
    #[serde(flatten)]
    pub load: LoadFields,
    pub crash: bool,
    pub recovery_s: Figure,
    pub mib_per_s: Figure,
    pub file_mib_per_s: Figure,
    pub entries_per_s: Figure,
    pub cpu_s: Figure,
    pub max_rss_mib: Figure,
    pub file_bytes_on_disk: u64,
    pub file_bytes_apparent: u64,
    pub groups_wrong: u64,
    pub ok: bool,
    pub raw: Option<RawRecovery>,
}

/// The same entries scanned in a bare file.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct RawRecovery {
    pub recovery_s: Figure,
    pub mib_per_s: Figure,
    /// How close the log comes: 1 is as fast as the scan.
    pub raw_time_per_log_time: Figure,
}

impl RecoverReport {
    /// One line for people.
    pub fn summary(&self) -> String {
        let line = format!(
            "{:.3} s, {:.0} MiB/s of payload",
            self.recovery_s.0, self.mib_per_s.0
        );
        match &self.raw {
            None => line,
            Some(raw) => format!(
                "{line}; scanning a bare file takes {:.0} % of that",
                raw.raw_time_per_log_time.0 * 100.0
            ),
        }
    }
}

/// Of `read`.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct ReadReport {
    #[serde(flatten)]
    pub load: LoadFields,
    pub readers: u32,
    pub groups_read: u64,
    pub entries_read: u64,
    pub entries_per_s: Figure,
    pub mib_per_s: Figure,
    pub cpu_s_per_million_entries: Figure,
    pub max_rss_mib: Figure,
    pub entries_wrong: u64,
    pub ok: bool,
}

impl ReadReport {
    /// One line for people.
    pub fn summary(&self) -> String {
        format!(
            "{:.0} entries/s, {:.0} MiB/s of payload",
            self.entries_per_s.0, self.mib_per_s.0
        )
    }
}

/// Of `compact`.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "names with their units")]
pub struct CompactReport {
    #[serde(flatten)]
    pub load: LoadFields,
    pub compact_s: Figure,
    pub truncate_s: Figure,
    pub reclaim_s: Figure,
    pub disk_bytes_before: u64,
    pub disk_bytes_after: u64,
    pub disk_bytes_reclaimed: u64,
    pub apparent_bytes_before: u64,
    pub apparent_bytes_after: u64,
    pub live_payload_bytes: u64,
    pub write_bytes: u64,
    pub fsyncs: u64,
    pub cpu_s: Figure,
    pub max_rss_mib: Figure,
    pub groups_wrong: u64,
    pub ok: bool,
}

impl CompactReport {
    /// One line for people.
    pub fn summary(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{:.3} s: {} MiB on disk before, {} after, {} MiB of payload stay",
            self.compact_s.0,
            mib(self.disk_bytes_before),
            mib(self.disk_bytes_after),
            mib(self.live_payload_bytes)
        )
    }
}
