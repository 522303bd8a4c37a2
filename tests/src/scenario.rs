//! Scenarios: text files of commands and what they lead to, readable by anybody who knows Raft.
//!
//! ```text
//! # A lone voter elects itself once its vote is durable.
//! add-nodes 1 voters=(1) index=3
//! ----
//! n1 role=Follower term=0 vote=0 lead=0 commit=3 applied=3 first=4 last=3 cfg="voters=(1)"
//!
//! campaign 1
//! ----
//! n1 role=Candidate term=1 vote=1 lead=0 commit=3 applied=3 first=4 last=3 cfg="voters=(1)"
//! ```
//! A command line, input lines if the command takes some, `----`, the expected text up to a blank
//! line. The text of a command is: what it delivered (`1→3 …`), answers to reads, the error's name if
//! it was refused, and the state line of each node that it changed.
//!
//! [`check`] compares, [`update`] writes the text anew, [`project`] prints every node after every
//! command, whatever the file expects.

mod arithmetic;
mod cluster;
mod commands;
mod node;
mod parse;
mod show;

use std::fmt::Write;

use self::arithmetic::Arithmetic;
use self::cluster::Cluster;
pub use self::parse::{Command, ParseError, parse};

/// Why a scenario could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file is not one.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// No such command, or not with these arguments.
    #[error("line {line}: {what}")]
    Command {
        /// Where the command starts.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// A command whose text is not the expected one.
#[derive(Debug)]
pub struct Difference {
    /// Where the command starts.
    pub line: usize,
    /// What the file expects.
    pub expected: String,
    /// What came.
    pub found: String,
}

/// The cluster and the arithmetic that a file's commands work on.
#[derive(Default)]
struct Stage {
    cluster: Cluster,
    arithmetic: Arithmetic,
}

impl Stage {
    /// Does one command; returns its text, and whether it was bare arithmetic.
    fn run(&mut self, command: &Command) -> Result<(String, bool), ScenarioError> {
        let failed = |what| ScenarioError::Command {
            line: command.line,
            what,
        };
        if let Some(text) = self.arithmetic.run(command).map_err(failed)? {
            return Ok((text, true));
        }
        let text = self.cluster.run(command).map_err(failed)?;
        Ok((text, false))
    }
}

/// Runs a file's text; returns where it differs from what it expects.
pub fn check(text: &str) -> Result<Vec<Difference>, ScenarioError> {
    let mut stage = Stage::default();
    let mut differences = Vec::new();
    for command in parse(text)? {
        let (found, _) = stage.run(&command)?;
        if found.trim_end() != command.expected.trim_end() {
            differences.push(Difference {
                line: command.line,
                expected: command.expected,
                found,
            });
        }
    }
    Ok(differences)
}

/// The file's text with all expectations as they come now.
pub fn update(text: &str) -> Result<String, ScenarioError> {
    let mut stage = Stage::default();
    let mut updated = String::new();
    for command in parse(text)? {
        let (found, _) = stage.run(&command)?;
        updated.push_str(&command.before);
        updated.push_str("----\n");
        updated.push_str(&found);
        updated.push('\n');
    }
    let length = updated.trim_end().len();
    updated.truncate(length);
    updated.push('\n');
    Ok(updated)
}

/// For every command a header, the error's name if it was refused, and all nodes' state and log.
pub fn project(text: &str) -> Result<String, (String, ScenarioError)> {
    let mut stage = Stage::default();
    let mut printed = String::new();
    let commands = parse(text).map_err(|error| (String::new(), error.into()))?;
    for command in commands {
        let (text, is_arithmetic) = match stage.run(&command) {
            Ok(done) => done,
            Err(error) => return Err((printed, error)),
        };
        writeln!(printed, "# {} {}", command.line, command.name).expect("into a string");
        if is_arithmetic {
            printed.push_str(&text);
        } else {
            printed.push_str(&stage.cluster.projection());
        }
    }
    Ok(printed)
}
