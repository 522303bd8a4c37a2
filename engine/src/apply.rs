//! The apply stage: committed entries into the state machine, outputs to those who wait.
//!
//! It runs off the shard's loop, so that a slow machine delays no tick and no other shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::block::Entry;
use crate::error::ProposeError;
use crate::shard::ApplyTask;
use crate::snapshot::SnapshotTask;
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
    /// For whoever works on snapshots.
    pub snapshots: Vec<SnapshotTask>,
}

impl<P, O> Default for Applied<P, O> {
    fn default() -> Self {
        Self {
            marks: Vec::new(),
            entries: 0,
            completions: Vec::new(),
            snapshots: Vec::new(),
        }
    }
}

/// The state machine and the clients that wait for its outputs.
pub struct Applier<M, P> {
    machine: Arc<M>,
    /// Per group, by index: the term in which the proposal was appended there.
    waiting: BTreeMap<GroupId, VecDeque<(Index, Term, P)>>,
    /// What went into the machine since the start.
    applied: BTreeMap<GroupId, (Index, Term)>,
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

    /// Does a round of tasks: all entries of all groups in one call of the machine, or in one for
    /// each stretch between snapshots.
    pub fn run(&mut self, tasks: Vec<ApplyTask<P>>) -> Result<Applied<P, M::Output>, M::Error> {
        let mut entries: Vec<(GroupId, Entry)> = Vec::new();
        let mut round = Applied::default();
        for task in tasks {
            match task {
                ApplyTask::Await(group, index, term, waiter) => {
                    let told = self.add_waiter(group, index, term, waiter);
                    round.completions.extend(told);
                }
                ApplyTask::GiveUp => {
                    let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
                    let unknown = waiting.map(|w| (w.2, Err(ProposeError::Unknown)));
                    round.completions.extend(unknown);
                }
                ApplyTask::Apply(group, blocks) => {
                    if let Some(block) = blocks.last() {
                        round.marks.push((group, block.last()));
                    }
                    entries.extend(blocks.iter().flat_map(|b| b.entries().map(|e| (group, e))));
                }
                ApplyTask::Pass(group, index) => round.marks.push((group, index)),
                ApplyTask::Remove(group) => {
                    self.apply(&mut entries, &mut round)?;
                    self.applied.remove(&group);
                    let waiting = self.waiting.remove(&group).into_iter().flatten();
                    let unknown = waiting.map(|w| (w.2, Err(ProposeError::Unknown)));
                    round.completions.extend(unknown);
                    round.snapshots.push(SnapshotTask::Remove(group));
                }
                ApplyTask::Save(group, snapshot) => {
                    self.apply(&mut entries, &mut round)?;
                    let view = self.machine.snapshot(group)?;
                    let task = SnapshotTask::Save(group, snapshot, view);
                    round.snapshots.push(task);
                }
                ApplyTask::Restore(group, snapshot) => {
                    self.apply(&mut entries, &mut round)?;
                    let end = (snapshot.index, snapshot.term);
                    self.give_up(group, end, &mut round.completions);
                    let task = SnapshotTask::Restore(group, snapshot);
                    round.snapshots.push(task);
                }
            }
        }
        self.apply(&mut entries, &mut round)?;
        Ok(round)
    }

    fn apply(
        &mut self,
        entries: &mut Vec<(GroupId, Entry)>,
        round: &mut Applied<P, M::Output>,
    ) -> Result<(), M::Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(entries);
        let outputs = self.machine.apply(&entries)?;
        assert_eq!(outputs.len(), entries.len(), "one output for each entry");
        for ((group, entry), output) in entries.iter().zip(outputs) {
            self.applied.insert(*group, (entry.index, entry.term));
            self.complete(*group, entry, output, &mut round.completions);
        }
        round.entries += entries.len();
        Ok(())
    }

    /// A snapshot takes the place of entries: those who wait for one that it covers are told that
    /// nobody here knows what became of it.
    fn give_up<O>(
        &mut self,
        group: GroupId,
        (index, term): (Index, Term),
        completions: &mut Vec<Completion<P, O>>,
    ) {
        self.applied.insert(group, (index, term));
        if let Some(queue) = self.waiting.get_mut(&group) {
            while queue.front().is_some_and(|waiter| waiter.0 <= index) {
                let covered = queue.pop_front().into_iter();
                completions.extend(covered.map(|w| (w.2, Err(ProposeError::Unknown))));
            }
            replace_older(queue, term, completions);
        }
    }

    /// Waiters come in index order, but a new leader may reuse an index. Those at or above it are
    /// given up as unknown: a third leader could still commit the older entries. So is one whose
    /// index is applied already, because the leader's word was slower than the entry; and one of an
    /// older term than what is applied waits in vain. In a quiet group nothing would ever come to
    /// complete them.
    fn add_waiter<O>(
        &mut self,
        group: GroupId,
        index: Index,
        term: Term,
        waiter: P,
    ) -> Vec<Completion<P, O>> {
        let (last, last_term) = self.applied.get(&group).copied().unwrap_or_default();
        if index <= last {
            return vec![(waiter, Err(ProposeError::Unknown))];
        }
        if term < last_term {
            return vec![(waiter, Err(ProposeError::Replaced))];
        }
        let queue = self.waiting.entry(group).or_default();
        let keep = queue.partition_point(|w| w.0 < index);
        let given_up = queue.drain(keep..);
        let given_up = given_up
            .map(|w| (w.2, Err(ProposeError::Unknown)))
            .collect();
        queue.push_back((index, term, waiter));
        given_up
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
        replace_older(queue, entry.term, completions);
        if queue.is_empty() {
            self.waiting.remove(&group);
        }
    }
}

/// Whoever waits behind a committed entry with an older term than its own waits in vain: terms in a
/// log never fall (Raft §5.4.3). In a quiet group nothing else would tell.
fn replace_older<P, O>(
    queue: &mut VecDeque<(Index, Term, P)>,
    term: Term,
    completions: &mut Vec<Completion<P, O>>,
) {
    if queue.iter().any(|waiter| waiter.1 < term) {
        let (stale, rest): (VecDeque<_>, _) = std::mem::take(queue)
            .into_iter()
            .partition(|waiter| waiter.1 < term);
        *queue = rest;
        let replaced = stale
            .into_iter()
            .map(|w| (w.2, Err(ProposeError::Replaced)));
        completions.extend(replaced);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;

    use super::*;
    use crate::block::{Block, EntryKind};
    use crate::raft::effects::Snapshot;
    use crate::raft::membership::Membership;
    use crate::snapshot::{SnapshotIn, SnapshotOut, SnapshotView};
    use crate::state_machine::RestoreError;

    /// Tells each entry's index.
    struct Indexes;

    impl StateMachine for Indexes {
        type Output = Index;
        type Error = Infallible;

        fn applied(&self, _: GroupId) -> Result<Index, Infallible> {
            Ok(Index::ZERO)
        }

        fn apply(&self, entries: &[(GroupId, Entry)]) -> Result<Vec<Index>, Infallible> {
            Ok(entries.iter().map(|(_, entry)| entry.index).collect())
        }

        fn flush(&self) -> Result<(), Infallible> {
            Ok(())
        }

        fn snapshot(&self, _: GroupId) -> Result<Box<dyn SnapshotView>, Infallible> {
            Ok(Box::new(Nothing))
        }

        fn restore(
            &self,
            _: GroupId,
            _: Index,
            _: Term,
            _: &mut dyn SnapshotIn,
        ) -> Result<(), RestoreError<Infallible>> {
            Ok(())
        }

        fn remove(&self, _: GroupId) -> Result<(), Infallible> {
            Ok(())
        }
    }

    struct Nothing;

    impl SnapshotView for Nothing {
        fn write_to(&mut self, _: &mut dyn SnapshotOut) -> std::io::Result<()> {
            Ok(())
        }
    }

    const GROUP: GroupId = GroupId(1);

    fn wait(index: u64, term: u64, name: &'static str) -> ApplyTask<&'static str> {
        ApplyTask::Await(GROUP, Index(index), Term(term), name)
    }

    fn apply(index: u64, term: u64) -> ApplyTask<&'static str> {
        let entries = [(EntryKind::Normal, Bytes::from_static(b"x"))];
        let block = Block::encode(Index(index), Term(term), &entries);
        ApplyTask::Apply(GROUP, vec![block])
    }

    fn restore(index: u64, term: u64) -> ApplyTask<&'static str> {
        let snapshot = Snapshot {
            index: Index(index),
            term: Term(term),
            membership: Membership::default(),
        };
        ApplyTask::Restore(GROUP, snapshot)
    }

    fn run(tasks: Vec<ApplyTask<&'static str>>) -> Vec<String> {
        let mut applier = Applier::new(Arc::new(Indexes));
        let mut told = Vec::new();
        for task in tasks {
            let Ok(round) = applier.run(vec![task]);
            let completions = round.completions.into_iter();
            told.extend(completions.map(|(name, result)| match result {
                Ok(index) => format!("{name} done {index}"),
                Err(ProposeError::Unknown) => format!("{name} unknown"),
                Err(ProposeError::Replaced) => format!("{name} replaced"),
                Err(other) => format!("{name} {other}"),
            }));
        }
        told
    }

    #[test]
    fn every_waiter_is_told_what_became_of_its_entry() {
        for (case, tasks, told) in [
            (
                "in order",
                vec![wait(1, 1, "a"), apply(1, 1)],
                vec!["a done 1"],
            ),
            (
                "the word of the leader is slower than the entry",
                vec![apply(1, 1), wait(1, 1, "a")],
                vec!["a unknown"],
            ),
            (
                "another leader's entry is there",
                vec![wait(1, 1, "a"), apply(1, 2)],
                vec!["a replaced"],
            ),
            (
                "another leader's entry is before it, and nothing follows",
                vec![wait(2, 1, "a"), apply(1, 2)],
                vec!["a replaced"],
            ),
            (
                "the leader's word comes when another leader's entry is applied before it",
                vec![apply(1, 2), wait(2, 1, "a")],
                vec!["a replaced"],
            ),
            (
                "an index is used again: an older leader's entry may still come",
                vec![wait(1, 1, "a"), wait(1, 2, "b"), apply(1, 2)],
                vec!["a unknown", "b done 1"],
            ),
            (
                "a snapshot covers the entry, but not the next one",
                vec![wait(1, 1, "a"), wait(3, 1, "b"), restore(2, 1), apply(3, 1)],
                vec!["a unknown", "b done 3"],
            ),
            (
                "the leader's word comes after a snapshot that covers the entry",
                vec![restore(2, 1), wait(1, 1, "a")],
                vec!["a unknown"],
            ),
        ] {
            assert_eq!(run(tasks), told, "{case}");
        }
    }
}
