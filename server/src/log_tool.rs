//! Looks into the log of a stopped node.

use std::path::Path;

use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use multiraft_logdb::inspect::{Report, inspect};

use crate::cli::{Failure, LogArgs, LogCommand, LogDirArgs, print_line};

/// Does what the arguments ask for.
pub fn run(args: LogArgs) -> Result<(), Failure> {
    match args.command {
        LogCommand::Inspect(LogDirArgs { dir, json }) => {
            let report = read("log inspect", &dir)?;
            if json {
                print_json(&report)
            } else {
                print_line(&tables(&report))
            }
        }
        LogCommand::Verify(LogDirArgs { dir, json }) => {
            let report = read("log verify", &dir)?;
            if json {
                print_json(&report)
            } else {
                print_line(&verdict(&report))
            }
        }
    }
}

/// Reading a log checks every byte of it, and refuses what is damaged with segment and offset.
fn read(what: &'static str, dir: &Path) -> Result<Report, Failure> {
    inspect(dir).map_err(|error| Failure::node(what, error))
}

fn print_json(report: &Report) -> Result<(), Failure> {
    let json = serde_json::to_string(report);
    print_line(&json.map_err(|source| Failure::Json {
        what: "log",
        source,
    })?)
}

fn verdict(report: &Report) -> String {
    let batches: u64 = report.segments.iter().map(|s| s.batches).sum();
    let (segments, groups) = (report.segments.len(), report.groups.len());
    let torn = match report.torn_bytes {
        0 => String::new(),
        bytes => format!("; a torn tail of {bytes} bytes follows, which the next start cuts off"),
    };
    format!("ok: {batches} batches in {segments} segments, {groups} groups, no damage{torn}")
}

fn tables(report: &Report) -> String {
    let mut segments = Table::new();
    segments.load_style(UTF8_HORIZONTAL_ONLY);
    segments.set_header(["SEGMENT", "BYTES", "USED", "LIVE", "BATCHES"]);
    for s in &report.segments {
        let numbers = [s.bytes, s.used_bytes, s.live_bytes, s.batches].map(|n| n.to_string());
        segments.add_row(std::iter::once(format!("{:016x}", s.segment)).chain(numbers));
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
        ];
        groups.add_row(
            numbers
                .map(|n| n.to_string())
                .into_iter()
                .chain([runs.join(", ")]),
        );
    }
    format!("{segments}\n\n{groups}")
}
