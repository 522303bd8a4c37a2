//! Blocks that are stored compressed: shorter, and otherwise the same.

use std::sync::Arc;

use multiraft_engine::traits::{GroupWrite, Log, LogError};
use multiraft_engine::types::{GroupId, Index};

use super::{INCARNATION, batch, block, drain, entries, options, payloads};
use crate::sim::SimDisk;
use crate::{Compression, LogDb, Options, Writer};

fn open(disk: &Arc<SimDisk>, compression: Compression) -> (Arc<LogDb>, Writer) {
    let options = Options {
        compression,
        ..options()
    };
    LogDb::open_on(Arc::<SimDisk>::clone(disk), INCARNATION, options).unwrap()
}

fn payload(index: u64) -> Vec<u8> {
    format!("entry {index} ").repeat(1000).into_bytes()
}

fn has_all(log: &LogDb, first: u64, last: u64) {
    let found = payloads(log, 1, first, last).unwrap();
    assert!(
        found
            .iter()
            .eq((first..=last).map(payload).collect::<Vec<_>>().iter())
    );
}

#[test]
fn compressed_blocks_take_less_and_are_read_all_the_time_whatever_the_option_says_later() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk, Compression::Lz4);
    for index in 1..=20 {
        let noise: Vec<u8> = (0..50_u64).map(|n| ((n * n * index) % 251) as u8).collect();
        let both = vec![
            entries(1, vec![block(index, 1, &[&payload(index)])]),
            entries(2, vec![block(index, 1, &[&noise])]),
        ];
        log.append(batch(index, both)).unwrap();
        has_all(&log, 1, index); // some of it waits for the writer
    }
    drain(&mut writer);
    has_all(&log, 1, 20);
    let few = log.read(GroupId(1), Index(1), Index(20), 3 * payload(1).len());
    assert_eq!(
        few.unwrap().len(),
        2,
        "it is the blocks' bytes that are limited"
    );
    let written = log.metrics().written_bytes.get();
    assert!(written < 40 << 10, "{written} bytes of {} KiB", 20 * 9);
    drop((log, writer));
    disk.crash(1);
    // Without compression: the old blocks are read all the same.
    let (log, mut writer) = open(&disk, Compression::None);
    has_all(&log, 1, 20);
    assert_eq!(payloads(&log, 2, 1, 20).unwrap().len(), 20);
    // Group 1 is idle now and its blocks are moved, as they are.
    for index in 21..=200 {
        let write = entries(2, vec![block(index, 1, &[&vec![7; 3000]])]);
        let compact = GroupWrite {
            compact_to: Some(Index(index - 5)),
            ..write
        };
        log.append(batch(index, vec![compact])).unwrap();
        drain(&mut writer);
        log.prepare().unwrap();
    }
    let first = crate::SegmentId(1).file_name();
    assert!(
        !disk.names().contains(&first),
        "the first segment was cleared"
    );
    has_all(&log, 1, 20);
    drop((log, writer));
    disk.crash(2);
    let (log, _writer) = open(&disk, Compression::Lz4);
    has_all(&log, 1, 20);
}

#[test]
fn a_compressed_block_that_rots_is_damaged() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk, Compression::Lz4);
    log.append(batch(
        1,
        vec![entries(1, vec![block(1, 1, &[&payload(1)])])],
    ))
    .unwrap();
    drain(&mut writer);
    for at in [64, 80, 100] {
        disk.flip("0000000000000001.seg", at);
        let read = log.read(GroupId(1), Index(1), Index(1), 1);
        assert!(matches!(read, Err(LogError::Damaged { .. })), "{at}");
        disk.flip("0000000000000001.seg", at);
        has_all(&log, 1, 1);
    }
}
