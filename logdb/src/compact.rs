//! Giving space back: a dead segment is recycled or deleted, a nearly dead one is emptied first.
//!
//! Only the oldest segment is ever freed. Were one freed from the middle: 1. segment 1 holds entries
//! of a group, segment 2 their truncation, and segment 2 is freed; 2. a restart reads segment 1 and
//! the truncated entries are back. So the retained segments stay a suffix of the history, and what
//! is still needed of the oldest one is written again at the head: blocks as moved blocks, and the
//! newest description, hard state and compaction mark of the groups that have theirs there. An idle
//! group so costs a small copy now and then, and never pins the disk.

use std::io;

use multiraft_engine::types::{GroupId, Index};

use crate::db::{Shared, State};
use crate::format::{BatchEncoder, BlockPlace, Item, segment_name};
use crate::index::GroupIndex;
use crate::writer::PendingBatch;

/// A segment is emptied when at most this part of it is live: one of `EMPTY_BELOW`.
const EMPTY_BELOW: u64 = 4;

impl Shared {
    /// Frees what is dead at the old end, up to `active`; starts to empty what is nearly dead.
    pub fn free_segments(&self, active: u64) -> io::Result<()> {
        loop {
            let mut state = self.state.lock();
            let Some((&oldest, segment)) = state.segments.first_key_value() else {
                return Ok(());
            };
            if oldest >= active {
                return Ok(());
            }
            let size = segment.bytes;
            let live = state.index.live.get(&oldest).copied().unwrap_or(0);
            let pinned = state.groups_with_state_in(oldest);
            if live == 0 && pinned.is_empty() {
                state.segments.remove(&oldest);
                state.index.live.remove(&oldest);
                drop(state);
                self.metrics.segments.dec();
                self.metrics.freed_segments.inc();
                self.recycle(&segment_name(oldest), size)?;
                continue;
            }
            if live <= size / EMPTY_BELOW && state.emptying < oldest {
                self.metrics.moved_bytes.inc_by(live);
                self.empty(&mut state, oldest, &pinned);
            }
            return Ok(());
        }
    }

    /// Writes what is live in a segment again, at the head. Once that is durable nothing is.
    fn empty(&self, state: &mut State, segment: u64, pinned: &[GroupId]) {
        let mut batch = PendingBatch {
            start: state.buffer.bytes.len(),
            ..PendingBatch::default()
        };
        let mut moves = Vec::new();
        for (&group, index) in &state.index.groups {
            for (first, last, bytes) in blocks_in(index, segment) {
                match state.read_block(group, first) {
                    Ok(block) => moves.push((group, block.slice(first, last))),
                    Err(error) => {
                        // It stays where it is: damage is for the reader to report, not to hide.
                        tracing::error!(%group, %first, bytes, %error, "cannot move a block");
                        return;
                    }
                }
            }
        }
        let states: Vec<(GroupId, GroupIndex)> = pinned
            .iter()
            .filter_map(|group| Some((*group, state.index.groups.get(group)?.clone())))
            .collect();
        let mut encoder = BatchEncoder::new(&mut state.buffer.bytes);
        for (group, index) in states {
            let in_segment = index.state_segments.map(|at| at == segment);
            if let Some(meta) = index.meta.filter(|_| in_segment[0]) {
                encoder.put(group, &Item::Meta(meta));
            }
            if in_segment[1] {
                encoder.put(group, &Item::HardState(index.hard_state));
            }
            if in_segment[2] && index.compacted.0 > Index::ZERO {
                let (at, term) = index.compacted;
                encoder.put(group, &Item::Compact(at, term));
            }
            batch.states.push((group, in_segment));
        }
        for (group, block) in moves {
            let offset = encoder.put(group, &Item::MovedBlock(block.clone()));
            batch.moved.push(BlockPlace {
                group,
                block,
                offset,
            });
        }
        batch.bytes = encoder.finish();
        state.buffer.batches.push(batch);
        state.emptying = segment;
        self.work.notify_one();
    }
}

/// The blocks of a group that lie in a segment: first and last index that count, bytes.
fn blocks_in(index: &GroupIndex, segment: u64) -> Vec<(Index, Index, usize)> {
    let here = index
        .blocks
        .iter()
        .filter(|b| b.place.is_some_and(|p| p.segment == segment));
    here.map(|b| (b.first, b.last, b.bytes)).collect()
}

impl State {
    fn groups_with_state_in(&self, segment: u64) -> Vec<GroupId> {
        let here = self
            .index
            .groups
            .iter()
            .filter(|(_, g)| g.state_segments.contains(&segment));
        here.map(|(&group, _)| group).collect()
    }
}
