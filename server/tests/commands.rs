//! The command line as its users run it: each verb, for people and for scripts, and the metrics page.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use support::{Cluster, Process, free_ports, put};

fn multiraft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &Output) -> (String, String) {
    let read = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (read(&output.stdout), read(&output.stderr))
}

/// A verb at a node; what it printed.
fn at(node: &Process, arguments: &[&str]) -> String {
    let endpoint = format!("127.0.0.1:{}", node.api_port);
    let output = multiraft(&[arguments, &["--endpoint", &endpoint]].concat());
    let (out, error) = text(&output);
    assert!(output.status.success(), "{arguments:?}: {error}");
    out
}

/// The same with `--json`: one object a line.
fn json(node: &Process, arguments: &[&str]) -> serde_json::Value {
    let out = at(node, &[arguments, &["--json"]].concat());
    let line = out.lines().next().unwrap_or("{}");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_speaks_to_people_and_to_scripts() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    node.channel().await;
    let member = format!("1=127.0.0.1:{}", node.raft_port);
    at(node, &["bootstrap", "--group", "1", "--member", &member]);
    json(node, &["bootstrap", "--group", "1", "--member", &member]);
    put(node.channel().await, 1, "first", "1").await.unwrap(); // there is a leader now
    at(node, &["put", "a", "x y"]);
    let header = json(node, &["put", "b", "2"]);
    assert!(header.get("header").is_some(), "{header}");
    assert_eq!(at(node, &["get", "a"]).trim_end(), "x y");
    let got = json(node, &["get", "a"]);
    assert!(got.to_string().contains("kvs"), "{got}");
    let range = at(node, &["range"]);
    assert!(range.contains("first") && range.contains("x y"), "{range}");
    assert_eq!(json(node, &["range"])["count"], "3");
    at(node, &["del", "a"]);
    assert_eq!(json(node, &["del", "b"])["deleted"], "1");
    let status = at(node, &["status"]);
    assert!(status.contains("127.0.0.1"), "{status}");
    assert_eq!(json(node, &["status"])["groups"][0]["groupId"], 1);
    let endpoint = format!("127.0.0.1:{}", node.api_port);
    let missing = multiraft(&["get", "a", "--endpoint", &endpoint]);
    assert_eq!(missing.status.code(), Some(1));
    let nobody = multiraft(&["get", "a", "--endpoint", "127.0.0.1:1"]);
    assert!(text(&nobody).1.contains("try:"), "{:?}", text(&nobody));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_prints_a_line_an_event() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    node.channel().await;
    cluster.bootstrap(1).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(["watch", "--json", "--endpoint"])
        .arg(format!("127.0.0.1:{}", node.api_port))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert!(event.get("memberReady").is_some(), "{event}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_stopped_node_is_inspected_and_verified() {
    let mut cluster = Cluster::start(1);
    cluster.bootstrap(1).await;
    let node = &mut cluster.nodes[0];
    put(node.channel().await, 1, "k", "v").await.unwrap();
    let dir = node.data_dir.join("log");
    let dir = dir.to_str().unwrap();
    let held = multiraft(&["log", "inspect", dir]);
    assert!(text(&held).1.contains("LOCK"), "{:?}", text(&held));
    node.kill();
    let (tables, _) = text(&multiraft(&["log", "inspect", dir]));
    assert!(
        tables.contains("SEGMENT") && tables.contains("GROUP"),
        "{tables}"
    );
    let (report, _) = text(&multiraft(&["log", "inspect", dir, "--json"]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["groups"][0]["group"], 1);
    assert_eq!(report["segments"][0]["pinned_by"]["group"], 1);
    let data_dir = node.data_dir.to_str().unwrap();
    let (lines, _) = text(&multiraft(&["log", "dump", data_dir]));
    let last = report["groups"][0]["last"].to_string();
    assert!(
        lines.contains(&format!("group 1 index {last} term")),
        "{lines}"
    );
    let one = [
        "log", "dump", dir, "--group", "1", "--from", &last, "--to", &last,
    ];
    let (entry, _) = text(&multiraft(&[&one[..], &["--json"]].concat()));
    let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
    assert_eq!(
        (&entry["index"], &entry["kind"]),
        (&report["groups"][0]["last"], &"normal".into())
    );
    let beyond = multiraft(&["log", "dump", dir, "--group", "1", "--to", "999"]);
    assert!(
        text(&beyond).1.contains("not in the log"),
        "{:?}",
        text(&beyond)
    );
    let other = multiraft(&["log", "dump", dir, "--group", "9"]);
    assert!(
        text(&other).1.contains("group 9 is not"),
        "{:?}",
        text(&other)
    );
    let verified = multiraft(&["log", "verify", dir]);
    assert!(verified.status.success() && text(&verified).0.contains("ok: no damage"));
    damage(&node.data_dir.join("log"));
    let broken = multiraft(&["log", "verify", dir]);
    assert_eq!(broken.status.code(), Some(1), "{:?}", text(&broken));
    let (found, error) = text(&broken);
    assert!(
        found.contains("damaged: segment") && error.contains("places"),
        "{found}{error}"
    );
    let json = multiraft(&["log", "verify", dir, "--json"]);
    assert!(
        text(&json).0.contains("\"problems\":[{"),
        "{:?}",
        text(&json)
    );
    let nothing = multiraft(&["log", "verify", "/"]);
    assert!(
        text(&nothing).1.contains("not a log directory"),
        "{:?}",
        text(&nothing)
    );
}

/// A bit of the first batch of the oldest segment rots.
fn damage(dir: &std::path::Path) {
    let files = std::fs::read_dir(dir).unwrap();
    let mut segments: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .filter(|path| {
            !path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("spare")
        })
        .collect();
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&segments[0], bytes).unwrap();
}

/// The file says one directory, the environment another; the environment says one API port, the flag
/// another.
#[test]
fn the_environment_beats_the_file_and_flags_beat_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.json");
    let (in_file, in_environment) = (dir.path().join("file"), dir.path().join("environment"));
    let settings = serde_json::json!({ "dataDir": in_file, "electionTimeout": "5s" });
    std::fs::write(&file, settings.to_string()).unwrap();
    let ports = free_ports(3);
    let mut child = Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(["serve", "--api-port", &ports[0].to_string()])
        .env("MULTIRAFT_CONFIG", &file)
        .env("MULTIRAFT_NODE", "9")
        .env("MULTIRAFT_DATA_DIR", &in_environment)
        .env("MULTIRAFT_API_PORT", ports[1].to_string())
        .env("MULTIRAFT_RAFT_PORT", ports[2].to_string())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("ready")));
    let endpoint = format!("127.0.0.1:{}", ports[0]);
    let (status, error) = text(&multiraft(&["status", "--json", "--endpoint", &endpoint]));
    child.kill().unwrap();
    child.wait().unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).expect(&error);
    assert_eq!(status["nodeId"], 9);
    assert_eq!(status["raftAddress"], format!("127.0.0.1:{}", ports[2]));
    assert_eq!(status["dataDir"], in_environment.to_str().unwrap());
    assert!(!in_file.exists());

    std::fs::write(&file, "{").unwrap(); // the file that the environment names is read
    let broken = Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(["serve", "--node", "9"])
        .env("MULTIRAFT_CONFIG", &file)
        .output()
        .unwrap();
    assert!(text(&broken).1.contains("c.json"), "{:?}", text(&broken));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_page_counts_what_happened() {
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    cluster.bootstrap(1).await;
    for n in 0..10 {
        put(node.channel().await, 1, "k", &n.to_string())
            .await
            .unwrap();
    }
    let mut page = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", node.metrics_port)).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_string(&mut page).unwrap();
    let value = |name: &str| {
        let lines = page.lines().filter(|l| l.starts_with(name));
        let values = lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok());
        values.reduce(f64::max).unwrap_or(-1.0)
    };
    for (name, least) in [
        ("multiraft_log_fsyncs_total", 10.0),
        ("multiraft_log_fsync_seconds_count", 10.0),
        ("multiraft_log_batch_bytes_count", 10.0),
        ("multiraft_log_appends_per_fsync_count", 10.0),
        ("multiraft_engine_proposals_total", 10.0),
        ("multiraft_engine_committed_entries_total", 10.0),
        ("multiraft_engine_applied_entries_total", 10.0),
        ("multiraft_engine_leader_changes_total", 1.0),
    ] {
        assert!(value(name) >= least, "{name} is {}\n{page}", value(name));
    }
}
