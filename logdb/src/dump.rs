//! The entries in a stopped node's log, for people who want to see them. Changes nothing.

use std::path::Path;
use std::sync::Arc;

use multiraft_engine::block::Block;
use multiraft_engine::traits::{LogError, StoredGroup};
use multiraft_engine::types::{GroupId, Index};

use crate::directory::{self, DirectoryLock};
use crate::disk::{Access, FsDisk};
use crate::error::Error;
use crate::inspect::scanner;
use crate::state::{self, State};

/// A log that nobody writes. Holds the directory's lock: no node starts on it meanwhile.
pub struct StoppedLog {
    state: State,
    _lock: Arc<DirectoryLock>,
}

impl StoppedLog {
    /// Reads a log as the start of its node would.
    ///
    /// # Errors
    /// [`Error::Locked`] while a node runs; [`Error::Corrupt`] and the like as the node's start would.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (lock, _, incarnation) = directory::open_existing(dir)?;
        let disk = FsDisk::new(dir, Access::ReadOnly);
        let mut scan = scanner(&disk, incarnation).scan()?;
        let lock = Arc::new(lock);
        scan.table.guard_maps(Arc::<DirectoryLock>::clone(&lock));
        Ok(Self {
            state: State::new(scan.index, scan.table, scan.last_sequence, scan.oldest),
            _lock: lock,
        })
    }

    /// The groups that it holds, in order of their ids.
    pub fn groups(&self) -> &[StoredGroup] {
        &self.state.stored
    }

    /// Blocks from `first` on, cut exactly at `first` and `last`; at least one, then no more than
    /// `max_bytes`.
    ///
    /// # Errors
    /// As [`Log::read`](multiraft_engine::traits::Log::read).
    pub fn read(
        &self,
        group: GroupId,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<Block>, LogError> {
        let found = self.state.find(group, first, last, max_bytes)?;
        state::load_all(group, &found)
    }
}
