//! Snapshots that are true: what a leader has, made by the real store, and how they look on the wire.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::{
    SnapshotError, SnapshotFile, SnapshotIn, SnapshotOut, SnapshotSending, SnapshotStore,
    SnapshotView,
};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{GroupId, Index, NodeId, Term};
use multiraft_logdb::SnapshotDir;
use multiraft_logdb::sim::SimDisk;
use multiraft_transport::config::SnapshotLimits;
use multiraft_transport::snapshot::hostile::Genuine;
use multiraft_transport::snapshot::{Ends, Offer, Receiver, SendingSnapshot, wire};

use crate::sim::transfers::{Connection, limits};

/// The incarnation of all stores here.
pub const INCARNATION: u64 = 7;
/// Groups with snapshots, from 1 on.
pub const GROUPS: u32 = 2;
/// Indexes of snapshots of each group, from 1 on.
pub const INDEXES: u64 = 3;

/// A group and an index.
pub type Place = (GroupId, Index);

/// The state, which has no name, and the files beside it.
pub type Parts = Vec<(&'static str, Vec<u8>)>;

/// A store with nothing in it but the genuine snapshots.
pub static LEADER: LazyLock<Arc<SnapshotDir>> = LazyLock::new(|| {
    let store = SnapshotDir::open(SimDisk::new(), INCARNATION).expect("an empty disk");
    for place in places() {
        save(&store, place).expect("a disk without faults");
    }
    store
});

/// All genuine snapshots, in the order of their places.
pub static GENUINE: LazyLock<Vec<Genuine>> = LazyLock::new(|| {
    let offer_of = |(group, index): Place| {
        let file = LEADER.open(group, index).expect("saved");
        let offer = Offer {
            group,
            term: Term(9),
            snapshot: description(index),
            bytes: file.bytes(),
            checksum: file.checksum(),
        };
        let file = Bytes::from(bytes_of(&*file));
        Genuine { offer, file }
    };
    places().map(offer_of).collect()
});

/// The places of all genuine snapshots.
pub fn places() -> impl Iterator<Item = Place> {
    let of_group = |group| (1..=INDEXES).map(move |index| (GroupId(group), Index(index)));
    (1..=GROUPS).flat_map(of_group)
}

/// The genuine snapshot of a place.
pub fn genuine_at(place: Place) -> Option<&'static Genuine> {
    let is_it = |genuine: &&Genuine| place_of(genuine) == place;
    GENUINE.iter().find(is_it)
}

/// Where a genuine snapshot belongs.
pub fn place_of(genuine: &Genuine) -> Place {
    (genuine.offer.group, genuine.offer.snapshot.index)
}

/// What a snapshot at an index stands for, the same for all groups.
fn description(index: Index) -> Snapshot {
    let member = |number: u32| {
        let role = match number {
            3 => MemberRole::Witness,
            _ => MemberRole::Voter,
        };
        let host = format!("node-{number}.example");
        let address = PeerAddress { host, port: 5000 };
        (node(number), Member { role, address })
    };
    Snapshot {
        index,
        term: Term(index.0 / 2 + 1),
        membership: Membership::new((1..=3).map(member).collect()),
    }
}

/// A node's id.
pub fn node(id: u32) -> NodeId {
    NodeId::new(id).expect("not 0")
}

/// Makes a genuine snapshot in a store, as the node itself does.
pub fn save(store: &SnapshotDir, (group, index): Place) -> Result<(), SnapshotError> {
    let mut view = View(parts((group, index)));
    store.save(group, &description(index), &mut view)
}

/// What a genuine snapshot consists of: some have files beside the state, with long, short and no
/// content.
pub fn parts((group, index): Place) -> Parts {
    let seed = u64::from(group.0) * 64 + index.0 * 8;
    let bytes = |number: u64, length: u64| -> Vec<u8> {
        let byte = |at: u64| (seed + number + at + at / 251).to_le_bytes()[0];
        (0..length).map(byte).collect()
    };
    let mut parts = vec![("", bytes(0, (index.0 - 1) * 700))];
    if index.0 % 2 == u64::from(group.0 % 2) {
        parts.push(("beside", bytes(1, 300)));
        parts.push(("", bytes(2, 0)));
        parts.push(("a/../name", bytes(3, 70)));
    }
    parts
}

struct View(Parts);

impl SnapshotView for View {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        for (number, (name, bytes)) in self.0.iter().enumerate() {
            if number > 0 {
                out.begin_file(name)?;
            }
            out.write_all(bytes)?;
        }
        out.flush()
    }
}

/// Reads a snapshot to the end; on an error also what came before it.
pub fn drain(from: &mut dyn SnapshotIn) -> (Vec<(String, Vec<u8>)>, io::Result<()>) {
    let mut parts = vec![(String::new(), Vec::new())];
    loop {
        let (_, part) = parts.last_mut().expect("one at least");
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

/// All bytes of a stored file.
pub fn bytes_of(file: &dyn SnapshotFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.bytes()).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("it is there");
    bytes
}

/// How far an honest transfer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The receiver has all of it.
    Completed,
    /// It was refused for good.
    Aborted,
    /// The connection ended before.
    Broken,
}

/// Sends a stored file to a receiver over one connection of at most so many rounds. What it
/// delivers may be delivered without the sender's knowing.
pub fn send(
    file: Box<dyn SnapshotFile>,
    offer: &Offer,
    from: NodeId,
    receiver: &Arc<Receiver>,
    now: Duration,
    rounds: usize,
) -> (Sent, Vec<Envelope>) {
    let ends = Ends {
        from,
        incarnation: INCARNATION,
        to: node(2),
    };
    let envelope = offer.envelope(from, ends.to, INCARNATION);
    let mut sender = SendingSnapshot::new(envelope, file, &limits(), now).expect("a small offer");
    let mut connection = Connection::open(&mut sender, receiver.connection(ends));
    let mut delivered = Vec::new();
    let mut sent = None;
    for _ in 0..rounds {
        let exchanged = connection.exchange(&mut sender, now, &mut delivered);
        sent = match sender.take_events().last() {
            Some(SnapshotSending::Completed) => Some(Sent::Completed),
            Some(SnapshotSending::Aborted) => Some(Sent::Aborted),
            Some(SnapshotSending::Started) | None => exchanged.is_err().then_some(Sent::Broken),
        };
        if sent.is_some() {
            break;
        }
    }
    (sent.unwrap_or(Sent::Broken), delivered)
}

/// What a real sender says of a genuine snapshot to a receiver that has nothing of it, as it is on
/// the wire.
pub fn transfer_bytes(number: usize) -> Vec<u8> {
    let genuine = &GENUINE[number % GENUINE.len()];
    let (group, index) = place_of(genuine);
    let file = LEADER.open(group, index).expect("saved");
    let envelope = genuine.offer.envelope(node(1), node(2), INCARNATION);
    let limits = SnapshotLimits {
        window_chunks: usize::from(u8::MAX), // all of it
        ..limits()
    };
    let now = Duration::ZERO;
    let mut sender = SendingSnapshot::new(envelope, file, &limits, now).expect("a small offer");
    let mut said = BytesMut::from(&sender.connect()[..]);
    let resume = wire::Frame::Resume { offset: 0 };
    sender.on_frame(resume, now).expect("it is asked for");
    while let Some(frame) = sender.next_frame() {
        said.extend_from_slice(&frame);
    }
    said.to_vec()
}
