//! What a log holds, as a model: writes drawn from bytes, and what each makes of it.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a panic is the finding"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, LogError};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Error, Identity, LogDb, Options, Writer};

/// Groups of a drawn history, from 1.
pub const GROUPS: u32 = 3;

/// Small segments, small batches and hardly a cache, so that a short history meets all of them.
pub fn options(dir: &Path) -> Options {
    let identity = Identity {
        cluster_id: 7,
        node: NodeId::new(1).unwrap(),
    };
    Options {
        segment_bytes: 64 << 10,
        batch_bytes: 8 << 10,
        cache_bytes: 1 << 10,
        max_spares: 2,
        min_free_bytes: 1,
        ..Options::new(dir, identity)
    }
}

/// Opens the log on a simulated disk; the caller turns its writer.
pub fn open(disk: &Arc<SimDisk>) -> std::result::Result<(Arc<LogDb>, Writer), Error> {
    let disk = Arc::<SimDisk>::clone(disk);
    LogDb::open_on(disk, 0x1234_5678, options(Path::new("")))
}

/// What is stored of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    meta: Bytes,
    hard_state: HardState,
    compacted: (Index, Term),
    /// Term, length and what the payload consists of.
    entries: Vec<(Term, usize, u8)>,
}

impl Stored {
    /// Up to which entry it is compacted.
    pub fn compacted(&self) -> Index {
        self.compacted.0
    }

    /// How many entries.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    fn last(&self) -> u64 {
        self.compacted.0.0 + self.entries.len() as u64
    }

    fn last_term(&self) -> Term {
        self.entries
            .last()
            .map_or(self.compacted.1, |entry| entry.0)
    }
}

/// The groups of a log, by id.
pub type Model = BTreeMap<u32, Stored>;

/// All that a log holds, every entry read.
pub fn contents(log: &LogDb) -> Model {
    try_contents(log).unwrap()
}

/// The same, of a log that may be damaged.
///
/// # Errors
/// The first read that is refused.
pub fn try_contents(log: &LogDb) -> std::result::Result<Model, LogError> {
    let mut model = Model::new();
    for group in log.take_stored_groups() {
        let (first, last) = match (group.terms.first(), group.terms.last()) {
            (Some(first), Some(last)) => (first.0, last.1),
            _ => (Index(1), Index(0)),
        };
        let mut entries = Vec::new();
        if first <= last {
            let blocks = log.read(group.group, first, last, usize::MAX)?;
            let all = blocks
                .iter()
                .flat_map(|block| block.entries().collect::<Vec<_>>());
            entries.extend(all.map(|entry| {
                let byte = entry.payload.first().copied().unwrap_or(0);
                assert!(entry.payload.iter().all(|other| *other == byte));
                (entry.term, entry.payload.len(), byte)
            }));
            assert_eq!(entries.len() as u64, last.0 - first.0 + 1);
        }
        let stored = Stored {
            meta: group.meta,
            hard_state: group.hard_state,
            compacted: group.compacted,
            entries,
        };
        model.insert(group.group.0, stored);
    }
    Ok(model)
}

/// A write of a drawn group, which the model then has too.
pub fn draw_write(model: &mut Model, input: &mut Unstructured<'_>) -> GroupWrite {
    let group = input.int_in_range(1..=GROUPS).unwrap();
    let (write, after) = write(group, model.remove(&group), input).unwrap();
    if let Some(after) = after {
        model.insert(group, after);
    }
    write
}

/// One write of a group, and what it makes of it.
pub fn write(
    group: u32,
    before: Option<Stored>,
    input: &mut Unstructured<'_>,
) -> Result<(GroupWrite, Option<Stored>)> {
    let mut write = GroupWrite::new(GroupId(group));
    let is_new = before.is_none();
    let mut after = before.unwrap_or_default();
    if is_new || input.ratio(1, 16)? {
        let meta = Bytes::from(format!("meta {}", input.arbitrary::<u8>()?));
        (write.meta, after.meta) = (Some(meta.clone()), meta);
    }
    match input.int_in_range(0..=7)? {
        0 if !is_new => {
            write.remove = true;
            write.meta = None;
            return Ok((write, None));
        }
        1 => {
            let index = Index(after.last() + input.int_in_range(1..=9)?);
            let term = Term(after.last_term().0 + 1);
            write.restart_after = Some((index, term));
            (after.compacted, after.entries) = ((index, term), Vec::new());
        }
        2 if !after.entries.is_empty() => {
            let count = input.int_in_range(1..=after.entries.len())?;
            let index = Index(after.compacted.0.0 + count as u64);
            write.compact_to = Some(index);
            after.compacted = (index, after.entries[count - 1].0);
            after.entries.drain(..count);
        }
        3 if !after.entries.is_empty() => {
            let keep = input.int_in_range(0..=after.entries.len() - 1)?;
            after.entries.truncate(keep);
            write.truncate_from = Some(Index(after.last() + 1));
            push_entries(&mut write, &mut after, input)?;
        }
        _ => push_entries(&mut write, &mut after, input)?,
    }
    if input.arbitrary()? {
        let hard_state = HardState {
            term: Term(input.arbitrary::<u16>()?.into()),
            vote: NodeId::new(input.int_in_range(0..=3)?),
            commit: Index(input.arbitrary::<u8>()?.into()),
        };
        (write.hard_state, after.hard_state) = (Some(hard_state), hard_state);
    }
    Ok((write, Some(after)))
}

fn push_entries(
    write: &mut GroupWrite,
    after: &mut Stored,
    input: &mut Unstructured<'_>,
) -> Result<()> {
    for _ in 0..input.int_in_range(1..=3)? {
        let term = Term(after.last_term().0.max(1) + input.int_in_range(0..=1)?);
        let first = Index(after.last() + 1);
        let mut entries = Vec::new();
        for _ in 0..input.int_in_range(1..=4)? {
            let size = usize::from(input.arbitrary::<u8>()?) * 20;
            let byte = if size > 0 { input.arbitrary()? } else { 0 };
            entries.push((EntryKind::Normal, vec![byte; size].into()));
            after.entries.push((term, size, byte));
        }
        write.blocks.push(Block::encode(first, term, &entries));
    }
    Ok(())
}
