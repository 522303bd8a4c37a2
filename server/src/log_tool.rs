//! Looks into the log of a stopped node.

use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use multiraft_logdb::{Problem, Report, VerifyReport, inspect, verify};
use serde::Serialize;

use crate::cli::{Failure, LogArgs, LogCommand, LogDirArgs, print_line};
use crate::log_repair;

/// Does what the arguments ask for.
pub fn run(args: LogArgs) -> Result<(), Failure> {
    match args.command {
        LogCommand::Inspect(LogDirArgs { dir, json }) => {
            let report = inspect(&dir).map_err(|error| Failure::node("log inspect", error))?;
            if json {
                print_json(&report)
            } else {
                print_line(&tables(&report))
            }
        }
        LogCommand::Repair(args) => log_repair::run(&args),
        LogCommand::Verify(LogDirArgs { dir, json }) => {
            let report = verify(&dir).map_err(|error| Failure::node("log verify", error))?;
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
    }
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
        "checked {} bytes: {} batches, {} entry blocks in {} segments",
        report.bytes, report.batches, report.blocks, report.segments
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
    segments.set_header(["SEGMENT", "BYTES", "USED", "LIVE", "BATCHES"]);
    for s in &report.segments {
        let batches = s.batches as u64;
        let numbers = [s.file_bytes, s.used_bytes, s.live_bytes, batches].map(|n| n.to_string());
        segments.add_row(std::iter::once(s.id.to_string()).chain(numbers));
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
