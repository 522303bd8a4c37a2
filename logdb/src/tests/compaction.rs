//! Space comes back, and nothing alive goes with it.

use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::traits::{GroupWrite, Log};
use multiraft_engine::types::{GroupId, Index};

use super::{Seen, batch, block, contents, drain, entries, hard_state, open, options, payloads};
use crate::sim::SimDisk;
use crate::{LogDb, SPACE_FACTOR, SPACE_SEGMENTS, Writer};

/// A busy group that keeps its newest entry only.
fn churn(log: &Arc<LogDb>, writer: &mut Writer, rounds: std::ops::Range<u64>) {
    for index in rounds {
        let write = GroupWrite {
            compact_to: Some(Index(index - 1)),
            hard_state: Some(hard_state(index)),
            ..entries(2, vec![block(index, 1, &[&[0; 9000]])])
        };
        log.append(batch(index, vec![write])).unwrap();
        drain(writer);
        log.prepare().unwrap();
    }
}

fn segments(disk: &SimDisk) -> usize {
    disk.names().len()
}

#[test]
fn an_idle_group_does_not_pin_the_disk() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let idle = GroupWrite {
        meta: Some(Bytes::from_static(b"idle")),
        hard_state: Some(hard_state(5)),
        ..entries(1, vec![block(1, 1, &[b"a", b"b"]), block(3, 2, &[b"c"])])
    };
    log.append(batch(1, vec![idle])).unwrap();
    let cut = GroupWrite {
        compact_to: Some(Index(1)),
        ..GroupWrite::new(GroupId(1))
    };
    log.append(batch(2, vec![cut])).unwrap();
    churn(&log, &mut writer, 1..200);
    let limit = usize::try_from(SPACE_SEGMENTS).unwrap() + 5; // prepared, spares, on their way
    assert!(segments(&disk) <= limit, "{:?}", disk.names());
    assert!(!disk.names().contains(&"0000000000000001.seg".to_owned()));
    assert_eq!(payloads(&log, 1, 2, 3).unwrap(), ["b", "c"]);
    drop((log, writer));
    disk.crash(5);
    let (log, _writer) = open(&disk).unwrap();
    let group = log.take_stored_groups().remove(0);
    assert_eq!(
        (group.meta, group.hard_state),
        (Bytes::from_static(b"idle"), hard_state(5))
    );
    assert_eq!(group.compacted.0, Index(1));
    assert_eq!(payloads(&log, 1, 2, 3).unwrap(), ["b", "c"]);
}

#[test]
fn the_disk_holds_at_most_twice_what_counts_and_two_segments() {
    for kept in [0, 3, 30, 200] {
        let disk = SimDisk::new();
        let (log, mut writer) = open(&disk).unwrap();
        let idle = entries(1, vec![block(1, 1, &[b"idle"])]);
        log.append(batch(1, vec![idle])).unwrap();
        for ticket in 7..1500_u64 {
            // Few large groups and many small writes: some batches are nearly all padding.
            let (group, index) = (2 + ticket % 7, ticket / 7);
            let size = if group == 2 {
                7000
            } else {
                1 + ticket * 7919 % 300
            };
            let payload = vec![7; usize::try_from(size).unwrap()];
            let group = u32::try_from(group).unwrap();
            let write = GroupWrite {
                compact_to: index.checked_sub(kept + 1).map(Index),
                hard_state: Some(hard_state(ticket)),
                ..entries(group, vec![block(index, 1, &[&payload])])
            };
            log.append(batch(ticket, vec![write])).unwrap();
            drain(&mut writer);
            log.prepare().unwrap();
            let space = log.space();
            let allowed =
                SPACE_FACTOR * space.live_bytes + SPACE_SEGMENTS * options().segment_bytes;
            assert!(
                space.file_bytes <= allowed,
                "{ticket}, {kept} kept: {space:?}"
            );
        }
        assert_eq!(payloads(&log, 1, 1, 1).unwrap(), ["idle"]);
    }
}

#[test]
fn the_space_of_compacted_entries_is_told_when_it_is_given_back() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    let seen = Arc::new(Seen::default());
    log.set_observer(seen.clone());
    let two = entries(
        1,
        vec![block(1, 1, &[b"a", b"b"]), block(3, 2, &[b"c", b"d"])],
    );
    log.append(batch(1, vec![two])).unwrap();
    let cut = GroupWrite {
        compact_to: Some(Index(3)),
        ..GroupWrite::new(GroupId(1))
    };
    log.append(batch(2, vec![cut])).unwrap();
    drain(&mut writer);
    assert!(seen.reclaimed.lock().is_empty(), "it is still in its file");
    churn(&log, &mut writer, 1..100);
    let told = seen.reclaimed.lock().clone();
    let of_first: Vec<_> = told.iter().filter(|(group, _)| *group == 1).collect();
    assert_eq!(of_first, [&(1, 2)], "entry 3's block is still needed");
    let of_second: Vec<_> = told.iter().filter(|(group, _)| *group == 2).collect();
    assert!(of_second.is_sorted() && of_second.len() > 5, "{told:?}");
    let last = of_second.last().unwrap().1;
    assert!((60..=98).contains(&last), "98 were compacted: {told:?}");
    // A restart goes on, and tells nothing twice.
    drop((log, writer));
    disk.crash(1);
    let (log, mut writer) = open(&disk).unwrap();
    let seen = Arc::new(Seen::default());
    log.set_observer(seen.clone());
    churn(&log, &mut writer, 100..130);
    let told = seen.reclaimed.lock().clone();
    assert!(told.iter().all(|(group, _)| *group == 2), "{told:?}");
    assert!(told.len() > 2 && told[0].1 > last, "{last}: {told:?}");
}

#[test]
fn dead_segments_are_used_again_and_their_old_batches_never_verify() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    churn(&log, &mut writer, 1..60);
    drop((log, writer));
    for seed in 0..5 {
        disk.crash(seed);
        let (log, mut writer) = open(&disk).unwrap();
        let group = log.take_stored_groups().remove(0);
        let last = group.terms.last().unwrap().1;
        assert_eq!(
            last,
            Index(59 + seed * 20),
            "all, and nothing of an earlier use"
        );
        churn(&log, &mut writer, last.0 + 1..last.0 + 21);
    }
}

#[test]
fn a_removed_group_frees_its_segments_and_stays_removed() {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for index in 1..60 {
        let write = entries(1, vec![block(index, 1, &[&[1; 9000]])]);
        log.append(batch(index, vec![write])).unwrap();
        drain(&mut writer);
    }
    let before = segments(&disk);
    let remove = GroupWrite {
        remove: true,
        ..GroupWrite::new(GroupId(1))
    };
    log.append(batch(60, vec![remove])).unwrap();
    drain(&mut writer);
    log.prepare().unwrap();
    assert!(before > 8 && segments(&disk) <= 5, "{:?}", disk.names());
    drop((log, writer));
    disk.crash(2);
    let (log, _writer) = open(&disk).unwrap();
    assert!(contents(&log).is_empty());
}
