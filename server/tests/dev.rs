//! `multiraft dev` as a newcomer uses it: start, paste what it prints, stop, start again.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_multiraft");
const NODES: u16 = 3;

struct Dev {
    child: Child,
    out: BufReader<ChildStdout>,
    /// All until the events begin.
    greeting: String,
}

/// A port below three free API ports and three free Raft ports.
fn base_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut bases = (20_000..30_000)
        .step_by(7)
        .skip(std::process::id() as usize % 500);
    let fits = |base: &u16| (1..=NODES).all(|n| is_free(base + n) && is_free(base + 100 + n));
    bases.find(fits).unwrap()
}

fn command(dir: &Path, base: u16) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["dev", "--groups", "16", "--base-port", &base.to_string()])
        .arg("--data-dir")
        .arg(dir)
        .stderr(Stdio::null());
    command
}

impl Dev {
    fn start(dir: &Path, base: u16, more: &[&str]) -> Self {
        let mut child = command(dir, base)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("What happens in it:") {
            assert!(out.read_line(&mut greeting).unwrap() > 0, "{greeting}");
        }
        Self {
            child,
            out,
            greeting,
        }
    }

    /// The commands that it says to try.
    fn printed_commands(&self) -> Vec<String> {
        let lines = self.greeting.lines().map(str::trim);
        lines
            .filter(|line| line.contains("--endpoint"))
            .map(str::to_owned)
            .collect()
    }

    /// Ctrl-C; what it still says.
    fn interrupt(mut self) -> String {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        while self.out.read_line(&mut rest).unwrap() > 0 {}
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().unwrap()
}

/// The first line of a command that goes on.
fn first_line(line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    first
}

fn out(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn what_it_prints_works_as_printed_and_the_data_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (data, base) = (dir.path().join("data"), base_port());
    let dev = Dev::start(&data, base, &[]);
    assert!(
        dev.greeting.contains("16 of 16 groups have a leader"),
        "{}",
        dev.greeting
    );
    let commands = dev.printed_commands();
    let [put, get, put_far, range, status, watch] = &commands[..] else {
        panic!("{commands:?}")
    };
    out(&shell(put));
    assert_eq!(out(&shell(get)).trim(), "hello");
    out(&shell(put_far));
    assert!(out(&shell(range)).contains("blue"));
    let address = format!("127.0.0.1:{}", base + 1);
    assert!(out(&shell(status)).contains(&address), "{status}");
    let first = first_line(watch);
    assert!(first.contains("MemberReady"), "{first}");
    let rest = dev.interrupt();
    assert!(rest.ends_with("stopped; the same command finds all data again\n"));

    let again = Dev::start(&data, base, &[]);
    assert_eq!(out(&shell(get)).trim(), "hello");
    assert!(out(&shell(range)).contains("blue"));
    again.interrupt();

    std::fs::write(data.join("mine.txt"), "not a node's").unwrap();
    let fresh = Dev::start(&data, base, &["--fresh"]);
    assert_eq!(shell(get).status.code(), Some(1), "nothing is there");
    fresh.interrupt();
    assert!(data.join("mine.txt").exists(), "only nodes are deleted");
}

#[test]
fn wrong_input_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let below = (taken.local_addr().unwrap().port() - 1).to_string();
    let wrong = [
        (vec!["--nodes", "0"], "--nodes"),
        (vec!["--nodes", "100"], "--nodes"),
        (vec!["--groups", "many"], "--groups"),
        (vec!["--base-port", "65500"], "--base-port"),
        (vec!["--data-dir", file], "a file"),
        (vec!["--base-port", &below], "port"),
    ];
    for (arguments, words) in wrong {
        let output = Command::new(PROGRAM)
            .current_dir(dir.path())
            .arg("dev")
            .args(&arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
