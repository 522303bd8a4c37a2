//! A crowd of watchers in a process of its own, of which one never reads.
//!
//! The process is asked by a line on its standard input, and answers with a line: what the crowd has
//! seen since the last one. When the input ends, the stuck watcher reads at last, and is told of.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{Event, WatchRequest};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use crate::nodes::{Cluster, PATIENCE, Process, connected, endpoint, this_program};
use crate::{Failure, count_f64};

/// What the stuck watcher's connection takes without being read.
const NARROW_BYTES: u32 = 16 << 10;
/// Silence after which a watcher that was not told of its end is taken to be open.
const SILENCE: Duration = Duration::from_secs(2);
/// Connections that are made at once.
const CONNECTING: usize = 32;

/// How the process of the watchers is started.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The node's API port.
    #[arg(long)]
    port: u16,
    /// The number of watchers, with the one that never reads.
    #[arg(long)]
    watchers: u32,
}

/// What the crowd has seen since the last look, all watchers together.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Events that were read.
    pub events: u64,
    /// From an event's time to its reading, the sum for all and the longest.
    delay_sum_micros: u64,
    delay_max_micros: u64,
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Watchers that read, and were ended by the node all the same.
    pub cut_off: u64,
    /// What became of the one that never read.
    pub stuck: String,
}

impl Seen {
    /// Mean delay of an event, milliseconds.
    pub fn mean_delay_ms(&self) -> f64 {
        count_f64(self.delay_sum_micros) / count_f64(self.events.max(1)) / 1e3
    }

    /// Longest delay of an event, milliseconds.
    pub fn max_delay_ms(&self) -> f64 {
        count_f64(self.delay_max_micros) / 1e3
    }
}

/// The process of the watchers, as the one that measures has it.
pub struct Crowd {
    process: Process,
    ask: ChildStdin,
    answers: Lines,
}

impl Crowd {
    /// Starts it, and waits until each watcher has been told of the present.
    pub async fn start(cluster: &Cluster, watchers: u32) -> Result<Self, Failure> {
        let mut process = this_program()?
            .arg("watch")
            .args(["--port", &cluster.watched_port().to_string()])
            .args(["--watchers", &watchers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = process.stdin.take().ok_or("no standard input")?;
        let answers = process.stdout.take().ok_or("no standard output")?;
        let mut crowd = Self {
            process: Process(process),
            ask,
            answers: lines(answers),
        };
        crowd.look().await?;
        Ok(crowd)
    }

    /// What the watchers have seen since the last look.
    pub async fn look(&mut self) -> Result<Seen, Failure> {
        self.ask.write_all(b"\n")?;
        Ok(serde_json::from_str(&next(&mut self.answers).await?)?)
    }

    /// Processor time that all the watchers have used.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        self.process.cpu()
    }

    /// Ends all watches.
    pub async fn finish(self) -> Result<Outcome, Failure> {
        let Self {
            process: _process,
            ask,
            mut answers,
        } = self;
        drop(ask);
        Ok(serde_json::from_str(&next(&mut answers).await?)?)
    }
}

type Lines = mpsc::Receiver<io::Result<String>>;

/// Reads lines in a thread of their own.
fn lines(from: impl Read + Send + 'static) -> Lines {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut lines = BufReader::new(from).lines();
        while lines
            .next()
            .is_some_and(|line| sender.blocking_send(line).is_ok())
        {}
    });
    receiver
}

async fn next(answers: &mut Lines) -> Result<String, Failure> {
    let line = tokio::time::timeout(PATIENCE, answers.recv()).await?;
    Ok(line.ok_or("the process of the watchers has ended")??)
}

#[derive(Default)]
struct Counts {
    events: AtomicU64,
    delay_sum_micros: AtomicU64,
    delay_max_micros: AtomicU64,
    cut_off: AtomicU64,
}

/// The process itself.
pub async fn run(args: WatchArgs) -> Result<(), Failure> {
    let endpoint = endpoint(args.port)?;
    let counts = Arc::<Counts>::default();
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut starts = JoinSet::new();
    for _ in 1..args.watchers {
        let (endpoint, connecting) = (endpoint.clone(), Arc::clone(&connecting));
        starts.spawn(async move {
            let _turn = connecting.acquire().await?;
            let mut events = watch(&endpoint).await?;
            events.message().await?.ok_or("the watch ended at once")?;
            Ok::<_, Failure>(events)
        });
    }
    let mut readers = JoinSet::new();
    while let Some(started) = starts.join_next().await {
        readers.spawn(read(started??, Arc::clone(&counts)));
    }
    let stuck = watch(&endpoint.initial_stream_window_size(NARROW_BYTES)).await?;
    let mut asked = lines(io::stdin());
    while let Some(line) = asked.recv().await {
        line?;
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        println!(
            "{}",
            serde_json::to_string(&Seen {
                events: take(&counts.events),
                delay_sum_micros: take(&counts.delay_sum_micros),
                delay_max_micros: take(&counts.delay_max_micros),
            })?
        );
    }
    readers.shutdown().await;
    let outcome = Outcome {
        cut_off: counts.cut_off.load(Ordering::Relaxed),
        stuck: end_of(stuck).await,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

async fn watch(endpoint: &Endpoint) -> Result<Streaming<Event>, Failure> {
    let mut client = NodeClient::new(connected(endpoint).await?);
    Ok(client.watch(WatchRequest {}).await?.into_inner())
}

async fn read(mut events: Streaming<Event>, counts: Arc<Counts>) {
    while let Ok(Some(event)) = events.message().await {
        counts.events.fetch_add(1, Ordering::Relaxed);
        let delay = delay_micros(&event).unwrap_or(0);
        counts.delay_sum_micros.fetch_add(delay, Ordering::Relaxed);
        counts.delay_max_micros.fetch_max(delay, Ordering::Relaxed);
    }
    counts.cut_off.fetch_add(1, Ordering::Relaxed);
}

/// Node and watcher have the same clock.
fn delay_micros(event: &Event) -> Option<u64> {
    let delay = SystemTime::now().duration_since(happened(event)?).ok()?;
    u64::try_from(delay.as_micros()).ok()
}

/// Reads what happened before this call, and how it ends.
async fn end_of(mut events: Streaming<Event>) -> String {
    let began = SystemTime::now();
    let mut count = 0;
    loop {
        match tokio::time::timeout(SILENCE, events.message()).await {
            Ok(Ok(Some(event))) if happened(&event).is_none_or(|at| at < began) => count += 1,
            Ok(Ok(None)) => return format!("ended without a word after {count} events"),
            Ok(Err(status)) => return told(count, &status),
            Ok(Ok(Some(_))) | Err(_) => return format!("still open, with {count} events to read"),
        }
    }
}

fn told(count: u64, status: &Status) -> String {
    let (code, message) = (status.code(), status.message());
    format!("{code:?} after {count} events: {message}")
}

fn happened(event: &Event) -> Option<SystemTime> {
    SystemTime::try_from(event.timestamp?).ok()
}
