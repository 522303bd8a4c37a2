//! Why a benchmark ended without a figure.

use std::io;
use std::path::{Path, PathBuf};

/// What stopped a benchmark; whatever it was, the benchmark's own files are gone.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum BenchError {
    #[error("{} does not exist: create it on the disk that is to be measured", dir.display())]
    NoDirectory { dir: PathBuf },
    #[error("{} is not a directory", dir.display())]
    NotADirectory { dir: PathBuf },
    /// Make room, or measure another disk.
    #[error("no space in {}: {free_mib} MiB are free, the benchmark needs {needed_mib} MiB", dir.display())]
    NoSpace {
        dir: PathBuf,
        free_mib: u64,
        needed_mib: u64,
    },
    #[error("{what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Log(#[from] multiraft_logdb::Error),
    #[error(transparent)]
    Refused(#[from] multiraft_engine::traits::LogError),
    /// By a signal.
    #[error("stopped")]
    Stopped,
    /// What was written is not what is there: a bug, and no figure.
    #[error("{wrong} of {of} {what} are not as they were written")]
    Wrong {
        what: &'static str,
        wrong: u64,
        of: u64,
    },
    #[error("the child process that loads the data failed: {0}")]
    Child(std::process::ExitStatus),
    #[error("drawing: {0}")]
    Drawing(String),
}

impl BenchError {
    /// Wraps an IO error with what was being done to which file, for `map_err`.
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }

    /// The same without a file.
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
