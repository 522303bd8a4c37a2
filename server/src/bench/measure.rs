//! What a process and its disk have spent so far, and the figures made of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer};

use super::BenchError;

/// Bytes of a MiB, to calculate with.
pub(super) const MIB: f64 = 1_048_576.0;

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    /// User and system time of this process, seconds.
    pub(super) cpu_s: f64,
    /// `write_bytes` of /proc/self/io; zero where it cannot be read.
    pub(super) write_bytes: u64,
    /// Bytes and flushes of the whole block device, all processes and the journal included.
    device_bytes: u64,
    device_flushes: u64,
    /// Of the store.
    pub(super) syncs: u64,
}

impl Spent {
    pub(super) fn now(dir: &Path, syncs: u64) -> Self {
        let (device_bytes, device_flushes) = device(dir);
        Self {
            cpu_s: cpu_s(),
            write_bytes: proc_number("/proc/self/io", "write_bytes:"),
            device_bytes,
            device_flushes,
            syncs,
        }
    }

    /// What was spent since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            write_bytes: self.write_bytes - before.write_bytes,
            device_bytes: self.device_bytes - before.device_bytes,
            device_flushes: self.device_flushes - before.device_flushes,
            syncs: self.syncs - before.syncs,
        }
    }

    pub(super) fn device(&self) -> (u64, u64) {
        (self.device_bytes, self.device_flushes)
    }
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    count_f64(time.tv_sec.unsigned_abs()) + count_f64(time.tv_nsec.unsigned_abs()) * 1e-9
}

/// Peak resident memory of this process.
pub(super) fn max_rss_mib() -> f64 {
    count_f64(proc_number("/proc/self/status", "VmHWM:")) / 1024.0
}

/// The number behind a name in a file of /proc; zero if it is not there.
fn proc_number(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Bytes written and flushes so far of the block device below `dir`; zeros where there is none.
fn device(dir: &Path) -> (u64, u64) {
    const SECTOR_BYTES: u64 = 512;
    let Ok(found) = std::fs::metadata(dir) else {
        return (0, 0);
    };
    let (major, minor) = (
        rustix::fs::major(found.dev()),
        rustix::fs::minor(found.dev()),
    );
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let field = |nth: usize| -> u64 {
        let field = text.split_whitespace().nth(nth);
        field.and_then(|field| field.parse().ok()).unwrap_or(0)
    };
    (field(6) * SECTOR_BYTES, field(15))
}

/// Allocated and apparent bytes of all files below `dir`. A file that goes meanwhile is not there.
pub(super) fn disk_usage(dir: &Path) -> (u64, u64) {
    const BLOCK_BYTES: u64 = 512;
    let (mut allocated, mut apparent) = (0, 0);
    for_each_file(dir, &mut |path| {
        if let Ok(found) = std::fs::symlink_metadata(path) {
            allocated += found.blocks() * BLOCK_BYTES;
            apparent += found.len();
        }
    });
    (allocated, apparent)
}

/// Writes back and forgets the page cache of all files below `dir`.
pub(super) fn drop_cache(dir: &Path) -> Result<(), BenchError> {
    let mut result = Ok(());
    for_each_file(dir, &mut |path| {
        let dropped = std::fs::File::open(path).and_then(|file| {
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            Ok(())
        });
        if let Err(error) = dropped {
            result = Err(BenchError::file("dropping the page cache of", path)(error));
        }
    });
    result
}

/// Writes back what the file system of `dir` holds.
pub(super) fn sync_file_system(dir: &Path) -> Result<(), BenchError> {
    let synced = std::fs::File::open(dir).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    synced.map_err(BenchError::file("syncing the file system of", dir))
}

fn for_each_file(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => for_each_file(&entry.path(), visit),
            Ok(_) => visit(&entry.path()),
            Err(_) => {}
        }
    }
}

/// A count as a number to calculate with.
#[expect(
    clippy::cast_precision_loss,
    reason = "no count of a benchmark has more than 52 bits that matter"
)]
pub(super) fn count_f64(count: u64) -> f64 {
    count as f64
}

/// A figure with four decimals in JSON; null if there is none.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Figure(pub f64);

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f64((self.0 * 1e4).round() / 1e4)
        } else {
            serializer.serialize_none()
        }
    }
}

/// Microseconds of one append call.
#[derive(Debug, Clone, Copy, Serialize)]
#[expect(missing_docs, reason = "the names of the percentiles")]
pub struct Latency {
    pub p50: Figure,
    pub p99: Figure,
    pub p999: Figure,
    pub max: Figure,
    pub mean: Figure,
}

impl Latency {
    /// Of nanoseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| Figure(count_f64(histogram.value_at_quantile(quantile)) / 1e3);
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: Figure(count_f64(histogram.max()) / 1e3),
            mean: Figure(histogram.mean() / 1e3),
        }
    }
}

/// Nanoseconds to within one part in a thousand.
pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three figures are allowed")
}
