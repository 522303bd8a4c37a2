//! The receiving end of snapshots over the real store, on a disk that fails and loses power.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Buf;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::SnapshotStore;
use multiraft_engine::types::{GroupId, Index};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{SNAPSHOT_RESERVE_BYTES, SnapshotDir};
use multiraft_transport::snapshot::hostile::Hostile;

use super::genuine::{
    GENUINE, GROUPS, INCARNATION, INDEXES, LEADER, Place, Sent, bytes_of, drain, genuine_at, node,
    parts, place_of, places, save, send,
};
use super::number;

/// Memory that one step of a hostile sender may cost: more than the longest genuine file and what is
/// made of it, less than any limit on a length that a peer may claim.
const STEP_MEMORY_BYTES: u64 = 128 << 10;
/// Rounds in which every genuine file passes.
const ROUNDS: usize = 100;
/// An honest sender that finds the rest of a hostile one's transfer is refused once.
const TRIES: usize = 2;
const FREE_BYTES: u64 = 1 << 30;
/// The node that the hostile connections come from.
const HOSTILE: u32 = 1;
/// Another one.
const HONEST: u32 = 3;

/// Nothing counts as a snapshot but the bytes of a genuine one; what was confirmed survives power
/// failures; and whatever was said, an honest sender gets through after it.
pub fn run(data: &mut &[u8]) {
    let end = number(data);
    let mut bench = Bench::open(SimDisk::new());
    while data.has_remaining() {
        match bench.step(data) {
            Then::GoOn => bench.check_listed(),
            Then::Crash(seed) => bench = bench.crash(seed),
        }
    }
    bench.end(end);
}

/// What follows a step.
enum Then {
    GoOn,
    /// Power fails, in this way.
    Crash(u64),
}

struct Bench {
    disk: Arc<SimDisk>,
    store: Arc<SnapshotDir>,
    hostile: Hostile,
    /// Whole, durable, and not removed since.
    confirmed: BTreeSet<Place>,
    /// Not confirmed, but perhaps there after a crash.
    possible: BTreeSet<Place>,
    /// The disk failed since it was opened, or is about to.
    is_faulty: bool,
}

impl Bench {
    /// What is on the disk counts as confirmed.
    fn open(disk: Arc<SimDisk>) -> Self {
        let opened = SnapshotDir::open(Arc::<SimDisk>::clone(&disk), INCARNATION);
        let store = opened.expect("a disk that works");
        let shared: Arc<dyn SnapshotStore> = Arc::<SnapshotDir>::clone(&store);
        let confirmed = listed(&store);
        Self {
            disk,
            store,
            hostile: Hostile::new(&shared, GENUINE.clone()),
            confirmed,
            possible: BTreeSet::new(),
            is_faulty: false,
        }
    }

    fn step(&mut self, data: &mut &[u8]) -> Then {
        match number(data) % 16 {
            0 => self.send(data),
            1 => self.save(data),
            2 => self.remove(data),
            3 => self.remove_others(data),
            4 => self.fail(data),
            5 => return Then::Crash(number(data).into()),
            _ if data.has_remaining() => self.be_hostile(data),
            _ => {}
        }
        Then::GoOn
    }

    fn be_hostile(&mut self, data: &mut &[u8]) {
        let mut arrived = Vec::new();
        let memory = allocation_counter::measure(|| arrived = self.hostile.step(data));
        assert!(
            memory.bytes_max <= STEP_MEMORY_BYTES,
            "{} bytes of memory for a few that came",
            memory.bytes_max
        );
        self.confirmed.extend(arrived.iter().map(place_in));
        self.expect_leftovers(places());
    }

    /// An honest sender of another node; its connection breaks sooner or later.
    fn send(&mut self, data: &mut &[u8]) {
        let genuine = &GENUINE[usize::from(number(data)) % GENUINE.len()];
        let rounds = usize::from(number(data)) % 16;
        let (_, arrived) = self.send_genuine(place_of(genuine), HONEST, rounds);
        self.confirmed.extend(arrived.iter().map(place_in));
        self.expect_leftovers([place_of(genuine)]);
    }

    fn send_genuine(&self, place: Place, from: u32, rounds: usize) -> (Sent, Vec<Envelope>) {
        let genuine = genuine_at(place).expect("one of them");
        let file = LEADER.open(place.0, place.1).expect("saved");
        let (receiver, now) = (self.hostile.receiver(), self.hostile.now());
        send(file, &genuine.offer, node(from), receiver, now, rounds)
    }

    /// The node makes a snapshot itself.
    fn save(&mut self, data: &mut &[u8]) {
        let place = any_place(data);
        if save(&self.store, place).is_ok() {
            self.confirmed.insert(place);
        }
        self.expect_leftovers([place]);
    }

    fn remove(&mut self, data: &mut &[u8]) {
        let (group, index) = any_place(data);
        // Whether or not it went well: what is still listed still counts, the rest may come back.
        drop(self.store.remove(group, index));
        self.forget_unlisted();
    }

    fn remove_others(&mut self, data: &mut &[u8]) {
        let (group, index) = any_place(data);
        let keep = (number(data).is_multiple_of(2)).then_some(index);
        let removed = self.store.remove_others(group, keep);
        self.forget_unlisted();
        let Ok(removed) = removed else {
            return;
        };
        match keep {
            None => self.possible.retain(|(of, _)| *of != group),
            Some(keep) if removed.last() > Some(&keep) => {
                let gone = |(of, index): &Place| *of == group && removed.contains(index);
                self.possible.retain(|place| !gone(place));
            }
            Some(_) => {}
        }
    }

    fn forget_unlisted(&mut self) {
        let listed = listed(&self.store);
        let (kept, unlisted) = (&self.confirmed & &listed, &self.confirmed - &listed);
        self.confirmed = kept;
        self.possible.extend(unlisted);
    }

    /// A publication that fails may leave its file behind.
    fn expect_leftovers(&mut self, published: impl IntoIterator<Item = Place>) {
        if self.is_faulty {
            self.possible.extend(published);
        }
    }

    fn fail(&mut self, data: &mut &[u8]) {
        self.is_faulty = true;
        match number(data) % 4 {
            0 => self.disk.fail_next_sync(),
            1 => self.disk.fail_next_dir_sync(),
            2 => {
                let reserve = u64::from(number(data) % 2) * SNAPSHOT_RESERVE_BYTES;
                self.disk
                    .set_free_bytes(reserve + u64::from(number(data)) * 16);
            }
            _ => {
                let operations = u64::from(number(data) % 32);
                self.disk.fail_from(self.disk.operations() + operations);
            }
        }
    }

    fn crash(self, seed: u64) -> Self {
        let Self {
            disk,
            store,
            hostile,
            confirmed,
            possible,
            ..
        } = self;
        // A process that is gone deletes nothing.
        disk.fail_from(disk.operations());
        drop((hostile, store));
        disk.crash(seed);
        disk.mend();
        disk.set_free_bytes(FREE_BYTES);
        let bench = Self::open(disk);
        let found = &bench.confirmed;
        assert!(
            found.is_superset(&confirmed),
            "confirmed {confirmed:?}, found {found:?}"
        );
        let expected = &confirmed | &possible;
        assert!(
            found.is_subset(&expected),
            "{found:?}, and not {expected:?}"
        );
        bench.check_found();
        bench
    }

    /// All that counts as a snapshot is whole, and nothing else is left.
    fn check_found(&self) {
        assert_eq!(self.store.metrics().damaged.get(), 0, "a torn file");
        for place in &self.confirmed {
            check_genuine(&self.store, *place);
        }
        let names = self.disk.names();
        assert_eq!(
            names.len(),
            self.confirmed.len() + 1,
            "more than OWNER and snapshots: {names:?}"
        );
    }

    fn check_listed(&self) {
        assert_eq!(
            listed(&self.store),
            self.confirmed,
            "listed is what was confirmed"
        );
        for (group, index) in &self.confirmed {
            let file = self.store.open(*group, *index).expect("it is listed");
            let genuine = genuine_at((*group, *index)).expect("nobody made another");
            assert!(bytes_of(&*file) == genuine.file, "other bytes at {index}");
        }
    }

    /// The disk works again, the hostile sender has left or is ignored: all snapshots arrive, and
    /// stay.
    fn end(mut self, how: u8) {
        self.disk.mend();
        self.disk.set_free_bytes(FREE_BYTES);
        if how.is_multiple_of(2) {
            self.hostile.wait();
        } else {
            self.hostile.hang_up();
        }
        let from = if (how / 2).is_multiple_of(2) {
            HOSTILE
        } else {
            HONEST
        };
        for place in places() {
            let mut tries = (0..TRIES).map(|_| self.send_genuine(place, from, ROUNDS));
            assert!(
                tries.any(|(sent, _)| sent == Sent::Completed),
                "{place:?} does not arrive"
            );
        }
        self.confirmed = places().collect();
        self.check_listed();
        self.crash(how.into());
    }
}

fn any_place(data: &mut &[u8]) -> Place {
    let number = number(data);
    let group = GroupId(u32::from(number >> 4) % GROUPS + 1);
    (group, Index(u64::from(number) % INDEXES + 1))
}

fn place_in(envelope: &Envelope) -> Place {
    let Message::InstallSnapshot { snapshot } = &envelope.message else {
        panic!("delivered something else");
    };
    (envelope.group, snapshot.index)
}

/// All that the store says it has, of any group that a peer could name.
fn listed(store: &SnapshotDir) -> BTreeSet<Place> {
    let groups = store.newest().into_iter().map(|(group, _)| group);
    groups
        .flat_map(|group| {
            let of_group = store.of(group).into_iter();
            of_group.map(move |snapshot| (group, snapshot.index))
        })
        .collect()
}

/// A stored snapshot is the genuine one: what it says of itself, every byte, and what comes out.
fn check_genuine(store: &SnapshotDir, place: Place) {
    let (group, index) = place;
    store
        .verify(group, index)
        .expect("every byte was checked before");
    let genuine = genuine_at(place).expect("nobody made another");
    assert!(store.of(group).contains(&genuine.offer.snapshot));
    let (found, result) = drain(&mut *store.load(group, index).expect("verified"));
    result.expect("verified");
    let found: Vec<_> = found
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes))
        .collect();
    let parts = parts(place);
    let parts: Vec<_> = parts.iter().map(|(name, bytes)| (*name, bytes)).collect();
    assert_eq!(found, parts);
}
