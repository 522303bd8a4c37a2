//! Runs scenario files against the real Raft core.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use multiraft_tests::scenario;

/// Runs scenarios: text files of commands to Raft nodes and of what they lead to.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compares what happens with what the files expect. Exit code 1 if they differ, 2 if a file
    /// cannot be run.
    Run {
        /// Writes what happens into the files instead.
        #[arg(long)]
        update: bool,
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Prints every node's state and log after every command, whatever the files expect. Exit code
    /// 2 for an unknown command or a file that does not parse.
    Project {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// How it went; the worst of all files is the exit code.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Verdict {
    Good = 0,
    Differs = 1,
    Broken = 2,
}

type Act = fn(&Path) -> Result<Verdict, String>;

fn main() -> ExitCode {
    let (files, act): (_, Act) = match Arguments::parse().verb {
        Verb::Run {
            update: false,
            files,
        } => (files, check),
        Verb::Run {
            update: true,
            files,
        } => (files, update),
        Verb::Project { files } => (files, project),
    };
    let mut worst = Verdict::Good;
    for file in files {
        let verdict = act(&file).unwrap_or_else(|error| {
            eprintln!("{}: {error}", file.display());
            Verdict::Broken
        });
        worst = worst.max(verdict);
    }
    ExitCode::from(worst as u8)
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| error.to_string())
}

fn check(file: &Path) -> Result<Verdict, String> {
    let differences = scenario::check(&read(file)?).map_err(|error| error.to_string())?;
    for difference in &differences {
        println!(
            "{}:{}: expected\n{}found\n{}",
            file.display(),
            difference.line,
            difference.expected,
            difference.found
        );
    }
    Ok(if differences.is_empty() {
        Verdict::Good
    } else {
        Verdict::Differs
    })
}

fn update(file: &Path) -> Result<Verdict, String> {
    let updated = scenario::update(&read(file)?).map_err(|error| error.to_string())?;
    std::fs::write(file, updated).map_err(|error| error.to_string())?;
    Ok(Verdict::Good)
}

fn project(file: &Path) -> Result<Verdict, String> {
    let (printed, error) = match scenario::project(&read(file)?) {
        Ok(printed) => (printed, None),
        Err((printed, error)) => (printed, Some(error)),
    };
    let written = std::io::stdout().write_all(printed.as_bytes());
    written.map_err(|error| error.to_string())?;
    error.map_or(Ok(Verdict::Good), |error| Err(error.to_string()))
}
