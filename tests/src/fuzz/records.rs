//! The log against a model, and against bytes that it never wrote.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, WriteBatch};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Error, LogDb, Turn, Writer};

use crate::log_model::{GROUPS, Model, Stored, contents, open, write};
use crate::sim::node::Marks;

/// Crashes drawn from here on are of the process alone.
const KILLS_FROM: u16 = 0xc000;
const FIRST_SEGMENT: &str = "0000000000000001.seg";

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
            let compacted = stored.map_or(index, Stored::compacted);
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
        let entries = |model: &Model| model.values().map(Stored::entry_count).sum::<usize>();
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
