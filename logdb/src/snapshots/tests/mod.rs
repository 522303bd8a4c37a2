//! The files of snapshots over a simulated disk that loses, tears, fills up and fails, and over the
//! real one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bytes;
mod crash;
mod directory;
mod faults;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::snapshot::{
    SnapshotError, SnapshotIn, SnapshotOut, SnapshotStore, SnapshotView,
};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

use super::format::{CHUNK_HEAD_BYTES, HEADER_BYTES, TRAILER_BYTES};
use super::names::Name;
use super::{Limits, SnapshotDir};
use crate::Error;
use crate::disk::Disk;
use crate::sim::SimDisk;

const INCARNATION: u64 = 0x1234_5678;
const GROUP: GroupId = GroupId(7);

/// Small, so that a small file has many chunks and many syncs.
const SMALL: Limits = Limits {
    reserve_bytes: 1000,
    chunk_bytes: 50,
    sync_bytes: 200,
};

fn open(disk: &Arc<SimDisk>) -> Result<Arc<SnapshotDir>, Error> {
    SnapshotDir::open_with(Arc::<SimDisk>::clone(disk), INCARNATION, SMALL)
}

fn snapshot(index: u64) -> Snapshot {
    let member = |port| Member {
        role: MemberRole::Voter,
        address: PeerAddress {
            host: "n".to_owned(),
            port,
        },
    };
    let members = [(1, 5001), (2, 5002)];
    let members = members.map(|(id, port)| (NodeId::new(id).unwrap(), member(port)));
    Snapshot {
        index: Index(index),
        term: Term(index / 10 + 1),
        membership: Membership {
            index: Index(index / 2),
            ..Membership::new(BTreeMap::from(members))
        },
    }
}

/// The state, which has no name, and the files beside it.
type Parts = Vec<(String, Vec<u8>)>;

/// Parts of these lengths whose bytes tell the parts and their places apart.
fn parts(seed: u64, state_bytes: usize, files: &[(&str, usize)]) -> Parts {
    let all = [("", state_bytes)].into_iter().chain(files.iter().copied());
    let numbered = all.enumerate().map(|(number, (name, length))| {
        let start = seed * 31 + number as u64 * 7;
        let bytes = (0..length as u64).map(|at| (start + at + at / 251).to_le_bytes()[0]);
        (name.to_owned(), bytes.collect())
    });
    numbered.collect()
}

/// A state that writes its parts, in pieces of a length of its own.
struct View {
    parts: Parts,
    piece_bytes: usize,
}

impl View {
    fn new(parts: &Parts) -> Self {
        Self {
            parts: parts.clone(),
            piece_bytes: 37,
        }
    }
}

impl SnapshotView for View {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        for (number, (name, bytes)) in self.parts.iter().enumerate() {
            if 0 < number {
                out.begin_file(name)?;
            }
            for piece in bytes.chunks(self.piece_bytes) {
                out.write_all(piece)?;
            }
        }
        out.flush()
    }
}

/// A state that does what a test wants.
struct With<F>(F);

impl<F: FnMut(&mut dyn SnapshotOut) -> io::Result<()> + Send> SnapshotView for With<F> {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        (self.0)(out)
    }
}

fn save(dir: &SnapshotDir, group: GroupId, index: u64, parts: &Parts) -> Result<(), SnapshotError> {
    dir.save(group, &snapshot(index), &mut View::new(parts))
}

/// Reads to the end; on an error also what came before it.
fn drain(from: &mut dyn SnapshotIn) -> (Parts, io::Result<()>) {
    let mut parts = vec![(String::new(), Vec::new())];
    loop {
        let part = &mut parts.last_mut().unwrap().1;
        if let Err(error) = from.read_to_end(part) {
            return (parts, Err(error));
        }
        match from.next_file() {
            Ok(Some(name)) => parts.push((name, Vec::new())),
            Ok(None) => return (parts, Ok(())),
            Err(error) => return (parts, Err(error)),
        }
    }
}

fn load(dir: &SnapshotDir, group: GroupId, index: u64) -> Parts {
    let (parts, result) = drain(&mut *dir.load(group, Index(index)).unwrap());
    result.unwrap();
    parts
}

/// Group and index of the newest ones.
fn newest(dir: &SnapshotDir) -> Vec<(u32, u64)> {
    let newest = dir.newest().into_iter();
    newest
        .map(|(group, snapshot)| (group.0, snapshot.index.0))
        .collect()
}

fn name_of(group: GroupId, index: u64) -> String {
    Name::Whole(group, Index(index)).file_name()
}

/// The bytes of the file that a state makes.
fn file_of(index: u64, parts: &Parts) -> Vec<u8> {
    let disk = SimDisk::new();
    save(&open(&disk).unwrap(), GROUP, index, parts).unwrap();
    disk.bytes(&name_of(GROUP, index))
}

/// Puts bytes under a name, durably.
fn put(disk: &SimDisk, name: &str, bytes: &[u8]) {
    let file = disk.create_growing(name).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir().unwrap();
}

/// Receives a file in pieces.
fn receive(
    dir: &SnapshotDir,
    announced: &Snapshot,
    bytes: &[u8],
    checksum: u32,
) -> Result<(), SnapshotError> {
    let mut incoming = dir.receive(GROUP, announced, bytes.len() as u64, checksum)?;
    for piece in bytes.chunks(90) {
        incoming.append(piece)?;
    }
    assert_eq!(incoming.written(), bytes.len() as u64);
    incoming.finish()
}

/// Where each chunk of a file lies, and at last the trailer.
fn chunk_places(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = HEADER_BYTES + number(HEADER_BYTES - 8);
    let mut places = Vec::new();
    while at < bytes.len() {
        let end = at + CHUNK_HEAD_BYTES + number(at);
        places.push(at..end);
        at = end;
    }
    assert_eq!(places.last().unwrap().len(), TRAILER_BYTES);
    places
}

/// Nothing is left of what was not finished.
fn assert_no_temporaries(disk: &SimDisk) {
    let names = disk.names();
    assert!(names.iter().all(|name| !name.contains("tmp")), "{names:?}");
}
