//! Power fails at every operation, tails are torn at every byte, promised bytes rot.

use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::traits::{GroupWrite, Log};
use multiraft_engine::types::{GroupId, Index};

use super::{Seen, batch, block, contents, drain, entries, hard_state, open, payloads};
use crate::sim::SimDisk;
use crate::{Error, LogDb, Turn, Writer};

const FIRST: &str = "0000000000000001.seg";

/// Two durable batches of one page each, for group 1.
fn two_batches() -> Arc<SimDisk> {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for index in 1..=2 {
        let payload = [b'a'; 300];
        let write = entries(1, vec![block(index, 1, &[&payload])]);
        log.append(batch(index, vec![write])).unwrap();
        assert_eq!(writer.turn(), Turn::Worked);
    }
    disk
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_log_goes_on() {
    let disk = two_batches();
    let whole = disk.bytes(FIRST);
    let end = 4096 + 4096
        - whole[4096..8192]
            .iter()
            .rev()
            .take_while(|b| **b == 0)
            .count();
    for cut in 4096..end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        disk.set_bytes(FIRST, &torn);
        let (log, mut writer) = open(&disk).unwrap();
        assert_eq!(
            log.take_stored_groups()[0].terms[0].1,
            Index(1),
            "cut at {cut}"
        );
        log.append(batch(1, vec![entries(1, vec![block(2, 9, &[b"new"])])]))
            .unwrap();
        drain(&mut writer);
        let (log, _writer) = open(&disk).unwrap();
        assert_eq!(payloads(&log, 1, 2, 2).unwrap(), ["new"], "cut at {cut}");
    }
}

#[test]
fn damage_to_promised_bytes_is_refused_and_the_group_named() {
    let disk = two_batches();
    let whole = disk.bytes(FIRST);
    for at in 0..64 + 337 {
        disk.set_bytes(FIRST, &whole);
        disk.flip(FIRST, at);
        let damaged = disk.bytes(FIRST);
        let error = open(&disk).err().unwrap();
        let Error::Corrupt { offset, groups, .. } = error else {
            panic!("byte {at}: {error}");
        };
        assert_eq!(offset, 0);
        assert!(at < 64 || groups == [GroupId(1)], "byte {at}: {groups:?}");
        assert_eq!(disk.bytes(FIRST), damaged, "changed by a refused start");
    }
}

#[test]
fn a_missing_segment_is_refused() {
    use crate::Disk;
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for index in 1..40 {
        let write = entries(1, vec![block(index, 1, &[&[1; 9000]])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
    }
    drop((log, writer));
    for name in ["0000000000000001.seg", "0000000000000003.seg"] {
        disk.rename(name, "kept").unwrap();
        assert!(matches!(open(&disk), Err(Error::MissingSegment { .. })));
        disk.rename("kept", name).unwrap();
    }
    open(&disk).unwrap();
}

/// A write of the script: appends, conflicts, compaction, removal, of three groups.
fn write(step: u64) -> GroupWrite {
    let group = step % 3 + 1;
    let round = step / 3;
    let first = if round.is_multiple_of(4) {
        1
    } else {
        round % 4 * 2
    };
    let payload = vec![u8::try_from(step % 251).unwrap(); 7000];
    GroupWrite {
        remove: round > 0 && round.is_multiple_of(4),
        meta: round
            .is_multiple_of(4)
            .then(|| Bytes::from(format!("meta {step}"))),
        compact_to: (round % 4 == 3).then_some(Index(2)),
        truncate_from: (first > 1).then_some(Index(first)),
        hard_state: Some(hard_state(step + 1)),
        ..entries(
            u32::try_from(group).unwrap(),
            vec![block(first, step + 1, &[&payload, b"x", b"y"])],
        )
    }
}

/// The writes of a step; the first also has a group that stays idle, so that it has to be moved.
pub(super) fn writes(step: u64) -> Vec<GroupWrite> {
    let idle = GroupWrite {
        meta: Some(Bytes::from_static(b"idle")),
        hard_state: Some(hard_state(7)),
        ..entries(9, vec![block(1, 7, &[b"idle"])])
    };
    let idle = (step == 0).then_some(idle);
    idle.into_iter().chain([write(step)]).collect()
}

/// Runs the script until power fails; returns the tickets told to be durable.
fn run(disk: &Arc<SimDisk>, steps: u64) -> u64 {
    let Ok((log, mut writer)) = open(disk) else {
        return 0;
    };
    let seen = Arc::new(Seen::default());
    log.set_observer(Arc::<Seen>::clone(&seen));
    for step in 0..steps {
        if log.append(batch(step + 1, writes(step))).is_err() {
            break;
        }
        if step % 3 == 2 {
            turn(&log, &mut writer);
        }
    }
    let durable = seen.durable.lock();
    durable.last().map_or(0, |(_, ticket)| *ticket)
}

fn turn(log: &LogDb, writer: &mut Writer) {
    while writer.turn() == Turn::Worked {}
    // Power may fail in the background too; the writer then finds out by itself.
    if log.prepare().is_err() {
        assert_ne!(writer.turn(), Turn::Worked);
    }
}

#[test]
fn power_failing_at_any_operation_loses_nothing_acknowledged_and_revives_nothing() {
    const STEPS: u64 = 90;
    // What each number of appended writes must look like.
    let mut models = Vec::new();
    for steps in 0..=STEPS {
        let disk = SimDisk::new();
        let (log, mut writer) = open(&disk).unwrap();
        for step in 0..steps {
            log.append(batch(step + 1, writes(step))).unwrap();
        }
        drain(&mut writer);
        drop((log, writer));
        models.push(contents(&open(&disk).unwrap().0));
    }
    let whole = SimDisk::new();
    assert_eq!(run(&whole, STEPS), STEPS);
    assert!(
        !whole.names().contains(&FIRST.to_owned()),
        "nothing was recycled"
    );
    let mut kept_unacknowledged = 0;
    for operation in 0..whole.operations() {
        for seed in 0..3 {
            let disk = SimDisk::new();
            disk.fail_from(operation);
            let acknowledged = run(&disk, STEPS);
            disk.crash(operation * 3 + seed);
            let found = contents(&open(&disk).unwrap().0);
            let candidates = usize::try_from(acknowledged).unwrap()..models.len();
            let matching = candidates.clone().find(|steps| models[*steps] == found);
            let place = format!("operation {operation}, seed {seed}, {acknowledged} acknowledged");
            let matching = matching.unwrap_or_else(|| panic!("{place}: {found:?}"));
            kept_unacknowledged += usize::from(matching > candidates.start);
            disk.crash(seed);
            assert_eq!(
                contents(&open(&disk).unwrap().0),
                found,
                "{place}: second recovery"
            );
        }
    }
    assert!(
        kept_unacknowledged > 0,
        "no crash came between write and sync"
    );
}

/// What kills whole segments may wait in a later batch while they are written: until it is durable,
/// a crash brings back what it killed. Found by fuzzing (`logdb_ops`).
#[test]
fn a_queued_removal_frees_nothing_before_it_is_durable() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for (ticket, bytes) in [(1, 20_000), (2, 20_000), (3, 40_000)] {
        let group = u32::try_from(ticket).unwrap();
        let write = GroupWrite {
            meta: Some(Bytes::from_static(b"members")),
            ..entries(group, vec![block(1, 1, &[&vec![7; bytes]])])
        };
        log.append(batch(ticket, vec![write])).unwrap();
    }
    for ticket in [4, 5] {
        let remove = GroupWrite {
            remove: true,
            ..GroupWrite::new(GroupId(u32::try_from(ticket - 3).unwrap()))
        };
        log.append(batch(ticket, vec![remove])).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(writer.turn(), Turn::Worked);
        log.prepare().unwrap();
    }
    drop((log, writer));
    disk.crash(0);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(
        contents(&log).keys().copied().collect::<Vec<_>>(),
        [1, 2, 3]
    );
}
