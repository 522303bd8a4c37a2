//! Gives up the groups that the damaged log of a stopped node has lost something of.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use multiraft_engine::description::Description;
use multiraft_engine::types::GroupId;
use multiraft_logdb::{RepairPlan, plan_repair, repair};
use prost_types::Timestamp;
use serde::Serialize;

use crate::cli::{Failure, Quarantine, RepairArgs, print_line};
use crate::log_tool::{log_dir, place, print_json};

const WHAT: &str = "log repair";

/// What was found, and what was done.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    plan: RepairPlan,
    /// Where the damaged segments were copied to; none: nothing was done.
    copies: Option<PathBuf>,
    /// The groups of which nobody is known here any more: the node does not find them by itself.
    strangers: Vec<u32>,
}

/// Does what the arguments ask for.
///
/// # Errors
/// What failed, ready to be reported.
pub fn run(args: &RepairArgs) -> Result<(), Failure> {
    let dir = &log_dir(&args.log.dir);
    let outcome = match &args.quarantine {
        None => Outcome {
            plan: plan_repair(dir).map_err(|error| Failure::node(WHAT, error))?,
            copies: None,
            strangers: Vec::new(),
        },
        Some(Quarantine(groups)) => give_up(dir, groups)?,
    };
    if args.log.json {
        print_json(&outcome)
    } else {
        print_line(&text(dir, &outcome))
    }
}

fn give_up(dir: &Path, groups: &BTreeSet<u32>) -> Result<Outcome, Failure> {
    let copies = copies_beside(dir)?;
    let strangers = RefCell::new(Vec::new());
    let describe = |group: GroupId, last: Option<&[u8]>| {
        let description = Description::lost(last);
        if description.membership.members.is_empty() {
            strangers.borrow_mut().push(group.0);
        }
        description.encode()
    };
    let named = groups.iter().map(|&group| GroupId(group)).collect();
    let plan = repair(dir, &copies, &named, &describe);
    let plan = plan.map_err(|error| Failure::node(WHAT, error))?;
    let is_done = !plan.problems.is_empty();
    Ok(Outcome {
        plan,
        copies: is_done.then_some(copies),
        strangers: strangers.into_inner(),
    })
}

fn copies_beside(dir: &Path) -> Result<PathBuf, Failure> {
    let log = dir.canonicalize().map_err(|source| Failure::File {
        path: dir.to_owned(),
        source,
    })?;
    let now = Timestamp::from(SystemTime::now()).to_string();
    let name = format!("quarantine-{}", now.replace(':', ""));
    Ok(log.parent().unwrap_or(&log).join(name))
}

fn text(dir: &Path, outcome: &Outcome) -> String {
    let Outcome {
        plan,
        copies,
        strangers,
    } = outcome;
    if plan.problems.is_empty() {
        return "nothing to repair: the log has no damage that would stop a start".to_owned();
    }
    let mut lines: Vec<String> = plan.problems.iter().map(place).collect();
    lines.push(match plan.hurt.as_slice() {
        [] => "no group has lost anything".to_owned(),
        hurt => format!("may have lost something: {}", groups(hurt)),
    });
    lines.push(format!("whole: {}", groups(&plan.whole)));
    if let Some(copies) = copies {
        let files: Vec<_> = plan.segments.iter().map(|s| s.file_name()).collect();
        let copies = copies.display();
        lines.push(format!("copied to {copies}: {}", files.join(", ")));
        lines.push(
            "repaired: start the node. The groups that were given up show as joining until their other \
             members, who must be a majority without this node, have taken it out and in again"
                .to_owned(),
        );
        for group in strangers {
            lines.push(format!(
                "group {group}: no member is known here; when the node runs: \
                 multiraft add --group {group} --new THIS-NODE --endpoint A-MEMBER"
            ));
        }
        return lines.join("\n");
    }
    if plan.may_hide_groups {
        lines.push(
            "what is damaged may have been all that this log had of some group: if `multiraft status` of \
             other nodes shows groups of this node that are not listed here, name them too"
                .to_owned(),
        );
    }
    let named = match plan.hurt.as_slice() {
        [] => "none".to_owned(),
        hurt => list(hurt, ","),
    };
    lines.push(format!(
        "nothing was changed; to start without what may be lost:\n  multiraft log repair {} --quarantine {named}",
        dir.display()
    ));
    lines.join("\n")
}

fn groups(ids: &[u32]) -> String {
    match ids {
        [] => "no group".to_owned(),
        [id] => format!("group {id}"),
        ids => format!("{} groups: {}", ids.len(), list(ids, ", ")),
    }
}

fn list(ids: &[u32], between: &str) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(between)
}
