//! Full disks, failed syncs, states that cannot be written: an error, nothing left, and the older
//! snapshots as they were.

use super::*;

/// A store with a snapshot at 10, which must survive.
fn with_older() -> (Arc<SimDisk>, Arc<SnapshotDir>) {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    save(&dir, GROUP, 10, &parts(1, 100, &[])).unwrap();
    (disk, dir)
}

/// After a failure: as before it, in this run and after a crash.
fn assert_as_before(disk: &Arc<SimDisk>, dir: &SnapshotDir, what: &str) {
    for seed in 0..4 {
        assert_eq!(disk.names(), ["7-10.snap", "OWNER"], "{what}");
        assert_eq!(newest(dir), [(7, 10)], "{what}");
        assert_eq!(load(dir, GROUP, 10), parts(1, 100, &[]), "{what}");
        disk.crash(seed);
        assert_eq!(newest(&open(disk).unwrap()), [(7, 10)], "{what}");
    }
}

#[test]
fn a_disk_that_is_full_at_any_step_is_no_room_and_nothing_stays() {
    let state = parts(2, 300, &[("a", 60)]);
    let file = file_of(20, &state);
    for free_bytes in 0..file.len() as u64 {
        let (disk, dir) = with_older();
        disk.set_free_bytes(free_bytes);
        let saved = save(&dir, GROUP, 20, &state);
        let what = format!("{free_bytes} bytes free: {saved:?}");
        assert!(matches!(saved, Err(SnapshotError::NoRoom { .. })), "{what}");
        assert_eq!(disk.free_bytes().unwrap(), free_bytes, "{what}");
        assert_as_before(&disk, &dir, &what);
        disk.set_free_bytes(file.len() as u64);
        save(&dir, GROUP, 20, &state).unwrap();
        assert_eq!(load(&dir, GROUP, 20), state);
    }
}

#[test]
fn a_snapshot_from_a_peer_is_refused_before_anything_is_written_if_there_is_no_room() {
    let (disk, dir) = with_older();
    let file = file_of(20, &parts(2, 300, &[]));
    let (length, sum) = (file.len() as u64, crc32fast::hash(&file));
    let operations = disk.operations();
    let begin = |bytes| dir.receive(GROUP, &snapshot(20), bytes, sum);
    disk.set_free_bytes(SMALL.reserve_bytes + length - 1);
    for bytes in [length, u64::MAX, u64::MAX - SMALL.reserve_bytes] {
        let refused = begin(bytes).err().unwrap();
        assert!(matches!(refused, SnapshotError::NoRoom { bytes: b } if b == bytes));
    }
    assert_eq!(disk.operations(), operations);
    // Room for one and a half: the second waits until the first is given up, or there is more.
    disk.set_free_bytes(SMALL.reserve_bytes + length + length / 2);
    let mut one = begin(length).unwrap();
    one.append(&file[..100]).unwrap();
    assert!(matches!(begin(length), Err(SnapshotError::NoRoom { .. })));
    drop(one);
    let mut one = begin(length).unwrap();
    one.append(&file).unwrap();
    assert!(matches!(begin(length), Err(SnapshotError::NoRoom { .. })));
    disk.set_free_bytes(SMALL.reserve_bytes + length);
    drop(begin(length).unwrap());
    one.finish().unwrap();
    assert_eq!(newest(&dir), [(7, 20)]);
}

#[test]
fn a_disk_that_fills_up_while_a_snapshot_arrives_is_no_room_and_nothing_stays() {
    let file = file_of(20, &parts(2, 300, &[]));
    let (length, sum) = (file.len() as u64, crc32fast::hash(&file));
    for free_bytes in 0..length {
        let (disk, dir) = with_older();
        let mut incoming = dir.receive(GROUP, &snapshot(20), length, sum).unwrap();
        disk.set_free_bytes(free_bytes);
        let refused = file
            .chunks(40)
            .find_map(|piece| incoming.append(piece).err());
        assert!(
            matches!(refused, Some(SnapshotError::NoRoom { .. })),
            "{refused:?}"
        );
        disk.set_free_bytes(1 << 20);
        assert!(incoming.append(&file[..1]).is_err(), "there is no way back");
        drop(incoming);
        assert_as_before(&disk, &dir, "full");
    }
}

#[test]
fn a_failed_sync_is_final_for_its_file() {
    let state = parts(2, 500, &[]);
    let file = file_of(20, &state);
    // The first sync is one on the way, or the last one.
    for state_bytes in [500, 60] {
        let (disk, dir) = with_older();
        disk.fail_next_sync();
        let saved = save(&dir, GROUP, 20, &parts(2, state_bytes, &[]));
        assert!(matches!(saved, Err(SnapshotError::Io(_))), "{saved:?}");
        assert_as_before(&disk, &dir, "failed sync");
    }
    let (disk, dir) = with_older();
    disk.fail_next_sync();
    let mut view = With(|out: &mut dyn SnapshotOut| {
        let mut failures = 0;
        for _ in 0..20 {
            failures += usize::from(out.write_all(&[1; 50]).is_err());
        }
        // The third chunk is the one behind which it syncs.
        assert_eq!(failures, 20 - 2, "nothing is written after it");
        assert!(out.flush().is_err() && out.begin_file("a").is_err());
        Ok(()) // A machine that does not care.
    });
    let saved = dir.save(GROUP, &snapshot(20), &mut view);
    assert!(matches!(saved, Err(SnapshotError::Io(_))), "{saved:?}");
    assert_as_before(&disk, &dir, "an error that was not cared for");

    for piece_bytes in [file.len(), 90] {
        let (disk, dir) = with_older();
        let sum = crc32fast::hash(&file);
        let incoming = dir.receive(GROUP, &snapshot(20), file.len() as u64, sum);
        let mut incoming = incoming.unwrap();
        disk.fail_next_sync();
        for piece in file.chunks(piece_bytes) {
            if incoming.append(piece).is_err() {
                break;
            }
        }
        assert!(incoming.finish().is_err());
        assert_as_before(&disk, &dir, "failed sync of a received one");
        receive(&dir, &snapshot(20), &file, sum).unwrap();
        assert_eq!(load(&dir, GROUP, 20), state);
    }
}

#[test]
fn the_last_sync_of_a_received_one_counts_too() {
    let file = file_of(20, &parts(2, 20, &[]));
    assert!((file.len() as u64) < SMALL.sync_bytes, "one sync only");
    let (disk, dir) = with_older();
    let sum = crc32fast::hash(&file);
    let mut incoming = dir
        .receive(GROUP, &snapshot(20), file.len() as u64, sum)
        .unwrap();
    incoming.append(&file).unwrap();
    disk.fail_next_sync();
    assert!(matches!(incoming.finish(), Err(SnapshotError::Io(_))));
    assert_as_before(&disk, &dir, "failed last sync");
}

#[test]
fn a_failed_sync_of_the_directory_leaves_nothing() {
    let (disk, dir) = with_older();
    let state = parts(2, 60, &[]);
    let file = file_of(20, &state);
    disk.fail_next_dir_sync();
    let saved = save(&dir, GROUP, 20, &state);
    assert!(matches!(saved, Err(SnapshotError::Io(_))), "{saved:?}");
    assert_as_before(&disk, &dir, "saved");
    disk.fail_next_dir_sync();
    let received = receive(&dir, &snapshot(20), &file, crc32fast::hash(&file));
    assert!(
        matches!(received, Err(SnapshotError::Io(_))),
        "{received:?}"
    );
    assert_as_before(&disk, &dir, "received");
    disk.fail_next_dir_sync();
    assert!(
        dir.remove_others(GROUP, None).is_err(),
        "it is not known to be gone"
    );
    save(&dir, GROUP, 20, &state).unwrap();
    assert_eq!(load(&dir, GROUP, 20), state);
}

#[test]
fn a_file_that_could_be_neither_published_nor_deleted_goes_with_its_group() {
    let state = parts(2, 60, &[]);
    let (probe, dir) = with_older();
    save(&dir, GROUP, 20, &state).unwrap();
    let (disk, dir) = with_older();
    disk.fail_from(probe.operations() - 1); // the sync of the directory, and what comes after it
    assert!(save(&dir, GROUP, 20, &state).is_err());
    disk.mend();
    assert!(disk.names().contains(&name_of(GROUP, 20)));
    dir.remove_others(GROUP, None).unwrap();
    assert_eq!(disk.names(), ["OWNER"]);
}

#[test]
fn a_state_that_cannot_be_written_leaves_nothing() {
    let (disk, dir) = with_older();
    let mut view = With(|out: &mut dyn SnapshotOut| {
        out.write_all(&[1; 300])?;
        Err(io::Error::other("the machine's own"))
    });
    let saved = dir.save(GROUP, &snapshot(20), &mut view);
    assert!(matches!(&saved, Err(SnapshotError::Io(e)) if e.to_string() == "the machine's own"));
    assert_as_before(&disk, &dir, "the machine failed");

    let mut view = With(|out: &mut dyn SnapshotOut| {
        let refused = out.begin_file(&"n".repeat(256)).err();
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::InvalidInput);
        Ok(())
    });
    assert!(dir.save(GROUP, &snapshot(20), &mut view).is_err());
    assert_as_before(&disk, &dir, "a long name");

    let mut long = snapshot(20);
    for member in long.membership.members.values_mut() {
        member.address.host = "h".repeat(65_535);
    }
    let member = long.membership.members[&NodeId::new(1).unwrap()].clone();
    let more = (3..20).map(|id| (NodeId::new(id).unwrap(), member.clone()));
    long.membership.members.extend(more);
    assert!(
        dir.save(GROUP, &long, &mut View::new(&parts(2, 1, &[])))
            .is_err()
    );
    assert_as_before(&disk, &dir, "a long membership");

    let panicking = std::panic::AssertUnwindSafe(|| {
        let mut view = With(|_: &mut dyn SnapshotOut| panic!("the machine's"));
        dir.save(GROUP, &snapshot(20), &mut view)
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert_as_before(&disk, &dir, "the machine panicked");
}
