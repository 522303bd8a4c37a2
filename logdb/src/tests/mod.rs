//! The log over a simulated disk that loses, tears and fails, and over the real one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod compaction;
mod compression;
mod crash;
mod directory;
mod durable;
mod format;
mod handoff;
mod maps;
mod outlines;
mod repair;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use parking_lot::Mutex;

use crate::sim::SimDisk;
use crate::{Error, Identity, LogDb, Options, Turn, Writer};

const INCARNATION: u64 = 0x1234_5678;

fn options() -> Options {
    let identity = Identity {
        cluster_id: 7,
        node: NodeId::new(1).unwrap(),
    };
    Options {
        segment_bytes: 64 << 10,
        batch_bytes: 8 << 10, // so that several wait at a time
        cache_bytes: 0,
        max_spares: 2,
        min_free_bytes: 1,
        ..Options::new("", identity)
    }
}

fn open(disk: &Arc<SimDisk>) -> Result<(Arc<LogDb>, Writer), Error> {
    LogDb::open_on(Arc::<SimDisk>::clone(disk), INCARNATION, options())
}

fn drain(writer: &mut Writer) {
    while writer.turn() == Turn::Worked {}
}

fn block(first: u64, term: u64, payloads: &[&[u8]]) -> Block {
    let entries = payloads
        .iter()
        .map(|p| (EntryKind::Normal, Bytes::copy_from_slice(p)));
    Block::encode(Index(first), Term(term), &entries.collect::<Vec<_>>())
}

fn hard_state(term: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: NodeId::new(2),
        commit: Index(0),
    }
}

fn entries(group: u32, blocks: Vec<Block>) -> GroupWrite {
    GroupWrite {
        blocks,
        ..GroupWrite::new(GroupId(group))
    }
}

fn batch(ticket: u64, writes: Vec<GroupWrite>) -> WriteBatch {
    WriteBatch {
        shard: 0,
        ticket,
        writes,
    }
}

fn payloads(log: &LogDb, group: u32, first: u64, last: u64) -> Result<Vec<Bytes>, LogError> {
    let blocks = log.read(GroupId(group), Index(first), Index(last), usize::MAX)?;
    let entries = blocks.iter().flat_map(|b| b.entries().collect::<Vec<_>>());
    Ok(entries.map(|e| e.payload).collect())
}

/// All that a log holds, to compare two.
fn contents(log: &LogDb) -> BTreeMap<u32, String> {
    let groups = log.take_stored_groups();
    let content = groups.iter().map(|g| {
        let entries = g.terms.first().map(|first| {
            let last = g.terms.last().unwrap().1;
            payloads(log, g.group.0, first.0.0, last.0).unwrap()
        });
        (g.group.0, format!("{g:?} {entries:?}"))
    });
    content.collect()
}

#[derive(Default)]
struct Seen {
    durable: Mutex<Vec<(u32, u64)>>,
    fenced: Mutex<u32>,
    reclaimed: Mutex<Vec<(u32, u64)>>,
}

impl LogObserver for Seen {
    fn on_durable(&self, shard: u32, ticket: u64) {
        self.durable.lock().push((shard, ticket));
    }

    fn on_fenced(&self, _: &LogError) {
        *self.fenced.lock() += 1;
    }

    fn on_reclaimed(&self, group: GroupId, index: Index) {
        self.reclaimed.lock().push((group.0, index.0));
    }
}

#[test]
fn appended_blocks_are_read_before_and_after_the_sync_and_after_a_restart() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let seen = Arc::new(Seen::default());
    log.set_observer(Arc::<Seen>::clone(&seen));
    let write = GroupWrite {
        meta: Some(Bytes::from_static(b"members")),
        hard_state: Some(hard_state(3)),
        ..entries(9, vec![block(1, 2, &[b"a", b"b"]), block(3, 3, &[b"c"])])
    };
    log.append(batch(
        1,
        vec![write, entries(4, vec![block(1, 1, &[b"x"])])],
    ))
    .unwrap();
    log.append(batch(2, vec![entries(4, vec![block(2, 1, &[b"y"])])]))
        .unwrap();
    assert_eq!(payloads(&log, 9, 1, 3).unwrap(), ["a", "b", "c"]);
    assert!(seen.durable.lock().is_empty(), "told before the sync");
    assert_eq!(writer.turn(), Turn::Worked);
    assert_eq!(*seen.durable.lock(), [(0, 2)], "once a shard and sync");
    assert_eq!(log.metrics().syncs.get(), 1);
    assert_eq!(
        payloads(&log, 9, 2, 3).unwrap(),
        ["b", "c"],
        "cut at both ends, from disk"
    );
    drop((log, writer));
    disk.crash(1);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 9, 2, 2).unwrap(), ["b"]);
    let groups = log.take_stored_groups();
    assert_eq!(groups.iter().map(|g| g.group.0).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(groups[1].meta, "members");
    assert_eq!(groups[1].hard_state, hard_state(3));
    let runs = [(Index(1), Index(2), Term(2)), (Index(3), Index(3), Term(3))];
    assert_eq!(groups[1].terms, runs);
}

#[test]
fn reads_outside_the_log_are_refused_and_max_bytes_still_gives_one_block() {
    let disk = SimDisk::new();
    let (log, _writer) = open(&disk).unwrap();
    let blocks = vec![block(1, 1, &[b"a", b"b"]), block(3, 1, &[b"c"])];
    log.append(batch(1, vec![entries(1, blocks)])).unwrap();
    let compact = GroupWrite {
        compact_to: Some(Index(1)),
        ..GroupWrite::new(GroupId(1))
    };
    log.append(batch(2, vec![compact])).unwrap();
    let read = |first, last, max| log.read(GroupId(1), Index(first), Index(last), max);
    assert!(matches!(
        read(1, 2, 9),
        Err(LogError::Compacted {
            first: Index(2),
            ..
        })
    ));
    assert!(matches!(
        read(2, 4, 9),
        Err(LogError::NotFound {
            index: Index(4),
            ..
        })
    ));
    assert_eq!(read(2, 3, 1).unwrap(), [block(2, 1, &[b"b"])]);
    assert!(matches!(
        payloads(&log, 2, 1, 1),
        Err(LogError::NotFound { .. })
    ));
}

#[test]
fn a_failed_sync_fences_for_ever() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let seen = Arc::new(Seen::default());
    log.set_observer(Arc::<Seen>::clone(&seen));
    log.append(batch(1, vec![entries(1, vec![block(1, 1, &[b"a"])])]))
        .unwrap();
    disk.fail_next_sync();
    assert_eq!(writer.turn(), Turn::Fenced);
    assert_eq!(writer.turn(), Turn::Fenced);
    let again = log.append(batch(2, vec![entries(1, vec![block(2, 1, &[b"b"])])]));
    assert!(matches!(again, Err(LogError::Fenced(_))));
    assert_eq!((seen.durable.lock().len(), *seen.fenced.lock()), (0, 1));
    // The next process must not find the batch in the page cache and believe it.
    drop((log, writer));
    let (log, _writer) = open(&disk).unwrap();
    assert!(log.take_stored_groups().is_empty());
}

#[test]
fn a_block_that_rots_is_damaged_and_not_returned() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    log.append(batch(1, vec![entries(1, vec![block(1, 1, &[b"a"])])]))
        .unwrap();
    drain(&mut writer);
    disk.flip("0000000000000001.seg", 64 + 32 + 5);
    assert!(matches!(
        payloads(&log, 1, 1, 1),
        Err(LogError::Damaged { .. })
    ));
}

#[test]
fn a_block_that_cannot_be_read_hurts_only_its_group() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let both = [1, 2].map(|group| entries(group, vec![block(1, 1, &[&[7; 6000]])]));
    log.append(batch(1, both.into())).unwrap();
    drain(&mut writer);
    disk.fail_reads("0000000000000001.seg", 5000..5512);
    assert!(matches!(payloads(&log, 1, 1, 1), Err(LogError::Io(_))));
    assert_eq!(payloads(&log, 2, 1, 1).unwrap(), [vec![7; 6000]]);
    let more = log.append(batch(2, vec![entries(1, vec![block(2, 1, &[b"on"])])]));
    assert!(more.is_ok() && writer.turn() == Turn::Worked);
    assert_eq!(payloads(&log, 1, 2, 2).unwrap(), ["on"]);
    // A start that has to read it says so, and takes it neither for the end nor for damage.
    drop((log, writer));
    assert!(matches!(open(&disk), Err(Error::Io { .. })));
}

#[test]
fn a_full_disk_keeps_the_batch_and_room_comes_back() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    disk.set_free_bytes(0);
    assert_eq!(writer.turn(), Turn::Idle);
    let large = vec![7; 40 << 10];
    log.append(batch(1, vec![entries(1, vec![block(1, 1, &[&large])])]))
        .unwrap();
    assert_eq!(writer.turn(), Turn::Worked);
    assert!(!log.has_room());
    log.append(batch(2, vec![entries(1, vec![block(2, 1, &[&large])])]))
        .unwrap();
    assert_eq!(writer.turn(), Turn::Full);
    disk.set_free_bytes(1 << 30);
    assert!(log.has_room());
    assert_eq!(writer.turn(), Turn::Worked);
    assert_eq!(payloads(&log, 1, 2, 2).unwrap(), [large]);
}

#[test]
fn a_block_larger_than_a_segment_gets_a_segment_of_its_own() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    log.prepare().unwrap(); // a prepared one that is too small
    let large = vec![7; 200 << 10];
    log.append(batch(1, vec![entries(1, vec![block(1, 1, &[&large])])]))
        .unwrap();
    log.append(batch(2, vec![entries(1, vec![block(2, 1, &[b"b"])])]))
        .unwrap();
    drain(&mut writer);
    drop((log, writer));
    disk.crash(3);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 1, 1, 2).unwrap(), [&large[..], b"b"]);
}

#[test]
fn segments_are_made_ahead_of_need_while_there_is_room() {
    let disk = SimDisk::new();
    let options = || Options {
        preallocated: 2,
        ..options()
    };
    let open = || LogDb::open_on(Arc::<SimDisk>::clone(&disk), INCARNATION, options()).unwrap();
    let spares = || {
        disk.names()
            .iter()
            .filter(|n| n.starts_with("spare-"))
            .count()
    };
    let (log, mut writer) = open();
    for _ in 0..4 {
        log.prepare().unwrap();
    }
    assert_eq!(spares(), 2);
    // They are used, and made again; but not of the last bytes of a disk.
    for index in 1..=3 {
        let write = entries(1, vec![block(index, 1, &[&[7; 50 << 10][..]])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
        disk.set_free_bytes(if index < 3 { 1 << 30 } else { 100 << 10 });
        for _ in 0..3 {
            log.prepare().unwrap();
        }
        assert_eq!(spares(), if index < 3 { 2 } else { 1 });
    }
    drop((log, writer));
    disk.set_free_bytes(1 << 30);
    disk.crash(1);
    let (log, _writer) = open();
    assert_eq!(payloads(&log, 1, 1, 3).unwrap().len(), 3);
    let too_many = Options {
        preallocated: 3,
        ..options()
    };
    assert!(matches!(too_many.validate(), Err(Error::Options { .. })));
}

#[test]
fn a_prepared_segment_of_a_smaller_setting_is_not_taken_for_a_larger_one() {
    let disk = SimDisk::new();
    let (log, writer) = open(&disk).unwrap();
    log.prepare().unwrap();
    drop((log, writer));
    let larger = || Options {
        segment_bytes: 1 << 20,
        ..options()
    };
    let again = || LogDb::open_on(Arc::<SimDisk>::clone(&disk), INCARNATION, larger()).unwrap();
    let (log, mut writer) = again();
    for index in 1..=3 {
        let large = vec![7; 100 << 10];
        let write = entries(1, vec![block(index, 1, &[&large])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
        log.prepare().unwrap();
    }
    drop((log, writer));
    disk.crash(3);
    let (log, _writer) = again();
    assert_eq!(payloads(&log, 1, 1, 3).unwrap().len(), 3);
}

#[test]
fn a_cut_in_the_middle_of_a_block_is_not_revived_by_a_crash() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let blocks = vec![block(1, 1, &[b"a", b"b", b"c"]), block(4, 1, &[b"d"])];
    log.append(batch(1, vec![entries(1, blocks)])).unwrap();
    drain(&mut writer);
    let cut = GroupWrite {
        truncate_from: Some(Index(3)),
        ..GroupWrite::new(GroupId(1))
    };
    log.append(batch(2, vec![cut])).unwrap();
    drain(&mut writer);
    drop((log, writer));
    disk.crash(1);
    let (log, mut writer) = open(&disk).unwrap();
    assert!(payloads(&log, 1, 3, 3).is_err());
    let new = entries(1, vec![block(3, 2, &[b"new"])]);
    log.append(batch(1, vec![new])).unwrap();
    drain(&mut writer);
    drop((log, writer));
    disk.crash(2);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 1, 1, 3).unwrap(), ["a", "b", "new"]);
    assert!(payloads(&log, 1, 4, 4).is_err());
}
