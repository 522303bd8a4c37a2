//! The benchmarks as their users run them: short runs, their figures, and what they leave behind.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_multiraft");
/// Seconds of a run: its figures are there, whatever they are.
const SHORT: [&str; 4] = ["--seconds", "0.5", "--warmup", "0.1"];

fn bench(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["bench", "log"]).args(arguments);
    command.arg("--dir").arg(dir).output().unwrap()
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one object a run: {text}");
    serde_json::from_str(&text).unwrap()
}

fn number(report: &Value, field: &str) -> f64 {
    report[field]
        .as_f64()
        .unwrap_or_else(|| panic!("no {field}: {report}"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn append_prints_the_fields_of_its_peers_and_the_bare_file_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "append",
        "--groups",
        "8",
        "--writers",
        "4",
        "--raw-file-mib",
        "64",
    ];
    let report = json(&bench(dir.path(), &[&flags[..], &SHORT].concat()));
    for field in [
        "bench",
        "backend",
        "variant",
        "groups",
        "writers",
        "batch",
        "payload",
        "depth",
        "io_threads",
        "seconds",
        "appends_per_s",
        "entries_per_s",
        "payload_mib_per_s",
        "latency_us",
        "fsyncs",
        "fsyncs_per_s",
        "fsyncs_per_append",
        "appends_per_fsync",
        "fsync_counter",
        "disk_bytes_written_per_payload_byte",
        "cpu_s_per_million_appends",
        "cpu_cores_used",
        "max_rss_mib",
        "file_bytes_on_disk",
        "file_bytes_apparent",
        "device_bytes_written_per_payload_byte",
        "device_flushes_per_s",
    ] {
        assert!(report.get(field).is_some(), "no {field}: {report}");
    }
    assert!(number(&report, "appends_per_s") > 0.0, "{report}");
    assert!(number(&report, "log_bytes_per_append") > 256.0, "{report}");
    assert!(number(&report["raw"], "log_per_raw") > 0.0, "{report}");
    let latency = &report["latency_us"];
    assert!(number(latency, "p50") <= number(latency, "p99"), "{report}");
    assert!(
        number(latency, "p999") <= number(latency, "max") * 1.01,
        "{report}"
    );
    assert!(names(dir.path()).is_empty(), "it left something");
}

#[test]
fn groups_that_compact_their_logs_are_measured_too() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "append",
        "--groups",
        "4",
        "--writers",
        "4",
        "--payload",
        "60000",
        "--no-raw",
    ];
    let steady = ["--variant", "steady", "--seconds", "2", "--warmup", "0.1"];
    let report = json(&bench(dir.path(), &[&flags[..], &steady].concat()));
    assert_eq!(report["variant"], "steady");
    assert_eq!(report["raw"], Value::Null);
}

#[test]
fn loaded_data_is_recovered_read_and_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let load = ["--groups", "10", "--entries", "20003"];
    let report = json(&bench(
        dir.path(),
        &[&["recover", "--crash"], &load[..]].concat(),
    ));
    assert_eq!(
        (&report["ok"], &report["groups_wrong"]),
        (&true.into(), &0.into())
    );
    assert!(number(&report["raw"], "recovery_s") > 0.0, "{report}");
    let reads = ["read", "--readers", "2", "--seconds", "0.3", "--cold"];
    let report = json(&bench(dir.path(), &[&reads[..], &load].concat()));
    assert_eq!(
        (&report["ok"], &report["entries_wrong"]),
        (&true.into(), &0.into())
    );
    assert!(number(&report, "groups_read") > 0.0, "{report}");
    let large = [
        "compact",
        "--groups",
        "4",
        "--entries",
        "4000",
        "--payload",
        "60000",
    ];
    let report = json(&bench(dir.path(), &large));
    assert_eq!(report["ok"], true, "{report}");
    assert!(number(&report, "disk_bytes_reclaimed") > 0.0, "{report}");
    assert_eq!(report["live_payload_bytes"], 400 * 60_000);
    assert!(names(dir.path()).is_empty(), "it left something");
}

#[test]
fn a_sweep_prints_a_table_and_writes_a_page_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let cells = [
        "append",
        "--sweep",
        "--sweep-writers",
        "1,2,8",
        "--sweep-groups",
        "1,8",
    ];
    let short = [
        "--seconds",
        "0.2",
        "--warmup",
        "0.05",
        "--raw-file-mib",
        "64",
        "--html",
    ];
    let flags = [&cells[..], &short, &[page.to_str().unwrap()]].concat();
    let output = bench(dir.path(), &flags);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.contains("APPENDS/FSYNC") && text.contains("appends/s over"),
        "{text}"
    );
    let html = std::fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<svg").count(), 5, "a chart for each figure");
    let namespaces = html.matches("http://www.w3.org/2000/svg").count();
    assert_eq!(
        html.matches("http").count(),
        namespaces,
        "nothing is loaded"
    );
    assert_eq!(names(dir.path()), ["page.html"]);
    let again = bench(dir.path(), &flags);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    assert_eq!(
        std::fs::read_to_string(&page).unwrap(),
        html,
        "it is the user's"
    );
}

#[test]
fn wrong_directories_are_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for (place, needle) in [
        (dir.path().join("missing"), "does not exist"),
        (file.clone(), "is not a directory"),
    ] {
        let output = bench(&place, &["append"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(needle),
            "{error}"
        );
    }
    let huge = [
        "recover",
        "--entries",
        "1000000000000",
        "--payload",
        "1048576",
    ];
    let output = bench(dir.path(), &huge);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("no space in"),
        "{error}"
    );
    let few = bench(dir.path(), &["append", "--groups", "2", "--writers", "3"]);
    assert_eq!(few.status.code(), Some(2), "{few:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert_eq!(names(dir.path()), ["file"]);
}

/// Starts a run, stops it with Ctrl-C when its own directory holds a file of this name, and looks
/// what it leaves.
fn interrupt(arguments: &[&str], file: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["bench", "log"]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.arg("--dir").arg(dir.path()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while !holds(dir.path(), file) {
        assert!(Instant::now() < end, "{arguments:?} did not make {file}");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert!(error.contains("stopped"), "{arguments:?}: {error}");
    assert_eq!(names(dir.path()), ["mine"], "{arguments:?}");
}

/// Whether a file of this name is anywhere below.
fn holds(dir: &Path, file: &str) -> bool {
    // What goes meanwhile is not there.
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| path.ends_with(file) || holds(&path, file))
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    const FIRST: &str = "0000000000000001.seg";
    interrupt(&["append", "--seconds", "600"], FIRST);
    let sweep = [
        "append",
        "--sweep",
        "--sweep-writers",
        "1",
        "--seconds",
        "600",
    ];
    interrupt(&sweep, FIRST);
    let load = ["recover", "--entries", "40000000", "--payload", "16"];
    interrupt(&load, "0000000000000003.seg");
    interrupt(&["read", "--seconds", "600"], FIRST);
}

/// Sync calls of a whole run, by strace, and writes that are durable by themselves; `None` where it is not
/// installed or not allowed to trace.
fn traced_syncs(dir: &Path, arguments: &[&str]) -> Option<(u64, Value)> {
    let traces = tempfile::tempdir().unwrap();
    let mut command = Command::new("strace");
    // A file for each thread, so that each call has one line; with -y it names the file behind a number.
    command.args(["-ff", "-qq", "-y", "-e"]);
    command.arg("trace=openat,pwrite64,pwritev,fsync,fdatasync,sync_file_range,syncfs,msync");
    let trace = traces.path().join("trace");
    command.arg("-o").arg(trace).arg(PROGRAM);
    command.args(["bench", "log"]).args(arguments);
    let output = command.arg("--dir").arg(dir).output().ok()?;
    if String::from_utf8_lossy(&output.stderr).contains("PTRACE") {
        return None;
    }
    let report = json(&output);
    let files = std::fs::read_dir(traces.path()).unwrap();
    let text = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let calls: Vec<String> = text
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let durable_files: BTreeSet<&str> = calls
        .iter()
        .filter(|call| call.starts_with("openat(") && call.contains("O_DSYNC"))
        .filter_map(|call| call.rsplit("= ").next()?.split('<').next())
        .collect();
    let is_sync = |call: &&String| {
        let (name, rest) = call.split_once('(').unwrap_or_default();
        let file = rest.split('<').next().unwrap_or_default();
        match name {
            "openat" => false,
            // New files are filled with zeros through numbers that may serve again later.
            "pwrite64" | "pwritev" => durable_files.contains(file) && !rest.contains("new.tmp"),
            _ => true,
        }
    };
    Some((calls.iter().filter(is_sync).count() as u64, report))
}

#[test]
fn every_sync_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = [
        "append",
        "--groups",
        "64",
        "--writers",
        "16",
        "--payload",
        "20000",
    ];
    let raw = ["--raw-file-mib", "64"];
    for run in [
        [&log[..], &SHORT, &raw].concat(),
        [&log[..], &SHORT, &["--no-raw"]].concat(),
    ] {
        let Some((calls, report)) = traced_syncs(dir.path(), &run) else {
            println!("skipped: there is no strace that may trace");
            return;
        };
        assert_eq!(report["fsyncs_of_run"], calls, "{report}");
        assert!(
            number(&report, "fsyncs") <= number(&report, "fsyncs_of_run"),
            "{report}"
        );
    }
}

/// A short run under strace that makes calls fail; `None` where it is not installed or not allowed to trace.
fn faulty(dir: &Path, inject: &str, flags: &[&str]) -> Option<Output> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", inject]);
    command.arg(PROGRAM).args(["bench", "log", "append"]);
    command.args(["--groups", "16", "--writers", "4", "--no-raw"]);
    command.args(["--warmup", "0.1"]).args(flags);
    let output = command.arg("--dir").arg(dir).output().ok()?;
    let is_refused = String::from_utf8_lossy(&output.stderr).contains("PTRACE");
    (!is_refused).then_some(output)
}

#[test]
fn interrupted_and_short_writes_are_made_again_and_failed_ones_end_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let interrupted = "inject=pwrite64,fsync,fdatasync:error=EINTR:when=2+3";
    let Some(output) = faulty(dir.path(), interrupted, &["--seconds", "0.5"]) else {
        println!("skipped: there is no strace that may trace");
        return;
    };
    assert!(number(&json(&output), "appends_per_s") > 0.0);
    // In each thread behind the zeros of a new segment; it ends long before the time is over.
    let failed = "inject=pwrite64:error=EIO:when=40+";
    let output = faulty(dir.path(), failed, &["--seconds", "60"]).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("Input/output error"), "{error}");
    assert_eq!(names(dir.path()), [""; 0], "it leaves nothing behind");
    // Writes that stop short, off a sector: the rest cannot be written directly, and all of it is written again.
    // (By strace they write nothing at all, so what only went on behind them would show.)
    let short = "inject=pwrite64:retval=1:when=20+5";
    let output = faulty(dir.path(), short, &["--seconds", "0.5", "--keep"]).unwrap();
    assert!(number(&json(&output), "appends_per_s") > 0.0);
    let [kept] = &names(dir.path())[..] else {
        panic!("one directory is kept");
    };
    let log = dir.path().join(kept).join("log");
    let mut verify = Command::new(PROGRAM);
    let verified = verify.args(["log", "verify"]).arg(log).output().unwrap();
    assert!(verified.status.success(), "the log is damaged");
}
