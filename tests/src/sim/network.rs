//! Frames on their way: the real codec's bytes, and what a network does to them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::types::NodeId;
use multiraft_transport::codec::{Item, decode, encode};
use rand::Rng;

use super::dice::Dice;
use super::faults::{Counters, Fault, FaultSet};

/// One message's bytes: head and blocks.
type Encoded = (Bytes, Bytes);

/// A frame of one peer to another.
struct Frame {
    from: NodeId,
    to: NodeId,
    /// The sender's, as its end of the connection said.
    incarnation: u64,
    messages: Vec<Encoded>,
}

/// All links.
#[derive(Default)]
pub struct Network {
    /// By tick of arrival, then by order of sending.
    frames: BTreeMap<(u64, u64), Frame>,
    sent: u64,
    /// Cut links, from and to.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// All that was sent, frame by frame, if somebody listens.
    pub heard: Option<Vec<Vec<Item>>>,
}

impl Network {
    /// Sends messages, one frame a peer; some are lost, doubled or late.
    pub fn send(
        &mut self,
        tick: u64,
        incarnation: u64,
        envelopes: Vec<Envelope>,
        faults: FaultSet,
        rng: &mut Dice,
        counters: &mut Counters,
    ) {
        let mut frames: BTreeMap<(NodeId, NodeId), (Vec<Encoded>, Vec<Encoded>)> = BTreeMap::new();
        if let Some(heard) = &mut self.heard {
            heard.push(envelopes.iter().cloned().map(to_item).collect());
        }
        for envelope in envelopes {
            let frame = frames.entry((envelope.from, envelope.to)).or_default();
            let may_repeat = !is_forwarded(&envelope.message);
            let bytes = to_bytes(envelope);
            if may_repeat {
                frame.1.push(bytes.clone());
            }
            frame.0.push(bytes);
        }
        for ((from, to), (messages, repeatable)) in frames {
            if self.cut.contains(&(from, to)) {
                continue;
            }
            if faults.has(Fault::Drop) && rng.random_bool(0.05) {
                counters.count(Fault::Drop);
                continue;
            }
            let mut delay = u64::from(rng.random_bool(0.3));
            if faults.has(Fault::Delay) && rng.random_bool(0.1) {
                counters.count(Fault::Delay);
                delay += rng.random_range(1..25);
            }
            if faults.has(Fault::Duplicate) && rng.random_bool(0.03) {
                counters.count(Fault::Duplicate);
                let again = tick + delay + rng.random_range(0..15);
                let messages = repeatable;
                let frame = Frame {
                    from,
                    to,
                    incarnation,
                    messages,
                };
                self.put(again, frame);
            }
            let frame = Frame {
                from,
                to,
                incarnation,
                messages,
            };
            self.put(tick + delay, frame);
        }
    }

    fn put(&mut self, tick: u64, frame: Frame) {
        self.sent += 1;
        self.frames.insert((tick, self.sent), frame);
    }

    /// Whether frames pass from one node to another.
    pub fn is_open(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// What arrives by `tick`, decoded, in order.
    pub fn arrivals(&mut self, tick: u64) -> Vec<Vec<Envelope>> {
        let later = self.frames.split_off(&(tick + 1, 0));
        let now = std::mem::replace(&mut self.frames, later);
        let is_open = |frame: &Frame| !self.cut.contains(&(frame.from, frame.to));
        let open = now.into_values().filter(is_open);
        open.map(from_bytes).collect()
    }

    /// All between two nodes is lost.
    pub fn reset(&mut self, one: NodeId, other: NodeId) {
        let ends = [(one, other), (other, one)];
        self.frames
            .retain(|_, frame| !ends.contains(&(frame.from, frame.to)));
    }

    /// All to and from a node is lost.
    pub fn reset_node(&mut self, node: NodeId) {
        self.frames
            .retain(|_, frame| frame.from != node && frame.to != node);
    }
}

/// The transport's contract is that nothing arrives twice. The core needs it only for what a follower
/// forwards: the same command would be logged twice. All else is doubled here all the same.
fn is_forwarded(message: &Message) -> bool {
    matches!(
        message,
        Message::Propose { .. } | Message::ProposeConfChange { .. }
    )
}

fn to_item(envelope: Envelope) -> Item {
    Item {
        group: envelope.group,
        term: envelope.term,
        message: envelope.message,
    }
}

fn to_bytes(envelope: Envelope) -> Encoded {
    let item = to_item(envelope);
    let mut meta = BytesMut::new();
    let mut blocks = Vec::new();
    encode(&item, &mut meta, &mut blocks);
    (meta.freeze(), blocks.concat().into())
}

fn from_bytes(frame: Frame) -> Vec<Envelope> {
    let Frame {
        from,
        to,
        incarnation,
        messages,
    } = frame;
    let decode_one = |(mut meta, mut blocks): Encoded| {
        let item = decode(&mut meta, &mut blocks).expect("what was encoded decodes");
        assert!(meta.is_empty() && blocks.is_empty(), "bytes left over");
        Envelope {
            group: item.group,
            from,
            to,
            term: item.term,
            incarnation,
            message: item.message,
        }
    };
    messages.into_iter().map(decode_one).collect()
}
