//! Getting segments back: publish, retire, and move what is still alive out of the oldest.
//!
//! Invariants:
//! - **Only the oldest segment is ever given back.** So an item that killed others (truncate,
//!   compact, remove, a newer hard state) never leaves the log before what it killed.
//!   Else: 1. segment 4 truncates entries of segment 3; 2. segment 4 is recycled first; 3. a
//!   restart finds the entries of segment 3 alive again: a conflict that Raft had resolved
//!   (atomix#553).
//! - **A segment is dead only when its last killer is durable.** Else: 1. a removal is queued and
//!   the segment recycled; 2. crash before the removal's sync; 3. the group has lost its entries.
//! - **A durable batch says that it is not needed before its file is touched** (`oldest` in the
//!   header). So recovery knows which segments must exist, and needs no manifest. Else: 1. a
//!   needed segment's file is lost; 2. recovery takes its absence for recycling; 3. it votes with
//!   half its memory.
//! - **A segment that somebody reads is deleted and not used again**: who holds bytes of it keeps them, and its space
//!   with them, until they are dropped.
//! - **What is alive in the oldest segment is written again at the head** when the log is larger than
//!   [`SPACE_FACTOR`] times its live bytes and [`SPACE_SEGMENTS`] segments, and not before: nearly always the
//!   oldest dies by itself. So an idle group never pins the disk. Written again means: newest hard state,
//!   description and compaction point as one checkpoint item; entries as moved blocks, which replace the same
//!   entries and leave all others alone. Both are taken from the index under the lock that orders the log, so
//!   they say what is true at their place in it.

use std::sync::Arc;

use multiraft_engine::types::GroupId;

use crate::format::Item;
use crate::pack::Packed;
use crate::reserve::Reuse;
use crate::segment::SegmentId;
use crate::state::{Found, State};
use crate::writer::Shared;

/// The log is at most this many times its live bytes, plus [`SPACE_SEGMENTS`] segments: each byte that is written
/// may cost one that is moved, at most.
pub const SPACE_FACTOR: u64 = 2;
/// Segments that a small log may use without being compacted.
pub const SPACE_SEGMENTS: u64 = 2;
/// Groups looked at in one turn.
const GROUPS_A_TURN: usize = 256;
/// Bytes of blocks moved in one turn, about.
const BYTES_A_TURN: u64 = 1 << 20;

/// A block to move.
struct Move {
    group: GroupId,
    found: Found,
}

/// What a turn moves.
#[derive(Default)]
struct Plan {
    moves: Vec<Move>,
    /// Groups whose small state lies in the victim.
    checkpoints: Vec<GroupId>,
    /// Last sequence of the victim.
    through: u64,
}

impl Plan {
    /// There may be more where this was.
    fn found_something(&self) -> bool {
        !self.moves.is_empty() || !self.checkpoints.is_empty()
    }
}

/// Gives segments back, a bounded piece of work at a time.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    /// Where the search for live items goes on.
    cursor: GroupId,
    /// A segment with damage that cannot be moved; left alone and reported once.
    damaged: Option<SegmentId>,
    round: Round,
}

/// Where making a log smaller stands that is larger than it should be. Blocks that do not fill segments may keep
/// it so, and without a pause the same bytes would be moved for ever.
#[derive(Debug, Clone, Copy)]
enum Round {
    /// It is not too large.
    Done,
    /// All segments up to this one are cleared, once each.
    Clearing { last: SegmentId },
    /// They are, and it is too large still: another try when more than this segment is full.
    Resting { active: SegmentId },
}

impl Round {
    fn next(self, oldest: SegmentId, active: SegmentId) -> Self {
        match self {
            Self::Done => Self::Clearing { last: active },
            Self::Clearing { last } if oldest > last => Self::Resting { active },
            Self::Resting { active: rested } if active > rested => Self::Clearing { last: active },
            Self::Clearing { .. } | Self::Resting { .. } => self,
        }
    }
}

impl Compactor {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            cursor: GroupId(0),
            damaged: None,
            round: Round::Done,
        }
    }

    /// One piece of work. What it writes goes into the next batch.
    pub(crate) fn turn(&mut self) {
        self.shared.state.lock().is_compaction_due = false;
        self.retire();
        let shared = Arc::clone(&self.shared);
        let plan = {
            let state = shared.state.lock();
            let victim = self.victim(&state);
            victim.map(|through| self.plan(&state, through))
        };
        if let Some(plan) = plan {
            self.execute(&plan);
        }
        let mut state = shared.state.lock();
        // Without other traffic an empty batch tells that segments are no longer needed.
        if state.pending.is_empty() && state.table.oldest_needed(state.durable) > state.published {
            state.make_pending(0, u64::MAX);
        }
    }

    fn retire(&self) {
        let reclaimed = {
            let mut state = self.shared.state.lock();
            let published = state.published;
            let mut is_news = false;
            while let Some(segment) = state.table.pop_older_than(published) {
                let reuse = if segment.is_read() {
                    Reuse::Forbidden
                } else {
                    Reuse::Allowed
                };
                self.shared
                    .reserve
                    .retire(segment.id, segment.file_bytes, reuse);
                is_news = true;
            }
            if !is_news && !state.index.reclaiming.is_early {
                return;
            }
            let (first, durable) = (state.table.first_sequence(), state.durable);
            let reclaimed = state.index.reclaiming.take_before(first, durable);
            // Its batch is pending, or on its way.
            state.is_compaction_due |= state.index.reclaiming.is_early;
            reclaimed
        };
        let observer = self.shared.observer.lock().clone();
        if let Some(observer) = observer {
            for (group, index) in reclaimed {
                observer.on_reclaimed(group, index);
            }
        }
    }

    /// The last sequence of the oldest segment, if the log is too large with it, or will be with the next one.
    fn victim(&mut self, state: &State) -> Option<u64> {
        let active = state.table.active();
        // Room for the next segment is made before it is begun; not much earlier, for meanwhile more dies by itself.
        let is_next_near = active.end >= active.file_bytes / 4 * 3;
        let active = active.id;
        let needed = state.table.oldest_needed(state.durable);
        let victim = state.table.iter().find(|s| s.id == needed)?;
        if victim.id == active || victim.live_bytes == 0 || self.damaged == Some(victim.id) {
            return None;
        }
        let (used, live) = state.table.used_and_live_bytes();
        let segments = SPACE_SEGMENTS - u64::from(is_next_near);
        let allowance = segments * self.shared.options.segment_bytes;
        let is_too_large = used > live * SPACE_FACTOR + allowance;
        self.round = if is_too_large {
            self.round.next(victim.id, active)
        } else {
            Round::Done
        };
        let is_due = matches!(self.round, Round::Clearing { .. });
        is_due.then(|| victim.last_sequence())
    }

    fn plan(&mut self, state: &State, through: u64) -> Plan {
        let mut plan = Plan {
            through,
            ..Plan::default()
        };
        let mut bytes = 0;
        let start = std::mem::replace(&mut self.cursor, GroupId(0));
        for (nth, (id, group)) in state.index.groups_from(start).enumerate() {
            if nth == GROUPS_A_TURN || bytes > BYTES_A_TURN {
                self.cursor = id;
                break;
            }
            if group.has_small_state_through(through) {
                plan.checkpoints.push(id);
            }
            for span in group.spans().filter(|s| s.at.sequence <= through) {
                let found = state.found(span, span.first, span.last);
                bytes += u64::from(span.at.block_bytes);
                plan.moves.push(Move { group: id, found });
            }
        }
        plan
    }

    fn execute(&mut self, plan: &Plan) {
        let mut blocks = Vec::new();
        for from in &plan.moves {
            match from.found.load(from.group) {
                Ok(block) => {
                    let packed = Packed::new(&block, self.shared.options.compression);
                    blocks.push((from, packed));
                }
                Err(error) => {
                    tracing::error!(%error, "a live block cannot be moved; its segment stays");
                    let state = self.shared.state.lock();
                    self.damaged = Some(state.table.oldest_needed(state.durable));
                }
            }
        }
        let mut state = self.shared.state.lock();
        for (from, packed) in blocks {
            self.move_block(&mut state, from, &packed);
        }
        for id in &plan.checkpoints {
            let group = state.index.group(*id);
            // It may have been removed or written meanwhile.
            let Some(group) = group.filter(|g| g.has_small_state_through(plan.through)) else {
                continue;
            };
            let item = Item::Checkpoint(group.state.clone());
            state.make_pending(0, self.shared.options.batch_bytes);
            state.push(*id, &item, None);
        }
        state.is_compaction_due |= self.cursor > GroupId(0) || plan.found_something();
    }

    fn move_block(&self, state: &mut State, from: &Move, packed: &Packed) {
        let group = state.index.group(from.group);
        let mut spans = group
            .into_iter()
            .flat_map(|g| g.spans_from(from.found.first));
        // It may have been cut, compacted or removed meanwhile: then the next turn looks again.
        let unchanged = spans.next().is_some_and(|s| {
            (s.at, s.first, s.last) == (from.found.at, from.found.first, from.found.last)
        });
        drop(spans);
        if unchanged {
            let bytes = packed.bytes.len() as u64;
            state.make_pending(bytes, self.shared.options.batch_bytes);
            let item = Item::Moved(packed.item);
            state.push(from.group, &item, Some(&packed.bytes));
        }
    }
}
