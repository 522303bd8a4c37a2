//! Power fails at every operation of the disk, and what comes back is whole or not there.

use std::collections::BTreeSet;

use super::*;

const OTHER: GroupId = GroupId(8);

/// What may and what must be found after a crash.
#[derive(Default)]
struct Promises {
    /// Published, and told so.
    must: BTreeSet<(GroupId, u64)>,
    /// Begun to be removed, or to be written: there or not.
    may: BTreeSet<(GroupId, u64)>,
}

fn state_of(group: GroupId, index: u64) -> Parts {
    parts(index + u64::from(group.0), 150, &[("a", 30)])
}

/// A node's life until power fails; returns whether it got to the end.
fn live(disk: &Arc<SimDisk>, files: &[(u64, Vec<u8>)], promises: &mut Promises) -> bool {
    let Ok(dir) = open(disk) else {
        return false;
    };
    let mut run = || {
        for index in [10, 20] {
            promises.may.insert((GROUP, index));
            save(&dir, GROUP, index, &state_of(GROUP, index))?;
            promises.must.insert((GROUP, index));
        }
        promises.must.remove(&(GROUP, 10));
        assert_eq!(dir.remove_others(GROUP, Some(Index(20)))?, [Index(10)]);
        for (index, file) in files {
            promises.may.insert((GROUP, *index));
            receive(&dir, &snapshot(*index), file, crc32fast::hash(file))?;
            promises.must.insert((GROUP, *index));
        }
        promises.may.insert((OTHER, 5));
        save(&dir, OTHER, 5, &state_of(OTHER, 5))?;
        promises.must.insert((OTHER, 5));
        promises.must.remove(&(OTHER, 5));
        dir.remove_others(OTHER, None)?;
        promises.may.remove(&(OTHER, 5));
        promises.must.remove(&(GROUP, 20));
        promises.must.remove(&(GROUP, 30));
        dir.remove_others(GROUP, Some(Index(40)))?;
        Ok::<_, SnapshotError>(())
    };
    let result = run();
    let listed = newest(&dir);
    for (group, index) in &promises.must {
        let is_kept = |(g, i): &(u32, u64)| *g == group.0 && index <= i;
        assert!(listed.iter().any(is_kept), "an error took {index} with it");
    }
    result.is_ok()
}

/// All files under final names, read to the end.
fn found(disk: &Arc<SimDisk>, place: &str) -> Vec<(GroupId, u64)> {
    let dir = open(disk).unwrap();
    let mut found = Vec::new();
    for name in disk.names() {
        match Name::from_file_name(&name) {
            Some(Name::Whole(group, index)) => {
                assert_eq!(
                    load(&dir, group, index.0),
                    state_of(group, index.0),
                    "{place}"
                );
                found.push((group, index.0));
            }
            Some(Name::Damaged(..) | Name::Temporary(..)) => panic!("{place}: {name}"),
            None => assert_eq!(name, "OWNER", "{place}"),
        }
    }
    assert_eq!(dir.metrics().damaged.get(), 0, "{place}");
    found.sort_unstable();
    let last = |group| {
        found
            .iter()
            .rfind(|(g, _)| *g == group)
            .map(|(g, i)| (g.0, *i))
    };
    let expected: Vec<_> = [GROUP, OTHER].into_iter().filter_map(last).collect();
    assert_eq!(newest(&dir), expected, "{place}");
    found
}

#[test]
fn power_failing_at_any_operation_leaves_each_snapshot_whole_or_unlisted() {
    const SEEDS: u64 = 24;
    let files = [30, 40].map(|index| (index, file_of(index, &state_of(GROUP, index))));
    let whole = SimDisk::new();
    assert!(live(&whole, &files, &mut Promises::default()));
    assert_eq!(whole.names(), ["7-40.snap", "OWNER"]);
    let (mut lost, mut kept, mut came_back) = (0, 0, 0);
    for operation in 0..whole.operations() {
        for seed in 0..SEEDS {
            let place = format!("operation {operation}, seed {seed}");
            let disk = SimDisk::new();
            disk.fail_from(operation);
            let mut promises = Promises::default();
            assert!(!live(&disk, &files, &mut promises), "{place}");
            disk.crash(operation * SEEDS + seed);
            let first = found(&disk, &place);
            for must in &promises.must {
                assert!(first.contains(must), "{place}: {must:?} is lost");
            }
            for one in &first {
                assert!(promises.may.contains(one), "{place}: {one:?} is back");
            }
            let unpromised = promises.may.len() - promises.must.len();
            let found_more = first.len() - promises.must.len();
            kept += usize::from(0 < found_more);
            lost += usize::from(found_more < unpromised);
            came_back += usize::from(first.contains(&(GROUP, 10)) && first.contains(&(GROUP, 20)));
            disk.crash(seed);
            assert_eq!(found(&disk, &place), first, "{place}: second start");
        }
    }
    assert!(
        0 < lost && 0 < kept && 0 < came_back,
        "{lost}, {kept}, {came_back}"
    );
}

#[test]
fn a_process_that_ends_between_rename_and_directory_sync_leaves_nothing_that_can_vanish() {
    let disk = SimDisk::new();
    save(&open(&disk).unwrap(), GROUP, 10, &state_of(GROUP, 10)).unwrap();
    let operations = disk.operations();
    let probe = SimDisk::new();
    save(&open(&probe).unwrap(), GROUP, 10, &state_of(GROUP, 10)).unwrap();
    let before = probe.operations();
    save(&open(&probe).unwrap(), GROUP, 20, &state_of(GROUP, 20)).unwrap();
    assert_eq!(before, operations, "the same each time");
    let directory_sync = probe.operations() - 1;
    disk.fail_from(directory_sync);
    assert!(save(&open(&disk).unwrap(), GROUP, 20, &state_of(GROUP, 20)).is_err());
    // The process is killed here: the disk goes on, and nothing is lost of what it has cached.
    disk.fail_from(u64::MAX);
    let dir = open(&disk).unwrap();
    assert_eq!(
        newest(&dir),
        [(7, 20)],
        "renamed, and neither synced nor removed"
    );
    drop(dir);
    for seed in 0..20 {
        disk.crash(seed);
        assert_eq!(newest(&open(&disk).unwrap()), [(7, 20)], "seed {seed}");
    }
}

#[test]
fn a_crash_while_a_damaged_one_is_set_aside_changes_nothing_else() {
    for operation in 0..12 {
        for seed in 0..8 {
            let disk = SimDisk::new();
            let dir = open(&disk).unwrap();
            for index in [10, 20, 30] {
                save(&dir, GROUP, index, &state_of(GROUP, index)).unwrap();
            }
            disk.flip("7-20.snap", 100);
            assert!(dir.verify(GROUP, Index(20)).is_err());
            disk.flip("7-30.snap", 100);
            disk.fail_from(disk.operations() + operation);
            assert!(dir.verify(GROUP, Index(30)).is_err());
            assert_eq!(newest(&dir), [(7, 10)]);
            drop(dir);
            disk.crash(seed);
            let dir = open(&disk).unwrap();
            // Its ends are right: if it has its name back, that it is damaged is found by reading.
            if newest(&dir) == [(7, 30)] {
                assert!(dir.verify(GROUP, Index(30)).is_err());
            }
            if newest(&dir) == [(7, 20)] {
                assert!(dir.verify(GROUP, Index(20)).is_err());
            }
            assert_eq!(newest(&dir), [(7, 10)]);
            assert_eq!(load(&dir, GROUP, 10), state_of(GROUP, 10));
            let names = disk.names();
            assert_eq!(
                names
                    .iter()
                    .filter(|name| name.ends_with("damaged"))
                    .count(),
                1
            );
        }
    }
}

#[test]
fn a_growing_file_of_the_simulated_disk_loses_what_was_not_synced() {
    let (mut lengths, mut torn) = (BTreeSet::new(), 0);
    for seed in 0..200 {
        let disk = SimDisk::new();
        disk.set_free_bytes(10_000);
        let file = disk.create_growing("f").unwrap();
        assert!(disk.create_growing("f").is_err(), "the name is taken");
        disk.sync_dir().unwrap();
        file.write_all_at(&[1; 1000], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 3000], 1000).unwrap();
        assert_eq!(
            (file.len().unwrap(), disk.free_bytes().unwrap()),
            (4000, 6000)
        );
        disk.crash(seed);
        let bytes = disk.bytes("f");
        assert!((1000..=4000).contains(&bytes.len()));
        assert_eq!(
            bytes[..512],
            [1; 512],
            "a sector that was not written again"
        );
        assert_eq!(disk.free_bytes().unwrap(), 10_000 - bytes.len() as u64);
        torn += usize::from(bytes.iter().skip(1024).any(|byte| *byte != 2));
        lengths.insert(bytes.len());
        disk.remove("f").unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 10_000);
    }
    assert!(10 < lengths.len() && 10 < torn);
}

/// The trailer alone tells the checksum of a file that is sent after a restart.
#[test]
fn the_checksum_is_known_after_a_crash() {
    let disk = SimDisk::new();
    save(&open(&disk).unwrap(), GROUP, 10, &state_of(GROUP, 10)).unwrap();
    disk.crash(3);
    let dir = open(&disk).unwrap();
    let file = SnapshotStore::open(&*dir, GROUP, Index(10)).unwrap();
    let bytes = disk.bytes("7-10.snap");
    assert_eq!(
        (file.checksum(), file.bytes()),
        (crc32fast::hash(&bytes), bytes.len() as u64)
    );
}
