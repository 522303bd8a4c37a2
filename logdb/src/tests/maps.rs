//! Reads of full segments, on the real disk.

use multiraft_engine::traits::{GroupWrite, Log};
use multiraft_engine::types::{GroupId, Index};

use super::{block, entries, options, payloads};
use crate::{Error, LogDb, Options};

fn append(log: &LogDb, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        let payload = vec![u8::try_from(index % 251).unwrap(); 19 << 10];
        let write = entries(3, vec![block(index, 1, &[&payload])]);
        log.append_durable(&[write]).unwrap();
    }
}

fn compact(log: &LogDb, index: u64) {
    let write = GroupWrite {
        compact_to: Some(Index(index)),
        ..GroupWrite::new(GroupId(3))
    };
    log.append_durable(&[write]).unwrap();
}

#[test]
fn who_holds_bytes_of_a_segment_keeps_them_when_its_space_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        dir: dir.path().join("log"),
        ..options()
    };
    let log = LogDb::open(options).unwrap();
    append(&log, 1..=7);
    let held = payloads(&log, 3, 1, 7).unwrap();
    // Segments come and go many times, the first ones are used again or deleted.
    for round in 1..=20 {
        append(&log, 7 * round + 1..=7 * round + 7);
        compact(&log, 7 * round);
    }
    for (index, payload) in (1..=7).zip(&held) {
        assert!(payload.iter().all(|byte| *byte == index), "entry {index}");
    }
    assert_eq!(payloads(&log, 3, 141, 147).unwrap().len(), 7);
    assert!(log.read(GroupId(3), Index(1), Index(7), 1).is_err());
}

#[test]
fn who_holds_bytes_of_a_segment_keeps_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        dir: dir.path().join("log"),
        ..options()
    };
    let log = LogDb::open(options.clone()).unwrap();
    append(&log, 1..=7);
    let held = payloads(&log, 3, 1, 1).unwrap();
    log.close();
    // Another process could write to that segment.
    let again = LogDb::open(options.clone());
    assert!(matches!(again, Err(Error::Locked { .. })));
    let copied = payloads(&log, 3, 1, 7).unwrap();
    drop(held);
    let again = LogDb::open(options).unwrap();
    assert_eq!(payloads(&again, 3, 1, 7).unwrap(), copied);
}
