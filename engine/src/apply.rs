//! The apply stage: committed entries into the state machine, outputs to those who wait.
//!
//! It runs off the shard's loop, so that a slow machine delays no tick and no other shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::block::Entry;
use crate::error::ProposeError;
use crate::shard::ApplyTask;
use crate::state_machine::StateMachine;
use crate::types::{GroupId, Index, Term};

/// A proposal and its result.
pub type Completion<P, O> = (P, Result<O, ProposeError>);

/// What one round of the stage did.
pub struct Applied<P, O> {
    /// For the shard: applied up to.
    pub marks: Vec<(GroupId, Index)>,
    /// How many entries.
    pub entries: usize,
    /// For the clients.
    pub completions: Vec<Completion<P, O>>,
}

/// The state machine and the clients that wait for its outputs.
pub struct Applier<M, P> {
    machine: Arc<M>,
    /// Per group, by index: the term in which the proposal was appended there.
    waiting: BTreeMap<GroupId, VecDeque<(Index, Term, P)>>,
    /// What went into the machine since the start.
    applied: BTreeMap<GroupId, Index>,
}

impl<M: StateMachine, P> Applier<M, P> {
    /// Nobody waits yet.
    pub fn new(machine: Arc<M>) -> Self {
        Self {
            machine,
            waiting: BTreeMap::new(),
            applied: BTreeMap::new(),
        }
    }

    /// Does a round of tasks: all entries of all groups in one call of the machine.
    pub fn run(&mut self, tasks: Vec<ApplyTask<P>>) -> Result<Applied<P, M::Output>, M::Error> {
        let mut entries: Vec<(GroupId, Entry)> = Vec::new();
        let mut marks = Vec::new();
        let mut completions = Vec::new();
        for task in tasks {
            match task {
                ApplyTask::Await(group, index, term, waiter) => {
                    let given_up = self.add_waiter(group, index, term, waiter);
                    completions.extend(given_up.map(|p| (p, Err(ProposeError::Unknown))));
                }
                ApplyTask::Apply(group, blocks) => {
                    if let Some(block) = blocks.last() {
                        marks.push((group, block.last()));
                    }
                    entries.extend(blocks.iter().flat_map(|b| b.entries().map(|e| (group, e))));
                }
            }
        }
        if !entries.is_empty() {
            let outputs = self.machine.apply(&entries)?;
            assert_eq!(outputs.len(), entries.len(), "one output for each entry");
            for ((group, entry), output) in entries.iter().zip(outputs) {
                self.applied.insert(*group, entry.index);
                self.complete(*group, entry, output, &mut completions);
            }
        }
        Ok(Applied {
            marks,
            entries: entries.len(),
            completions,
        })
    }

    /// Waiters come in index order, but a new leader may reuse an index. Those at or above it are
    /// given up as unknown: a third leader could still commit the older entries. So is one whose
    /// index is applied already, because the leader's word was slower than the entry: in a quiet
    /// group nothing would ever come to complete it.
    fn add_waiter(
        &mut self,
        group: GroupId,
        index: Index,
        term: Term,
        waiter: P,
    ) -> impl Iterator<Item = P> + use<M, P> {
        let queue = self.waiting.entry(group).or_default();
        let keep = queue.partition_point(|w| w.0 < index);
        let mut given_up: Vec<P> = queue.drain(keep..).map(|w| w.2).collect();
        if self.applied.get(&group).is_some_and(|&applied| index <= applied) {
            given_up.push(waiter);
        } else {
            queue.push_back((index, term, waiter));
        }
        given_up.into_iter()
    }

    fn complete<O>(
        &mut self,
        group: GroupId,
        entry: &Entry,
        output: O,
        completions: &mut Vec<Completion<P, O>>,
    ) {
        let Some(queue) = self.waiting.get_mut(&group) else {
            return;
        };
        let mut output = Some(output);
        while queue.front().is_some_and(|w| w.0 <= entry.index) {
            let Some((index, term, waiter)) = queue.pop_front() else {
                break;
            };
            let result = if index < entry.index {
                Err(ProposeError::Unknown) // its entry was cut, and another one skipped
            } else if term == entry.term {
                output.take().ok_or(ProposeError::Unknown)
            } else {
                Err(ProposeError::Replaced)
            };
            completions.push((waiter, result));
        }
        if queue.is_empty() {
            self.waiting.remove(&group);
        }
    }
}
