//! The arguments of `multiraft bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};

use multiraft_logdb::Writes;

use crate::bench::MAX_PAYLOAD_BYTES;

/// The most threads that append.
const MAX_WRITERS: i64 = 4096;

/// The arguments of `multiraft bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What can be measured.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// Measures the log that all groups share, beside a bare file on the same disk.
    Log(BenchLogArgs),
}

/// The arguments of `multiraft bench log`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Each prints one JSON object on standard output and a line for people on standard \
    error. It works in a new directory below --dir and removes that, also after Ctrl-C. Run it on an \
    idle machine: on a busy one the time of a sync varies by a factor of three.\n\n\
    Examples:\n  \
    multiraft bench log append --dir /data --writers 64 --groups 256 --seconds 10\n  \
    multiraft bench log append --dir /data --sweep --html log.html\n  \
    multiraft bench log recover --dir /data --entries 1000000"
)]
pub struct BenchLogArgs {
    /// The workload.
    #[command(subcommand)]
    pub workload: LogWorkload,
}

/// The workloads.
#[derive(Debug, Clone, Subcommand)]
pub enum LogWorkload {
    /// Threads append to their groups in turn, and each waits until its append is durable.
    Append(Box<AppendBenchArgs>),
    /// Loads entries, stops, and measures how long the log takes to open again.
    Recover(RecoverBenchArgs),
    /// Loads entries, and reads random groups from their first to their last entry.
    Read(ReadBenchArgs),
    /// Loads entries, compacts each group to its last tenth, and waits for the space.
    Compact(CompactBenchArgs),
    /// Loads entries and leaves the data there. Prints the seconds that it took.
    Load(LoadBenchArgs),
}

/// Where to work.
#[derive(Debug, Clone, Args)]
pub struct BenchPlaceArgs {
    /// An existing directory on the disk to be measured. The benchmark makes a new directory in it,
    /// multiraft-bench-…, and touches nothing else.
    #[arg(long)]
    pub dir: PathBuf,
    /// Leave the data there afterwards, and say where.
    #[arg(long)]
    pub keep: bool,
    /// The store to be measured; for scripts that measure several.
    #[arg(long, default_value = "multiraft", value_parser = PossibleValuesParser::new(["multiraft"]))]
    pub backend: String,
}

/// How groups live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// The log grows for as long as is measured.
    Default,
    /// Groups compact their logs behind them, so that segments are used again as in a running node.
    Steady,
}

/// How a log writes its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WritesArg {
    /// Past the page cache, durable by themselves (`O_DIRECT`, `O_DSYNC`), where the file system can.
    Direct,
    /// Through the page cache, then `fdatasync`.
    Buffered,
}

impl From<WritesArg> for Writes {
    fn from(writes: WritesArg) -> Self {
        match writes {
            WritesArg::Direct => Self::Direct,
            WritesArg::Buffered => Self::Buffered,
        }
    }
}

/// The arguments of `multiraft bench log append`.
#[derive(Debug, Clone, Args)]
pub struct AppendBenchArgs {
    /// Where to work.
    #[command(flatten)]
    pub place: BenchPlaceArgs,
    /// The number of groups, dealt out to the threads.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// The number of threads that append.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_WRITERS))]
    pub writers: u32,
    /// The entries of one append.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub batch: u64,
    /// The bytes of an entry.
    #[arg(long, default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAYLOAD_BYTES)))]
    pub payload: u32,
    /// The groups that a thread appends to in one round, waiting for all of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: u32,
    /// How long to measure, in seconds. The default is 5, with --sweep 1 for each cell.
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// How long to run before that, in seconds. The default is 1, with --sweep 0.2.
    #[arg(long, value_parser = seconds)]
    pub warmup: Option<Duration>,
    /// How groups live.
    #[arg(long, default_value = "default")]
    pub variant: Variant,
    /// How the log writes: the default, or through the page cache.
    #[arg(long, default_value = "direct")]
    pub writes: WritesArg,
    /// The size of the bare file, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=65_536))]
    pub raw_file_mib: u64,
    /// Do not measure the bare file.
    #[arg(long)]
    pub no_raw: bool,
    /// Measure many numbers of writers and groups, --seconds each, and print a table and curves.
    #[arg(long, conflicts_with_all = ["writers", "groups"])]
    pub sweep: bool,
    /// With --sweep: the numbers of writers, separated by commas.
    #[arg(long, requires = "sweep", value_delimiter = ',', value_name = "NUMBERS",
        default_value = "1,4,16,64,256,1024",
        value_parser = clap::value_parser!(u32).range(1..=MAX_WRITERS))]
    pub sweep_writers: Vec<u32>,
    /// With --sweep: the numbers of groups. Where there are more writers than groups, nothing is
    /// measured.
    #[arg(long, requires = "sweep", value_delimiter = ',', value_name = "NUMBERS",
        default_value = "1,10,100,1000,10000", value_parser = clap::value_parser!(u32).range(1..))]
    pub sweep_groups: Vec<u32>,
    /// With --sweep: write a page with the curves, the percentiles and the data to this new file.
    #[arg(long, requires = "sweep", value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// What is loaded.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The number of groups.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: u32,
    /// The number of entries of all groups together.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub entries: u64,
    /// The bytes of an entry.
    #[arg(long, default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAYLOAD_BYTES)))]
    pub payload: u32,
    /// The entries of a group that are written together.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub batch: u64,
    /// The groups that are written together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub load_groups: u16,
}

/// The arguments of `multiraft bench log load`.
#[derive(Debug, Clone, Args)]
pub struct LoadBenchArgs {
    /// Where to work.
    #[command(flatten)]
    pub place: BenchPlaceArgs,
    /// What is loaded.
    #[command(flatten)]
    pub load: LoadArgs,
    /// End without closing the log.
    #[arg(long)]
    pub crash: bool,
    /// The directory of the benchmark that this process loads for.
    #[arg(long, hide = true)]
    pub into: Option<PathBuf>,
    /// Load a bare file too.
    #[arg(long, hide = true)]
    pub with_raw: bool,
}

/// The arguments of `multiraft bench log recover`.
#[derive(Debug, Clone, Args)]
pub struct RecoverBenchArgs {
    /// Where to work.
    #[command(flatten)]
    pub place: BenchPlaceArgs,
    /// What is loaded.
    #[command(flatten)]
    pub load: LoadArgs,
    /// The process that loads ends without closing the log.
    #[arg(long)]
    pub crash: bool,
    /// Forget what the page cache holds of the files before they are opened.
    #[arg(long)]
    pub cold: bool,
    /// Do not measure the bare file.
    #[arg(long)]
    pub no_raw: bool,
}

/// The arguments of `multiraft bench log read`.
#[derive(Debug, Clone, Args)]
pub struct ReadBenchArgs {
    /// Where to work.
    #[command(flatten)]
    pub place: BenchPlaceArgs,
    /// What is loaded.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How long to read, in seconds.
    #[arg(long, default_value = "3", value_parser = seconds)]
    pub seconds: Duration,
    /// The number of threads that read.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub readers: u32,
    /// The MiB that one call reads, about.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub read_mib: u64,
    /// Forget what the page cache holds of the files before they are opened.
    #[arg(long)]
    pub cold: bool,
}

/// The arguments of `multiraft bench log compact`.
#[derive(Debug, Clone, Args)]
pub struct CompactBenchArgs {
    /// Where to work.
    #[command(flatten)]
    pub place: BenchPlaceArgs,
    /// What is loaded.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Seconds, with decimals, from a thousandth to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if !(0.001..=86_400.0).contains(&number) {
        return Err("from 0.001 to 86400 seconds are allowed".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}
