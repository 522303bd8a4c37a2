//! What clients ask and are told, and whether the answers can be true.
//!
//! Acknowledged, failed and unknown are kept apart. Two judges: each acknowledged write must be found
//! in the committed log where the answer said; and each key's history must be linearizable.

use std::collections::{BTreeMap, BTreeSet};

use multiraft_engine::types::{GroupId, Index, NodeId};

use super::machine::{Command, Key, Output, Value};
use crate::linearize::{self, Call, Operation, Verdict};

/// The number of an operation, unique in a run.
pub type OpId = u64;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Change something.
    Write(Command),
    /// Read a key.
    Read(Key),
}

/// An operation under way.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// At which node.
    pub node: NodeId,
    /// Of which group.
    pub group: GroupId,
    /// What.
    pub ask: Ask,
    start: u64,
}

/// All operations of a run.
#[derive(Default)]
pub struct Clients {
    next: OpId,
    /// Rises with each question and answer: the order in which things happened.
    moment: u64,
    open: BTreeMap<OpId, Open>,
    calls: BTreeMap<(GroupId, Key), Vec<Call>>,
    /// Acknowledged writes: where, and what.
    pub writes: Vec<(GroupId, Index, Command)>,
    /// How many operations were acknowledged.
    pub acknowledged: u64,
    answered: BTreeMap<GroupId, u64>,
}

impl Clients {
    /// A serial number for the next write's value.
    pub fn next_value(&self) -> Value {
        self.next + 1
    }

    /// An operation begins.
    pub fn begin(&mut self, node: NodeId, group: GroupId, ask: Ask) -> OpId {
        self.next += 1;
        self.moment += 1;
        let open = Open {
            node,
            group,
            ask,
            start: self.moment,
        };
        self.open.insert(self.next, open);
        self.next
    }

    /// Operations of a group under way.
    pub fn open_in(&self, group: GroupId) -> usize {
        self.open
            .values()
            .filter(|open| open.group == group)
            .count()
    }

    /// Operations of a group that were answered.
    pub fn answered_in(&self, group: GroupId) -> u64 {
        self.answered.get(&group).copied().unwrap_or(0)
    }

    /// All operations under way.
    pub fn open(&self) -> Vec<Open> {
        self.open.values().copied().collect()
    }

    /// What an operation asked for.
    pub fn get(&self, id: OpId) -> Option<Open> {
        self.open.get(&id).copied()
    }

    /// A write was acknowledged.
    pub fn on_written(&mut self, id: OpId, output: Output) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let Ask::Write(command) = open.ask else {
            panic!("a read was answered as a write");
        };
        self.acknowledged += 1;
        self.writes.push((open.group, output.index, command));
        let operation = operation(command, Some(output.old));
        self.end(open, operation);
    }

    /// A read was served.
    pub fn on_read(&mut self, id: OpId, value: Value) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let Ask::Read(key) = open.ask else {
            panic!("a write was answered as a read");
        };
        self.acknowledged += 1;
        self.end(open, (key, Operation::Get(value)));
    }

    fn end(&mut self, open: Open, (key, operation): (Key, Operation)) {
        self.moment += 1;
        *self.answered.entry(open.group).or_default() += 1;
        let end = Some(self.moment);
        let start = open.start;
        let calls = self.calls.entry((open.group, key)).or_default();
        calls.push(Call {
            operation,
            start,
            end,
        });
    }

    /// It was refused: it never took effect and never will.
    pub fn on_failed(&mut self, id: OpId) {
        self.open.remove(&id);
    }

    /// Nobody knows.
    pub fn on_unknown(&mut self, id: OpId) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        if let Ask::Write(command) = open.ask {
            let (key, operation) = operation(command, None);
            let calls = self.calls.entry((open.group, key)).or_default();
            calls.push(Call {
                operation,
                start: open.start,
                end: None,
            });
        }
    }

    /// A node's process ended: nobody will answer what it was asked.
    pub fn on_crash(&mut self, node: NodeId) {
        let at_node = self.open.iter().filter(|(_, open)| open.node == node);
        let lost: Vec<OpId> = at_node.map(|(&id, _)| id).collect();
        for id in lost {
            self.on_unknown(id);
        }
    }

    /// Judges all histories.
    pub fn check(&mut self) {
        let open: Vec<OpId> = self.open.keys().copied().collect();
        for id in open {
            self.on_unknown(id);
        }
        for ((group, key), calls) in &self.calls {
            match linearize::check(&relevant(calls)) {
                Verdict::Linearizable | Verdict::TooHard => {}
                Verdict::Violation => {
                    panic!("group {group}: the history of key {key} is not linearizable: {calls:?}")
                }
            }
        }
    }
}

fn operation(command: Command, old: Option<Value>) -> (Key, Operation) {
    match command {
        Command::Put(key, new) => (key, Operation::Put(old, new)),
        Command::Swap(key, expected, new) => (key, Operation::Swap(expected, new, old)),
        Command::Delete(key, _) => (key, Operation::Put(old, 0)),
    }
}

/// Without the unknown writes whose value nobody ever saw: whether they happened explains nothing,
/// and each would double the search. Values are unique, but for the empty one.
fn relevant(calls: &[Call]) -> Vec<Call> {
    let found = |call: &Call| match call.operation {
        Operation::Get(found) => Some(found),
        Operation::Put(found, _) => found,
        // One that was not answered shows what it found by what it did.
        Operation::Swap(expected, _, found) => found.or(Some(expected)),
    };
    let seen: BTreeSet<Value> = calls.iter().filter_map(found).collect();
    let is_relevant = |call: &&Call| match call.operation {
        Operation::Put(_, new) | Operation::Swap(_, new, _) => {
            call.end.is_some() || seen.contains(&new)
        }
        Operation::Get(_) => true,
    };
    calls.iter().filter(is_relevant).copied().collect()
}
