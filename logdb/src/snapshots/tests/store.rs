//! What is saved is loaded, sent, received and removed.

use super::*;
use crate::disk::{Access, FsDisk};

#[test]
fn what_is_saved_is_loaded_before_and_after_a_restart() {
    let all = [
        parts(1, 0, &[]),
        parts(2, 1, &[]),
        parts(3, 50, &[]), // a chunk
        parts(4, 51, &[("a", 0)]),
        parts(5, 1234, &[("a", 1), ("b", 0), ("", 100), ("a", 777)]),
        parts(
            6,
            0,
            &[
                (&"n".repeat(255), 3),
                ("../../etc/passwd", 9),
                ("a/b\0c", 50),
            ],
        ),
    ];
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    for (parts, index) in all.iter().zip(1..) {
        save(&dir, GROUP, index, parts).unwrap();
        assert_eq!(load(&dir, GROUP, index), *parts);
        assert_eq!(newest(&dir), [(7, index)]);
    }
    drop(dir);
    disk.crash(0);
    let dir = open(&disk).unwrap();
    for (parts, index) in all.iter().zip(1..) {
        assert_eq!(load(&dir, GROUP, index), *parts);
        dir.verify(GROUP, Index(index)).unwrap();
    }
    assert_eq!(
        dir.newest(),
        [(GROUP, snapshot(6))],
        "membership and term too"
    );
    assert_eq!(
        disk.names().len(),
        7,
        "six files and the owner: {:?}",
        disk.names()
    );
    assert_eq!(dir.metrics().damaged.get(), 0);
}

#[test]
fn many_mebibytes_pass_on_the_real_disk_with_the_real_limits() {
    let place = tempfile::tempdir().unwrap();
    let dir = SnapshotDir::open_dir(place.path(), INCARNATION).unwrap();
    let parts = parts(1, (33 << 20) + 17, &[("index", 5 << 20)]);
    let mut view = View {
        parts: parts.clone(),
        piece_bytes: 1 << 20,
    };
    dir.save(GROUP, &snapshot(90), &mut view).unwrap();
    drop(dir);
    let dir = SnapshotDir::open_dir(place.path(), INCARNATION).unwrap();
    assert!(load(&dir, GROUP, 90) == parts);
    let file = SnapshotStore::open(&*dir, GROUP, Index(90)).unwrap();
    let bytes = std::fs::read(place.path().join("7-90.snap")).unwrap();
    assert_eq!(file.bytes(), bytes.len() as u64);
    assert_eq!(file.checksum(), crc32fast::hash(&bytes));
}

#[test]
fn equal_states_make_equal_files_however_they_are_written() {
    let parts = parts(1, 800, &[("a", 120)]);
    let file = file_of(90, &parts);
    for piece_bytes in [1, 49, 50, 51, 10_000] {
        let disk = SimDisk::new();
        let mut view = View {
            parts: parts.clone(),
            piece_bytes,
        };
        let dir = open(&disk).unwrap();
        dir.save(GROUP, &snapshot(90), &mut view).unwrap();
        assert!(disk.bytes("7-90.snap") == file, "pieces of {piece_bytes}");
    }
}

#[test]
fn the_checksum_is_that_of_all_bytes_and_tells_files_apart() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let disk = SimDisk::new();
        let dir = open(&disk).unwrap();
        save(&dir, GROUP, 90, &parts(seed, 300, &[])).unwrap();
        let file = SnapshotStore::open(&*dir, GROUP, Index(90)).unwrap();
        let mut bytes = vec![0; usize::try_from(file.bytes()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, disk.bytes("7-90.snap"));
        assert_eq!(file.checksum(), crc32fast::hash(&bytes));
        assert!(seen.insert(file.checksum()), "one sum for two files");
        let mut last = [0; 4];
        file.read_exact_at(&mut last, file.bytes() - 4).unwrap();
        assert_eq!(last, bytes[bytes.len() - 4..]);
        assert!(file.read_exact_at(&mut last, file.bytes() - 3).is_err());
    }
}

#[test]
fn parts_that_are_not_read_are_skipped_and_checked() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 333, &[("a", 222), ("b", 111)]);
    save(&dir, GROUP, 90, &parts).unwrap();
    let mut from = dir.load(GROUP, Index(90)).unwrap();
    let mut some = [0; 60];
    from.read_exact(&mut some).unwrap();
    assert_eq!(some, parts[0].1[..60]);
    assert_eq!(from.next_file().unwrap().as_deref(), Some("a"));
    assert_eq!(from.next_file().unwrap().as_deref(), Some("b"));
    assert_eq!(from.read(&mut []).unwrap(), 0);
    from.read_exact(&mut some).unwrap();
    assert_eq!(some, parts[2].1[..60]);
    assert_eq!(from.next_file().unwrap(), None);
    assert_eq!(from.read(&mut some).unwrap(), 0);
    assert_eq!(from.next_file().unwrap(), None);

    // The last byte of the first file, which is skipped.
    let at = chunk_places(&disk.bytes("7-90.snap"))[7 + 1 + 4].end - 1;
    disk.flip("7-90.snap", at);
    let mut from = dir.load(GROUP, Index(90)).unwrap();
    assert_eq!(from.next_file().unwrap().as_deref(), Some("a"));
    let error = from.next_file().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(from.read(&mut some).is_err(), "it stays failed");
    assert!(from.next_file().is_err());
    assert!(newest(&dir).is_empty());
}

#[test]
fn a_file_travels_as_it_is() {
    let (here, there) = (SimDisk::new(), SimDisk::new());
    let (from, to) = (open(&here).unwrap(), open(&there).unwrap());
    let parts = parts(1, 999, &[("a", 10)]);
    save(&from, GROUP, 90, &parts).unwrap();
    let file = SnapshotStore::open(&*from, GROUP, Index(90)).unwrap();
    let incoming = to.receive(GROUP, &snapshot(90), file.bytes(), file.checksum());
    let mut incoming = incoming.unwrap();
    let mut at = 0;
    for count in [1, 39, 2, 400].into_iter().cycle() {
        let mut piece = vec![0; count.min(usize::try_from(file.bytes() - at).unwrap())];
        file.read_exact_at(&mut piece, at).unwrap();
        incoming.append(&piece).unwrap();
        at += piece.len() as u64;
        assert_eq!(incoming.written(), at);
        if at == file.bytes() {
            break;
        }
    }
    assert!(newest(&to).is_empty(), "seen before it was checked");
    incoming.finish().unwrap();
    assert_eq!(to.newest(), from.newest());
    assert_eq!(load(&to, GROUP, 90), parts);
    assert_eq!(here.bytes("7-90.snap"), there.bytes("7-90.snap"));
    assert_eq!(
        (to.metrics().received.get(), from.metrics().saved.get()),
        (1, 1)
    );
    there.crash(5);
    assert_eq!(load(&open(&there).unwrap(), GROUP, 90), parts);
}

#[test]
fn an_unfinished_one_leaves_nothing_when_it_is_dropped() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let file = file_of(90, &parts(1, 500, &[]));
    let mut incoming = dir
        .receive(GROUP, &snapshot(90), file.len() as u64, 1)
        .unwrap();
    incoming.append(&file[..300]).unwrap();
    assert_eq!(disk.names(), ["7-90-1.snap.tmp", "OWNER"]);
    drop(incoming);
    assert_eq!(disk.names(), ["OWNER"]);
}

#[test]
fn of_two_that_arrive_at_once_the_first_is_kept() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 500, &[]);
    let file = file_of(90, &parts);
    let sum = crc32fast::hash(&file);
    let begin = || {
        dir.receive(GROUP, &snapshot(90), file.len() as u64, sum)
            .unwrap()
    };
    let (mut one, mut two) = (begin(), begin());
    for piece in file.chunks(100) {
        one.append(piece).unwrap();
        two.append(piece).unwrap();
    }
    two.finish().unwrap();
    let before = dir.load(GROUP, Index(90)).unwrap();
    one.finish().unwrap();
    assert_no_temporaries(&disk);
    assert_eq!(load(&dir, GROUP, 90), parts);
    assert_eq!(dir.metrics().received.get(), 1);
    drop(before);

    // One that is saved meanwhile counts as well; its state is not asked for again.
    let mut not_asked = With(|_: &mut dyn SnapshotOut| unreachable!("it is there"));
    dir.save(GROUP, &snapshot(90), &mut not_asked).unwrap();
    // But one that is damaged in the middle makes way.
    disk.flip("7-90.snap", file.len() / 2);
    receive(&dir, &snapshot(90), &file, sum).unwrap();
    assert_eq!(load(&dir, GROUP, 90), parts);
    assert_eq!(disk.names(), ["7-90.snap", "7-90.snap.damaged", "OWNER"]);
    disk.flip("7-90.snap", file.len() / 2);
    save(&dir, GROUP, 90, &parts).unwrap();
    assert_eq!(load(&dir, GROUP, 90), parts);
    assert_eq!(dir.metrics().damaged.get(), 2);
}

#[test]
fn another_snapshot_at_the_same_index_is_refused_and_the_stored_one_stays() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 100, &[]);
    save(&dir, GROUP, 90, &parts).unwrap();
    let other = Snapshot {
        term: Term(99),
        ..snapshot(90)
    };
    let saved = dir.save(GROUP, &other, &mut View::new(&parts));
    assert!(matches!(saved, Err(SnapshotError::Damaged { .. })));
    let elsewhere = SimDisk::new();
    let from = open(&elsewhere).unwrap();
    from.save(GROUP, &other, &mut View::new(&parts)).unwrap();
    let file = elsewhere.bytes("7-90.snap");
    let received = receive(&dir, &other, &file, crc32fast::hash(&file));
    assert!(matches!(received, Err(SnapshotError::Damaged { .. })));
    assert_eq!(dir.newest(), [(GROUP, snapshot(90))]);
    assert_eq!(disk.names(), ["7-90.snap", "OWNER"]);
}

#[test]
fn one_that_came_while_another_was_written_is_kept() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let first = Snapshot {
        term: Term(99),
        ..snapshot(90)
    };
    let state = parts(1, 100, &[]);
    let meanwhile = Arc::clone(&dir);
    let mut view = With(|out: &mut dyn SnapshotOut| {
        let saved = meanwhile.save(GROUP, &first, &mut View::new(&state));
        saved.map_err(io::Error::other)?;
        out.write_all(b"another state")
    });
    let saved = dir.save(GROUP, &snapshot(90), &mut view);
    assert!(matches!(saved, Err(SnapshotError::Damaged { .. })));
    assert_eq!(dir.newest(), [(GROUP, first)]);
    assert_eq!(load(&dir, GROUP, 90), state);
    assert_eq!(disk.names(), ["7-90.snap", "OWNER"]);
}

#[test]
fn others_are_removed_and_reported_and_who_reads_one_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let disks: [Arc<dyn Disk>; 2] = [
        SimDisk::new(),
        Arc::new(FsDisk::new(place.path(), Access::ReadWrite)),
    ];
    for disk in disks {
        let dir = SnapshotDir::open_with(disk, INCARNATION, SMALL).unwrap();
        let old = parts(1, 500, &[("a", 60)]);
        for index in [10, 20, 30] {
            save(&dir, GROUP, index, &old).unwrap();
        }
        save(&dir, GroupId(8), 5, &old).unwrap();
        let mut reader = dir.load(GROUP, Index(10)).unwrap();
        let sender = SnapshotStore::open(&*dir, GROUP, Index(20)).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();

        let none = dir.remove_others(GROUP, Some(Index(29))).unwrap();
        assert!(none.is_empty(), "the one to keep is not there");
        let removed = dir.remove_others(GROUP, Some(Index(30))).unwrap();
        assert_eq!(removed, [Index(10), Index(20)]);
        assert_eq!(newest(&dir), [(7, 30), (8, 5)]);
        let gone = dir.load(GROUP, Index(10)).err().unwrap();
        assert!(matches!(
            gone,
            SnapshotError::NotFound {
                group: GROUP,
                index: Index(10)
            }
        ));
        let gone = SnapshotStore::open(&*dir, GROUP, Index(20)).err().unwrap();
        assert!(matches!(gone, SnapshotError::NotFound { .. }));

        let (rest, result) = drain(&mut *reader);
        result.unwrap();
        assert_eq!((&rest[0].1[..], &rest[1]), (&old[0].1[10..], &old[1]));
        let mut bytes = vec![0; usize::try_from(sender.bytes()).unwrap()];
        sender.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(crc32fast::hash(&bytes), sender.checksum());

        assert_eq!(dir.remove_others(GROUP, None).unwrap(), [Index(30)]);
        assert_eq!(newest(&dir), [(8, 5)]);
        assert!(dir.remove_others(GROUP, None).unwrap().is_empty());
    }
    let names = std::fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["8-5.snap", "OWNER"]);
}

#[test]
fn what_is_on_its_way_while_its_group_is_removed_does_not_appear() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let file = file_of(90, &parts(1, 100, &[]));
    let sum = crc32fast::hash(&file);
    let mut incoming = dir
        .receive(GROUP, &snapshot(90), file.len() as u64, sum)
        .unwrap();
    incoming.append(&file).unwrap();
    let removing = Arc::clone(&dir);
    let mut view = With(|out: &mut dyn SnapshotOut| {
        removing.remove_others(GROUP, None).unwrap();
        out.write_all(b"state")
    });
    let saved = dir.save(GROUP, &snapshot(90), &mut view);
    assert!(matches!(saved, Err(SnapshotError::NotFound { .. })));
    let received = incoming.finish();
    assert!(matches!(received, Err(SnapshotError::NotFound { .. })));
    assert_eq!(disk.names(), ["OWNER"]);
    // What begins later belongs to a new group of that id.
    receive(&dir, &snapshot(90), &file, sum).unwrap();
    assert_eq!(newest(&dir), [(7, 90)]);
}

const LAST: u64 = 60;

#[test]
fn threads_that_save_receive_load_and_remove_at_once_all_end_well() {
    let place = tempfile::tempdir().unwrap();
    let real = Arc::new(FsDisk::new(place.path(), Access::ReadWrite));
    let sim = SimDisk::new();
    let disks: [Arc<dyn Disk>; 2] = [Arc::<SimDisk>::clone(&sim), real];
    let parts = parts(1, 700, &[("a", 60)]);
    let files: Vec<_> = (1..=LAST).map(|index| file_of(index, &parts)).collect();
    for disk in disks {
        let dir = SnapshotDir::open_with(Arc::clone(&disk), INCARNATION, SMALL).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=LAST).for_each(|index| save(&dir, GROUP, index, &parts).unwrap()));
            scope.spawn(|| {
                for (index, file) in (1..).zip(&files) {
                    receive(&dir, &snapshot(index), file, crc32fast::hash(file)).unwrap();
                }
            });
            scope.spawn(|| {
                for _ in 0..4 * LAST {
                    let Some((_, newest)) = dir.newest().pop() else {
                        continue;
                    };
                    // As the engine does it: what became newer meanwhile stays.
                    let listed = dir.of(GROUP).into_iter().map(|snapshot| snapshot.index);
                    let older = listed.filter(|&index| index < newest.index);
                    older.for_each(|index| dir.remove(GROUP, index).unwrap());
                }
            });
            scope.spawn(|| {
                for _ in 0..4 * LAST {
                    let Some((_, newest)) = dir.newest().pop() else {
                        continue;
                    };
                    match dir.load(GROUP, newest.index) {
                        Ok(mut from) => {
                            let (found, result) = drain(&mut *from);
                            result.unwrap();
                            assert_eq!(found, parts);
                        }
                        Err(SnapshotError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        });
        assert_eq!(newest(&dir), [(7, LAST)]);
        assert_eq!(dir.metrics().damaged.get(), 0);
        let removed = dir.remove_others(GROUP, Some(Index(LAST))).unwrap();
        let names = disk.list().unwrap();
        assert_eq!(names.len(), 2, "{names:?} after {removed:?}");
        assert_eq!(load(&dir, GROUP, LAST), parts);
    }
}
