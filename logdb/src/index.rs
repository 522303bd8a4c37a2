//! In memory: for each group, where its newest state lies. Changed by the same items, in the same
//! order, by an append and by recovery; so what recovery finds is what was written.
//!
//! Invariants, checked by [`Index::check_gapless`] after recovery:
//! - a group's spans are in index order without gaps, from the entry after the compacted one;
//! - every item that counts is in the live bytes of its segment exactly once.
//!
//! During recovery spans may have gaps for a while: the segment of older entries may be recycled
//! already, and the items that moved them come later in the log.

use std::collections::{BTreeMap, VecDeque};

use multiraft_engine::planted;
use multiraft_engine::traits::StoredGroup;
use multiraft_engine::types::{GroupId, Index as LogIndex, Term};

use crate::format::{BlockItem, Checkpoint, Item};
use crate::reclaim::Reclaiming;
use crate::segment::SegmentTable;

/// What an item is counted with beside its payload, bytes.
const ITEM_BYTES: u64 = 32;

/// Where a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The batch.
    pub(crate) sequence: u64,
    /// From the batch's first byte.
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    /// Of the block itself, if it is stored compressed.
    pub(crate) block_bytes: u32,
    /// Of the block, as its item tells: another block in its place is not taken for it.
    pub(crate) checksum: u32,
}

/// A run of entries in one stored block; the block may hold more, cut off since.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) first: LogIndex,
    pub(crate) last: LogIndex,
    pub(crate) term: Term,
    pub(crate) at: Position,
}

/// A small item that counts.
#[derive(Debug, Clone, Copy)]
struct Held {
    sequence: u64,
    bytes: u64,
}

/// Puts `new` in the place of what a slot held.
fn hold(slot: &mut Option<Held>, new: Option<Held>, killer: u64, table: &mut SegmentTable) {
    if let Some(old) = slot.take() {
        table.remove_live(old.sequence, old.bytes, killer);
    }
    if let Some(new) = new {
        table.add_live(new.sequence, new.bytes);
        *slot = Some(new);
    }
}

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) state: Checkpoint,
    meta_at: Option<Held>,
    hard_state_at: Option<Held>,
    compacted_at: Option<Held>,
    spans: VecDeque<Span>,
    /// The newest batch in which a block of the group has died.
    died_in: u64,
    /// The last entry of which compaction has left nothing.
    dead_to: LogIndex,
}

impl Group {
    pub(crate) fn last(&self) -> LogIndex {
        self.spans.back().map_or(self.state.compacted.0, |s| s.last)
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }

    /// The spans from the one that holds `index` on.
    pub(crate) fn spans_from(&self, index: LogIndex) -> impl Iterator<Item = &Span> {
        let start = self.spans.partition_point(|s| s.last < index);
        self.spans.iter().skip(start)
    }

    /// The term of an entry, or of the one compacted last; zero if it is not known.
    pub(crate) fn term_of(&self, index: LogIndex) -> Term {
        match self.spans_from(index).next() {
            Some(span) if span.first <= index => span.term,
            _ if index == self.state.compacted.0 => self.state.compacted.1,
            _ => Term::ZERO,
        }
    }

    /// Whether its small state lies in a batch up to `sequence`.
    pub(crate) fn has_small_state_through(&self, sequence: u64) -> bool {
        let held = [self.meta_at, self.hard_state_at, self.compacted_at];
        held.into_iter().flatten().any(|h| h.sequence <= sequence)
    }

    /// Whether all that it has was written after batch `sequence`.
    pub(crate) fn is_newer_than(&self, sequence: u64) -> bool {
        let is_newer = |held: Option<Held>| held.is_some_and(|h| h.sequence > sequence);
        let is_begun_newer = is_newer(self.compacted_at) || self.compacted_at.is_none();
        let has_newer_state = is_newer(self.meta_at) && is_newer(self.hard_state_at);
        let mut spans = self.spans.iter();
        has_newer_state && is_begun_newer && spans.all(|s| s.at.sequence > sequence)
    }

    /// The first entry that is missing between those stored.
    pub(crate) fn gap(&self) -> Option<LogIndex> {
        let mut next = self.state.compacted.0.next();
        for span in &self.spans {
            if span.first != next {
                return Some(next);
            }
            next = span.last.next();
        }
        None
    }

    /// Sequence of the batch and bytes of each item that counts.
    pub(crate) fn held(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let small = [self.meta_at, self.hard_state_at, self.compacted_at];
        let small = small.into_iter().flatten().map(|h| (h.sequence, h.bytes));
        let spans = self.spans.iter().map(|s| (s.at.sequence, span_bytes(s)));
        small.chain(spans)
    }

    /// Bytes of all entries, and all bytes that count in batches up to this sequence.
    pub(crate) fn needed_bytes(&self, through: Option<u64>) -> (u64, u64) {
        let is_old = |sequence: u64| through.is_some_and(|through| sequence <= through);
        let all = self.spans.iter().map(span_bytes).sum();
        let old = self.held().filter(|(sequence, _)| is_old(*sequence));
        (all, old.map(|(_, bytes)| bytes).sum())
    }

    fn compact_to(&mut self, index: LogIndex, term: Term, killer: u64, table: &mut SegmentTable) {
        if index > self.state.compacted.0 {
            self.state.compacted = (index, term);
        }
        while self.spans.front().is_some_and(|s| s.last <= index) {
            let span = self.spans.pop_front().expect("there is a front");
            self.release(&span, killer, table);
            self.dead_to = span.last;
        }
        match self.spans.front_mut() {
            // The head of a block that is cut here is still there.
            Some(front) => front.first = front.first.max(index.next()),
            None => self.dead_to = self.state.compacted.0,
        }
    }

    fn release(&mut self, span: &Span, killer: u64, table: &mut SegmentTable) {
        self.died_in = self.died_in.max(span.at.sequence);
        table.remove_live(span.at.sequence, span_bytes(span), killer);
    }

    fn truncate_from(&mut self, index: LogIndex, killer: u64, table: &mut SegmentTable) {
        while self.spans.back().is_some_and(|s| s.first >= index) {
            let span = self.spans.pop_back().expect("there is a back");
            self.release(&span, killer, table);
        }
        if let Some(back) = self.spans.back_mut() {
            back.last = back.last.min(index.prev());
        }
    }

    /// Puts a span into its place in index order, and takes out what lay there.
    fn insert(&mut self, span: Span, killer: u64, table: &mut SegmentTable) {
        if self.last() < span.first {
            table.add_live(span.at.sequence, span_bytes(&span));
            return self.spans.push_back(span); // nearly always
        }
        let start = self.spans.partition_point(|s| s.last < span.first);
        while self.spans.get(start).is_some_and(|s| s.first <= span.last) {
            let old = self.spans.remove(start).expect("it is there");
            self.release(&old, killer, table);
        }
        table.add_live(span.at.sequence, span_bytes(&span));
        self.spans.insert(start, span);
    }

    fn release_all(&mut self, killer: u64, table: &mut SegmentTable) {
        self.truncate_from(LogIndex::ZERO, killer, table);
        for slot in [
            &mut self.meta_at,
            &mut self.hard_state_at,
            &mut self.compacted_at,
        ] {
            hold(slot, None, killer, table);
        }
    }
}

fn span_bytes(span: &Span) -> u64 {
    ITEM_BYTES + u64::from(span.at.bytes)
}

/// All groups, in order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Index {
    groups: BTreeMap<GroupId, Group>,
    /// Compacted entries that still take space.
    pub(crate) reclaiming: Reclaiming,
}

impl Index {
    pub(crate) fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(crate) fn groups_from(&self, first: GroupId) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.range(first..).map(|(id, group)| (*id, group))
    }

    /// Applies one item of batch `sequence`, at `offset` in it if it has a block.
    pub(crate) fn apply(
        &mut self,
        group: GroupId,
        item: &Item,
        (sequence, offset): (u64, u32),
        table: &mut SegmentTable,
    ) {
        let held = |payload: usize| {
            let bytes = ITEM_BYTES + payload as u64;
            Some(Held { sequence, bytes })
        };
        if *item == Item::Remove {
            if let Some(mut removed) = self.groups.remove(&group) {
                removed.release_all(sequence, table);
            }
            self.reclaiming.forget(group);
            return;
        }
        let id = group;
        let group = self.groups.entry(id).or_default();
        let dead_before = group.dead_to;
        match item {
            Item::Remove => unreachable!("handled above"),
            Item::Meta(meta) => {
                group.state.meta = meta.clone();
                hold(&mut group.meta_at, held(meta.len()), sequence, table);
            }
            Item::CompactTo { index, term } => {
                group.compact_to(*index, *term, sequence, table);
                hold(&mut group.compacted_at, held(0), sequence, table);
            }
            Item::TruncateFrom(index) => {
                if !planted!("B12") {
                    group.truncate_from(*index, sequence, table);
                }
            }
            Item::Append(stored) => {
                if !planted!("B12") {
                    group.truncate_from(stored.first, sequence, table);
                }
                group.insert(span(*stored, sequence, offset), sequence, table);
            }
            Item::Moved(stored) => {
                group.insert(span(*stored, sequence, offset), sequence, table);
            }
            Item::HardState(state) => {
                group.state.hard_state = *state;
                hold(&mut group.hard_state_at, held(0), sequence, table);
            }
            Item::Checkpoint(checkpoint) => {
                let (index, term) = checkpoint.compacted;
                group.compact_to(index, term, sequence, table);
                group.state = checkpoint.clone();
                hold(
                    &mut group.meta_at,
                    held(checkpoint.meta.len()),
                    sequence,
                    table,
                );
                hold(&mut group.hard_state_at, held(0), sequence, table);
                hold(&mut group.compacted_at, held(0), sequence, table);
            }
        }
        if group.dead_to > dead_before && group.died_in > 0 {
            self.reclaiming
                .add(id, group.dead_to, group.died_in, sequence);
        }
    }

    /// The first gap, if a recovery left one.
    pub(crate) fn check_gapless(&self) -> Result<(), (GroupId, LogIndex)> {
        let mut gaps = self.groups.iter();
        let gap = gaps.find_map(|(id, group)| Some((*id, group.gap()?)));
        gap.map_or(Ok(()), Err)
    }

    /// All groups as the engine wants them at its start.
    pub(crate) fn stored_groups(&self) -> Vec<StoredGroup> {
        let groups = self.groups.iter();
        groups.map(|(id, group)| stored_group(*id, group)).collect()
    }
}

fn span(stored: BlockItem, sequence: u64, offset: u32) -> Span {
    Span {
        first: stored.first,
        last: stored.last,
        term: stored.term,
        at: Position {
            sequence,
            offset,
            bytes: stored.bytes,
            block_bytes: stored.block_bytes,
            checksum: stored.checksum,
        },
    }
}

fn stored_group(id: GroupId, group: &Group) -> StoredGroup {
    let mut terms: Vec<(LogIndex, LogIndex, Term)> = Vec::new();
    for span in &group.spans {
        match terms.last_mut() {
            Some(run) if run.2 == span.term => run.1 = span.last,
            _ => terms.push((span.first, span.last, span.term)),
        }
    }
    let Checkpoint {
        meta,
        hard_state,
        compacted,
    } = group.state.clone();
    StoredGroup {
        group: id,
        meta,
        hard_state,
        compacted,
        terms,
    }
}
