//! The real disk: lock, identity, threads, inspection.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::mpsc;

use multiraft_engine::traits::{Log, LogError, LogObserver};
use multiraft_engine::types::{GroupId, Index, NodeId};

use super::{batch, block, entries, options, payloads};
use crate::{Error, Identity, LogDb, Options, StoppedLog, inspect, verify};

struct Durable(mpsc::Sender<u64>);

impl LogObserver for Durable {
    fn on_durable(&self, _: u32, ticket: u64) {
        self.0.send(ticket).unwrap();
    }

    fn on_fenced(&self, error: &LogError) {
        panic!("{error}");
    }

    fn on_reclaimed(&self, group: GroupId, _: Index) {
        panic!("{group} was not compacted");
    }
}

fn at(dir: &tempfile::TempDir) -> Options {
    Options {
        dir: dir.path().join("log"),
        ..options()
    }
}

#[test]
fn a_log_on_the_real_disk_is_locked_closed_inspected_and_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogDb::open(at(&dir)).unwrap();
    let mode = std::fs::metadata(at(&dir).dir)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    let (sender, durable) = mpsc::channel();
    log.set_observer(Arc::new(Durable(sender)));
    for index in 1..=40 {
        let write = entries(3, vec![block(index, 1, &[&[1; 9000]])]);
        log.append(batch(index, vec![write])).unwrap();
    }
    while durable.recv().unwrap() < 40 {}
    let second = LogDb::open(at(&dir)).err().unwrap();
    assert!(matches!(&second, Error::Locked { path } if path.ends_with("LOCK")));
    assert!(second.to_string().contains("LOCK"));
    assert!(matches!(inspect(&at(&dir).dir), Err(Error::Locked { .. })));
    let incarnation = log.incarnation();
    log.close();
    assert!(log.append(batch(41, vec![])).is_err());
    let report = inspect(&at(&dir).dir).unwrap();
    assert_eq!((report.groups[0].first, report.groups[0].last), (1, 40));
    let checked = verify(&at(&dir).dir).unwrap();
    assert_eq!((checked.blocks, checked.problems.len()), (40, 0));
    let log = LogDb::open(at(&dir)).unwrap();
    assert_eq!(log.incarnation(), incarnation);
    assert_eq!(payloads(&log, 3, 40, 40).unwrap(), [vec![1; 9000]]);
}

#[test]
fn verify_names_damage_that_a_start_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogDb::open(at(&dir)).unwrap();
    log.append(batch(1, vec![entries(3, vec![block(1, 1, &[b"a"])])]))
        .unwrap();
    log.close();
    let path = at(&dir).dir.join("0000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let report = verify(&at(&dir).dir).unwrap();
    assert_eq!(
        (report.problems[0].offset, &report.problems[0].groups[..]),
        (0, &[3][..])
    );
    // After a clean shutdown the start reads the outline, and the damage costs who reads it.
    let outline = at(&dir).dir.join("0000000000000001.idx");
    let kept = std::fs::read(&outline).unwrap();
    let log = LogDb::open(at(&dir)).unwrap();
    assert!(matches!(
        payloads(&log, 3, 1, 1),
        Err(LogError::Damaged {
            group: GroupId(3),
            index: Index(1)
        })
    ));
    assert!(
        !outline.exists(),
        "no outline of a segment that is written to"
    );
    log.close();
    assert_eq!(
        std::fs::read(&outline).unwrap(),
        kept,
        "nothing was appended"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "not a byte changed");
    // Without it everything is read.
    std::fs::remove_file(&outline).unwrap();
    assert!(matches!(LogDb::open(at(&dir)), Err(Error::Corrupt { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "not a byte changed");
}

#[test]
fn foreign_and_newer_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(LogDb::open(at(&dir)).unwrap());
    let with = |cluster_id, node| Options {
        identity: Identity {
            cluster_id,
            node: NodeId::new(node).unwrap(),
        },
        ..at(&dir)
    };
    assert!(matches!(
        LogDb::open(with(7, 2)),
        Err(Error::OtherNode { .. })
    ));
    assert!(matches!(
        LogDb::open(with(8, 1)),
        Err(Error::OtherCluster { .. })
    ));
    let identity = at(&dir).dir.join("IDENTITY");
    std::fs::write(&identity, r#"{"format": 2, "new": true}"#).unwrap();
    let newer = LogDb::open(at(&dir)).err();
    assert!(matches!(newer, Some(Error::NewerFormat { found: 2, .. })));
    std::fs::write(&identity, "{").unwrap();
    assert!(matches!(
        LogDb::open(at(&dir)),
        Err(Error::IdentityDamaged { .. })
    ));
    std::fs::remove_file(&identity).unwrap();
    assert!(matches!(
        LogDb::open(at(&dir)),
        Err(Error::IdentityMissing { .. })
    ));
}

/// The incarnation seeds all checksums: with another one the log looks empty.
#[test]
fn a_rotten_identity_is_refused_and_one_without_a_checksum_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let incarnation = LogDb::open(at(&dir)).unwrap().incarnation();
    let path = at(&dir).dir.join("IDENTITY");
    let whole = std::fs::read(&path).unwrap();
    for byte in 0..whole.len() {
        let mut rotten = whole.clone();
        rotten[byte] ^= 1;
        std::fs::write(&path, &rotten).unwrap();
        if let Ok(log) = LogDb::open(at(&dir)) {
            assert_eq!(log.incarnation(), incarnation, "byte {byte}");
        }
    }
    let old =
        format!(r#"{{"format": 1, "cluster_id": 7, "node": 1, "incarnation": {incarnation}}}"#);
    std::fs::write(&path, old).unwrap();
    assert_eq!(LogDb::open(at(&dir)).unwrap().incarnation(), incarnation);
}

#[test]
fn inspection_tells_who_pins_a_segment_and_a_dump_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogDb::open(at(&dir)).unwrap();
    for (ticket, group, payload) in [(1, 3, &b"small"[..]), (2, 5, &[1; 9000])] {
        let write = entries(group, vec![block(1, 1, &[payload, b"x"])]);
        log.append(batch(ticket, vec![write])).unwrap();
    }
    log.close();
    let report = inspect(&at(&dir).dir).unwrap();
    let segment = &report.segments[0];
    assert_eq!((segment.groups, segment.pinned_by.unwrap().group), (2, 5));
    let live: u64 = report.groups.iter().map(|group| group.live_bytes).sum();
    assert_eq!(segment.live_bytes, live);
    assert_eq!(report.groups[1].oldest_segment, Some(segment.id));
    let stopped = StoppedLog::open(&at(&dir).dir).unwrap();
    assert!(matches!(LogDb::open(at(&dir)), Err(Error::Locked { .. })));
    let blocks = stopped.read(GroupId(3), Index(1), Index(1), 1).unwrap();
    let entries: Vec<_> = blocks
        .iter()
        .flat_map(multiraft_engine::block::Block::entries)
        .collect();
    assert_eq!((entries.len(), &entries[0].payload[..]), (1, &b"small"[..]));
    let beyond = stopped.read(GroupId(3), Index(3), Index(3), 1);
    assert!(matches!(beyond, Err(LogError::NotFound { .. })));
}

#[test]
fn options_out_of_range_are_named() {
    for segment_bytes in [0, 65_535, 65_537, 1 << 31] {
        let options = Options {
            segment_bytes,
            ..options()
        };
        let error = options.validate().err();
        assert!(matches!(
            error,
            Some(Error::Options {
                option: "segment_bytes",
                ..
            })
        ));
    }
    options().validate().unwrap();
}
