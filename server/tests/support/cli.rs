//! The command line, as a person uses it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

use std::process::Command;
use std::time::Instant;

use super::load::LOOK;
use super::{PATIENCE, Process};

/// What a verb did: whether its exit code was 0, and all that it printed.
pub fn multiraft(nodes: &[&Process], arguments: &[&str]) -> (bool, String) {
    let endpoints = nodes
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.api_port));
    let endpoints = endpoints.collect::<Vec<_>>().join(",");
    multiraft_within("60s", &endpoints, arguments)
}

/// The same with a time-out of its own.
pub fn multiraft_within(timeout: &str, endpoints: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_multiraft"))
        .args(arguments)
        .args(["--endpoint", endpoints, "--timeout", timeout])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// What a verb printed that must succeed.
pub fn done(nodes: &[&Process], arguments: &[&str]) -> String {
    let (is_done, text) = multiraft(nodes, arguments);
    assert!(is_done, "{arguments:?}: {text}");
    text
}

/// What a verb printed that must fail.
pub fn refused(nodes: &[&Process], arguments: &[&str]) -> String {
    let (is_done, text) = multiraft(nodes, arguments);
    assert!(!is_done, "{arguments:?}: {text}");
    text
}

/// A node's member argument: `ID=HOST:PORT`.
pub fn member(node: &Process) -> String {
    format!("--member={}=127.0.0.1:{}", node.id, node.advertised_port)
}

pub fn bootstrap(nodes: &[&Process], group: &str) {
    let members: Vec<String> = nodes.iter().map(|node| member(node)).collect();
    let members = members.iter().map(String::as_str);
    let arguments: Vec<&str> = ["bootstrap", "--group", group]
        .into_iter()
        .chain(members)
        .collect();
    done(nodes, &arguments);
}

/// `new` becomes a member of a group by way of `nodes`.
pub fn add(nodes: &[&Process], group: u32, new: &Process, role: &str) {
    let new = format!("127.0.0.1:{}", new.api_port);
    let group = group.to_string();
    done(
        nodes,
        &["add", "--group", &group, "--new", &new, "--role", role],
    );
}

/// Repeats a look until it shows what it should.
pub async fn until(what: &str, look: impl Fn() -> (bool, String)) {
    let began = Instant::now();
    loop {
        let (is_so, text) = look();
        if is_so {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {text}");
        tokio::time::sleep(LOOK).await;
    }
}
