//! Damaged logs, the groups that are given up for them, and power that fails while that is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use multiraft_engine::traits::{GroupWrite, Log};
use multiraft_engine::types::GroupId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::crash::writes;
use super::{INCARNATION, batch, block, contents, drain, entries, hard_state, open, payloads};
use crate::disk::{Access, Disk};
use crate::recover::{Outlines, Scanner};
use crate::repair::Survey;
use crate::repairs::Repairs;
use crate::sim::SimDisk;
use crate::{Error, PAGE_BYTES, RepairPlan, SegmentId};

const FIRST: &str = "0000000000000001.seg";
const REPAIR: &str = "REPAIR";
const GIVEN_UP: &[u8] = b"given up: ";

/// What the log says of a group that was given up.
fn describe(group: GroupId, last: Option<&[u8]>) -> Bytes {
    let group = format!("{group} ");
    [GIVEN_UP, group.as_bytes(), last.unwrap_or_default()]
        .concat()
        .into()
}

fn survey(disk: &SimDisk) -> Survey<'_> {
    Survey::new(disk, INCARNATION, Access::ReadWrite).unwrap()
}

fn plan(disk: &SimDisk) -> RepairPlan {
    survey(disk).plan()
}

fn ids(groups: &[u32]) -> BTreeSet<GroupId> {
    groups.iter().map(|&group| GroupId(group)).collect()
}

/// Gives up what has to be, and checks that it has not to be again.
fn repair(disk: &SimDisk) -> RepairPlan {
    let survey = survey(disk);
    let plan = survey.plan();
    let groups = ids(&plan.hurt);
    survey.check(&groups).unwrap();
    let copies = SimDisk::new();
    survey.repair(&*copies, &groups, &describe).unwrap();
    for segment in &plan.segments {
        let name = segment.file_name();
        assert!(copies.bytes(&name) == disk.bytes(&name), "a copy differs");
    }
    assert_eq!(
        self::plan(disk).problems,
        [],
        "a second repair finds something"
    );
    plan
}

/// Two batches, each with a block of the groups 1 to 3, and what proves that they were durable.
fn three_groups() -> Arc<SimDisk> {
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for index in 1..=2 {
        let write = |group: u32| GroupWrite {
            meta: (index == 1).then(|| Bytes::from(format!("members of {group}"))),
            hard_state: Some(hard_state(index + u64::from(group))),
            ..entries(group, vec![block(index, 1, &[&[b'a'; 300]])])
        };
        log.append(batch(index, (1..=3).map(write).collect()))
            .unwrap();
        drain(&mut writer);
    }
    writer.prove_tail();
    disk
}

/// Where the second of three bodies of 337 bytes is, in the first batch.
const SECOND_BODY: usize = 64 + 337;

#[test]
fn a_damaged_block_costs_its_group_and_no_other() {
    let disk = three_groups();
    let before = contents(&open(&disk).unwrap().0);
    disk.flip(FIRST, SECOND_BODY + 100);
    let bytes = disk.bytes(FIRST);
    assert!(matches!(open(&disk), Err(Error::Corrupt { offset: 0, .. })));
    let found = plan(&disk);
    assert_eq!((&found.hurt[..], &found.whole[..]), (&[2][..], &[1, 3][..]));
    assert_eq!(found.problems[0].groups, [2]);
    assert!(!found.may_hide_groups);
    for (named, reason) in [
        (&[][..], "2"),
        (&[1, 3], "2"),
        (&[1, 2], "1"),
        (&[2, 7], "7"),
    ] {
        let error = survey(&disk).check(&ids(named)).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!(": {reason}")),
            "{named:?}: {error}"
        );
    }
    assert!(
        !disk.names().contains(&REPAIR.to_owned()),
        "before it was asked to"
    );
    repair(&disk);
    assert_eq!(disk.bytes(FIRST), bytes, "a segment was changed");
    let (log, mut writer) = open(&disk).unwrap();
    let after = contents(&log);
    assert_eq!((&after[&1], &after[&3]), (&before[&1], &before[&3]));
    let (log_again, _) = open(&disk).unwrap();
    let groups = log_again.take_stored_groups();
    let given_up = &groups[1];
    assert_eq!(given_up.meta, "given up: 2 members of 2");
    assert_eq!(
        given_up.hard_state,
        hard_state(4),
        "the newest that could be read"
    );
    assert!(given_up.terms.is_empty());
    // All of them go on.
    let begin = GroupWrite {
        remove: true,
        meta: Some(Bytes::from_static(b"anew")),
        ..entries(2, vec![block(1, 5, &[b"new"])])
    };
    let append = entries(1, vec![block(3, 1, &[b"more"])]);
    log.append(batch(1, vec![append, begin])).unwrap();
    drain(&mut writer);
    let (log, _writer) = open(&disk).unwrap();
    assert_eq!(payloads(&log, 1, 3, 3).unwrap(), ["more"]);
    assert_eq!(payloads(&log, 2, 1, 1).unwrap(), ["new"]);
}

#[test]
fn a_block_that_nobody_needs_any_more_costs_nobody() {
    let disk = three_groups();
    let (log, mut writer) = open(&disk).unwrap();
    let compact = GroupWrite {
        compact_to: Some(multiraft_engine::types::Index(1)),
        ..GroupWrite::new(GroupId(2))
    };
    log.append(batch(1, vec![compact])).unwrap();
    drain(&mut writer);
    let before = contents(&log_again(&disk));
    disk.flip(FIRST, SECOND_BODY + 100);
    assert!(open(&disk).is_err());
    let found = repair(&disk);
    assert!(found.hurt.is_empty() && found.problems.len() == 1);
    assert_eq!(contents(&log_again(&disk)), before);
}

fn log_again(disk: &Arc<SimDisk>) -> Arc<crate::LogDb> {
    open(disk).unwrap().0
}

#[test]
fn a_list_of_items_that_does_not_verify_leaves_nobody_out() {
    let whole = three_groups().bytes(FIRST);
    let (log, _writer) = open(&three_groups()).unwrap();
    let before = contents(&log);
    let end = 64 + 3 * 337 + 200; // some way into the items
    for at in (0..64).chain(64 + 3 * 337..end) {
        let disk = three_groups();
        disk.set_bytes(FIRST, &whole);
        disk.flip(FIRST, at);
        let found = repair(&disk);
        assert!(found.may_hide_groups, "byte {at}");
        // All have something from before the lost batch, or may have had.
        assert!(
            [1, 2, 3].iter().all(|group| found.hurt.contains(group)),
            "byte {at}"
        );
        let after = contents(&log_again(&disk));
        assert!(
            after.values().all(|content| content.contains("given up")),
            "byte {at}"
        );
        assert!(
            before.keys().all(|group| after.contains_key(group)),
            "byte {at}"
        );
    }
}

#[test]
fn a_group_that_began_anew_after_the_damage_is_whole() {
    let disk = three_groups();
    let (log, mut writer) = open(&disk).unwrap();
    let begin = GroupWrite {
        remove: true,
        meta: Some(Bytes::from_static(b"anew")),
        hard_state: Some(hard_state(9)),
        ..entries(2, vec![block(1, 9, &[b"new"])])
    };
    log.append(batch(1, vec![begin])).unwrap();
    drain(&mut writer);
    let before = contents(&log_again(&disk));
    disk.flip(FIRST, 20); // a header
    let found = repair(&disk);
    assert_eq!((&found.hurt[..], &found.whole[..]), (&[1, 3][..], &[2][..]));
    assert_eq!(contents(&log_again(&disk))[&2], before[&2]);
}

#[test]
fn a_group_that_the_log_has_forgotten_is_given_up_by_name() {
    let disk = three_groups();
    disk.flip(FIRST, 20);
    let survey = survey(&disk);
    let groups = ids(&[1, 2, 3, 77]);
    survey.check(&groups).unwrap();
    survey.repair(&*SimDisk::new(), &groups, &describe).unwrap();
    assert!(contents(&log_again(&disk))[&77].contains("hard_state: HardState { term: Term(0)"));
}

/// Many batches in several segments, and what shows that all but the last are durable.
fn script() -> Arc<SimDisk> {
    const STEPS: u64 = 60;
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    for step in 0..STEPS {
        log.append(batch(step + 1, writes(step))).unwrap();
        if step % 3 == 2 {
            drain(&mut writer);
            log.prepare().unwrap();
        }
    }
    drain(&mut writer);
    let end = GroupWrite {
        hard_state: Some(hard_state(7)),
        ..GroupWrite::new(GroupId(9))
    };
    for ticket in 0..3 {
        log.append(batch(STEPS + 1 + ticket, vec![end.clone()]))
            .unwrap();
        drain(&mut writer);
    }
    disk
}

/// Segment, offset and length of every batch but the last ones, which nothing may prove any more.
fn promised(disk: &SimDisk) -> Vec<(SegmentId, usize, usize)> {
    let scanner = Scanner {
        disk,
        incarnation: INCARNATION,
        access: Access::ReadWrite,
        outlines: Outlines::Ignored,
    };
    let oldest = scanner.scan().unwrap().oldest;
    let mut batches = Vec::new();
    for id in scanner.segment_ids().unwrap() {
        let loaded = scanner.load(id).unwrap();
        let mut offset = 0;
        while id >= oldest
            && offset < loaded.len()
            && let Some(header) = loaded.header_at(offset)
        {
            let length = usize::try_from(header.unpadded_bytes()).unwrap();
            batches.push((id, usize::try_from(offset).unwrap(), length));
            offset += header.padded_bytes();
        }
    }
    batches.truncate(batches.len() - 3);
    batches
}

/// Damages the log; returns what was done.
fn damage(disk: &SimDisk, rng: &mut SmallRng) -> String {
    let batches = promised(disk);
    let mut done = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let (id, offset, length) = batches[rng.random_range(0..batches.len())];
        let name = id.file_name();
        let mut bytes = disk.bytes(&name);
        let last = batches.iter().rfind(|batch| batch.0 == id).unwrap();
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let end = match rng.random_range(0..4) {
            0 => {
                let at = offset + rng.random_range(0..length);
                bytes[at] ^= 1 << rng.random_range(0..8);
                at + 1
            }
            1 => {
                let end = (offset + page).min(last.1 + last.2);
                bytes[offset..end].fill(0);
                end
            }
            2 => {
                let end = rng.random_range(offset + 1..=last.1 + last.2);
                rng.fill(&mut bytes[offset..end]);
                end
            }
            _ => {
                rng.fill(&mut bytes[..last.1 + last.2]);
                last.1 + last.2
            }
        };
        disk.set_bytes(&name, &bytes);
        done.push(format!("{name} {offset}..{end}; "));
    }
    done.concat()
}

#[test]
fn whatever_is_damaged_the_groups_said_to_be_whole_are() {
    let before = contents(&log_again(&script()));
    let (mut whole, mut hurt) = (0, 0);
    for seed in 0..300 {
        let disk = script();
        let done = damage(&disk, &mut SmallRng::seed_from_u64(seed));
        let place = format!("seed {seed}: {done}");
        let segments: BTreeMap<_, _> = segments(&disk);
        let found = repair(&disk);
        assert_eq!(segments, self::segments(&disk), "{place}");
        let (log, mut writer) = open(&disk).unwrap_or_else(|error| panic!("{place}{error}"));
        let after = contents(&log);
        for (group, content) in &before {
            let is_given_up = after.get(group).is_some_and(|c| c.contains("given up"));
            assert_eq!(
                is_given_up,
                found.hurt.contains(group),
                "{place}group {group}"
            );
            let is_known = is_given_up || found.whole.contains(group);
            assert!(
                is_known || found.may_hide_groups,
                "{place}group {group} is left out"
            );
            if found.whole.contains(group) {
                assert_eq!(after.get(group), Some(content), "{place}group {group}");
                whole += 1;
            }
        }
        hurt += found.hurt.len();
        // It goes on, until what was damaged is given back.
        for ticket in 1..40 {
            let write = GroupWrite {
                remove: true,
                meta: Some(Bytes::from_static(b"filling")),
                ..entries(50, vec![block(1, ticket, &[&[7; 20_000]])])
            };
            log.append(batch(ticket, vec![write])).unwrap();
            drain(&mut writer);
            log.prepare().unwrap();
        }
        let last = contents_of(&disk);
        for group in &found.hurt {
            assert!(
                last[group].contains("given up"),
                "{place}group {group} is back"
            );
        }
        for group in &found.whole {
            assert_eq!(last.get(group), after.get(group), "{place}group {group}");
        }
        assert!(
            !disk.names().contains(&REPAIR.to_owned()),
            "{place}kept for ever"
        );
        assert_eq!(contents_of(&disk), last, "{place}without REPAIR");
    }
    assert!(whole > 100 && hurt > 100, "{whole} whole, {hurt} hurt");
}

fn contents_of(disk: &Arc<SimDisk>) -> BTreeMap<u32, String> {
    contents(&log_again(disk))
}

/// What the segments hold.
fn segments(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.names().into_iter();
    let segments = names.filter(|name| SegmentId::from_file_name(name).is_some());
    segments
        .map(|name| (name.clone(), disk.bytes(&name)))
        .collect()
}

#[test]
fn a_second_damage_is_repaired_beside_the_first() {
    for seed in 0..100 {
        let disk = script();
        let mut rng = SmallRng::seed_from_u64(seed);
        let first = damage(&disk, &mut rng);
        let batches = promised_headers(&disk);
        repair(&disk);
        let before = contents_of(&disk);
        let (name, at) = &batches[rng.random_range(0..batches.len())];
        disk.flip(name, *at);
        let place = format!("seed {seed}: {first}, then {name} {at}");
        let found = plan(&disk);
        if open(&disk).is_ok() {
            assert_eq!(found.problems, [], "{place}");
            continue; // it was in a hole, or was the tail
        }
        let found = {
            assert_eq!(found.problems.len(), 1, "{place}");
            repair(&disk)
        };
        let after = contents_of(&disk);
        for group in &found.whole {
            assert_eq!(
                after.get(group),
                before.get(group),
                "{place}: group {group}"
            );
        }
        assert!(
            before
                .keys()
                .all(|group| { found.whole.contains(group) || after[group].contains("given up") })
        );
    }
}

/// A place in the header of each batch that is still readable.
fn promised_headers(disk: &SimDisk) -> Vec<(String, usize)> {
    let scanner = Scanner {
        disk,
        incarnation: INCARNATION,
        access: Access::ReadWrite,
        outlines: Outlines::Ignored,
    };
    let mut places = Vec::new();
    for id in scanner.segment_ids().unwrap() {
        let loaded = scanner.load(id).unwrap();
        let pages = (0..loaded.len()).step_by(usize::try_from(PAGE_BYTES).unwrap());
        for offset in pages.filter(|&offset| loaded.header_at(offset).is_some()) {
            places.push((id.file_name(), usize::try_from(offset).unwrap() + 20));
        }
    }
    places
}

#[test]
fn power_failing_in_a_repair_leaves_it_done_or_not_begun() {
    let damaged = || {
        let disk = three_groups();
        disk.flip(FIRST, SECOND_BODY + 100);
        disk
    };
    let done = damaged();
    repair(&done);
    let expected = contents_of(&done);
    let (mut finished, mut repeated) = (0, 0);
    for operation in 0.. {
        let disk = damaged();
        let survey = survey(&disk);
        let begin = disk.operations();
        disk.fail_from(begin + operation);
        let result = survey.repair(&*SimDisk::new(), &ids(&[2]), &describe);
        let is_through = result.is_ok();
        for seed in 0..4 {
            disk.crash(seed); // the first decides; the others change nothing that was synced
        }
        if plan(&disk).problems.is_empty() {
            finished += 1;
        } else {
            assert!(!is_through, "operation {operation}: done, and not durable");
            assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
            repair(&disk);
            repeated += 1;
        }
        assert_eq!(contents_of(&disk), expected, "operation {operation}");
        if is_through {
            break;
        }
    }
    assert!(
        finished > 0 && repeated > 0,
        "{finished} finished, {repeated} repeated"
    );
}

#[test]
fn without_room_for_the_copies_nothing_is_changed() {
    for operation in 0.. {
        let disk = three_groups();
        disk.flip(FIRST, SECOND_BODY + 100);
        let copies = SimDisk::new();
        copies.fail_from(operation);
        let result = survey(&disk).repair(&*copies, &ids(&[2]), &describe);
        if result.is_ok() {
            assert!(operation > 2, "nothing was copied");
            return;
        }
        assert!(!disk.names().iter().any(|name| name.starts_with(REPAIR)));
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn a_damaged_repair_file_is_refused() {
    let disk = three_groups();
    disk.flip(FIRST, SECOND_BODY + 100);
    repair(&disk);
    let bytes = disk.bytes(REPAIR);
    for at in 0..bytes.len() {
        disk.set_bytes(REPAIR, &bytes);
        disk.flip(REPAIR, at);
        assert!(
            matches!(open(&disk), Err(Error::RepairFileDamaged)),
            "byte {at}"
        );
        let survey = Survey::new(&*disk, INCARNATION, Access::ReadOnly);
        assert!(matches!(survey, Err(Error::RepairFileDamaged)), "byte {at}");
    }
    disk.set_bytes(REPAIR, &bytes[..bytes.len() - 1]);
    assert!(matches!(open(&disk), Err(Error::RepairFileDamaged)));
    let other = Repairs::load(&*disk as &dyn Disk, INCARNATION + 1);
    assert!(
        matches!(other, Err(Error::RepairFileDamaged)),
        "of another log"
    );
}

#[test]
fn a_log_without_damage_needs_nothing() {
    let disk = script();
    let found = plan(&disk);
    assert_eq!(
        (
            found.problems.len(),
            found.hurt.len(),
            found.may_hide_groups
        ),
        (0, 0, false)
    );
    assert_eq!(plan(&SimDisk::new()), RepairPlan::default());
    // A first batch that was never promised is a torn tail.
    let disk = SimDisk::new();
    let (log, mut writer) = open(&disk).unwrap();
    log.append(batch(1, vec![entries(1, vec![block(1, 1, &[b"a"])])]))
        .unwrap();
    drain(&mut writer);
    for at in [20, 64 + 10] {
        disk.flip(FIRST, at);
        assert_eq!(plan(&disk), RepairPlan::default());
        disk.flip(FIRST, at);
    }
}
