//! Outlines: what a start reads in place of segments.

use std::sync::Arc;

use multiraft_engine::traits::{Log, LogError};

use super::{batch, block, drain, entries, open, payloads};
use crate::sim::SimDisk;
use crate::{Disk, LogDb, Options, Writer};

/// Two full segments, and a third that is written to.
fn write_some(log: &LogDb, writer: &mut Writer) {
    for index in 1..=7 {
        let payload = vec![u8::try_from(index).unwrap(); 19 << 10];
        log.append(batch(
            index,
            vec![entries(3, vec![block(index, 1, &[&payload])])],
        ))
        .unwrap();
        drain(writer);
        log.prepare().unwrap();
    }
}

fn outlines(disk: &SimDisk) -> Vec<String> {
    let names = disk.names().into_iter();
    names
        .filter(|name| crate::outline::segment_of(name).is_some())
        .collect()
}

fn name(segment: u64) -> String {
    format!("{segment:016x}.idx")
}

/// Makes the segments unreadable: who opens the log all the same has not read them.
fn rot(disk: &SimDisk, segments: &[u64]) {
    for segment in segments {
        for at in [70, 1 << 10, 19 << 10] {
            disk.flip(&format!("{segment:016x}.seg"), at);
        }
    }
}

#[test]
fn full_segments_are_not_read_at_a_start_and_their_damage_hurts_who_reads_it() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    write_some(&log, &mut writer);
    assert_eq!(outlines(&disk), [name(1), name(2)]);
    let all = payloads(&log, 3, 1, 7).unwrap();
    drop((log, writer));
    disk.crash(1);
    let (log, writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 1, 7).unwrap(), all);
    drop((log, writer));
    rot(&disk, &[2]);
    let (log, _writer) = open(&disk).unwrap();
    assert!(payloads(&log, 3, 1, 3).is_ok() && payloads(&log, 3, 7, 7).is_ok());
    let read = payloads(&log, 3, 1, 7);
    assert!(matches!(read, Err(LogError::Damaged { .. })), "{read:?}");
}

#[test]
fn a_closed_log_opens_by_its_outlines_alone_and_the_active_one_is_gone_while_it_is_open() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    write_some(&log, &mut writer);
    writer.finish();
    assert_eq!(outlines(&disk), [name(1), name(2), name(3)]);
    drop((log, writer));
    rot(&disk, &[1, 2, 3]);
    let (log, mut writer) = open(&disk).unwrap();
    assert_eq!(log.take_stored_groups()[0].terms[0].1.0, 7);
    assert_eq!(outlines(&disk), [name(1), name(2)]);
    // What is appended now is found after a crash, behind what the outline told.
    rot(&disk, &[1, 2, 3]);
    log.append(batch(1, vec![entries(3, vec![block(8, 1, &[b"next"])])]))
        .unwrap();
    drain(&mut writer);
    drop((log, writer));
    disk.crash(1);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 8, 8).unwrap(), ["next"]);
}

#[test]
fn an_outline_that_is_missing_or_damaged_costs_only_time_and_is_written_again() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    write_some(&log, &mut writer);
    writer.finish();
    let all = payloads(&log, 3, 1, 7).unwrap();
    drop((log, writer));
    disk.remove(&name(1)).unwrap();
    disk.flip(&name(2), 99);
    disk.flip(&name(3), 99);
    let (log, writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 1, 7).unwrap(), all);
    assert_eq!(outlines(&disk), Vec::<String>::new());
    log.prepare().unwrap();
    assert_eq!(outlines(&disk), [name(1), name(2)]);
    drop((log, writer));
    rot(&disk, &[1, 2]);
    assert!(open(&disk).is_ok(), "the new ones are used");
}

#[test]
fn an_outline_goes_with_its_segment_and_none_is_written_to_a_full_disk() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    write_some(&log, &mut writer);
    let compact = super::GroupWrite {
        compact_to: Some(super::Index(7)),
        ..super::GroupWrite::new(super::GroupId(3))
    };
    log.append(batch(8, vec![compact])).unwrap();
    drain(&mut writer);
    log.prepare().unwrap();
    assert_eq!(outlines(&disk), Vec::<String>::new());
    drop((log, writer));
    let (log, mut writer) = open(&disk).unwrap();
    disk.set_free_bytes(0);
    log.append(batch(1, vec![entries(3, vec![block(8, 1, &[b"a"])])]))
        .unwrap();
    drain(&mut writer);
    writer.finish();
    assert_eq!(
        outlines(&disk),
        Vec::<String>::new(),
        "no half of one either"
    );
    drop((log, writer));
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 8, 8).unwrap(), ["a"]);
}

#[test]
fn after_a_crash_what_the_start_did_not_read_is_checked_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        dir: dir.path().join("log"),
        segment_bytes: 64 << 10,
        ..super::options()
    };
    let log = LogDb::open(options.clone()).unwrap();
    for index in 1..=7 {
        let payload = vec![u8::try_from(index).unwrap(); 19 << 10];
        let write = entries(3, vec![block(index, 1, &[&payload])]);
        log.append_durable(&[write]).unwrap();
    }
    log.close();
    // As after a crash: nothing says how the log ended. And one block has rotted.
    std::fs::remove_file(options.dir.join(name(3))).unwrap();
    let path = options.dir.join("0000000000000002.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let log: Arc<LogDb> = LogDb::open(options).unwrap();
    for _ in 0..1000 {
        if log.metrics().damaged_batches.get() > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(log.metrics().damaged_batches.get(), 1);
}

/// Puts an outline back that was deleted.
fn restore(disk: &SimDisk, segment: u64, bytes: &[u8]) {
    let file = disk.create_growing(&name(segment)).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn an_outline_that_says_too_little_is_not_believed() {
    // One more entry goes into the same segment; five more into the next one too.
    for more in [1, 5] {
        let disk = SimDisk::new();
        let (log, mut writer) = open(&disk).unwrap();
        write_some(&log, &mut writer);
        writer.finish();
        drop((log, writer));
        let old = disk.bytes(&name(3));
        let (log, mut writer) = open(&disk).unwrap();
        for index in 8..8 + more {
            let payload = vec![9; 19 << 10];
            let write = entries(3, vec![block(index, 1, &[&payload])]);
            log.append(batch(index, vec![write])).unwrap();
            drain(&mut writer);
        }
        drop((log, writer));
        restore(&disk, 3, &old);
        let (log, _writer) = open(&disk).unwrap();
        assert_eq!(
            payloads(&log, 3, 1, 7 + more).unwrap().len() as u64,
            7 + more
        );
    }
    // The segment was full when the log was closed, and the next one has all that came.
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    write_some(&log, &mut writer);
    for index in 8..=9 {
        let payload = vec![9; if index == 8 { 19 << 10 } else { 10 << 10 }];
        let write = entries(3, vec![block(index, 1, &[&payload])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
    }
    writer.finish();
    drop((log, writer));
    let old = disk.bytes(&name(3));
    let (log, mut writer) = open(&disk).unwrap();
    let write = entries(3, vec![block(10, 1, &[&vec![9; 30 << 10]])]);
    log.append(batch(1, vec![write])).unwrap();
    drain(&mut writer);
    assert!(disk.names().contains(&"0000000000000004.seg".to_owned()));
    drop((log, writer));
    restore(&disk, 3, &old);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 1, 10).unwrap().len(), 10);
}

#[test]
fn a_full_segment_that_is_written_to_again_after_a_crash_loses_its_outline() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for index in 1..=12 {
        let payload = vec![u8::try_from(index).unwrap(); 19 << 10];
        let write = entries(3, vec![block(index, 1, &[&payload])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
        log.prepare().unwrap();
    }
    assert_eq!(outlines(&disk).len(), 3);
    drop((log, writer));
    // The first batch of the fourth segment was torn, so the third, full one is the active one.
    let fourth = "0000000000000004.seg";
    for segment in 4..=5 {
        let name = format!("{segment:016x}.seg");
        if disk.names().contains(&name) {
            let length = disk.bytes(&name).len();
            disk.set_bytes(&name, &vec![0; length]);
        }
    }
    assert!(disk.names().contains(&fourth.to_owned()));
    let (log, mut writer) = open(&disk).unwrap();
    assert_eq!(outlines(&disk), [name(1), name(2)]);
    let write = entries(3, vec![block(10, 2, &[b"small"])]);
    log.append(batch(1, vec![write])).unwrap();
    drain(&mut writer);
    drop((log, writer));
    disk.crash(7);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 3, 10, 10).unwrap(), ["small"]);
    assert!(payloads(&log, 3, 11, 11).is_err());
}
