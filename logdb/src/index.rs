//! In memory: what each group has, and where its blocks lie.
//!
//! Live bytes of a segment are the blocks in it that are still part of a group's log, and the
//! newest description, hard state and compaction mark of a group, counted where they were written.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use multiraft_engine::block::Block;
use multiraft_engine::traits::{GroupWrite, StoredGroup};
use multiraft_engine::types::{GroupId, HardState, Index, Term};

/// A place in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: u64,
    /// Bytes from its start.
    pub offset: u64,
}

/// A block of a group's log, of which the part from `first` to `last` counts.
#[derive(Debug, Clone)]
pub struct BlockRef {
    /// First index that counts.
    pub first: Index,
    /// Last index that counts.
    pub last: Index,
    /// Their term.
    pub term: Term,
    /// Length of the whole block, bytes.
    pub bytes: usize,
    /// Where it lies; `None` while it waits for the writer.
    pub place: Option<Place>,
    /// The block while it is recent; always there while `place` is not.
    pub cached: Option<Block>,
}

/// All that is stored of one group.
#[derive(Debug, Clone, Default)]
pub struct GroupIndex {
    /// The description; `None` until it was seen (a group in recovery).
    pub meta: Option<Bytes>,
    /// The hard state.
    pub hard_state: HardState,
    /// Compacted up to, and the term there.
    pub compacted: (Index, Term),
    /// The blocks after it, gapless.
    pub blocks: VecDeque<BlockRef>,
    /// The segments that hold the newest description, hard state and compaction mark; 0: none yet.
    pub state_segments: [u64; 3],
}

/// All groups.
#[derive(Debug, Default)]
pub struct LogIndex {
    /// By id.
    pub groups: BTreeMap<GroupId, GroupIndex>,
    /// Bytes of live blocks by segment.
    pub live: BTreeMap<u64, u64>,
}

impl GroupIndex {
    /// The last index, or what was compacted.
    pub fn last(&self) -> Index {
        self.blocks.back().map_or(self.compacted.0, |b| b.last)
    }

    /// The term of an entry.
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        let at = self.blocks.partition_point(|b| b.last < index);
        self.blocks
            .get(at)
            .filter(|b| b.first <= index)
            .map(|b| b.term)
    }

    /// What the engine restores a group from.
    pub fn stored(&self, group: GroupId) -> StoredGroup {
        let mut terms: Vec<(Index, Index, Term)> = Vec::new();
        for block in &self.blocks {
            match terms.last_mut().filter(|run| run.2 == block.term) {
                Some(run) => run.1 = block.last,
                None => terms.push((block.first, block.last, block.term)),
            }
        }
        StoredGroup {
            group,
            meta: self.meta.clone().unwrap_or_default(),
            hard_state: self.hard_state,
            compacted: self.compacted,
            terms,
        }
    }
}

impl LogIndex {
    /// The group, made if it is new.
    pub fn group(&mut self, group: GroupId) -> &mut GroupIndex {
        self.groups.entry(group).or_default()
    }

    /// Applies a write that is on its way to the disk; its blocks have no place yet.
    pub fn apply(&mut self, write: &GroupWrite, compact: Option<(Index, Term)>) {
        if write.remove {
            self.remove(write.group);
        }
        if write.remove && write.meta.is_none() {
            return;
        }
        if let Some((index, term)) = compact {
            self.compact(write.group, index, term);
        }
        if let Some(from) = write.truncate_from {
            self.truncate(write.group, from);
        }
        let group = self.group(write.group);
        if let Some(meta) = &write.meta {
            group.meta = Some(meta.clone());
        }
        if let Some(hard_state) = write.hard_state {
            group.hard_state = hard_state;
        }
        for block in &write.blocks {
            assert_eq!(block.first(), group.last().next(), "entries are contiguous");
            group.blocks.push_back(block_ref(block.clone(), None));
        }
    }

    /// Drops a group.
    pub fn remove(&mut self, group: GroupId) {
        if let Some(index) = self.groups.remove(&group) {
            for block in &index.blocks {
                self.kill(block);
            }
        }
    }

    /// Drops entries up to and including `index`.
    pub fn compact(&mut self, group: GroupId, index: Index, term: Term) {
        let entry = self.groups.entry(group).or_default();
        if index <= entry.compacted.0 {
            return;
        }
        entry.compacted = (index, term);
        let mut dead = Vec::new();
        while entry.blocks.front().is_some_and(|b| b.last <= index) {
            dead.extend(entry.blocks.pop_front());
        }
        if let Some(block) = entry.blocks.front_mut() {
            block.first = block.first.max(index.next());
        }
        for block in &dead {
            self.kill(block);
        }
    }

    /// Drops entries from `from` on.
    pub fn truncate(&mut self, group: GroupId, from: Index) {
        let entry = self.groups.entry(group).or_default();
        let mut dead = Vec::new();
        while entry.blocks.back().is_some_and(|b| b.first >= from) {
            dead.extend(entry.blocks.pop_back());
        }
        if let Some(block) = entry.blocks.back_mut() {
            block.last = block.last.min(from.prev());
        }
        for block in &dead {
            self.kill(block);
        }
    }

    /// Blocks of a group were written to `place`: whichever of them still count.
    pub fn set_place(&mut self, group: GroupId, block: &Block, place: Place) {
        let Some(entry) = self.groups.get_mut(&group) else {
            return;
        };
        let at = entry.blocks.partition_point(|b| b.last < block.first());
        let found = entry
            .blocks
            .range_mut(at..)
            .find(|b| b.place.is_none() && b.cached.as_ref().is_some_and(|c| same(c, block)));
        if let Some(found) = found {
            found.place = Some(place);
            *self.live.entry(place.segment).or_default() += found.bytes as u64;
        }
    }

    /// A block that counts moved to a new place.
    pub fn move_block(&mut self, group: GroupId, block: &Block, place: Place) {
        let Some(entry) = self.groups.get_mut(&group) else {
            return;
        };
        let at = entry.blocks.partition_point(|b| b.last < block.first());
        let Some(found) = entry.blocks.get_mut(at) else {
            return;
        };
        if found.term != block.term() || found.last > block.last() || found.first < block.first() {
            return; // it was cut or replaced meanwhile
        }
        let old = found.clone();
        found.place = Some(place);
        found.bytes = block.bytes().len();
        *self.live.entry(place.segment).or_default() += block.bytes().len() as u64;
        self.kill(&old);
    }

    fn kill(&mut self, block: &BlockRef) {
        if let Some(place) = block.place
            && let Some(live) = self.live.get_mut(&place.segment)
        {
            *live -= block.bytes as u64;
        }
    }
}

fn same(a: &Block, b: &Block) -> bool {
    (a.first(), a.last(), a.checksum()) == (b.first(), b.last(), b.checksum())
}

/// The reference to a whole block.
pub fn block_ref(block: Block, place: Option<Place>) -> BlockRef {
    BlockRef {
        first: block.first(),
        last: block.last(),
        term: block.term(),
        bytes: block.bytes().len(),
        place,
        cached: Some(block),
    }
}
