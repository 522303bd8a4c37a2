//! How a verb fails: the text, what to try, the exit code.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::output::escape;
use crate::config::ConfigError;

/// Why a verb did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Failure {
    /// The command line is wrong in a way that only shows late.
    #[error("{message}")]
    Usage { message: String },
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    #[error("connect to {endpoint} (UNAVAILABLE): {}", root_cause(source))]
    Connect {
        endpoint: String,
        source: tonic::transport::Error,
    },
    /// The node said no.
    #[error("{what} at {endpoint} ({}): {}", code_name(status.code()), status_text(status))]
    Status {
        what: &'static str,
        endpoint: String,
        status: Box<Status>,
    },
    #[error("{what} at {endpoint} (DEADLINE_EXCEEDED): no answer within {timeout:?}")]
    Timeout {
        what: &'static str,
        endpoint: String,
        timeout: Duration,
    },
    #[error("get (NOT_FOUND): there is no key {key} in group {group}")]
    NoSuchKey { key: String, group: u32 },
    /// The node sent what has no JSON form, such as a time before the year 1.
    #[error("{what} (DATA_LOSS): the answer has no JSON form: {source}")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
    /// Some of it was done.
    #[error("{what}: {left}")]
    Incomplete { what: &'static str, left: String },
    /// Nothing was done.
    #[error("{what}: {message}")]
    Refused { what: &'static str, message: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("log verify: {problems} places are damaged")]
    LogDamaged { problems: usize },
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A node in this process, or its files.
    #[error("{what}: {}", chain(source.as_ref()))]
    Node {
        what: &'static str,
        source: Box<dyn Error + Send + Sync>,
    },
}

impl Failure {
    /// A failure of a node in this process.
    pub fn node(what: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Node {
            what,
            source: source.into(),
        }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Config(_) => 2,
            _ if self.is_closed_pipe() => 0,
            _ => 1,
        }
    }

    /// The reader of our output has gone, as in `multiraft range | head`: it has all it wanted.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Writes the text and the advice to standard error.
    pub fn report(&self) {
        if self.is_closed_pipe() {
            return;
        }
        let advice = self
            .advice()
            .map(|advice| format!("\n  try: {advice}"))
            .unwrap_or_default();
        // There is nowhere left to tell that standard error is closed.
        writeln!(io::stderr(), "error: {self}{advice}").ok();
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } => Some(
                "check that the node runs and that --endpoint is its API address (the nodes of \
                 `multiraft dev` begin at 127.0.0.1:7401)",
            ),
            Self::Timeout { .. } => Some(advice_for(Code::DeadlineExceeded)),
            Self::Status { status, .. } => {
                Some(advice_for(status.code())).filter(|advice| !advice.is_empty())
            }
            Self::Usage { .. } => Some("see `multiraft help`"),
            Self::NoSuchKey { .. } => Some("list the keys with `multiraft range --keys-only`"),
            Self::LogDamaged { .. } => Some(
                "a node may not start on this log, or the named groups stand still there; keep the \
                 directory, it may hold the last copy of what they need, and look at \
                 `multiraft log repair`",
            ),
            Self::Incomplete { .. } => Some("do what the lines above say, then repeat the command"),
            Self::Config(_)
            | Self::Json { .. }
            | Self::Output(_)
            | Self::Refused { .. }
            | Self::File { .. }
            | Self::Node { .. } => None,
        }
    }
}

/// What to try after an answer with this code; empty if there is nothing to say.
fn advice_for(code: Code) -> &'static str {
    match code {
        Code::Unavailable => {
            "look at `multiraft status`: are most members of the group running and connected?"
        }
        Code::DeadlineExceeded => {
            "try again, or raise --timeout; `multiraft status` shows whether the group has a leader"
        }
        Code::NotFound => "list the groups of this node with `multiraft status`",
        Code::AlreadyExists => {
            "compare with `multiraft status`; members are added with `multiraft join`"
        }
        Code::InvalidArgument => "see the verb's --help",
        Code::ResourceExhausted => {
            "the node is busy or its disk is full: wait or make room, then try again"
        }
        Code::Unimplemented => "compare the versions: `multiraft status`, `multiraft --version`",
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => "",
    }
}

/// The code's name in the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The status's message, and the cause if the call did not even reach the node.
fn status_text(status: &Status) -> String {
    let message = escape(status.message().as_bytes());
    match status.source() {
        Some(source) => format!("{message}: {}", root_cause(source)),
        None => message,
    }
}

/// The error that all others follow from.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The error and all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text = format!("{text}: {source_text}");
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_what_failed_the_code_and_the_message() {
        let status = Box::new(Status::not_found("group 7 is not here"));
        let failure = Failure::Status {
            what: "put",
            endpoint: "a:1".to_owned(),
            status,
        };
        assert_eq!(
            failure.to_string(),
            "put at a:1 (NOT_FOUND): group 7 is not here"
        );
        assert!(
            failure
                .advice()
                .is_some_and(|advice| advice.contains("multiraft status"))
        );
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn a_closed_pipe_is_no_failure_but_a_full_disk_is() {
        let closed = Failure::Output(io::ErrorKind::BrokenPipe.into());
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert_eq!((closed.exit_code(), full.exit_code()), (0, 1));
    }

    #[test]
    fn a_wrong_command_line_or_configuration_is_code_2() {
        assert_eq!(
            Failure::Usage {
                message: String::new()
            }
            .exit_code(),
            2
        );
        assert_eq!(Failure::Config(ConfigError::NodeZero).exit_code(), 2);
    }
}
