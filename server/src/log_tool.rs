//! Looks into the log of a stopped node.

use std::path::{Path, PathBuf};

use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use indicatif::HumanBytes;
use multiraft_engine::block::{Block, Entry, EntryKind};
use multiraft_engine::traits::StoredGroup;
use multiraft_engine::types::{GroupId, Index};
use multiraft_logdb::{Problem, Report, StoppedLog, VerifyReport, inspect, verify};
use serde::Serialize;

use crate::cli::{Failure, LogArgs, LogCommand, LogDirArgs, LogDumpArgs, escape, print_line};
use crate::log_repair;

/// Bytes of entries that a dump reads at a time.
const DUMP_BYTES: usize = 1 << 20;
/// Bytes of a payload that a line shows; JSON has all of them.
const SHOWN_BYTES: usize = 64;

/// Does what the arguments ask for.
pub fn run(args: LogArgs) -> Result<(), Failure> {
    match args.command {
        LogCommand::Inspect(LogDirArgs { dir, json }) => {
            let report = inspect(&log_dir(&dir));
            let report = report.map_err(|error| Failure::node("log inspect", error))?;
            if json {
                print_json(&report)
            } else {
                print_line(&tables(&report))
            }
        }
        LogCommand::Repair(args) => log_repair::run(&args),
        LogCommand::Verify(LogDirArgs { dir, json }) => {
            let report = verify(&log_dir(&dir));
            let report = report.map_err(|error| Failure::node("log verify", error))?;
            if json {
                print_json(&report)?;
            } else {
                print_line(&verdict(&report))?;
            }
            match report.problems.len() {
                0 => Ok(()),
                problems => Err(Failure::LogDamaged { problems }),
            }
        }
        LogCommand::Dump(args) => dump(&args),
    }
}

/// The log in a node's data directory, or the directory itself.
pub(crate) fn log_dir(dir: &Path) -> PathBuf {
    let inner = dir.join("log");
    if inner.is_dir() && !dir.join("IDENTITY").exists() {
        return inner;
    }
    dir.to_owned()
}

/// One entry in JSON.
#[derive(Serialize)]
struct DumpedEntry {
    group: u32,
    index: u64,
    term: u64,
    kind: &'static str,
    payload_bytes: usize,
    payload_hex: String,
}

fn dump(args: &LogDumpArgs) -> Result<(), Failure> {
    let failed = |error| Failure::node("log dump", error);
    let log = StoppedLog::open(&log_dir(&args.log.dir)).map_err(failed)?;
    let wanted = |stored: &&StoredGroup| args.group.is_none_or(|group| group == stored.group.0);
    let groups: Vec<&StoredGroup> = log.groups().iter().filter(wanted).collect();
    if let (Some(group), []) = (args.group, groups.as_slice()) {
        let message =
            format!("group {group} is not in this log; `multiraft log inspect` lists them");
        let what = "log dump";
        return Err(Failure::Refused { what, message });
    }
    for stored in groups {
        let first = stored.terms.first().map(|run| run.0);
        let last = stored.terms.last().map(|run| run.1);
        let mut next = args.from.map(Index).or(first).unwrap_or(Index(1));
        let Some(to) = args.to.map(Index).or(last) else {
            continue; // it has no entries
        };
        while next <= to {
            let blocks = log.read(stored.group, next, to, DUMP_BYTES);
            let blocks = blocks.map_err(|error| Failure::node("log dump", error))?;
            for entry in blocks.iter().flat_map(Block::entries) {
                print_entry(stored.group, &entry, args.log.json)?;
                next = entry.index.next();
            }
        }
    }
    Ok(())
}

fn print_entry(group: GroupId, entry: &Entry, json: bool) -> Result<(), Failure> {
    let kind = match entry.kind {
        EntryKind::Normal => "normal",
        EntryKind::Noop => "noop",
        EntryKind::ConfChange => "conf-change",
    };
    let payload = &entry.payload;
    if json {
        return print_json(&DumpedEntry {
            group: group.0,
            index: entry.index.0,
            term: entry.term.0,
            kind,
            payload_bytes: payload.len(),
            payload_hex: format!("{payload:x}"),
        });
    }
    let shown = escape(&payload[..payload.len().min(SHOWN_BYTES)]);
    let more = if payload.len() > SHOWN_BYTES {
        "…"
    } else {
        ""
    };
    print_line(&format!(
        "group {group} index {} term {} {kind} {} bytes: {shown}{more}",
        entry.index,
        entry.term,
        payload.len()
    ))
}

pub(crate) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(report);
    print_line(&json.map_err(|source| Failure::Json {
        what: "log",
        source,
    })?)
}

fn verdict(report: &VerifyReport) -> String {
    let mut lines = vec![format!(
        "checked {} bytes: {} batches, {} entry blocks in {} segments; no batch is in {} more bytes",
        report.bytes, report.batches, report.blocks, report.segments, report.unused_bytes
    )];
    for problem in &report.problems {
        lines.push(format!("damaged: {}", place(problem)));
    }
    for problem in &report.given_up {
        lines.push(format!("given up by a repair: {}", place(problem)));
    }
    if let Some(torn) = &report.torn_tail {
        lines.push(format!(
            "torn tail, which the next start cuts off: {}",
            place(torn)
        ));
    }
    if report.problems.is_empty() {
        lines.push("ok: no damage".to_owned());
    }
    lines.join("\n")
}

pub(crate) fn place(problem: &Problem) -> String {
    let Problem {
        segment,
        offset,
        what,
        groups,
    } = problem;
    let groups = match groups.as_slice() {
        [] => String::new(),
        groups => format!(", groups {groups:?}"),
    };
    format!("segment {segment} offset {offset}: {what}{groups}")
}

fn tables(report: &Report) -> String {
    let mut segments = Table::new();
    segments.load_style(UTF8_HORIZONTAL_ONLY);
    segments.set_header([
        "SEGMENT",
        "BYTES",
        "USED",
        "LIVE",
        "BATCHES",
        "GROUPS",
        "PINNED MOST BY",
    ]);
    for s in &report.segments {
        let batches = s.batches as u64;
        let numbers = [s.file_bytes, s.used_bytes, s.live_bytes, batches].map(|n| n.to_string());
        let pin = s.pinned_by.map_or_else(String::new, |pin| {
            format!("group {}: {}", pin.group, HumanBytes(pin.bytes))
        });
        let row = std::iter::once(s.id.to_string()).chain(numbers);
        segments.add_row(row.chain([s.groups.to_string(), pin]));
    }
    let mut groups = Table::new();
    groups.load_style(UTF8_HORIZONTAL_ONLY);
    groups.set_header([
        "GROUP",
        "FIRST",
        "LAST",
        "TERM",
        "VOTE",
        "COMMIT",
        "LIVE",
        "OLDEST SEGMENT",
        "ENTRIES BY TERM",
    ]);
    for g in &report.groups {
        let runs: Vec<String> = g
            .terms
            .iter()
            .map(|(a, b, t)| format!("{a}–{b}: {t}"))
            .collect();
        let numbers = [
            u64::from(g.group),
            g.first,
            g.last,
            g.term,
            u64::from(g.vote),
            g.commit,
            g.live_bytes,
        ];
        let oldest = g
            .oldest_segment
            .map_or_else(String::new, |id| id.to_string());
        groups.add_row(
            numbers
                .map(|n| n.to_string())
                .into_iter()
                .chain([oldest, runs.join(", ")]),
        );
    }
    format!("{segments}\n\n{groups}")
}
