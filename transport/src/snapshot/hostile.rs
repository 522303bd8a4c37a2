//! A sender that breaks every rule, made of arbitrary bytes: for fuzzing.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::SnapshotStore;
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

use super::receiver::{Ends, Incoming, Receiver};
use super::wire::{self, Frame, Offer, Refusal, Taken};
use crate::config::SnapshotLimits;
use crate::error::Error;

/// Partial files that the receiver under attack keeps.
const PLACES: usize = 2;
/// A sender's connections at once.
const CONNECTIONS: usize = 3;

/// Plays `data` to a receiver with this store: offers, chunks, raw bytes, broken connections and
/// passing time. Returns what was delivered.
///
/// # Panics
/// As [`Hostile::step`].
pub fn play(mut data: &[u8], store: &Arc<dyn SnapshotStore>) -> Vec<Envelope> {
    let mut hostile = Hostile::new(store, Vec::new());
    let mut delivered = Vec::new();
    while data.has_remaining() {
        delivered.extend(hostile.step(&mut data));
    }
    delivered
}

/// A file as an honest sender would offer it.
#[derive(Debug, Clone)]
pub struct Genuine {
    /// What it says of the file.
    pub offer: Offer,
    /// All bytes of it.
    pub file: Bytes,
}

/// The sender, its connections, and the receiver under attack.
pub struct Hostile {
    store: Arc<dyn SnapshotStore>,
    receiver: Arc<Receiver>,
    retention: Duration,
    lines: Vec<Line>,
    files: Vec<Genuine>,
    now: Duration,
}

impl Hostile {
    /// Against a new receiver with this store. The sender has these files: to send them, or something
    /// like them.
    pub fn new(store: &Arc<dyn SnapshotStore>, files: Vec<Genuine>) -> Self {
        let limits = SnapshotLimits {
            parallel_receives: PLACES,
            ..SnapshotLimits::default()
        };
        let receiver = Receiver::new(Arc::clone(store), &limits);
        Self {
            store: Arc::clone(store),
            lines: (0..CONNECTIONS).map(|_| Line::new(&receiver)).collect(),
            receiver,
            retention: limits.partial_retention,
            files,
            now: Duration::ZERO,
        }
    }

    /// The receiver, for others that send to it too.
    pub fn receiver(&self) -> &Arc<Receiver> {
        &self.receiver
    }

    /// The time that the receiver is told.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// All connections break.
    pub fn hang_up(&mut self) {
        let lines = self.lines.iter_mut();
        lines.for_each(|line| *line = Line::new(&self.receiver));
    }

    /// So much time passes that no partial file of before is left.
    pub fn wait(&mut self) {
        self.now += self.retention;
        self.receiver.expire(self.now);
    }

    /// Takes the bytes of one step off `data`, of which there is at least one, and does it. Returns
    /// what was delivered.
    ///
    /// # Panics
    /// A promise of the receiver is broken: more partial files than its limit, a message without its
    /// file, an answer that does not decode.
    pub fn step(&mut self, data: &mut &[u8]) -> Vec<Envelope> {
        let step = data.get_u8();
        let line = &mut self.lines[usize::from(step >> 4) % CONNECTIONS];
        match step & 0xF {
            0 => *line = Line::new(&self.receiver),
            1 => {
                self.now += self.retention / 2;
                self.receiver.expire(self.now);
            }
            2 => line.bytes.extend_from_slice(&take(data)),
            3 => line.say(&Frame::Offer(absurd_offer(data))),
            4 => line.offer_own(data),
            5 => line.offer_genuine(&self.files, data),
            6 => line.offer_with_a_lie(&self.files, data),
            7 => line.say(&Frame::Chunk {
                offset: number(data).into(),
                bytes: take(data),
            }),
            8 => line.say(&receivers_frame(data)),
            9 => line.send_damaged(number(data)),
            10 => line.bytes.extend_from_slice(&claim(data)),
            _ => line.send_honestly(),
        }
        let arrived = line.drain(self.now);
        if arrived.is_none() {
            *line = Line::new(&self.receiver);
        }
        assert!(
            self.receiver.partials() <= PLACES,
            "more partial files than allowed"
        );
        let arrived = arrived.unwrap_or_default();
        for envelope in &arrived {
            check_delivered(self.store.as_ref(), envelope);
        }
        arrived
    }
}

fn check_delivered(store: &dyn SnapshotStore, envelope: &Envelope) {
    let Message::InstallSnapshot { snapshot } = &envelope.message else {
        panic!("delivered something else");
    };
    let file = store.open(envelope.group, snapshot.index);
    assert!(file.is_ok(), "delivered without its file");
    assert!(
        store.of(envelope.group).contains(snapshot),
        "delivered with another description than its file's"
    );
}

/// One connection, seen from its hostile end.
struct Line {
    incoming: Incoming,
    bytes: BytesMut,
    /// The file of the last offer that is not absurd, and how much of it was acknowledged.
    file: Bytes,
    acked: u64,
}

impl Line {
    fn new(receiver: &Arc<Receiver>) -> Self {
        let node = |id| NodeId::new(id).expect("not 0");
        let ends = Ends {
            from: node(1),
            incarnation: 7,
            to: node(2),
        };
        Self {
            incoming: receiver.connection(ends),
            bytes: BytesMut::new(),
            file: Bytes::new(),
            acked: 0,
        }
    }

    fn say(&mut self, frame: &Frame) {
        self.bytes.extend_from_slice(&wire::encode(frame));
    }

    /// An honest offer of bytes that are no snapshot, unless the store takes any.
    fn offer_own(&mut self, data: &mut &[u8]) {
        self.file = take(data);
        let checksum = crc32fast::hash(&self.file);
        let offer = offer(data, self.file.len() as u64, checksum);
        self.say(&Frame::Offer(offer));
    }

    fn offer_genuine(&mut self, files: &[Genuine], data: &mut &[u8]) {
        if let Some(genuine) = choose(files, data) {
            self.file = genuine.file.clone();
            self.say(&Frame::Offer(genuine.offer.clone()));
        }
    }

    /// An offer of a genuine file in which one thing is not true of it.
    fn offer_with_a_lie(&mut self, files: &[Genuine], data: &mut &[u8]) {
        let Some(genuine) = choose(files, data) else {
            return;
        };
        self.file = genuine.file.clone();
        let mut offer = genuine.offer.clone();
        let snapshot = &mut offer.snapshot;
        match number(data) % 8 {
            0 => offer.bytes += 1,
            1 => offer.bytes -= 1,
            2 => offer.bytes = length(data),
            3 => offer.checksum ^= 1,
            4 => offer.group.0 ^= 3,
            5 => snapshot.index = snapshot.index.next(),
            6 => snapshot.term.0 += 1,
            _ => snapshot.membership = Membership::default(),
        }
        self.say(&Frame::Offer(offer));
    }

    /// The bytes that follow: half of what is left, or a few.
    fn send_honestly(&mut self) {
        if let Some(bytes) = self.next_bytes() {
            let offset = self.acked;
            self.say(&Frame::Chunk { offset, bytes });
        }
    }

    /// The same with one bit changed, in a frame whose checksum is right.
    fn send_damaged(&mut self, place: u8) {
        if let Some(bytes) = self.next_bytes() {
            let (offset, mut bytes) = (self.acked, bytes.to_vec());
            let at = usize::from(place) % bytes.len();
            bytes[at] ^= 1 << (place % 8);
            let bytes = bytes.into();
            self.say(&Frame::Chunk { offset, bytes });
        }
    }

    fn next_bytes(&self) -> Option<Bytes> {
        let first = usize::try_from(self.acked).map_or(usize::MAX, |acked| acked);
        let rest = self.file.get(first..)?.len();
        let count = (rest / 2).max(64).min(rest);
        (count > 0).then(|| self.file.slice(first..first + count))
    }

    /// What the receiver makes of all that was said; `None`: it ends the connection.
    fn drain(&mut self, now: Duration) -> Option<Vec<Envelope>> {
        let mut arrived = Vec::new();
        let mut take_all = || -> Result<(), Error> {
            while let Taken::Frame(frame) = wire::take(&mut self.bytes)? {
                let (replies, delivered) = self.incoming.on_frame_to_end(frame, now)?;
                for reply in replies {
                    assert_eq!(wire::decode(wire::encode(&reply)).ok(), Some(reply.clone()));
                    if let Frame::Resume { offset } | Frame::Ack { offset } = reply {
                        self.acked = offset;
                    }
                }
                arrived.extend(delivered);
            }
            Ok(())
        };
        match take_all() {
            Ok(()) => Some(arrived),
            Err(_) => None,
        }
    }
}

fn choose<'a>(files: &'a [Genuine], data: &mut &[u8]) -> Option<&'a Genuine> {
    let at = usize::from(number(data)).checked_rem(files.len())?;
    files.get(at)
}

fn offer(data: &mut &[u8], bytes: u64, checksum: u32) -> Offer {
    Offer {
        group: GroupId((number(data) % 4).into()),
        term: Term(number(data).into()),
        snapshot: Snapshot {
            index: Index((1 + number(data) % 3).into()),
            term: Term(1),
            membership: Membership::default(),
        },
        bytes,
        checksum,
    }
}

/// An offer of a length and a checksum that have nothing to do with each other.
fn absurd_offer(data: &mut &[u8]) -> Offer {
    let bytes = length(data);
    let checksum = number(data).into();
    offer(data, bytes, checksum)
}

/// Any length: a few bytes, or a power of two.
fn length(data: &mut &[u8]) -> u64 {
    match number(data) {
        few @ 0..=63 => few.into(),
        u8::MAX => u64::MAX,
        many => 1 << (many % 64),
    }
}

/// The header of a long frame of which nothing else comes.
fn claim(data: &mut &[u8]) -> [u8; wire::HEADER_BYTES] {
    let mut header = [0; wire::HEADER_BYTES];
    (header[6], header[8]) = (number(data), number(data) % 3);
    header
}

fn receivers_frame(data: &mut &[u8]) -> Frame {
    let offset = number(data).into();
    match number(data) % 5 {
        0 => Frame::Resume { offset },
        1 => Frame::Ack { offset },
        2 => Frame::Refuse(Refusal::Busy),
        3 => Frame::Alive,
        _ => Frame::Done,
    }
}

fn number(data: &mut &[u8]) -> u8 {
    data.try_get_u8().unwrap_or(0)
}

/// A length and so many bytes, or what is left.
fn take(data: &mut &[u8]) -> Bytes {
    let length = usize::from(number(data)).min(data.len());
    data.copy_to_bytes(length)
}
