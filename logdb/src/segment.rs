//! The segments in use, oldest first: where each batch lies, and how many bytes are alive.
//!
//! Invariant: segment ids are gapless and batch sequences are gapless over them, so a batch is
//! found by its sequence alone, at four bytes of memory a batch.

use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use multiraft_engine::planted;

use crate::disk::DiskFile;
use crate::format::PAGE_BYTES;
use crate::map::Map;

/// The id of one use of one segment file, from 1; rises with each use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct SegmentId(pub u64);

impl SegmentId {
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("{self}.seg")
    }

    /// The id that a file name tells; `None` for other files.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".seg")?;
        let id = Self(u64::from_str_radix(digits, 16).ok()?);
        (id.0 > 0 && id.file_name() == name).then_some(id)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One segment in use.
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    /// Cloned only under the state's lock, by readers; no clone means no reader.
    pub(crate) file: Arc<dyn DiskFile>,
    /// Of a full segment that was read; given out as the file is. `None` in it: there are no maps here.
    map: OnceCell<Option<Map>>,
    pub(crate) file_bytes: u64,
    /// Sequence of its first batch.
    first_sequence: u64,
    /// Page number of each batch.
    pages: Vec<u32>,
    /// Where the next batch goes.
    pub(crate) end: u64,
    /// Bytes of items that still count.
    pub(crate) live_bytes: u64,
    /// Sequence of the batch whose items killed the last bytes here.
    last_kill: u64,
}

impl Segment {
    pub(crate) fn new(
        id: SegmentId,
        file: Arc<dyn DiskFile>,
        file_bytes: u64,
        first_sequence: u64,
    ) -> Self {
        Self {
            id,
            file,
            map: OnceCell::new(),
            file_bytes,
            first_sequence,
            pages: Vec::new(),
            end: 0,
            live_bytes: 0,
            last_kill: 0,
        }
    }

    /// Sequence of the last batch; below the first when there is none.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.first_sequence + self.pages.len() as u64 - 1
    }

    /// Whether somebody reads it, or holds bytes of it.
    pub(crate) fn is_read(&self) -> bool {
        let map = self.map.get().and_then(Option::as_ref);
        Arc::strong_count(&self.file) > 1 || map.is_some_and(Map::is_held)
    }

    /// Its bytes, if nobody writes to it any more.
    fn map(&self, guard: Option<&Arc<dyn Send + Sync>>) -> Option<&Map> {
        let map = self.map.get_or_init(|| {
            let map = self.file.map();
            let map = map.map(|map| map.map(|map| map.guarded(guard.cloned())));
            map.unwrap_or_else(|error| {
                tracing::warn!(segment = %self.id, %error, "a log segment cannot be mapped: reads are copied");
                None
            })
        });
        map.as_ref()
    }

    pub(crate) fn batches(&self) -> usize {
        self.pages.len()
    }

    /// Nothing here counts any more, and a crash now would not change that.
    fn is_dead(&self, durable: u64) -> bool {
        self.live_bytes == 0 && self.last_kill <= durable
    }
}

/// What a segment is read from.
pub(crate) enum Contents {
    Mapped(Map),
    InFile(Arc<dyn DiskFile>),
}

/// All segments in use and the batches on their way to one.
#[derive(Default)]
pub(crate) struct SegmentTable {
    segments: VecDeque<Segment>,
    /// What counts in batches that have no place yet.
    unwritten: BTreeMap<u64, Unwritten>,
    /// A segment has nothing alive since the batch of this sequence, which may be on its way.
    died_at: Option<u64>,
    /// What maps keep: the directory's lock.
    guard: Option<Arc<dyn Send + Sync>>,
}

/// A batch on its way to a segment.
#[derive(Default)]
struct Unwritten {
    live_bytes: u64,
    /// As in the segment that it will lie in: it may be killed before it is written, by a batch that
    /// becomes durable after it.
    last_kill: u64,
}

impl SegmentTable {
    pub(crate) fn push(&mut self, segment: Segment) {
        if let Some(last) = self.segments.back() {
            assert!(last.id.next() == segment.id, "segment ids are gapless");
        }
        self.segments.push_back(segment);
    }

    /// Gives the next batch its place at the end of the active segment.
    pub(crate) fn place(&mut self, sequence: u64, padded_bytes: u64) {
        let batch = self.unwritten.remove(&sequence).unwrap_or_default();
        let active = self.segments.back_mut().expect("a segment is active");
        assert!(
            active.first_sequence + active.pages.len() as u64 == sequence,
            "batches lie in order of sequence"
        );
        let page = u32::try_from(active.end / PAGE_BYTES).expect("a file of less than 16 TiB");
        active.pages.push(page);
        active.end += padded_bytes;
        active.live_bytes += batch.live_bytes;
        active.last_kill = active.last_kill.max(batch.last_kill);
    }

    /// The active segment tells nothing up to `end`, where these batches would have been.
    pub(crate) fn skip(&mut self, sequences: std::ops::Range<u64>, end: u64) {
        for sequence in sequences {
            self.place(sequence, 0); // nothing that counts is in it, so nobody looks there
        }
        let active = self.segments.back_mut().expect("a segment is active");
        assert!(active.end <= end, "a hole that ends before it begins");
        active.end = end;
    }

    /// Maps keep this from now on.
    pub(crate) fn guard_maps(&mut self, guard: Arc<dyn Send + Sync>) {
        self.guard = Some(guard);
    }

    /// Gives up all maps that nobody has bytes of, and makes none any more: reads are copied.
    pub(crate) fn give_up_maps(&mut self) {
        self.guard = None;
        for segment in &mut self.segments {
            segment.map = OnceCell::from(None);
        }
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        let after = self
            .segments
            .partition_point(|s| s.first_sequence <= sequence);
        let at = after.checked_sub(1)?;
        (sequence <= self.segments[at].last_sequence()).then_some(at)
    }

    /// Where a written batch is to be read, and its offset there.
    pub(crate) fn locate(&self, sequence: u64) -> Option<(Contents, u64)> {
        let position = self.position(sequence)?;
        let segment = &self.segments[position];
        let nth = usize::try_from(sequence - segment.first_sequence).expect("in memory");
        let is_full = position + 1 < self.segments.len();
        let map = is_full.then(|| segment.map(self.guard.as_ref())).flatten();
        let bytes = match map {
            Some(map) => Contents::Mapped(map.clone()),
            None => Contents::InFile(Arc::clone(&segment.file)),
        };
        Some((bytes, u64::from(segment.pages[nth]) * PAGE_BYTES))
    }

    /// The length of a segment's file, while it is in use.
    pub(crate) fn file_bytes(&self, id: SegmentId) -> Option<u64> {
        self.segment(id).map(|segment| segment.file_bytes)
    }

    /// A segment in use.
    pub(crate) fn segment(&self, id: SegmentId) -> Option<&Segment> {
        let first = self.segments.front()?.id.0;
        let nth = usize::try_from(id.0.checked_sub(first)?).ok()?;
        self.segments.get(nth)
    }

    /// An item of batch `sequence` begins to count.
    pub(crate) fn add_live(&mut self, sequence: u64, bytes: u64) {
        match self.position(sequence) {
            Some(at) => self.segments[at].live_bytes += bytes,
            None => self.unwritten.entry(sequence).or_default().live_bytes += bytes,
        }
    }

    /// An item of batch `sequence` no longer counts, because of an item of batch `killer`.
    pub(crate) fn remove_live(&mut self, sequence: u64, bytes: u64, killer: u64) {
        if let Some(at) = self.position(sequence) {
            let segment = &mut self.segments[at];
            segment.live_bytes -= bytes;
            segment.last_kill = segment.last_kill.max(killer);
            if segment.live_bytes == 0 {
                self.died_at = self.died_at.max(Some(killer));
            }
        } else {
            let batch = self.unwritten.get_mut(&sequence).expect("it was added");
            batch.live_bytes -= bytes;
            if !planted!("early-free") {
                batch.last_kill = batch.last_kill.max(killer);
            }
        }
    }

    /// The oldest segment that a recovery after a crash now would need.
    pub(crate) fn oldest_needed(&self, durable: u64) -> SegmentId {
        let active = self.active().id;
        let mut old = self.segments.iter().take_while(|s| s.id < active);
        old.find(|s| !s.is_dead(durable)).map_or(active, |s| s.id)
    }

    /// Whether a segment has died, or can be taken out, since the last call that said so.
    pub(crate) fn take_news(&mut self, durable: u64, published: SegmentId) -> bool {
        let has_died = self.died_at.is_some_and(|killer| killer <= durable);
        if has_died {
            self.died_at = None;
        }
        has_died || self.segments.front().is_some_and(|s| s.id < published)
    }

    /// Takes out the oldest segment if it is older than `oldest`. Somebody may read it still.
    pub(crate) fn pop_older_than(&mut self, oldest: SegmentId) -> Option<Segment> {
        let front = self.segments.front()?;
        (front.id < oldest).then(|| self.segments.pop_front())?
    }

    /// Sequence of the oldest batch that is left, or of the next one.
    pub(crate) fn first_sequence(&self) -> u64 {
        let oldest = self.segments.front().expect("a segment is active");
        oldest.first_sequence
    }

    /// The active segment is written through this file from now on.
    pub(crate) fn reopen_active(&mut self, file: Arc<dyn DiskFile>) {
        self.segments.back_mut().expect("a segment is active").file = file;
    }

    pub(crate) fn active(&self) -> &Segment {
        self.segments.back().expect("a segment is active")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// Sum of all file lengths, and of all live bytes.
    pub(crate) fn used_and_live_bytes(&self) -> (u64, u64) {
        let used = self.segments.iter().map(|s| s.file_bytes).sum();
        let live: u64 = self.segments.iter().map(|s| s.live_bytes).sum();
        let unwritten = self.unwritten.values().map(|batch| batch.live_bytes);
        (used, live + unwritten.sum::<u64>())
    }
}
