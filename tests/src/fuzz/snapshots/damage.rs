//! A file of a snapshot that does not hold any more what was written to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use multiraft_engine::snapshot::{SnapshotError, SnapshotStore};
use multiraft_engine::types::Index;
use multiraft_logdb::SnapshotDir;
use multiraft_logdb::sim::SimDisk;
use multiraft_transport::snapshot::Receiver;

use super::genuine::{
    GENUINE, INCARNATION, Place, Sent, bytes_of, drain, genuine_at, node, parts, save, send,
};
use super::{number, place};
use crate::sim::transfers::limits;

/// The snapshot that is damaged, and the one before it.
const NEWEST: Index = Index(3);
const OLDER: Index = Index(2);
/// Rounds in which every genuine file passes.
const ROUNDS: usize = 100;

/// Damages the newest snapshot of a group, while the store is open or before it is, and then uses
/// it: every use refuses it, and the older snapshot counts again.
pub fn run(data: &mut &[u8]) {
    let how = number(data);
    let group = GENUINE[usize::from(how) % GENUINE.len()].offer.group;
    let disk = SimDisk::new();
    let mut store = open(&disk);
    for index in [OLDER, NEWEST] {
        save(&store, (group, index)).expect("a disk without faults");
    }
    let name = format!("{group}-{NEWEST}.snap");
    let before = disk.bytes(&name);
    let mut bytes = before.clone();
    let use_of = number(data);
    while data.has_remaining() {
        damage(&mut bytes, data);
    }
    disk.set_bytes(&name, &bytes);
    if how & 0x80 != 0 {
        store = open(&disk);
    }
    let case = Case {
        disk: &disk,
        place: (group, NEWEST),
        is_whole: bytes == before,
    };
    case.use_it(&store, use_of);
    drop(store);
    case.check_others(&open(&disk));
}

fn open(disk: &Arc<SimDisk>) -> Arc<SnapshotDir> {
    SnapshotDir::open(Arc::<SimDisk>::clone(disk), INCARNATION).expect("a disk that works")
}

struct Case<'a> {
    disk: &'a Arc<SimDisk>,
    place: Place,
    /// The damage changed nothing in the end.
    is_whole: bool,
}

impl Case<'_> {
    /// Uses it in one way, and then verifies it.
    fn use_it(&self, store: &Arc<SnapshotDir>, way: u8) {
        match way % 4 {
            0 => {}
            1 => self.load(store),
            2 => self.send(store),
            _ => {
                save(store, self.place).expect("a damaged one is made anew");
                let (group, index) = self.place;
                let file = store.open(group, index).expect("just saved");
                assert!(bytes_of(&*file) == self.genuine_bytes());
                store.verify(group, index).expect("just saved");
                return;
            }
        }
        let (group, index) = self.place;
        let verified = store.verify(group, index);
        self.check_result(&verified);
        self.check_others(store);
    }

    fn genuine_bytes(&self) -> &[u8] {
        &genuine_at(self.place).expect("one of them").file
    }

    fn check_result<T>(&self, result: &Result<T, SnapshotError>) {
        match result {
            Ok(_) => assert!(self.is_whole, "damage is not noticed"),
            Err(SnapshotError::Damaged { .. } | SnapshotError::NotFound { .. }) => {
                assert!(!self.is_whole, "whole, and refused");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What comes out of it before it is refused was written.
    fn load(&self, store: &SnapshotDir) {
        let (group, index) = self.place;
        let mut reader = match store.load(group, index) {
            Ok(reader) => reader,
            refused => return self.check_result(&refused),
        };
        let (found, result) = drain(&mut *reader);
        assert_eq!(result.is_ok(), self.is_whole, "{result:?}");
        let parts = parts(self.place);
        let is_last = |at| at + 1 == found.len();
        for (at, ((found_name, found), (name, bytes))) in found.iter().zip(&parts).enumerate() {
            assert_eq!(found_name, name);
            let is_right = if is_last(at) {
                bytes.starts_with(found)
            } else {
                bytes == found
            };
            assert!(is_right, "bytes come out that were never written");
        }
        assert!(found.len() <= parts.len(), "a file that was never written");
        assert!(
            !self.is_whole || found.len() == parts.len(),
            "a file is missing"
        );
    }

    /// A peer that is sent the file does not take it for a snapshot.
    fn send(&self, store: &SnapshotDir) {
        let (group, index) = self.place;
        let file = match store.open(group, index) {
            Ok(file) => file,
            refused => return self.check_result(&refused),
        };
        let mut offer = genuine_at(self.place).expect("one of them").offer.clone();
        (offer.bytes, offer.checksum) = (file.bytes(), file.checksum());
        let peers = open(&SimDisk::new());
        let shared: Arc<dyn SnapshotStore> = Arc::<SnapshotDir>::clone(&peers);
        let receiver = Receiver::new(shared, &limits());
        let (sent, _) = send(file, &offer, node(1), &receiver, Duration::ZERO, ROUNDS);
        assert_eq!(sent == Sent::Completed, self.is_whole, "{sent:?}");
        assert_eq!(peers.newest().is_empty(), !self.is_whole);
    }

    /// Nothing else is touched; what is damaged is not listed, unless nobody has read it yet.
    fn check_others(&self, store: &SnapshotDir) {
        let (group, index) = self.place;
        store.verify(group, OLDER).expect("nobody touched it");
        let listed: Vec<Index> = store
            .of(group)
            .iter()
            .map(|snapshot| snapshot.index)
            .collect();
        if store.verify(group, index).is_ok() {
            let file = store.open(group, index).expect("verified");
            assert!(
                bytes_of(&*file) == self.genuine_bytes(),
                "damage is not noticed"
            );
            assert_eq!(listed, [OLDER, index]);
        } else {
            let listed = store.of(group);
            assert!(
                listed.iter().all(|snapshot| snapshot.index == OLDER),
                "{listed:?}"
            );
            let names = self.disk.names();
            let is_aside = |name: &String| name.ends_with(".snap.damaged");
            assert!(names.iter().any(is_aside), "it is not kept: {names:?}");
        }
    }
}

/// One thing happens to the bytes of a file.
fn damage(bytes: &mut Vec<u8>, data: &mut &[u8]) {
    let kind = number(data);
    if bytes.is_empty() {
        return bytes.push(kind);
    }
    let at = place(data, bytes.len());
    match kind % 10 {
        0 => bytes[at] ^= 1_u8 << (number(data) % 8),
        1 => bytes.truncate(at),
        2 => bytes.extend_from_slice(&take(data)),
        3 => {
            let new = take(data);
            let end = bytes.len().min(at + new.len());
            bytes[at..end].copy_from_slice(&new[..end - at]);
        }
        4 => {
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill(0);
        }
        5 => {
            let other = place(data, bytes.len());
            swap_sectors(bytes, at, other);
        }
        6 => {
            let new = take(data);
            bytes.splice(at..at, new);
        }
        7 => {
            let end = bytes.len().min(at + usize::from(number(data)));
            bytes.drain(at..end);
        }
        8 => {
            let other = &GENUINE[usize::from(number(data)) % GENUINE.len()].file;
            let from = at.min(other.len());
            bytes.truncate(from);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = bytes.len().min(at + usize::from(number(data)));
            bytes.extend_from_within(at..end);
        }
    }
}

fn swap_sectors(bytes: &mut [u8], one: usize, other: usize) {
    const SECTOR: usize = 64;
    let (one, other) = (
        one.min(other) / SECTOR * SECTOR,
        one.max(other) / SECTOR * SECTOR,
    );
    if one < other && other + SECTOR <= bytes.len() {
        let (left, right) = bytes.split_at_mut(other);
        left[one..one + SECTOR].swap_with_slice(&mut right[..SECTOR]);
    }
}

/// A length and so many bytes, or what is left.
fn take(data: &mut &[u8]) -> Vec<u8> {
    let length = usize::from(number(data)).min(data.len());
    data.copy_to_bytes(length).to_vec()
}
