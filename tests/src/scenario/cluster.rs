//! The nodes of a scenario, and the messages on their way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use multiraft_engine::raft::effects::{Input, ReadOutcome};
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::types::{Index, NodeId};

use super::node::{AppendWork, Node};
use super::show;

/// Rounds of `stabilize` at most; the longest story needs a few dozen.
const STABILIZE_ROUNDS: usize = 1_000;

/// A message in the one queue.
#[derive(Debug, Clone)]
pub enum Message {
    /// From a peer.
    Peer(Envelope),
    /// A node's own append thread: this write is durable.
    Appended(NodeId, u64),
    /// A node's own apply thread.
    Applied(NodeId, Index),
}

impl Message {
    fn to(&self) -> NodeId {
        match self {
            Self::Peer(envelope) => envelope.to,
            Self::Appended(node, _) | Self::Applied(node, _) => *node,
        }
    }

    fn is_of_type(&self, wanted: Option<&str>) -> bool {
        let name = match self {
            Self::Peer(envelope) => show::name(&envelope.message),
            Self::Appended(..) => "Appended",
            Self::Applied(..) => "Applied",
        };
        wanted.is_none_or(|wanted| wanted == name)
    }
}

/// What becomes of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They arrive.
    Deliver,
    /// They are lost; a node's own answers never are.
    Drop,
}

/// Who cannot reach whom.
#[derive(Debug, Clone, Default)]
pub struct Partition {
    /// From these to those.
    pub cut: BTreeSet<(NodeId, NodeId)>,
}

/// See the module's documentation.
pub struct Cluster {
    /// By id, of the group in view.
    pub nodes: BTreeMap<NodeId, Node>,
    /// In order of sending.
    pub messages: VecDeque<Message>,
    /// What the network does.
    pub partition: Partition,
    /// The groups out of view, with their nodes and messages.
    pub others: BTreeMap<u32, (BTreeMap<NodeId, Node>, VecDeque<Message>)>,
    /// The group in view.
    pub group: u32,
    /// The text of the command that runs.
    pub text: Vec<String>,
    /// Numbers proposals and reads.
    pub next_request: u64,
    /// The contexts of reads, by number.
    pub reads: BTreeMap<u64, String>,
}

impl Default for Cluster {
    /// No nodes; group 1 is in view.
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            messages: VecDeque::new(),
            partition: Partition::default(),
            others: BTreeMap::new(),
            group: 1,
            text: Vec::new(),
            next_request: 0,
            reads: BTreeMap::new(),
        }
    }
}

impl Cluster {
    /// All nodes' state and log lines, after the error's name if there is one.
    pub fn projection(&self) -> String {
        let errors = self.text.iter().filter(|line| line.starts_with("err="));
        let mut lines: Vec<String> = errors.cloned().collect();
        for node in self.nodes.values() {
            lines.extend([show::state_line(node), show::log_line(node)]);
        }
        lines.into_iter().map(|line| line + "\n").collect()
    }

    /// A node's next batch: written, applied, sent and told, or handed to its threads.
    pub fn take_batch(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_down) else {
            return;
        };
        let (effects, work) = node.take_batch();
        for read in &effects.reads {
            self.note(id, read);
        }
        if let Some(reason) = effects.join_refused {
            self.text.push(format!("n{id} cannot join: {reason}"));
        }
        if let Some(membership) = effects.left {
            self.go(id, membership);
            return;
        }
        let peers = effects.send.into_iter().map(Message::Peer);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.is_async() {
            self.messages.extend(peers);
            node.append_work.extend(work);
            if !effects.apply.is_empty() {
                node.apply_work.push_back(effects.apply);
            }
            return;
        }
        if let Some(work) = &work
            && !node.write(work)
        {
            self.text.push(format!("n{id} disk failed"));
            return;
        }
        let applied = node.apply(&effects.apply);
        self.messages.extend(peers);
        if let Some(work) = work {
            self.finish(id, work);
        }
        if let Some((node, index)) = self.nodes.get_mut(&id).zip(applied) {
            node.step(Input::Applied(index));
        }
    }

    /// A node has left its group.
    fn go(&mut self, id: NodeId, membership: Membership) {
        self.text.push(format!("n{id} is out of the group"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.go(membership);
        }
    }

    /// What follows at once from a durable write when nothing is asynchronous.
    fn finish(&mut self, id: NodeId, work: AppendWork) {
        let sent = work.messages.into_iter().map(Message::Peer);
        self.messages.extend(sent);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if let Some((number, _)) = work.write {
            node.step(Input::Durable(number));
        }
        if let Some(snapshot) = work.install {
            node.step(Input::Applied(snapshot.index));
        }
    }

    /// The append thread does its next piece of work.
    pub fn append(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(work) = node.append_work.pop_front() else {
            return;
        };
        if !node.write(&work) {
            self.text.push(format!("n{id} disk failed"));
            return;
        }
        let sent = work.messages.into_iter().map(Message::Peer);
        self.messages.extend(sent);
        let durable = work.write.map(|(number, _)| Message::Appended(id, number));
        self.messages.extend(durable);
        let installed = work.install.map(|s| Message::Applied(id, s.index));
        self.messages.extend(installed);
    }

    /// The apply thread does its next piece of work.
    pub fn apply(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if let Some(blocks) = node.apply_work.pop_front() {
            let applied = node.apply(&blocks);
            let message = applied.map(|index| Message::Applied(id, index));
            self.messages.extend(message);
        }
    }

    /// All messages that wait for `to` now, of one type or of all; returns how many.
    pub fn deliver(&mut self, to: NodeId, fate: Fate, of_type: Option<&str>) -> usize {
        let is_peer = |m: &Message| matches!(m, Message::Peer(_));
        let is_wanted = |m: &Message| {
            m.to() == to && m.is_of_type(of_type) && (fate == Fate::Deliver || is_peer(m))
        };
        let (wanted, rest): (VecDeque<_>, _) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition(is_wanted);
        self.messages = rest;
        let count = wanted.len();
        for message in wanted {
            self.deliver_one(to, message, fate);
        }
        count
    }

    fn deliver_one(&mut self, to: NodeId, message: Message, fate: Fate) {
        let input = match message {
            Message::Appended(_, number) => Input::Durable(number),
            Message::Applied(_, index) => Input::Applied(index),
            Message::Peer(envelope) => {
                let cut = self.partition.cut.contains(&(envelope.from, to));
                let is_lost = cut || fate == Fate::Drop;
                let mark = if is_lost { " lost" } else { "" };
                self.text
                    .push(format!("{}{mark}", show::message(&envelope)));
                if is_lost {
                    return;
                }
                Input::Message(envelope)
            }
        };
        match self.nodes.get_mut(&to).filter(|node| !node.is_down) {
            Some(node) => node.step(input),
            None => self.text.push(format!("n{to} is down")),
        }
    }

    /// Batches and deliveries among these nodes, in this order, until nothing is left.
    ///
    /// # Errors
    /// They answer each other without end.
    pub fn stabilize(&mut self, ids: &[NodeId]) -> Result<(), String> {
        for _ in 0..STABILIZE_ROUNDS {
            let mut is_done = true;
            for &id in ids {
                if self.nodes.get(&id).is_some_and(Node::has_work) {
                    self.take_batch(id);
                    is_done = false;
                }
            }
            for &id in ids {
                is_done &= self.deliver(id, Fate::Deliver, None) == 0;
            }
            for &id in ids {
                while self
                    .nodes
                    .get(&id)
                    .is_some_and(|n| !n.append_work.is_empty())
                {
                    self.append(id);
                    is_done = false;
                }
            }
            for &id in ids {
                while self
                    .nodes
                    .get(&id)
                    .is_some_and(|n| !n.apply_work.is_empty())
                {
                    self.apply(id);
                    is_done = false;
                }
            }
            if is_done {
                return Ok(());
            }
        }
        Err(format!("not at rest after {STABILIZE_ROUNDS} rounds"))
    }

    fn note(&mut self, id: NodeId, read: &ReadOutcome) {
        let context = self.reads.remove(&read.request).unwrap_or_default();
        let answer = match &read.index {
            Ok(index) => format!("index={index}"),
            Err(reason) => format!("refused: {reason}"),
        };
        self.text.push(format!("n{id} read ctx={context} {answer}"));
    }
}
