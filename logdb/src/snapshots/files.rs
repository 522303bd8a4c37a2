//! Which files there are, and every change of a name.
//!
//! ```text
//! begin ─▶ 7-90-3.snap.tmp ─ write, sync ─▶ publish: rename, sync the directory ─▶ listed
//!              │ any error, or dropped                                               │ remove_others
//!              ▼                                                                     │ set_aside
//!           deleted                                deleted, or 7-90.snap.damaged ◀───┘
//! ```
//! Invariants:
//! - What is listed is synced, has its name durably, and its two ends were right.
//! - `names` is held while final names change, `table` for moments; `names` is taken first. Neither
//!   is held while content is read or written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use multiraft_engine::planted;
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::snapshot::SnapshotError;
use multiraft_engine::types::{GroupId, Index};
use parking_lot::Mutex;

use super::format::{Flaw, Header};
use super::names::Name;
use super::read::{Opened, ReadError};
use super::write::Temporary;
use super::{Limits, SnapshotMetrics, no_room};
use crate::disk::Disk;

/// A whole snapshot.
#[derive(Clone)]
pub(super) struct Listed {
    pub(super) snapshot: Snapshot,
    /// Tells this file from a later one of the same name.
    serial: u64,
}

/// A file on its way.
struct Unfinished {
    group: GroupId,
    /// Announced, and not written yet.
    expected_bytes: u64,
    /// The group was removed meanwhile: must not be published.
    is_cancelled: bool,
}

/// What is known of the files; everything else is read from them.
#[derive(Default)]
struct Table {
    whole: BTreeMap<(GroupId, Index), Listed>,
    /// The file set aside of each group.
    damaged: BTreeMap<GroupId, Index>,
    unfinished: BTreeMap<u64, Unfinished>,
    /// Not listed, but there under a final name: neither could it be made durable nor be deleted.
    stray: BTreeSet<(GroupId, Index)>,
    next_number: u64,
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn indexes(&self, group: GroupId) -> Vec<Index> {
        let range = (group, Index::ZERO)..=(group, Index(u64::MAX));
        self.whole
            .range(range)
            .map(|((_, index), _)| *index)
            .collect()
    }
}

/// The files of all groups.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) limits: Limits,
    pub(super) metrics: SnapshotMetrics,
    names: Mutex<()>,
    table: Mutex<Table>,
}

/// Which file a reader reads: so that it can say what it found.
pub(super) struct Origin {
    files: Arc<Files>,
    group: GroupId,
    index: Index,
    serial: u64,
}

impl Origin {
    /// What a failed read means for the store.
    pub(super) fn refuse(&self, error: ReadError) -> SnapshotError {
        let (group, index) = (self.group, self.index);
        let what = match error {
            ReadError::Flaw(Flaw::Damaged(what)) => {
                self.files.set_aside(group, index, self.serial, what);
                what
            }
            ReadError::Flaw(Flaw::Newer(_)) => NEWER,
            ReadError::Io(error) => return error.into(),
        };
        SnapshotError::Damaged { group, index, what }
    }

    /// The same for who reads a stream of bytes.
    pub(super) fn refuse_read(&self, error: ReadError) -> io::Error {
        match self.refuse(error) {
            SnapshotError::Io(error) => error,
            damage => io::Error::new(io::ErrorKind::InvalidData, damage),
        }
    }
}

const NEWER: &str = "a newer program wrote it";

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, limits: Limits) -> Self {
        Self {
            disk,
            limits,
            metrics: SnapshotMetrics::default(),
            names: Mutex::new(()),
            table: Mutex::default(),
        }
    }

    /// Lists a file that is there, whole and durable.
    pub(super) fn list(&self, header: Header) {
        let mut table = self.table.lock();
        let serial = table.number();
        let place = (header.group, header.snapshot.index);
        let snapshot = header.snapshot;
        table.stray.remove(&place);
        table.whole.insert(place, Listed { snapshot, serial });
    }

    /// The newest of each group.
    pub(super) fn newest(&self) -> Vec<(GroupId, Snapshot)> {
        let table = self.table.lock();
        let all = table.whole.iter();
        let newest: BTreeMap<_, _> = all.map(|((group, _), listed)| (*group, listed)).collect();
        let newest = newest.into_iter();
        newest
            .map(|(group, listed)| (group, listed.snapshot.clone()))
            .collect()
    }

    /// All of a group, by rising index.
    pub(super) fn of(&self, group: GroupId) -> Vec<Snapshot> {
        let range = (group, Index::ZERO)..=(group, Index(u64::MAX));
        let table = self.table.lock();
        let found = table.whole.range(range);
        found.map(|(_, listed)| listed.snapshot.clone()).collect()
    }

    /// Deletes one, if it is there; its name may come back after a crash, see
    /// [`Files::remove_others`].
    pub(super) fn remove_one(&self, group: GroupId, index: Index) -> Result<(), SnapshotError> {
        let _names = self.names.lock();
        if self.table.lock().whole.contains_key(&(group, index)) {
            self.remove(Name::Whole(group, index))?;
            self.table.lock().whole.remove(&(group, index));
        }
        Ok(())
    }

    /// Opens a listed file and checks that its two ends are still what they were.
    pub(super) fn open(
        self: &Arc<Self>,
        group: GroupId,
        index: Index,
    ) -> Result<(Opened, Origin), SnapshotError> {
        let not_found = || SnapshotError::NotFound { group, index };
        let listed = self.table.lock().whole.get(&(group, index)).cloned();
        let listed = listed.ok_or_else(not_found)?;
        let origin = Origin {
            files: Arc::clone(self),
            group,
            index,
            serial: listed.serial,
        };
        let file = match self.disk.open(&Name::Whole(group, index).file_name()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.unlist(group, index, listed.serial);
                return Err(not_found());
            }
            Err(error) => return Err(origin.refuse(error.into())),
        };
        let opened = Opened::read(file).and_then(|opened| {
            let is_same = opened.header.group == group && opened.header.snapshot == listed.snapshot;
            let flaw = Flaw::Damaged("it says that it is another snapshot");
            is_same.then_some(opened).ok_or(flaw.into())
        });
        match opened {
            Ok(opened) => Ok((opened, origin)),
            Err(error) => Err(origin.refuse(error)),
        }
    }

    /// Whether the very snapshot is there, every byte of it: then it need not be made again. One
    /// that turns out to be damaged is set aside.
    pub(super) fn has_whole(self: &Arc<Self>, header: &Header) -> Result<bool, SnapshotError> {
        let opened = self.open(header.group, header.snapshot.index);
        let checked = opened.and_then(|(opened, origin)| {
            let found = opened.header.clone();
            opened.verify().map_err(|error| origin.refuse(error))?;
            Ok(found)
        });
        match checked {
            Ok(found) => check_same(&found.snapshot, header).map(|()| true),
            Err(SnapshotError::NotFound { .. } | SnapshotError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a file under a temporary name. If its length is announced, there must be room for it.
    pub(super) fn begin(
        self: &Arc<Self>,
        header: &Header,
        announced_bytes: Option<u64>,
    ) -> Result<Temporary, SnapshotError> {
        let group = header.group;
        let number = {
            let mut table = self.table.lock();
            let number = table.number();
            let unfinished = Unfinished {
                group,
                expected_bytes: announced_bytes.unwrap_or(0),
                is_cancelled: false,
            };
            table.unfinished.insert(number, unfinished);
            number
        };
        let name = Name::Temporary(group, header.snapshot.index, number).file_name();
        // Asked when it is on the list: of two that come at once, both know of each other.
        let room = announced_bytes.map_or(Ok(()), |bytes| self.check_room(bytes));
        let created = room.and_then(|()| {
            let file = self.disk.create_growing(&name);
            file.map_err(|error| no_room(error, announced_bytes.unwrap_or(0)))
        });
        match created {
            Ok(file) => Ok(Temporary::new(Arc::clone(self), number, name, file)),
            Err(error) => {
                self.forget_temporary(number);
                Err(error)
            }
        }
    }

    /// Whether all that was announced and did not come yet fits beside the reserve.
    fn check_room(&self, bytes: u64) -> Result<(), SnapshotError> {
        let free_bytes = self.disk.free_bytes()?;
        let unfinished = &self.table.lock().unfinished;
        let mut expected = unfinished.values().map(|file| file.expected_bytes);
        match expected.try_fold(self.limits.reserve_bytes, u64::checked_add) {
            Some(needed) if needed <= free_bytes => Ok(()),
            Some(_) | None => Err(SnapshotError::NoRoom { bytes }),
        }
    }

    /// Some of the announced bytes came.
    pub(super) fn on_received(&self, number: u64, bytes: u64) {
        if let Some(file) = self.table.lock().unfinished.get_mut(&number) {
            file.expected_bytes = file.expected_bytes.saturating_sub(bytes);
        }
    }

    pub(super) fn forget_temporary(&self, number: u64) {
        self.table.lock().unfinished.remove(&number);
    }

    /// Gives a whole, synced file its name, durably; or drops it, if this snapshot is there already.
    pub(super) fn publish(
        &self,
        mut temporary: Temporary,
        header: Header,
    ) -> Result<(), SnapshotError> {
        let (group, index) = (header.group, header.snapshot.index);
        temporary.check_whole()?;
        let _names = self.names.lock();
        {
            let table = self.table.lock();
            let unfinished = table.unfinished.get(&temporary.number);
            if unfinished.is_none_or(|file| file.is_cancelled) {
                return Err(SnapshotError::NotFound { group, index });
            }
            if let Some(listed) = table.whole.get(&(group, index)) {
                // It came while this one was written; whoever made it has checked it.
                return check_same(&listed.snapshot, &header);
            }
        }
        let from = temporary.name.as_deref().expect("published once");
        let name = Name::Whole(group, index).file_name();
        self.disk.rename(from, &name)?;
        temporary.name = None;
        // Without this, 1. the log forgets the entries, 2. power fails, 3. the snapshot is gone.
        let synced = if planted!("unsynced-name") {
            Ok(())
        } else {
            self.disk.sync_dir()
        };
        if let Err(error) = synced {
            // Should this fail too, then a whole and true snapshot may be found at the next start.
            if let Err(error) = self.disk.remove(&name) {
                tracing::warn!(%error, name, "a snapshot stays whose name may not be durable");
                self.table.lock().stray.insert((group, index));
            }
            return Err(error.into());
        }
        self.list(header);
        Ok(())
    }

    /// Takes a file off the list, unless it is another one by now.
    fn unlist(&self, group: GroupId, index: Index, serial: u64) -> bool {
        let whole = &mut self.table.lock().whole;
        let is_it = |listed: &Listed| listed.serial == serial;
        whole.get(&(group, index)).is_some_and(is_it) && whole.remove(&(group, index)).is_some()
    }

    /// A listed file turned out to be damaged: it does not count any more.
    fn set_aside(&self, group: GroupId, index: Index, serial: u64, what: &'static str) {
        let _names = self.names.lock();
        if self.unlist(group, index, serial) {
            self.rename_damaged(group, index, what);
        }
    }

    /// A file found at the start is damaged.
    pub(super) fn set_aside_found(&self, group: GroupId, index: Index, what: &'static str) {
        let _names = self.names.lock();
        self.rename_damaged(group, index, what);
    }

    /// Keeps it for people, in place of what was kept of this group before. Its new name need not be
    /// durable: under the old one it is found to be damaged again.
    fn rename_damaged(&self, group: GroupId, index: Index, what: &'static str) {
        self.metrics.damaged.inc();
        let (from, to) = (Name::Whole(group, index), Name::Damaged(group, index));
        let to = to.file_name();
        tracing::error!(%group, %index, what, set_aside_as = to, "a snapshot is damaged");
        match self.disk.rename(&from.file_name(), &to) {
            Ok(()) => self.keep_damaged(group, index),
            Err(error) => tracing::warn!(%error, "a damaged snapshot keeps its name"),
        }
    }

    /// The file set aside at `index` is the one to keep of its group.
    pub(super) fn keep_damaged(&self, group: GroupId, index: Index) {
        let before = self.table.lock().damaged.insert(group, index);
        if let Some(before) = before.filter(|before| *before != index) {
            let name = Name::Damaged(group, before).file_name();
            if let Err(error) = self.disk.remove(&name) {
                tracing::warn!(%error, name, "an older damaged snapshot stays");
            }
        }
    }

    /// See [`multiraft_engine::snapshot::SnapshotStore::remove_others`]. If the one to keep is not
    /// there, all others stay: who asks has not seen yet that it is damaged, and may need them.
    ///
    /// A deletion is made durable only if something newer than what is kept goes, or all. Otherwise
    /// a crash may bring a name back, and with it a whole, true and older snapshot: the newest
    /// counts, and it was durable before; the next call deletes the old one again. But of a group
    /// that is gone nothing may come back: 1. the group is removed, 2. power fails, 3. a new group of
    /// that id finds a state that it never had.
    pub(super) fn remove_others(
        &self,
        group: GroupId,
        keep: Option<Index>,
    ) -> Result<Vec<Index>, SnapshotError> {
        let _names = self.names.lock();
        let mut indexes = self.table.lock().indexes(group);
        if let Some(keep) = keep {
            let Some(at) = indexes.iter().position(|index| *index == keep) else {
                return Ok(Vec::new());
            };
            indexes.remove(at);
        }
        for index in &indexes {
            self.remove(Name::Whole(group, *index))?;
            self.table.lock().whole.remove(&(group, *index));
        }
        if keep.is_none() {
            self.forget_group(group)?;
        }
        if keep.is_none_or(|keep| indexes.last() > Some(&keep)) {
            self.disk.sync_dir()?;
        }
        Ok(indexes)
    }

    /// Nothing that is on its way will be published, and nothing stays aside or unlisted.
    fn forget_group(&self, group: GroupId) -> io::Result<()> {
        let (damaged, stray) = {
            let mut table = self.table.lock();
            let files = table.unfinished.values_mut();
            for file in files.filter(|file| file.group == group) {
                file.is_cancelled = true;
            }
            let stray = table.stray.iter().copied();
            let stray: Vec<_> = stray.filter(|(of, _)| *of == group).collect();
            (table.damaged.get(&group).copied(), stray)
        };
        for (group, index) in stray {
            self.remove(Name::Whole(group, index))?;
            self.table.lock().stray.remove(&(group, index));
        }
        if let Some(index) = damaged {
            self.remove(Name::Damaged(group, index))?;
            self.table.lock().damaged.remove(&group);
        }
        Ok(())
    }

    /// Deletes a file; one that is gone already is as well.
    fn remove(&self, name: Name) -> io::Result<()> {
        match self.disk.remove(&name.file_name()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Two snapshots of a group at one index are the same, or one of them is not what was agreed on.
fn check_same(found: &Snapshot, header: &Header) -> Result<(), SnapshotError> {
    if *found == header.snapshot {
        return Ok(());
    }
    Err(SnapshotError::Damaged {
        group: header.group,
        index: header.snapshot.index,
        what: "it is not the snapshot that is stored at this index",
    })
}
