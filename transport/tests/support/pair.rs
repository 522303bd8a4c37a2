//! A sender and a receiver with a stream between them that breaks when told to, and no time but ours.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::{SnapshotSending, SnapshotStore};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_transport::snapshot::wire;
use multiraft_transport::snapshot::{Ends, Frame, Incoming, Offer, Receiver, SendingSnapshot};
use multiraft_transport::{Error, SnapshotLimits};

use super::store::MemoryStore;
use super::{id, install};

pub const CHUNK: usize = 10;

pub fn limits() -> SnapshotLimits {
    SnapshotLimits {
        chunk_bytes: CHUNK,
        window_chunks: 3,
        parallel_receives: 2,
        ..SnapshotLimits::default()
    }
}

pub fn ends(from: u32) -> Ends {
    Ends {
        from: id(from),
        incarnation: 70 + u64::from(from),
        to: id(9),
    }
}

/// Which of two directions the network prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eager {
    Sender,
    Receiver,
}

pub struct Pair {
    pub sender: SendingSnapshot,
    pub receiver: Arc<Receiver>,
    pub incoming: Option<Incoming>,
    pub to_receiver: VecDeque<Bytes>,
    pub to_sender: VecDeque<Frame>,
    pub now: Duration,
    pub events: Vec<SnapshotSending>,
    pub delivered: Vec<Envelope>,
    /// First byte and end of each chunk that left.
    pub chunks: Vec<(u64, u64)>,
    /// The highest acknowledgement that the sender ever saw.
    pub acked: u64,
    eager: Eager,
}

impl Pair {
    /// Node 1 is to send its snapshot of group 4 at index 7 to node 9.
    pub fn new(from: &MemoryStore, to: &MemoryStore, eager: Eager) -> Self {
        let receiver = Receiver::new(to.shared(), &limits());
        Self::with_receiver(from, receiver, eager)
    }

    pub fn with_receiver(from: &MemoryStore, receiver: Arc<Receiver>, eager: Eager) -> Self {
        Self {
            sender: sender(from),
            receiver,
            incoming: None,
            to_receiver: VecDeque::new(),
            to_sender: VecDeque::new(),
            now: Duration::ZERO,
            events: Vec::new(),
            delivered: Vec::new(),
            chunks: Vec::new(),
            acked: 0,
            eager,
        }
    }

    pub fn connect(&mut self) {
        self.incoming = Some(self.receiver.connection(ends(1)));
        let offer = self.sender.connect();
        self.to_receiver.push_back(offer);
    }

    /// What was on the stream is lost.
    pub fn cut(&mut self) {
        self.sender.disconnected();
        self.incoming = None;
        self.to_receiver.clear();
        self.to_sender.clear();
    }

    /// Moves one frame; `None`: nothing can move.
    pub fn step(&mut self) -> Option<Result<(), Error>> {
        while let Some(frame) = self.sender.next_frame() {
            if let Frame::Chunk { offset, bytes } = wire::decode(frame.clone()).unwrap() {
                assert!(offset >= self.acked, "acknowledged bytes are sent again");
                self.chunks.push((offset, offset + bytes.len() as u64));
            }
            self.to_receiver.push_back(frame);
        }
        let result = match self.eager {
            Eager::Receiver => self.move_to_receiver().or_else(|| self.move_to_sender()),
            Eager::Sender => self.move_to_sender().or_else(|| self.move_to_receiver()),
        };
        self.events.extend(self.sender.take_events());
        result
    }

    fn move_to_receiver(&mut self) -> Option<Result<(), Error>> {
        let frame = self.to_receiver.pop_front()?;
        let incoming = self.incoming.as_mut()?;
        let frame = wire::decode(frame).unwrap();
        Some(match incoming.on_frame_to_end(frame, self.now) {
            Ok((replies, delivered)) => {
                self.to_sender.extend(replies);
                self.delivered.extend(delivered);
                Ok(())
            }
            Err(error) => {
                self.cut();
                Err(error)
            }
        })
    }

    fn move_to_sender(&mut self) -> Option<Result<(), Error>> {
        let frame = self.to_sender.pop_front()?;
        let result = self.sender.on_frame(frame, self.now);
        self.acked = self.acked.max(self.sender.acked());
        if result.is_err() {
            self.cut();
        }
        Some(result)
    }

    /// Connects, and moves all that can be moved.
    pub fn run(&mut self) {
        self.connect();
        self.drain();
    }

    pub fn drain(&mut self) {
        while let Some(result) = self.step() {
            result.expect("neither end breaks the rules");
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.sender.tick(self.now);
        self.receiver.expire(self.now);
        self.events.extend(self.sender.take_events());
    }
}

/// Of group 4 at index 7, from node 1 to node 9.
pub fn sender(from: &MemoryStore) -> SendingSnapshot {
    let file = from.open(GroupId(4), Index(7)).unwrap();
    SendingSnapshot::new(install(4, 1, 9, 7), file, &limits(), Duration::ZERO).unwrap()
}

/// What node 1 says of this file.
pub fn offer_of(file: &[u8], group: u32, index: u64) -> Offer {
    let Message::InstallSnapshot { snapshot } = install(group, 1, 9, index).message else {
        unreachable!();
    };
    Offer {
        group: GroupId(group),
        term: Term(3),
        snapshot,
        bytes: file.len() as u64,
        checksum: crc32fast::hash(file),
    }
}

pub fn chunk(offset: u64, bytes: &[u8]) -> Frame {
    let bytes = Bytes::copy_from_slice(bytes);
    Frame::Chunk { offset, bytes }
}

pub fn say(incoming: &mut Incoming, frame: Frame) -> Result<Vec<Frame>, Error> {
    let answer = incoming.on_frame_to_end(frame, Duration::ZERO);
    answer.map(|(replies, _)| replies)
}

pub fn offer(incoming: &mut Incoming, offer: Offer) -> Vec<Frame> {
    say(incoming, Frame::Offer(offer)).unwrap()
}
