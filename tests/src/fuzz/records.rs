//! The log against a model, and against bytes that it never wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Error, Identity, LogDb, Options, Turn, Writer};

use crate::sim::node::Marks;

const GROUPS: u32 = 3;
/// Crashes drawn from here on are of the process alone.
const KILLS_FROM: u16 = 0xc000;
const FIRST_SEGMENT: &str = "0000000000000001.seg";

fn open(disk: &Arc<SimDisk>) -> std::result::Result<(Arc<LogDb>, Writer), Error> {
    let identity = Identity {
        cluster_id: 7,
        node: NodeId::new(1).unwrap(),
    };
    let options = Options {
        segment_bytes: 64 << 10,
        batch_bytes: 8 << 10,
        cache_bytes: 1 << 10,
        min_free_bytes: 1,
        ..Options::new("", identity)
    };
    LogDb::open_on(Arc::<SimDisk>::clone(disk), 0x1234_5678, options)
}

/// What is stored of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Stored {
    meta: Bytes,
    hard_state: HardState,
    compacted: (Index, Term),
    /// Term, length and what the payload consists of.
    entries: Vec<(Term, usize, u8)>,
}

impl Stored {
    fn last(&self) -> u64 {
        self.compacted.0.0 + self.entries.len() as u64
    }

    fn last_term(&self) -> Term {
        self.entries
            .last()
            .map_or(self.compacted.1, |entry| entry.0)
    }
}

type Model = BTreeMap<u32, Stored>;

/// All that a log holds, every entry read.
fn contents(log: &LogDb) -> Model {
    let mut model = Model::new();
    for group in log.take_stored_groups() {
        let (first, last) = match (group.terms.first(), group.terms.last()) {
            (Some(first), Some(last)) => (first.0, last.1),
            _ => (Index(1), Index(0)),
        };
        let mut entries = Vec::new();
        if first <= last {
            let blocks = log.read(group.group, first, last, usize::MAX).unwrap();
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
    model
}

/// Writes, crashes and recoveries: what was acknowledged is there, in one of the states that were
/// written since, and a second recovery finds the same.
pub fn logdb_ops(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let disk = SimDisk::new();
    let mut bench = Bench::open(disk, Model::new());
    while !input.is_empty() {
        match bench.step(&mut input) {
            Ok(true) => {}
            Ok(false) => bench = bench.crash(&mut input),
            Err(_) => break,
        }
    }
    bench.crash(&mut input);
}

struct Bench {
    disk: Arc<SimDisk>,
    log: Arc<LogDb>,
    writer: Writer,
    marks: Arc<Marks>,
    /// The states after each append; the first is what the log was opened with.
    states: Vec<Model>,
    /// The last append that was acknowledged.
    durable: usize,
}

impl Bench {
    fn open(disk: Arc<SimDisk>, expected: Model) -> Self {
        let (log, writer) = open(&disk).unwrap();
        let marks = Arc::new(Marks::default());
        log.set_observer(Arc::<Marks>::clone(&marks));
        assert_eq!(
            contents(&log),
            expected,
            "the second recovery finds something else"
        );
        Self {
            disk,
            log,
            writer,
            marks,
            states: vec![expected],
            durable: 0,
        }
    }

    /// `false`: the log is to be opened again.
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<bool> {
        match input.int_in_range(0..=15)? {
            0..10 => {
                let group = input.int_in_range(1..=GROUPS)?;
                return self.append(group, input);
            }
            10..13 => return Ok(self.turn()),
            13 => self.disk.fail_next_sync(),
            14 => self
                .disk
                .fail_from(self.disk.operations() + input.int_in_range(0..=20)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn turn(&mut self) -> bool {
        let turn = self.writer.turn();
        for (_, ticket) in self.marks.take_durable() {
            let ticket = usize::try_from(ticket).unwrap();
            assert!(ticket > self.durable && ticket < self.states.len());
            self.durable = ticket;
        }
        for (group, index) in self.marks.take_reclaimed() {
            let stored = self.states[self.durable].get(&group.0);
            let compacted = stored.map_or(index, |stored| stored.compacted.0);
            assert!(index <= compacted, "{group}: entry {index} still counts");
        }
        // The background may be out of room or power: the writer finds out by itself.
        turn != Turn::Fenced && self.log.prepare().is_ok()
    }

    fn append(&mut self, group: u32, input: &mut Unstructured<'_>) -> Result<bool> {
        let mut model = self.states.last().unwrap().clone();
        let (write, after) = write(group, model.remove(&group), input)?;
        if let Some(after) = after {
            model.insert(group, after);
        }
        let batch = WriteBatch {
            shard: 0,
            ticket: self.states.len() as u64,
            writes: vec![write],
        };
        if self.log.append(batch).is_err() {
            return Ok(false);
        }
        self.states.push(model);
        Ok(true)
    }

    /// Power fails, or only the process ends and the disk still has in its cache what was not synced;
    /// and the log is opened again. Then power fails once more: what was found is there for good.
    fn crash(self, input: &mut Unstructured<'_>) -> Self {
        let Self {
            disk,
            log,
            writer,
            states,
            durable,
            ..
        } = self;
        drop((log, writer));
        let seed = input.arbitrary::<u16>().unwrap_or(0);
        if seed < KILLS_FROM {
            disk.crash(seed.into());
        } else {
            disk.mend();
        }
        // A sync that was to fail may fail now: nothing is opened then, and it can be tried again.
        let opened = open(&disk).or_else(|error| match error {
            Error::Io { .. } => open(&disk),
            other => Err(other),
        });
        let found = contents(&opened.unwrap().0);
        assert!(
            states[durable..].contains(&found),
            "found {found:?}, acknowledged {:?}",
            states[durable]
        );
        disk.crash(u64::from(input.arbitrary::<u8>().unwrap_or(0)));
        Self::open(disk, found)
    }
}

/// One write of a group, and what it makes of it.
fn write(
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

/// Segments of a real log with damage or other bytes in them, or nothing but other bytes: refused,
/// or opened and then readable to the end, and the same when opened again. One damage alone never
/// takes more than the last batch, whose promise nothing in the log proves.
pub fn logdb_recover(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let disk = SimDisk::new();
    let kind = input.int_in_range(0..=3).unwrap_or(0);
    let Ok(()) = fill(&disk, kind > 0) else {
        return;
    };
    let before = contents(&open(&disk).unwrap().0);
    let mut bytes = disk.bytes(FIRST_SEGMENT);
    let is_one_damage = kind > 1;
    match kind {
        0 => {
            let new = input.take_rest();
            let end = bytes.len().min(new.len());
            bytes[..end].copy_from_slice(&new[..end]);
            bytes[end..].fill(0);
        }
        1 => {
            while let (false, Ok(at)) = (input.is_empty(), input.int_in_range(0..=bytes.len() - 1))
            {
                let length = usize::from(input.arbitrary::<u8>().unwrap_or(0));
                let new = input.bytes(length.min(input.len())).unwrap_or(&[]);
                let end = bytes.len().min(at + new.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
        }
        _ => damage(&mut bytes, &mut input).unwrap_or(()),
    }
    disk.set_bytes(FIRST_SEGMENT, &bytes);
    let Ok((log, writer)) = open(&disk) else {
        return;
    };
    let found = contents(&log);
    if is_one_damage {
        let entries = |model: &Model| model.values().map(|g| g.entries.len()).sum::<usize>();
        let (before, found) = (entries(&before), entries(&found));
        assert!(
            found + 1 >= before,
            "{found} of {before} entries, and no word of damage"
        );
    }
    drop((log, writer));
    assert_eq!(contents(&open(&disk).unwrap().0), found);
}

/// A flipped bit, a lost sector, a lost page, or two pages in each other's place.
fn damage(bytes: &mut [u8], input: &mut Unstructured<'_>) -> Result<()> {
    const USED_PAGES: usize = 8;
    let at = input.int_in_range(0..=USED_PAGES * 4096 - 1)?;
    match input.int_in_range(0..=3)? {
        0 => bytes[at] ^= 1_u8 << input.int_in_range(0..=7)?,
        1 => bytes[at / 512 * 512..][..512].fill(0),
        2 => bytes[at / 4096 * 4096..][..4096].fill(0),
        _ => {
            let (one, other) = (at / 4096, input.int_in_range(0..=USED_PAGES - 1)?);
            let (first, second) = (one.min(other), one.max(other));
            if first < second {
                let (left, right) = bytes.split_at_mut(second * 4096);
                left[first * 4096..][..4096].swap_with_slice(&mut right[..4096]);
            }
        }
    }
    Ok(())
}

/// A few batches of two groups.
fn fill(disk: &Arc<SimDisk>, is_real: bool) -> std::result::Result<(), Error> {
    let (log, mut writer) = open(disk)?;
    let count: u64 = if is_real { 6 } else { 1 };
    for ticket in 1..=count {
        let group = u32::try_from(ticket % 2).unwrap() + 1;
        let payload = Bytes::from(vec![1; 200]);
        let mut write = GroupWrite::new(GroupId(group));
        write.meta = (ticket < 3).then(|| Bytes::from_static(b"members"));
        let first = Index(ticket.div_ceil(2));
        write.blocks = vec![Block::encode(
            first,
            Term(1),
            &[(EntryKind::Normal, payload)],
        )];
        let batch = WriteBatch {
            shard: 0,
            ticket,
            writes: vec![write],
        };
        log.append(batch).unwrap();
        while writer.turn() == Turn::Worked {}
    }
    Ok(())
}

/// The first pages of a log that was really written: so many of them, and what follows is empty.
pub fn log_image(pages: usize) -> Vec<u8> {
    let disk = SimDisk::new();
    fill(&disk, true).unwrap();
    let mut bytes = disk.bytes(FIRST_SEGMENT);
    bytes.truncate(pages * 4096);
    bytes
}
