//! What the watchers of a node cost: puts per second with many of them and without, by turns.
//!
//! Three nodes, the watchers and the clients that write have a process each, all of them this program,
//! so that what the watched node spends is told apart from what its clients do. Leadership moves all the
//! time, so that there is something to watch. One of the watchers never reads.
//!
//! ```sh
//! cargo run --release -p multiraft-server --example watchers
//! ```

#![forbid(unsafe_code)]

mod load;
mod nodes;
mod watching;

use std::error::Error;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use load::{Load, Period};
use multiraft_server::cli::{ServeArgs, start_logging};
use multiraft_server::serve;
use nodes::Cluster;
use watching::{Crowd, Outcome, WatchArgs};

/// How anything here may fail: the measurement ends, and says why.
type Failure = Box<dyn Error + Send + Sync>;

/// Puts per second of a cluster while many watch one of its nodes, and while nobody does.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Args)]
struct MeasureArgs {
    /// Watchers of the first node, each with a connection of its own; the last never reads.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    watchers: u32,
    /// Pairs of periods: one with the watchers, one without, in changing order.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The length of a period.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Groups, each with a replica on all three nodes.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    groups: u32,
    /// Clients that put, each the next value when the last is acknowledged, through the watched node.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Milliseconds from one transfer of leadership to the next, in one group after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    transfer_every: u64,
}

/// What one of the processes does.
#[derive(Debug, Subcommand)]
enum Part {
    /// One node.
    #[command(hide = true)]
    Serve(Box<ServeArgs>),
    /// All watchers.
    #[command(hide = true)]
    Watch(WatchArgs),
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let cli = Cli::parse();
    match cli.part {
        Some(Part::Serve(args)) => {
            start_logging(&args.logging)?;
            Ok(serve::run(*args).await?)
        }
        Some(Part::Watch(args)) => watching::run(args).await,
        None => measure(&cli.measure).await,
    }
}

async fn measure(args: &MeasureArgs) -> Result<(), Failure> {
    nodes::check_open_files(u64::from(args.watchers))?;
    let cluster = Cluster::start(args.groups).await?;
    let transfer_every = Duration::from_millis(args.transfer_every);
    let load = Load::start(&cluster, args.clients, args.groups, transfer_every).await?;
    let period = Duration::from_secs(args.seconds);
    load.period(&cluster, period).await?; // its files and connections are warm from here on
    println!(
        "watchers  puts/s  node CPU us/put  transfers  events/s read  watchers' CPU  delay mean, max ms"
    );
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut outcome = None;
    for round in 0..args.rounds {
        for is_watched in [round % 2 == 1, round % 2 == 0] {
            if is_watched {
                let mut crowd = Crowd::start(&cluster, args.watchers).await?;
                load.settle().await;
                let cpu = crowd.cpu()?;
                crowd.look().await?;
                let measured = load.period(&cluster, period).await?;
                let seen = crowd.look().await?;
                let cpu = crowd.cpu()?.saturating_sub(cpu);
                println!(
                    "{:>8}  {measured}  {:>13.0}  {:>12.0}%  {:.1}, {:.0}",
                    args.watchers,
                    count_f64(seen.events) / measured.seconds,
                    100.0 * cpu.as_secs_f64() / measured.seconds,
                    seen.mean_delay_ms(),
                    seen.max_delay_ms(),
                );
                outcome = Some(crowd.finish().await?);
                with.push(measured);
            } else {
                load.settle().await;
                let measured = load.period(&cluster, period).await?;
                println!("{:>8}  {measured}", 0);
                without.push(measured);
            }
        }
    }
    load.stop().await?;
    summary("puts/s", &without, &with, Period::puts_per_second);
    summary("node CPU us/put", &without, &with, Period::node_micros);
    if let Some(Outcome { cut_off, stuck }) = outcome {
        println!(
            "watchers that read and were cut off: {cut_off}; the one that never read: {stuck}"
        );
    }
    Ok(())
}

fn summary(what: &str, without: &[Period], with: &[Period], figure: fn(&Period) -> f64) {
    let by_rounds = median(
        with.iter()
            .zip(without)
            .map(|(w, wo)| figure(w) / figure(wo)),
    );
    let [without, with] = [without, with].map(|periods| median(periods.iter().map(figure)));
    let ratio = with / without;
    println!(
        "{what}: median {without:.0} without, {with:.0} with watchers, ratio {ratio:.3}; \
         median of the rounds' ratios {by_rounds:.3}"
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}

/// Counts here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn count_f64(count: u64) -> f64 {
    count as f64
}
