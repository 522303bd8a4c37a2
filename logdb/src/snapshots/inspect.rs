//! Looking at the snapshots of a node. Changes nothing, and may be done while the node runs.

use std::io;
use std::path::Path;

use multiraft_engine::types::{GroupId, Index};
use serde::Serialize;

use super::format::{Flaw, SNAPSHOT_FORMAT_VERSION};
use super::is_no_file;
use super::names::Name;
use super::read::{Opened, ReadError};
use crate::disk::{Access, Disk, FsDisk};
use crate::error::Error;

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotReport {
    /// The file.
    pub name: String,
    /// The group, as the name says.
    pub group: u32,
    /// The last entry that it covers, as the name says.
    pub index: u64,
    /// The term of that entry; `None` if the file does not say it any more.
    pub term: Option<u64>,
    /// Length of the file.
    pub bytes: u64,
    /// What is wrong with it; `None`: every byte of it is right.
    pub problem: Option<String>,
}

/// Lists the snapshots in a directory, also those set aside, by group and index. Reads every byte.
///
/// # Errors
/// [`Error::Io`]; damage is in the reports.
pub fn inspect_snapshots(dir: &Path) -> Result<Vec<SnapshotReport>, Error> {
    let disk = FsDisk::new(dir, Access::ReadOnly);
    let names = disk.list().map_err(Error::io("listing snapshots"))?;
    let mut reports = Vec::new();
    for name in names {
        let (group, index) = match Name::from_file_name(&name) {
            Some(Name::Whole(group, index) | Name::Damaged(group, index)) => (group, index),
            Some(Name::Temporary(..)) | None => continue,
        };
        match inspect_file(&disk, name, group, index) {
            Ok(report) => reports.push(report),
            // Or deleted meanwhile by a running node.
            Err(error) if is_no_file(error.kind()) => {}
            Err(error) => return Err(Error::io("reading a snapshot")(error)),
        }
    }
    reports.sort_unstable_by(|a, b| (a.group, a.index, &a.name).cmp(&(b.group, b.index, &b.name)));
    Ok(reports)
}

fn inspect_file(
    disk: &FsDisk,
    name: String,
    group: GroupId,
    index: Index,
) -> io::Result<SnapshotReport> {
    let file = disk.open(&name)?;
    let mut report = SnapshotReport {
        name,
        group: group.0,
        index: index.0,
        term: None,
        bytes: file.len()?,
        problem: None,
    };
    let checked = Opened::read(file).and_then(|opened| {
        report.term = Some(opened.header.snapshot.term.0);
        if (opened.header.group, opened.header.snapshot.index) != (group, index) {
            return Err(Flaw::Damaged("it says that it is another snapshot").into());
        }
        opened.verify()
    });
    report.problem = match checked {
        Ok(()) => None,
        Err(ReadError::Flaw(Flaw::Damaged(what))) => Some(what.to_owned()),
        Err(ReadError::Flaw(Flaw::Newer(found))) => Some(format!(
            "format {found}, this program knows up to {SNAPSHOT_FORMAT_VERSION}"
        )),
        Err(ReadError::Io(error)) => return Err(error),
    };
    Ok(report)
}
