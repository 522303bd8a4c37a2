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

/// Partial files that the receiver under attack keeps.
const PLACES: usize = 2;
/// A sender's connections at once.
const CONNECTIONS: usize = 3;
/// No file that the store is asked for is longer, but for those of absurd lengths.
const FILE_BYTES: u64 = 255;

/// Plays `data` to a receiver with this store: offers, chunks, raw bytes, broken connections and
/// passing time. Returns what was delivered.
///
/// # Panics
/// A promise of the receiver is broken: more partial files than its limit, a message without its
/// file, an answer that does not decode.
pub fn play(mut data: &[u8], store: &Arc<dyn SnapshotStore>) -> Vec<Envelope> {
    let limits = SnapshotLimits {
        parallel_receives: PLACES,
        ..SnapshotLimits::default()
    };
    let receiver = Receiver::new(Arc::clone(store), &limits);
    let mut lines: Vec<_> = (0..CONNECTIONS).map(|_| Line::new(&receiver)).collect();
    let mut now = Duration::ZERO;
    let mut delivered = Vec::new();
    while data.has_remaining() {
        let step = data.get_u8();
        let line = &mut lines[usize::from(step >> 4) % CONNECTIONS];
        match step & 0xF {
            0 => *line = Line::new(&receiver),
            1 => {
                now += limits.partial_retention / 2;
                receiver.expire(now);
            }
            2 => line.bytes.extend_from_slice(&take(&mut data)),
            3 => line.say(&Frame::Offer(absurd_offer(&mut data))),
            4 | 5 => line.offer_honestly(&mut data),
            6 => line.say(&Frame::Chunk {
                offset: number(&mut data).into(),
                bytes: take(&mut data),
            }),
            7 => line.say(&receivers_frame(&mut data)),
            _ => line.send_honestly(),
        }
        let arrived = line.drain(now);
        if arrived.is_none() {
            *line = Line::new(&receiver);
        }
        assert!(
            receiver.partials() <= PLACES,
            "more partial files than allowed"
        );
        for envelope in arrived.into_iter().flatten() {
            check_delivered(store.as_ref(), &envelope);
            delivered.push(envelope);
        }
    }
    delivered
}

fn check_delivered(store: &dyn SnapshotStore, envelope: &Envelope) {
    let Message::InstallSnapshot { snapshot } = &envelope.message else {
        panic!("delivered something else");
    };
    let file = store.open(envelope.group, snapshot.index);
    assert!(file.is_ok(), "delivered without its file");
}

/// One connection, seen from its hostile end.
struct Line {
    incoming: Incoming,
    bytes: BytesMut,
    /// The file of the last honest offer, and how much of it was acknowledged.
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

    fn offer_honestly(&mut self, data: &mut &[u8]) {
        self.file = take(data);
        let checksum = crc32fast::hash(&self.file);
        let offer = offer(data, self.file.len() as u64, checksum);
        self.say(&Frame::Offer(offer));
    }

    /// The bytes that follow: half of what is left, or a few.
    fn send_honestly(&mut self) {
        let first = usize::try_from(self.acked).map_or(usize::MAX, |acked| acked);
        let rest = self.file.get(first..).unwrap_or_default();
        if !rest.is_empty() {
            let bytes = self
                .file
                .slice(first..first + (rest.len() / 2).max(64).min(rest.len()));
            let offset = self.acked;
            self.say(&Frame::Chunk { offset, bytes });
        }
    }

    /// What the receiver makes of all that was said; `None`: it ends the connection.
    fn drain(&mut self, now: Duration) -> Option<Vec<Envelope>> {
        let mut arrived = Vec::new();
        while let Taken::Frame(frame) = wire::take(&mut self.bytes).ok()? {
            let (replies, delivered) = self.incoming.on_frame_to_end(frame, now).ok()?;
            for reply in replies {
                assert_eq!(wire::decode(wire::encode(&reply)).ok(), Some(reply.clone()));
                if let Frame::Resume { offset } | Frame::Ack { offset } = reply {
                    self.acked = offset;
                }
            }
            arrived.extend(delivered);
        }
        Some(arrived)
    }
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
    let bytes = match number(data) {
        byte if u64::from(byte) == FILE_BYTES => u64::MAX,
        byte => byte.into(),
    };
    let checksum = number(data).into();
    offer(data, bytes, checksum)
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
