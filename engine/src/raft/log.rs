//! A group's view of its log: what is stored, what is on its way to the disk, what is committed.
//!
//! ```text
//!   compacted │ stored ………… │ in flight ……… │ staged
//!             first     durable        sealed    last
//! ```
//! Invariants: `applied <= applying <= commit <= last`; terms never fall; the cache is a gapless run
//! of blocks that ends at the last sealed entry and holds at least all that is not durable yet.

use std::collections::VecDeque;

use bytes::Bytes;

use super::conf_change::ConfChange;
use super::effects::Source;
use crate::block::{Block, EntryKind};
use crate::planted;
use crate::traits::{GroupWrite, LogError, StoredGroup};
use crate::types::{Index, Term};

/// When committed entries may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApplyRule {
    /// When they are durable here. Were an entry applied that only our memory holds: 1. it is
    /// committed by others' disks; 2. the machine's state reaches its disk, ours does not; 3. after
    /// a crash the log cannot explain the state.
    #[default]
    Durable,
    /// With the write that holds them: for a caller that finishes [`super::effects::Effects::write`]
    /// before it applies, so that a restart cannot expose the difference.
    WithWrite,
}

/// An append contradicts a committed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedConflict(pub Index);

/// Entries go into a new block once the current one has this many bytes.
const SEAL_BYTES: usize = 1 << 20;
/// Bytes that are read at once to see which entries are configuration changes.
const READ_BYTES: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub struct RaftLog {
    compacted: (Index, Term),
    /// First index and term of each run of one term.
    terms: VecDeque<(Index, Term)>,
    last: Index,
    durable: Index,
    commit: Index,
    /// Handed to the apply stage.
    applying: Index,
    /// Acknowledged by the apply stage.
    applied: Index,
    cache: VecDeque<Block>,
    cache_bytes: usize,
    cache_limit: usize,
    staged: Vec<(EntryKind, Bytes)>,
    staged_bytes: usize,
    unwritten: Vec<Block>,
    truncate_from: Option<Index>,
    compact_to: Option<Index>,
    restart_after: Option<(Index, Term)>,
    /// An installed snapshot that the state machine has not taken over yet.
    snapshot: Option<Index>,
    /// The state before the log's beginning is lost: until another snapshot comes nothing can be
    /// applied.
    state_missing: bool,
    apply_rule: ApplyRule,
    /// Last index and bytes of what the apply stage has.
    at_apply: VecDeque<(Index, usize)>,
    /// Configuration changes that are not applied, as far as they came since the start.
    conf_changes: VecDeque<(Index, ConfChange)>,
    /// The end of the log at the start: what kinds of entries it holds up to here is not known.
    unknown_to: Index,
}

impl RaftLog {
    /// The log of a group as the disk holds it. `applied` comes from the state machine, which is
    /// only given committed and durable entries: it may know a later commit than the hard state. If
    /// it ends before the log begins, the state is lost, and a snapshot has to come from a peer.
    pub fn restore(
        stored: &StoredGroup,
        applied: Index,
        cache_limit: usize,
        apply_rule: ApplyRule,
    ) -> Self {
        let last = stored.terms.last().map_or(stored.compacted.0, |t| t.1);
        assert!(
            applied <= last,
            "applied {applied} beyond the durable log's end {last}"
        );
        let commit = stored
            .hard_state
            .commit
            .min(last)
            .max(applied)
            .max(stored.compacted.0);
        Self {
            compacted: stored.compacted,
            terms: stored.terms.iter().map(|t| (t.0, t.2)).collect(),
            last,
            durable: last,
            commit,
            applying: applied.max(stored.compacted.0),
            applied: applied.max(stored.compacted.0),
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_limit,
            staged: Vec::new(),
            staged_bytes: 0,
            unwritten: Vec::new(),
            truncate_from: None,
            compact_to: None,
            restart_after: None,
            snapshot: None,
            state_missing: applied < stored.compacted.0,
            apply_rule,
            at_apply: VecDeque::new(),
            conf_changes: VecDeque::new(),
            unknown_to: last,
        }
    }

    /// The first index that can be read.
    pub fn first(&self) -> Index {
        self.compacted.0.next()
    }

    /// The last index, written or not.
    pub fn last(&self) -> Index {
        self.last
    }

    /// The term of the last entry.
    pub fn last_term(&self) -> Term {
        self.terms.back().map_or(self.compacted.1, |t| t.1)
    }

    /// Everything up to here is on stable storage.
    pub fn durable(&self) -> Index {
        self.durable
    }

    /// The commit index.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// What was handed to the apply stage.
    pub fn applying(&self) -> Index {
        self.applying
    }

    /// What the state machine has applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The term of an entry; `None` when it is compacted or beyond the end.
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        if index < self.compacted.0 || index > self.last {
            return None;
        }
        let run = self.terms.partition_point(|t| t.0 <= index);
        Some(self.terms[run - 1].1)
    }

    /// The highest index up to `index` whose term is at most `term`: what a peer whose entry has
    /// that term may agree with. Skips a whole term at a time (Raft §5.3).
    pub fn find_conflict_by_term(&self, index: Index, term: Term) -> Index {
        let mut at = index.min(self.last);
        while at > self.compacted.0 && self.term(at).is_some_and(|t| t > term) {
            let run = self.terms.partition_point(|t| t.0 <= at);
            at = self.terms[run - 1].0.prev();
        }
        at
    }

    /// A leader appends one entry; returns its index.
    pub fn stage(&mut self, term: Term, kind: EntryKind, payload: Bytes) -> Index {
        self.last = self.last.next();
        self.note_term(self.last, term);
        self.staged_bytes += payload.len();
        self.staged.push((kind, payload));
        if self.staged_bytes >= SEAL_BYTES {
            self.seal();
        }
        self.last
    }

    /// Encodes what is staged, once for disk and peers.
    pub fn seal(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        self.staged_bytes = 0;
        let first = Index(self.last.0 + 1 - staged.len() as u64);
        let block = Block::encode(first, self.last_term(), &staged);
        self.push(block);
    }

    /// A follower takes a leader's blocks, which follow an entry that agrees. Skips what is there,
    /// cuts at the first conflict, appends the rest. Returns the first index that was cut; an error,
    /// having changed nothing, when a committed entry would be: the sender breaks Raft.
    pub fn accept(&mut self, blocks: &[Block]) -> Result<Option<Index>, CommittedConflict> {
        self.seal();
        let Some(from) = blocks.iter().find_map(|block| self.first_new(block)) else {
            return Ok(None);
        };
        if from <= self.commit {
            return Err(CommittedConflict(from));
        }
        let cut = (from <= self.last).then_some(from);
        if cut.is_some() {
            self.truncate(from);
        }
        for block in blocks.iter().filter(|b| b.last() >= from) {
            let new = block.slice(block.first().max(from), block.last());
            self.note_term(new.first(), new.term());
            self.last = new.last();
            self.push(new);
        }
        Ok(cut)
    }

    /// The first index of a block that is missing here or of another term.
    fn first_new(&self, block: &Block) -> Option<Index> {
        let mut at = block.first();
        while at <= block.last() {
            if at > self.compacted.0 && self.term(at) != Some(block.term()) {
                return Some(at);
            }
            at = at.next();
        }
        None
    }

    /// Entries from `from` on never happened. The caller lowers what writes in flight may prove.
    fn truncate(&mut self, from: Index) {
        assert!(
            from > self.commit,
            "cut at {from}, committed up to {}",
            self.commit
        ); // Raft §5.4
        self.last = from.prev();
        self.durable = self.durable.min(self.last);
        while self.terms.back().is_some_and(|t| t.0 >= from) {
            self.terms.pop_back();
        }
        cut_blocks(&mut self.cache, from);
        self.cache_bytes = self.cache.iter().map(|b| b.bytes().len()).sum();
        let mut unwritten = VecDeque::from(std::mem::take(&mut self.unwritten));
        cut_blocks(&mut unwritten, from);
        self.unwritten = unwritten.into();
        self.conf_changes.retain(|change| change.0 < from);
        self.unknown_to = self.unknown_to.min(self.last);
        self.truncate_from = Some(self.truncate_from.map_or(from, |t| t.min(from)));
    }

    fn note_term(&mut self, index: Index, term: Term) {
        assert!(self.last_term() <= term, "terms in a log never fall"); // Raft §5.3
        if self.last_term() != term || self.terms.is_empty() {
            self.terms.push_back((index, term));
        }
    }

    fn push(&mut self, block: Block) {
        self.conf_changes.extend(changes_in(&block));
        self.cache_bytes += block.bytes().len();
        self.cache.push_back(block.clone());
        self.unwritten.push(block);
    }

    /// Moves what is not written yet into `write`.
    pub fn take_unwritten(&mut self, write: &mut GroupWrite) {
        self.seal();
        write.restart_after = self.restart_after.take();
        write.compact_to = self.compact_to.take();
        write.truncate_from = self.truncate_from.take();
        write.blocks = std::mem::take(&mut self.unwritten);
    }

    /// Whether [`RaftLog::take_unwritten`] would give something.
    pub fn has_unwritten(&self) -> bool {
        let marks = [self.truncate_from, self.compact_to];
        !self.staged.is_empty()
            || !self.unwritten.is_empty()
            || marks.iter().any(Option::is_some)
            || self.restart_after.is_some()
    }

    /// Whether a committed configuration change may wait to be applied.
    pub fn has_unapplied_conf_change(&self) -> bool {
        let is_committed = |change: &(Index, ConfChange)| change.0 <= self.commit;
        self.applied < self.commit.min(self.unknown_to)
            || self.conf_changes.front().is_some_and(is_committed)
    }

    /// Whether it is not known which entries behind what is applied are configuration changes.
    pub fn has_unknown_kinds(&self) -> bool {
        self.applied < self.unknown_to.min(self.last)
    }

    /// Finds the configuration changes among the entries that were there before the start.
    ///
    /// # Errors
    /// They cannot be read now.
    pub fn learn_kinds(&mut self, source: &mut dyn Source) -> Result<(), LogError> {
        let end = self.unknown_to.min(self.last);
        let mut found = VecDeque::new();
        let mut next = self.applied.max(self.compacted.0).next();
        while next <= end {
            let blocks = self.blocks(next, end, READ_BYTES, source)?;
            let Some(last) = blocks.last().map(Block::last) else {
                return Ok(()); // asked again with the next turn
            };
            found.extend(blocks.iter().flat_map(changes_in));
            next = last.next();
        }
        self.conf_changes.retain(|change| change.0 > end);
        found.append(&mut self.conf_changes);
        self.conf_changes = found;
        self.unknown_to = Index::ZERO;
        Ok(())
    }

    /// The configuration changes that are not applied, as far as they are known.
    pub fn unapplied_conf_changes(&self) -> impl Iterator<Item = &(Index, ConfChange)> {
        let applied = self.applied;
        self.conf_changes.iter().filter(move |c| c.0 > applied)
    }

    /// Whether a configuration change may wait behind what is applied, committed or not.
    pub fn may_hold_conf_change(&self) -> bool {
        self.has_unknown_kinds() || !self.conf_changes.is_empty()
    }

    /// The last configuration change behind what is applied, as far as they are known; zero if there
    /// is none.
    pub fn last_conf_change(&self) -> Index {
        self.conf_changes
            .back()
            .map_or(Index::ZERO, |change| change.0)
    }

    /// There is no state yet: a snapshot has to come first.
    pub fn await_state(&mut self) {
        self.state_missing = true;
    }

    /// Whether a snapshot is on its way to the disk or into the state machine.
    pub fn has_pending_snapshot(&self) -> bool {
        self.snapshot.is_some() || self.state_missing
    }

    /// Whether the state before the log's beginning is lost, and no other is on its way in.
    pub fn is_state_missing(&self) -> bool {
        self.state_missing
    }

    /// A snapshot of an entry that the log holds takes the place of the state that is lost; the log
    /// stays as it is.
    pub fn replace_state(&mut self, index: Index) {
        assert!(
            self.state_missing && self.compacted.0 <= index && index <= self.last,
            "a state that nobody misses"
        );
        self.commit = self.commit.max(index);
        self.applying = index;
        self.snapshot = Some(index);
        self.state_missing = false;
    }

    /// The snapshot that was to be taken over is damaged.
    pub fn on_snapshot_lost(&mut self, index: Index) {
        if self.snapshot == Some(index) {
            self.snapshot = None;
            self.state_missing = true;
        }
    }

    /// A snapshot takes the place of the whole log (Raft §7): the caller has checked that our log
    /// does not hold its last entry.
    pub fn restart_after(&mut self, index: Index, term: Term) {
        assert!(index > self.commit, "a snapshot below the commit index");
        self.compacted = (index, term);
        self.terms.clear();
        self.last = if planted!("B18") {
            self.last.max(index)
        } else {
            index
        };
        self.durable = Index::ZERO;
        self.commit = index;
        self.applying = index;
        self.cache.clear();
        self.cache_bytes = 0;
        self.staged.clear();
        self.staged_bytes = 0;
        self.unwritten.clear();
        self.truncate_from = None;
        self.compact_to = None;
        self.restart_after = Some(self.compacted);
        self.snapshot = Some(index);
        self.state_missing = false;
        self.at_apply.clear();
        self.conf_changes.clear();
        self.unknown_to = Index::ZERO;
    }

    /// Entries up to `index` are not needed any more; at most what is applied. Returns whether
    /// that is news.
    pub fn compact(&mut self, index: Index) -> bool {
        assert!(
            index <= self.applied,
            "compacted {index} before it is applied"
        ); // Raft §7
        let Some(term) = self.term(index).filter(|_| index > self.compacted.0) else {
            return false;
        };
        self.compacted = (index, term);
        while self.terms.get(1).is_some_and(|run| run.0 <= index.next()) {
            self.terms.pop_front();
        }
        if self.last == index {
            self.terms.clear();
        }
        self.compact_to = Some(index);
        true
    }

    /// Everything up to `index` is on stable storage.
    pub fn on_durable(&mut self, index: Index) {
        assert!(
            index <= self.last,
            "durable {index} beyond the end {}",
            self.last
        );
        self.durable = self.durable.max(index);
        self.trim_cache();
    }

    /// Raises the commit index; never lowers it. Returns whether it rose.
    pub fn commit_to(&mut self, index: Index) -> bool {
        assert!(
            index <= self.last,
            "commit {index} beyond the end {}",
            self.last
        );
        let rose = index > self.commit;
        self.commit = self.commit.max(index);
        rose
    }

    /// The state machine is done up to `index`; a later mark of before a snapshot says nothing.
    pub fn on_applied(&mut self, index: Index) {
        if self.snapshot.is_some_and(|snapshot| index < snapshot) {
            return;
        }
        assert!(
            self.applied <= index && index <= self.applying,
            "applied in order: {index} after {}, handed out {}",
            self.applied,
            self.applying
        );
        self.applied = index;
        self.snapshot = None;
        while self.at_apply.front().is_some_and(|part| part.0 <= index) {
            self.at_apply.pop_front();
        }
        while self.conf_changes.front().is_some_and(|c| c.0 <= index) {
            self.conf_changes.pop_front();
        }
        self.trim_cache();
    }

    /// Whether [`RaftLog::take_committed`] would give something.
    pub fn has_committed(&self, max_bytes: usize) -> bool {
        self.appliable(max_bytes).is_some()
    }

    /// The last index that may be applied, and for how many bytes the apply stage has room.
    fn appliable(&self, max_bytes: usize) -> Option<(Index, usize)> {
        let end = match self.apply_rule {
            ApplyRule::Durable if !planted!("B6") => self.commit.min(self.durable),
            ApplyRule::Durable | ApplyRule::WithWrite => self.commit,
        };
        let busy: usize = self.at_apply.iter().map(|part| part.1).sum();
        let is_open = self.applying < end && busy < max_bytes && !self.has_pending_snapshot();
        is_open.then(|| (end, max_bytes - busy))
    }

    /// The next committed blocks to apply, as [`ApplyRule`] allows, while the apply stage has less
    /// than `max_bytes`.
    pub fn take_committed(
        &mut self,
        max_bytes: usize,
        source: &mut dyn Source,
    ) -> Result<Vec<Block>, LogError> {
        let Some((end, room)) = self.appliable(max_bytes) else {
            return Ok(Vec::new());
        };
        let blocks = self.blocks(self.applying.next(), end, room, source)?;
        let Some(last) = blocks.last().map(Block::last) else {
            return Ok(Vec::new());
        };
        self.applying = last;
        let bytes = blocks.iter().map(|b| b.bytes().len()).sum();
        self.at_apply.push_back((last, bytes));
        Ok(blocks)
    }

    /// Blocks from `first` to at most `last`, cut exactly there; at least one, then no more than
    /// `max_bytes`. From the cache, or from the disk.
    pub fn blocks(
        &mut self,
        first: Index,
        last: Index,
        max_bytes: usize,
        source: &mut dyn Source,
    ) -> Result<Vec<Block>, LogError> {
        self.seal();
        let cached = self.cache.front().map_or(self.last.next(), Block::first);
        if first < cached {
            return source.blocks(first, last.min(cached.prev()), max_bytes);
        }
        let mut blocks = Vec::new();
        let mut bytes = 0;
        let start = self.cache.partition_point(|b| b.last() < first);
        for block in self.cache.range(start..).take_while(|b| b.first() <= last) {
            let part = block.slice(block.first().max(first), block.last().min(last));
            bytes += part.bytes().len();
            if bytes > max_bytes && !blocks.is_empty() {
                break;
            }
            blocks.push(part);
        }
        Ok(blocks)
    }

    /// Drops cached blocks from the front while over the limit, but none that is not durable.
    fn trim_cache(&mut self) {
        while self.cache_bytes > self.cache_limit
            && self.cache.front().is_some_and(|b| b.last() <= self.durable)
        {
            let block = self.cache.pop_front().expect("looked at");
            self.cache_bytes -= block.bytes().len();
        }
    }
}

/// The configuration changes in a block.
fn changes_in(block: &Block) -> Vec<(Index, ConfChange)> {
    if !block.has_conf_change() {
        return Vec::new();
    }
    let changes = block.entries().filter(|e| e.kind == EntryKind::ConfChange);
    // One that does not decode has no effect, but it is there.
    let changes = changes.map(|e| (e.index, ConfChange::decode(&e.payload).unwrap_or_default()));
    changes.collect()
}

/// Drops everything from `from` on, cutting the block in which it lies.
fn cut_blocks(blocks: &mut VecDeque<Block>, from: Index) {
    while blocks.back().is_some_and(|b| b.first() >= from) {
        blocks.pop_back();
    }
    if let Some(block) = blocks.back_mut().filter(|b| b.last() >= from) {
        *block = block.slice(block.first(), from.prev());
    }
}

#[cfg(test)]
mod tests;
