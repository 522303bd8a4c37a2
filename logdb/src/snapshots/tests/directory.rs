//! The directory: whose it is, what is ours in it, what is listed and reported.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::snapshots::format::Flaw;
use crate::snapshots::inspect_snapshots;
use crate::snapshots::read::ReadError;

#[test]
fn names_are_read_in_one_spelling_only() {
    for name in [
        Name::Whole(GroupId(7), Index(12)),
        Name::Damaged(GroupId(u32::MAX), Index(u64::MAX)),
        Name::Temporary(GroupId(1), Index(2), 3),
    ] {
        assert_eq!(Name::from_file_name(&name.file_name()), Some(name));
    }
    for name in [
        "",
        ".",
        "7",
        "7-1",
        ".snap",
        "-.snap",
        "7.snap",
        "7-.snap",
        "-1.snap",
        "07-1.snap",
        "7-01.snap",
        "+7-1.snap",
        "7-1-2.snap",
        "7-1-2-3.snap.tmp",
        "7-1.snap.tmp",
        "7-1.snap.damaged.damaged",
        "7-1-2.snap.damaged",
        "7-1.snap ",
        " 7-1.snap",
        "7-1.SNAP",
        "4294967296-1.snap",
        "1-18446744073709551616.snap",
        "7-1.snap/..",
        "../7-1.snap",
        "7-1..snap",
        "0000000000000001.seg",
    ] {
        assert_eq!(Name::from_file_name(name), None, "{name}");
    }
}

#[test]
fn foreign_files_are_left_alone_and_unfinished_ones_deleted() {
    let disk = SimDisk::new();
    let foreign = [
        "07-1.snap",
        "7-1.snap.bak",
        "7-1-2.tmp",
        "README",
        "new.tmp",
        "spare-0.seg",
    ];
    for name in foreign {
        put(&disk, name, b"foreign");
    }
    put(&disk, "7-1-3.snap.tmp", b"unfinished");
    put(&disk, "OWNER.tmp", b"unfinished");
    let dir = open(&disk).unwrap();
    save(&dir, GROUP, 1, &parts(1, 10, &[])).unwrap();
    dir.remove_others(GROUP, None).unwrap();
    let mut expected = foreign.to_vec();
    expected.push("OWNER");
    expected.sort_unstable();
    assert_eq!(disk.names(), expected);
    for name in foreign {
        assert_eq!(disk.bytes(name), b"foreign");
    }
}

#[test]
fn a_directory_serves_the_log_it_was_made_for() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    save(&dir, GROUP, 1, &parts(1, 10, &[])).unwrap();
    put(&disk, "7-2-3.snap.tmp", b"unfinished");
    drop(dir);
    let before = disk.names();
    let other = SnapshotDir::open(Arc::<SimDisk>::clone(&disk), INCARNATION + 1);
    let other = other.err().unwrap();
    assert!(matches!(
        other,
        Error::OtherIncarnation { found: INCARNATION, expected } if expected == INCARNATION + 1
    ));
    assert_eq!(disk.names(), before, "changed by a refused start");
    let owner = disk.bytes("OWNER");
    for at in 0..owner.len() {
        disk.flip("OWNER", at);
        let error = open(&disk).err().unwrap();
        assert!(
            matches!(error, Error::IdentityDamaged { .. }),
            "byte {at}: {error}"
        );
        disk.set_bytes("OWNER", &owner);
    }
    disk.set_bytes("OWNER", &owner[..19]);
    assert!(matches!(open(&disk), Err(Error::IdentityDamaged { .. })));
    disk.set_bytes("OWNER", &owner);
    assert_eq!(newest(&open(&disk).unwrap()), [(7, 1)]);
}

#[test]
fn a_snapshot_of_a_newer_program_stops_the_start_and_is_left_alone() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 10, &[]);
    save(&dir, GROUP, 1, &parts).unwrap();
    let mut bytes = disk.bytes("7-1.snap");
    bytes[8] = 2;
    let places = chunk_places(&bytes);
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..36]);
    sum.update(&bytes[HEADER_BYTES..places[0].start]);
    bytes[36..40].copy_from_slice(&sum.finalize().to_le_bytes());
    disk.set_bytes("7-1.snap", &bytes);
    let error = open(&disk).err().unwrap();
    assert!(
        matches!(&error, Error::NewerSnapshot { name, found: 2, known: 1 } if name == "7-1.snap"),
        "{error}"
    );
    assert_eq!(disk.bytes("7-1.snap"), bytes);
    // From a peer it is refused.
    let there = SimDisk::new();
    let received = receive(&open(&there).unwrap(), &snapshot(1), &bytes, 5)
        .err()
        .unwrap();
    assert!(received.to_string().contains("newer"), "{received}");
    assert_eq!(there.names(), ["OWNER"]);
}

#[test]
fn one_damaged_file_a_group_is_kept_and_goes_with_the_group() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 400, &[]);
    for index in [10, 20, 30, 40] {
        save(&dir, GROUP, index, &parts).unwrap();
    }
    save(&dir, GroupId(8), 5, &parts).unwrap();
    for (index, left) in [(40, 30), (30, 20)] {
        disk.flip(&name_of(GROUP, index), 200);
        assert_eq!(newest(&dir), [(7, index), (8, 5)], "not read yet");
        let (found, result) = drain(&mut *dir.load(GROUP, Index(index)).unwrap());
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(parts[0].1.starts_with(&found[0].1));
        assert_eq!(newest(&dir), [(7, left), (8, 5)]);
        let damaged = Name::Damaged(GROUP, Index(index)).file_name();
        let names = disk.names();
        let aside: Vec<_> = names
            .iter()
            .filter(|name| name.ends_with("damaged"))
            .collect();
        assert_eq!(aside, [&damaged]);
    }
    assert_eq!(dir.metrics().damaged.get(), 2);
    drop(dir);
    // Found at the start: it takes the place of what was set aside before.
    disk.flip("7-20.snap", 10);
    for _ in 0..2 {
        let dir = open(&disk).unwrap();
        assert_eq!(newest(&dir), [(7, 10), (8, 5)]);
        let names = ["7-10.snap", "7-20.snap.damaged", "8-5.snap", "OWNER"];
        assert_eq!(disk.names(), names);
    }
    let dir = open(&disk).unwrap();
    assert_eq!(dir.remove_others(GROUP, None).unwrap(), [Index(10)]);
    assert_eq!(disk.names(), ["8-5.snap", "OWNER"]);
    // One that is damaged while it is listed is also found when it is to be sent.
    disk.flip("8-5.snap", 10);
    let sent = SnapshotStore::open(&*dir, GroupId(8), Index(5))
        .err()
        .unwrap();
    assert!(matches!(sent, SnapshotError::Damaged { .. }));
    assert!(dir.newest().is_empty());
}

#[test]
fn a_reader_of_an_old_file_does_not_set_its_successor_aside() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let parts = parts(1, 400, &[]);
    save(&dir, GROUP, 10, &parts).unwrap();
    let mut reader = dir.load(GROUP, Index(10)).unwrap();
    disk.flip("7-10.snap", 200);
    dir.remove_others(GROUP, None).unwrap();
    save(&dir, GROUP, 10, &parts).unwrap();
    assert!(drain(&mut *reader).1.is_err(), "it reads the old one");
    assert_eq!(newest(&dir), [(7, 10)]);
    assert_eq!(load(&dir, GROUP, 10), parts);
}

#[test]
fn a_file_that_someone_deleted_is_not_found_and_forgotten() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    save(&dir, GROUP, 10, &parts(1, 400, &[])).unwrap();
    disk.remove("7-10.snap").unwrap();
    assert!(matches!(
        dir.load(GROUP, Index(10)),
        Err(SnapshotError::NotFound { .. })
    ));
    assert!(dir.newest().is_empty());
}

#[test]
fn a_file_that_someone_put_in_place_of_another_is_noticed() {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let state = parts(1, 40, &[]);
    save(&dir, GROUP, 10, &state).unwrap();
    disk.set_bytes("7-10.snap", &file_of(20, &state));
    let loaded = dir.load(GROUP, Index(10)).err().unwrap();
    assert!(matches!(loaded, SnapshotError::Damaged { .. }));
    assert_eq!(disk.names(), ["7-10.snap.damaged", "OWNER"]);
}

#[test]
fn what_the_device_cannot_read_is_damage_and_what_passes_is_not() {
    let read_error = |errno: rustix::io::Errno| {
        let error = io::Error::from_raw_os_error(errno.raw_os_error());
        ReadError::from(error)
    };
    let device = read_error(rustix::io::Errno::IO);
    assert!(matches!(device, ReadError::Flaw(Flaw::Damaged(_))));
    for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::ACCESS] {
        assert!(matches!(read_error(errno), ReadError::Io(_)));
    }
}

#[test]
fn a_real_directory_is_private_and_inspected_byte_by_byte() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("snapshots");
    let dir = SnapshotDir::open_dir(&path, INCARNATION).unwrap();
    let parts = parts(1, 400, &[("a", 4)]);
    for index in [10, 20, 30] {
        save(&dir, GROUP, index, &parts).unwrap();
    }
    save(&dir, GroupId(2), 5, &parts).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path) & 0o777, 0o700);
    assert_eq!(mode(&path.join("7-10.snap")) & 0o777, 0o600);
    let damage = |name: &str, at: usize| {
        let mut bytes = std::fs::read(path.join(name)).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path.join(name), bytes).unwrap();
    };
    damage("7-20.snap", 200);
    damage("7-30.snap", 0);
    assert!(dir.load(GROUP, Index(30)).is_err());
    std::fs::write(path.join("7-40-9.snap.tmp"), b"unfinished").unwrap();
    std::fs::copy(path.join("7-10.snap"), path.join("3-10.snap")).unwrap();
    std::fs::create_dir(path.join("9-9.snap")).unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("9-8.snap")).unwrap();
    let reports = inspect_snapshots(&path).unwrap();
    let found = reports
        .iter()
        .map(|r| (&*r.name, r.group, r.index, r.term, r.problem.as_deref()));
    let found: Vec<_> = found.collect();
    assert_eq!(
        found,
        [
            ("2-5.snap", 2, 5, Some(1), None),
            (
                "3-10.snap",
                3,
                10,
                Some(2),
                Some("it says that it is another snapshot")
            ),
            ("7-10.snap", 7, 10, Some(2), None),
            ("7-20.snap", 7, 20, Some(3), Some("chunk checksum mismatch")),
            (
                "7-30.snap.damaged",
                7,
                30,
                None,
                Some("it does not begin like a snapshot")
            ),
        ]
    );
    let length = std::fs::metadata(path.join("7-10.snap")).unwrap().len();
    assert_eq!(reports[2].bytes, length);
    drop(dir);

    let dir = SnapshotDir::open_dir(&path, INCARNATION).unwrap();
    assert_eq!(
        newest(&dir),
        [(2, 5), (7, 20)],
        "the rest is set aside or none of ours"
    );
    assert!(!path.join("7-40-9.snap.tmp").exists());
    assert!(path.join("3-10.snap.damaged").exists());
    assert!(path.join("9-9.snap").is_dir());
    assert!(matches!(
        SnapshotDir::open_dir(&path, 1),
        Err(Error::OtherIncarnation { .. })
    ));
}
