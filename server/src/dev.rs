//! A whole cluster in this process, to try things out: real nodes, real files, real gRPC.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use multiraft_engine::types::NodeId;
use multiraft_proto::admin::admin_client::AdminClient;
use multiraft_proto::admin::{StatusRequest, StatusResponse};
use multiraft_proto::node::member_config::Role;
use multiraft_proto::node::node_client::NodeClient;
use multiraft_proto::node::{BootstrapRequest, Event, GroupConfig, MemberConfig, WatchRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::cli::{
    DevArgs, Failure, RAFT_PORT_OFFSET, coloured_line, node_table, plain_line, print_line,
    summary_table,
};
use crate::config::Config;
use crate::node::Node;
use crate::stop::StopSignals;

/// Groups that are listed at the start; the others are there all the same.
const LISTED_GROUPS: u32 = 16;
/// How long all groups may take to get a leader.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bootstrap calls that one node has open at once.
const OPEN_CALLS: usize = 256;

/// Runs a cluster until Ctrl-C.
pub async fn run(args: DevArgs) -> Result<(), Failure> {
    if args.fresh {
        remove_nodes(&args.data_dir)?;
    }
    let began = Instant::now();
    let bar = progress(u64::from(args.groups));
    bar.set_message(format!("starting {} nodes", args.nodes));
    let mut nodes = Vec::new();
    for id in 1..=args.nodes {
        let started = Node::start(&config(&args, id)?).await;
        nodes.push(started.map_err(|error| Failure::node("dev", error))?);
    }
    let clients = connect(&nodes).await?;
    let formed = form(&args, &clients, &bar).await?;
    bar.finish_and_clear();
    // Before it is said how to stop: else one that comes while an event is printed is lost.
    let mut signals = StopSignals::new()?;
    let shown_at = SystemTime::now();
    greet(&args, &formed, began.elapsed())?;
    let (events, mut seen) = mpsc::channel(1024);
    let mut watchers = JoinSet::new();
    for (node, channel) in nodes.iter().zip(clients) {
        watchers.spawn(watch(node.about().node, channel, shown_at, events.clone()));
    }
    let colour = std::io::stdout().is_terminal();
    loop {
        tokio::select! {
            () = signals.recv() => break,
            Some((node, event)) = seen.recv() => {
                let line = if colour { coloured_line } else { plain_line };
                print_line(&line(&event, Some(node)))?;
            }
        }
    }
    watchers.shutdown().await;
    for node in nodes {
        node.shut_down()
            .await
            .map_err(|error| Failure::node("dev", error))?;
    }
    print_line("stopped; the same command finds all data again")
}

fn progress(groups: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} groups");
    let bar =
        ProgressBar::new(groups).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Deletes what earlier runs left, and nothing else that may be in the directory.
fn remove_nodes(data_dir: &Path) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(data_dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let is_node = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("node-"));
        if is_node && path.join("log").join("IDENTITY").is_file() {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

fn config(args: &DevArgs, id: u16) -> Result<Config, Failure> {
    let message = format!("node {id}: the base port {} is too high", args.base_port);
    let port = |offset: u16| {
        let port = args
            .base_port
            .checked_add(id)
            .and_then(|port| port.checked_add(offset));
        port.ok_or(Failure::Usage {
            message: message.clone(),
        })
    };
    let node = NodeId::new(u32::from(id)).expect("ids are counted from 1");
    Ok(Config {
        api_port: port(0)?,
        raft_port: port(RAFT_PORT_OFFSET)?,
        data_dir: args.data_dir.join(format!("node-{id}")),
        ..Config::new(node)
    })
}

async fn connect(nodes: &[Node]) -> Result<Vec<Channel>, Failure> {
    let mut channels = Vec::new();
    for node in nodes {
        let endpoint = node.about().api_address.clone();
        let connected = Channel::from_shared(format!("http://{endpoint}"));
        let connected = connected
            .map_err(|error| Failure::node("dev", error))?
            .connect()
            .await;
        channels.push(connected.map_err(|source| Failure::Connect { endpoint, source })?);
    }
    Ok(channels)
}

/// Bootstraps every group on every node, as any client would, and waits for the leaders.
async fn form(
    args: &DevArgs,
    clients: &[Channel],
    bar: &ProgressBar,
) -> Result<Vec<StatusResponse>, Failure> {
    bar.set_message("forming groups");
    let members: Vec<MemberConfig> = (1..=args.nodes)
        .map(|id| MemberConfig {
            node_id: u32::from(id),
            host: "127.0.0.1".to_owned(),
            port: i32::from(args.base_port + RAFT_PORT_OFFSET + id),
            role: Role::Member.into(),
        })
        .collect();
    let mut calls = JoinSet::new();
    for group_id in 1..=args.groups {
        for channel in clients {
            let group = GroupConfig {
                group_id,
                members: members.clone(),
            };
            calls.spawn(bootstrap(channel.clone(), group));
        }
        while calls.len() > OPEN_CALLS * clients.len() {
            joined(calls.join_next().await)?;
        }
    }
    while !calls.is_empty() {
        joined(calls.join_next().await)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut nodes = Vec::new();
        for channel in clients {
            let status = AdminClient::new(channel.clone())
                .status(StatusRequest::default())
                .await;
            nodes.push(
                status
                    .map_err(|status| refused("status", status))?
                    .into_inner(),
            );
        }
        let ready = led(&nodes, args.groups);
        bar.set_position(u64::from(ready));
        if ready == args.groups || Instant::now() > deadline {
            return Ok(nodes);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Groups whose leader every node knows.
fn led(nodes: &[StatusResponse], groups: u32) -> u32 {
    let led_on = |node: &StatusResponse| {
        let mut led = vec![false; groups as usize + 1];
        for group in node.groups.iter().filter(|g| g.leader_id != 0) {
            if let Some(led) = led.get_mut(group.group_id as usize) {
                *led = true;
            }
        }
        led
    };
    let all: Vec<Vec<bool>> = nodes.iter().map(led_on).collect();
    let count = (1..=groups as usize)
        .filter(|&g| all.iter().all(|led| led[g]))
        .count();
    u32::try_from(count).unwrap_or(groups)
}

async fn bootstrap(channel: Channel, group: GroupConfig) -> Result<(), Failure> {
    let request = BootstrapRequest { group: Some(group) };
    let answer = NodeClient::new(channel).bootstrap(request).await;
    answer
        .map(|_| ())
        .map_err(|status| refused("bootstrap", status))
}

fn refused(what: &'static str, status: tonic::Status) -> Failure {
    Failure::Status {
        what,
        endpoint: "a node of this process".to_owned(),
        status: Box::new(status),
    }
}

fn joined(
    result: Option<Result<Result<(), Failure>, tokio::task::JoinError>>,
) -> Result<(), Failure> {
    match result {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Failure::node("dev", error)),
    }
}

/// Tables, and what to try next.
fn greet(args: &DevArgs, nodes: &[StatusResponse], took: Duration) -> Result<(), Failure> {
    let groups = args.groups;
    let ready = led(nodes, groups);
    print_line(&node_table(nodes))?;
    print_line(&summary_table(nodes, groups.min(LISTED_GROUPS)))?;
    if let Some(more @ 1..) = groups.checked_sub(LISTED_GROUPS) {
        print_line(&format!("… and {more} more groups"))?;
    }
    let seconds = took.as_secs_f64();
    print_line(&format!(
        "\n{ready} of {groups} groups have a leader after {seconds:.1} s\n"
    ))?;
    let program = program();
    let program = program.display();
    let api = |id: u16| format!("127.0.0.1:{}", args.base_port + id);
    let (first, last) = (api(1), api(args.nodes));
    print_line(&format!(
        "try, in another terminal:\n  \
         {program} put --endpoint {first} greeting hello\n  \
         {program} get --endpoint {last} greeting\n  \
         {program} put --endpoint {last} --group {groups} colour blue\n  \
         {program} range --endpoint {first} --group {groups} --prefix c\n  \
         {program} status --endpoint {first}\n  \
         {program} watch --endpoint {first}\n\n\
         Ctrl-C stops the cluster. What happens in it:"
    ))
}

/// This program as it can be typed here.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("multiraft"));
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).map(Path::to_owned).unwrap_or(path)
}

/// Passes on what happens after the tables were shown: each watch begins with what they said.
async fn watch(
    node: NodeId,
    channel: Channel,
    shown_at: SystemTime,
    events: mpsc::Sender<(NodeId, Event)>,
) {
    let mut stream = match NodeClient::new(channel).watch(WatchRequest {}).await {
        Ok(stream) => stream.into_inner(),
        Err(error) => {
            tracing::error!(%node, %error, "cannot watch");
            return;
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                if happened_after(&event, shown_at) && events.send((node, event)).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%node, %error, "the watch ended");
                return;
            }
        }
    }
}

fn happened_after(event: &Event, time: SystemTime) -> bool {
    event
        .timestamp
        .and_then(|at| SystemTime::try_from(at).ok())
        .is_some_and(|at| at >= time)
}
