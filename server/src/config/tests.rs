#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command as Verb};

fn serve_args(flags: &[&str]) -> ServeArgs {
    let cli = Cli::try_parse_from([&["multiraft", "serve"], flags].concat()).unwrap();
    match cli.command {
        Verb::Serve(args) => *args,
        other => panic!("not serve: {other:?}"),
    }
}

fn load(flags: &[&str]) -> Result<Config, ConfigError> {
    Config::load(&serve_args(flags))
}

/// Loads with a file of this name and text, and the flags.
fn load_file(name: &str, text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    load(&[&["--node", "1", "--config", path.to_str().unwrap()], flags].concat())
}

fn node(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

#[test]
fn without_a_file_or_flags_the_defaults_count() {
    let config = load(&["--node", "3"]).unwrap();
    assert_eq!(config, Config::new(node(3)));
    assert_eq!(config.data_dir, PathBuf::from("data/node-3"));
    assert_eq!(
        (config.api_port, config.raft_port, config.metrics_port),
        (8080, 5000, None)
    );
    assert_eq!(
        (config.api_host.as_str(), config.raft_host.as_str()),
        ("127.0.0.1", "127.0.0.1")
    );
    assert_eq!(config.heartbeat_period, Duration::from_millis(100));
    assert_eq!(config.election_timeout, Duration::from_secs(1));
}

#[test]
fn the_file_beats_the_defaults_and_flags_beat_the_file() {
    let json = r#"{"heartbeatPeriod": "0.050s", "election_timeout": "2s", "dataDir": "d",
        "snapshotEntryThreshold": "7", "compactionRetainEntries": 8}"#;
    let toml = "heartbeat_period = '0.050s'\nelectionTimeout = '2s'\ndata_dir = 'd'\n\
        snapshot_entry_threshold = 7\ncompaction_retain_entries = 8\n";
    let want = Config {
        heartbeat_period: Duration::from_millis(50),
        election_timeout: Duration::from_secs(2),
        data_dir: PathBuf::from("d"),
        snapshot_entry_threshold: 7,
        compaction_retain_entries: 8,
        ..Config::new(node(1))
    };
    for (name, text) in [("c.json", json), ("c.toml", toml), ("c.conf", json)] {
        assert_eq!(load_file(name, text, &[]).unwrap(), want, "{name}");
        let flagged = load_file(name, text, &["--data-dir", "e", "--api-port", "1"]).unwrap();
        let data_dir = PathBuf::from("e");
        assert_eq!(
            flagged,
            Config {
                data_dir,
                api_port: 1,
                ..want.clone()
            },
            "{name}"
        );
    }
}

#[test]
fn flags_say_how_the_log_is_stored() {
    let flags = "--node 1 --segment-size 4MiB --spare-segments 3 --preallocated-segments 2 \
        --entry-compression lz4";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let want = Config {
        segment_bytes: 4 << 20,
        spare_segments: 3,
        preallocated_segments: 2,
        entry_compression: multiraft_logdb::Compression::Lz4,
        ..Config::new(node(1))
    };
    assert_eq!(load(&flags).unwrap(), want);
    let defaults = Config::new(node(1)).log_options("log".into());
    let logs_own = multiraft_logdb::Options::new("log", defaults.identity);
    assert_eq!(format!("{defaults:?}"), format!("{logs_own:?}"));
    for (flags, needle) in [
        (["--segment-size", "1KiB"], "in bytes, is 1024"),
        (["--segment-size", "2GiB"], "from 65536 to 1073741824"),
        (["--spare-segments", "65"], "at most 64"),
        (
            ["--preallocated-segments", "9"],
            "at most the number of spare segments",
        ),
    ] {
        let flags = [&["--node", "1"][..], &flags].concat();
        let error = load(&flags).unwrap_err().to_string();
        assert!(
            error.contains(needle) && error.contains(flags[2]),
            "{error}"
        );
    }
}

#[test]
fn flags_say_when_snapshots_are_made_and_how_they_travel() {
    let flags = "--node 1 --snapshot-entry-threshold 5 --snapshot-byte-threshold 2MiB \
        --compaction-retain-entries 0 --snapshot-rate 20MB --raft-advertise [::1]:6000";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let want = Config {
        snapshot_entry_threshold: 5,
        snapshot_bytes: 2 << 20,
        compaction_retain_entries: 0,
        snapshot_rate: 20_000_000,
        raft_advertise: Some(("::1".to_owned(), Some(6000))),
        ..Config::new(node(1))
    };
    assert_eq!(load(&flags).unwrap(), want);
    let json = r#"{"snapshotEntryThreshold": 7, "compactionRetainEntries": 8}"#;
    let flags = ["--snapshot-entry-threshold", "9"];
    let config = load_file("c.json", json, &flags).unwrap();
    let entries = (
        config.snapshot_entry_threshold,
        config.compaction_retain_entries,
    );
    assert_eq!(entries, (9, 8), "a flag beats the file");
    for (flags, needles) in [
        (
            &["--snapshot-rate", "1KiB"][..],
            &["1.0 KiB", "273.1 KiB", "0 for no limit"][..],
        ),
        (
            &["--snapshot-byte-threshold", "0"],
            &["--snapshot-byte-threshold", "from 1"],
        ),
        (
            &["--raft-port", "0", "--raft-advertise", "h"],
            &["HOST:PORT"],
        ),
    ] {
        let error = load(&[&["--node", "1"], flags].concat()).unwrap_err();
        let text = error.to_string();
        assert!(needles.iter().all(|n| text.contains(n)), "{text}");
    }
}

#[test]
fn an_empty_file_and_zero_numbers_leave_the_defaults() {
    for text in ["{}", r#"{"snapshotEntryThreshold": 0, "dataDir": null}"#] {
        assert_eq!(
            load_file("c.json", text, &[]).unwrap(),
            Config::new(node(1)),
            "{text}"
        );
    }
}

#[test]
fn errors_of_the_file_name_file_and_field() {
    for (name, text, needles) in [
        ("a.json", "{", &["a.json", "not valid JSON", "line 1"][..]),
        (
            "a.toml",
            "data_dir =",
            &["a.toml", "not valid TOML", "line 1"],
        ),
        ("a.json", "[]", &["a.json", "one object"]),
        (
            "a.json",
            r#"{"dataDirr": ""}"#,
            &["a.json", "`dataDirr`", "electionTimeout"],
        ),
        ("a.toml", "rtt = 1", &["a.toml", "`rtt`", "heartbeatPeriod"]),
        (
            "a.json",
            r#"{"dataDir": 5}"#,
            &["a.json", "`dataDir`", "quotation marks"],
        ),
        (
            "a.toml",
            "data_dir = 5",
            &["a.toml", "`data_dir`", "quotation marks"],
        ),
        (
            "a.json",
            r#"{"heartbeatPeriod": 100}"#,
            &["a.json", "`heartbeatPeriod`", "\"0.1s\""],
        ),
        (
            "a.json",
            r#"{"heartbeatPeriod": "100"}"#,
            &["a.json", "`heartbeatPeriod`", "\"0.1s\""],
        ),
        (
            "a.json",
            r#"{"heartbeatPeriod": "-1s"}"#,
            &["a.json", "`heartbeat_period`", "-1 s"],
        ),
        (
            "a.json",
            r#"{"snapshotEntryThreshold": -1}"#,
            &["`snapshotEntryThreshold`", "from 0"],
        ),
        (
            "a.json",
            r#"{"dataDir": "a", "data_dir": "b"}"#,
            &["a.json", "`data", "twice"],
        ),
    ] {
        let error = load_file(name, text, &[]).unwrap_err().to_string();
        for needle in needles {
            assert!(
                error.contains(needle),
                "{text}: `{needle}` is not in: {error}"
            );
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&["--node", "1", "--config", "/no/such/file"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such/file") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn values_that_cannot_work_are_refused_with_what_to_do() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 10] = [
        (
            |c| c.heartbeat_period = Duration::ZERO,
            "heartbeat_period is zero",
        ),
        (
            |c| c.election_timeout = Duration::ZERO,
            "election_timeout is zero",
        ),
        (
            |c| c.election_timeout = Duration::from_millis(299),
            "at least 300ms",
        ),
        (
            |c| c.heartbeat_period = Duration::MAX,
            "shorter than 3 heartbeat periods",
        ),
        (
            |c| c.snapshot_entry_threshold = 0,
            "snapshot_entry_threshold is zero",
        ),
        (|c| c.default_group = GroupId(0), "--default-group"),
        (|c| c.api_host.clear(), "--api-host is empty"),
        (|c| c.data_dir = PathBuf::new(), "--data-dir is empty"),
        (
            |c| c.raft_port = 8080,
            "--api-port and --raft-port are both port 8080",
        ),
        (
            |c| c.metrics_port = Some(5000),
            "--raft-port and --metrics-port are both port 5000",
        ),
    ];
    for (change, needle) in cases {
        let mut config = Config::new(node(1));
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(needle), "`{needle}` is not in: {error}");
    }
}

#[test]
fn the_shortest_election_timeout_and_free_ports_are_accepted() {
    let mut config = Config::new(node(1));
    config.election_timeout = Duration::from_millis(300);
    (config.api_port, config.raft_port, config.metrics_port) = (0, 0, Some(0));
    config.validate().unwrap();
}

#[test]
fn node_zero_is_refused() {
    let error = load(&["--node", "0"]).unwrap_err().to_string();
    assert!(error.contains("--node"), "{error}");
}
