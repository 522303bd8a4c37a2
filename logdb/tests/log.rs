//! The log on a real directory: what was acknowledged is there, what was cut stays cut.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, LogError, LogObserver, StoredGroup, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::format::{SEGMENT_HEADER_BYTES, segment_name};
use multiraft_logdb::inspect::inspect;
use multiraft_logdb::{Error, Identity, LogDb, Options};

/// Long beyond any sync: only a broken log runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Marks(mpsc::Sender<u64>);

impl LogObserver for Marks {
    fn on_durable(&self, _shard: u32, ticket: u64) {
        self.0.send(ticket).unwrap();
    }

    fn on_fenced(&self, _error: &LogError) {
        self.0.send(u64::MAX).unwrap();
    }
}

/// A log and a shard that waits for each of its batches.
struct Harness {
    log: Arc<LogDb>,
    stored: Vec<StoredGroup>,
    marks: mpsc::Receiver<u64>,
    ticket: u64,
}

fn options(dir: &Path) -> Options {
    let identity = Identity {
        cluster_id: 9,
        node: NodeId::new(1).unwrap(),
    };
    let segment_bytes = 64 << 10;
    Options {
        segment_bytes,
        cache_bytes: 0,
        ..Options::new(dir.join("log"), identity)
    }
}

impl Harness {
    fn open(dir: &Path) -> Self {
        let log = LogDb::open(&options(dir)).unwrap();
        let stored = log.take_stored_groups();
        let (sender, marks) = mpsc::channel();
        log.set_observer(Arc::new(Marks(sender)));
        Self {
            log,
            stored,
            marks,
            ticket: 0,
        }
    }

    fn write(&mut self, write: GroupWrite) {
        self.ticket += 1;
        let batch = WriteBatch {
            shard: 0,
            ticket: self.ticket,
            writes: vec![write],
        };
        self.log.append(batch).unwrap();
        assert_eq!(self.marks.recv_timeout(PATIENCE).unwrap(), self.ticket);
    }

    fn append(&mut self, group: u32, first: u64, count: u64, term: u64) {
        let blocks = vec![block(first, count, term)];
        self.write(GroupWrite {
            blocks,
            ..GroupWrite::new(GroupId(group))
        });
    }

    fn create(&mut self, group: u32) {
        let meta = Some(Bytes::from_static(b"members"));
        self.write(GroupWrite {
            meta,
            ..GroupWrite::new(GroupId(group))
        });
    }

    fn payloads(&self, group: u32, first: u64, last: u64) -> Vec<Bytes> {
        let mut payloads = Vec::new();
        let mut next = first;
        while next <= last {
            let blocks = self
                .log
                .read(GroupId(group), Index(next), Index(last), 4096)
                .unwrap();
            payloads.extend(blocks.iter().flat_map(|b| b.entries().map(|e| e.payload)));
            next = blocks.last().unwrap().last().0 + 1;
        }
        payloads
    }
}

fn payload(index: u64, term: u64) -> Bytes {
    Bytes::from(format!("{index} in {term} ").repeat(40))
}

fn block(first: u64, count: u64, term: u64) -> Block {
    let entries: Vec<_> = (first..first + count)
        .map(|i| (EntryKind::Normal, payload(i, term)))
        .collect();
    Block::encode(Index(first), Term(term), &entries)
}

fn expected(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Bytes> {
    range.map(|i| payload(i, term)).collect()
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("log").join(segment_name(1))
}

fn used_end(dir: &Path) -> u64 {
    inspect(dir).unwrap().segments[0].used_bytes
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let hard_state = HardState {
        term: Term(3),
        vote: NodeId::new(2),
        commit: Index(7),
    };
    let mut log = Harness::open(dir.path());
    log.create(5);
    log.append(5, 1, 10, 2);
    log.append(5, 11, 3, 3);
    let state = Some(hard_state);
    log.write(GroupWrite {
        hard_state: state,
        ..GroupWrite::new(GroupId(5))
    });
    drop(log);
    let log = Harness::open(dir.path());
    let [group] = log.stored.as_slice() else {
        panic!("one group")
    };
    assert_eq!(group.hard_state, hard_state);
    assert_eq!(&group.meta[..], b"members");
    assert_eq!(
        group.terms,
        [
            (Index(1), Index(10), Term(2)),
            (Index(11), Index(13), Term(3))
        ]
    );
    assert_eq!(log.payloads(5, 1, 10), expected(1..=10, 2));
    assert_eq!(log.payloads(5, 12, 13), expected(12..=13, 3));
}

#[test]
fn a_truncated_suffix_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Harness::open(dir.path());
    log.create(1);
    log.append(1, 1, 10, 1);
    let group = GroupId(1);
    let truncate_from = Some(Index(4));
    log.write(GroupWrite {
        truncate_from,
        blocks: vec![block(4, 2, 2)],
        ..GroupWrite::new(group)
    });
    for _ in 0..2 {
        assert_eq!(log.payloads(1, 1, 3), expected(1..=3, 1));
        assert_eq!(log.payloads(1, 4, 5), expected(4..=5, 2));
        assert!(log.log.read(group, Index(6), Index(6), 1).is_err());
        drop(log);
        log = Harness::open(dir.path());
    }
}

#[test]
fn a_torn_last_batch_is_cut_at_any_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Harness::open(dir.path());
    log.create(1);
    log.append(1, 1, 2, 1);
    drop(log);
    let before = used_end(dir.path());
    let mut log = Harness::open(dir.path());
    log.append(1, 3, 1, 1);
    drop(log);
    let whole = std::fs::read(first_segment(dir.path())).unwrap();
    let after = usize::try_from(used_end(dir.path())).unwrap();
    let last_used = whole[..after].iter().rposition(|&byte| byte != 0).unwrap();
    for cut in (usize::try_from(before).unwrap()..=last_used).step_by(7) {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        std::fs::write(first_segment(dir.path()), &torn).unwrap();
        let mut log = Harness::open(dir.path());
        assert_eq!(
            log.stored[0].terms,
            [(Index(1), Index(2), Term(1))],
            "cut at {cut}"
        );
        log.append(1, 3, 1, 2);
        drop(log);
        let log = Harness::open(dir.path());
        assert_eq!(log.payloads(1, 3, 3), expected(3..=3, 2), "cut at {cut}");
    }
}

#[test]
fn damage_to_promised_bytes_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Harness::open(dir.path());
    log.create(1);
    for first in 1..=4 {
        log.append(1, first, 1, 1);
    }
    drop(log);
    let path = first_segment(dir.path());
    let whole = std::fs::read(&path).unwrap();
    // Somewhere in the second batch: the third and later ones prove it was synced.
    let at = SEGMENT_HEADER_BYTES + 512 + 200;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let byte = whole[usize::try_from(at).unwrap()];
    file.write_all_at(&[byte ^ 1], at).unwrap();
    let damaged = std::fs::read(&path).unwrap();
    match LogDb::open(&options(dir.path())) {
        Err(Error::Corrupt {
            segment: 1,
            offset,
            sequence: 2,
        }) => {
            assert_eq!(offset, SEGMENT_HEADER_BYTES + 512);
        }
        other => panic!("not refused: {:?}", other.err()),
    }
    assert_eq!(
        std::fs::read(&path).unwrap(),
        damaged,
        "nothing was changed"
    );
}

#[test]
fn segments_are_freed_and_an_idle_group_does_not_pin_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Harness::open(dir.path());
    log.create(1);
    log.append(1, 1, 3, 1); // idle from here on
    log.create(2);
    for first in 1..=1000 {
        log.append(2, first, 1, 1);
        if first > 20 {
            let compact_to = Some(Index(first - 20));
            log.write(GroupWrite {
                compact_to,
                ..GroupWrite::new(GroupId(2))
            });
        }
    }
    assert!(
        log.log.metrics().freed_segments.get() > 5,
        "a megabyte went through 64 KiB segments"
    );
    assert_eq!(log.payloads(1, 1, 3), expected(1..=3, 1));
    drop(log);
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert!(files < 12, "{files} files");
    let log = Harness::open(dir.path());
    assert_eq!(log.payloads(1, 1, 3), expected(1..=3, 1));
    assert_eq!(log.payloads(2, 981, 1000), expected(981..=1000, 1));
    assert_eq!(log.stored[1].compacted, (Index(980), Term(1)));
    let compacted = log.log.read(GroupId(2), Index(980), Index(981), 1);
    assert!(matches!(
        compacted,
        Err(LogError::Compacted {
            first: Index(981),
            ..
        })
    ));
}

#[test]
fn a_removed_group_is_gone_and_can_be_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Harness::open(dir.path());
    log.create(1);
    log.append(1, 1, 5, 1);
    log.write(GroupWrite {
        remove: true,
        ..GroupWrite::new(GroupId(1))
    });
    drop(log);
    let mut log = Harness::open(dir.path());
    assert!(log.stored.is_empty());
    log.create(1);
    log.append(1, 1, 1, 7);
    drop(log);
    let log = Harness::open(dir.path());
    assert_eq!(log.payloads(1, 1, 1), expected(1..=1, 7));
}

#[test]
fn many_shards_share_syncs_and_each_hears_of_its_own_tickets() {
    let dir = tempfile::tempdir().unwrap();
    let log = Harness::open(dir.path());
    for ticket in 1..=500 {
        let meta = Some(Bytes::from_static(b"m"));
        let write = GroupWrite {
            meta,
            ..GroupWrite::new(GroupId(ticket))
        };
        let batch = WriteBatch {
            shard: 0,
            ticket: u64::from(ticket),
            writes: vec![write],
        };
        log.log.append(batch).unwrap();
    }
    let mut last = 0;
    while last < 500 {
        let mark = log.marks.recv_timeout(PATIENCE).unwrap();
        assert!(mark > last, "marks rise");
        last = mark;
    }
    let metrics = log.log.metrics();
    assert!(
        metrics.batches.get() >= 500,
        "and what moved to free segments"
    );
    assert!(metrics.syncs.get() <= metrics.batches.get());
}

#[test]
fn a_directory_belongs_to_one_process_one_node_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogDb::open(&options(dir.path())).unwrap();
    let locked = LogDb::open(&options(dir.path())).err().unwrap();
    assert!(locked.to_string().contains("LOCK"), "{locked}");
    assert!(matches!(inspect(dir.path()), Err(Error::Locked { .. })));
    drop(log);
    let mut other = options(dir.path());
    other.identity.node = NodeId::new(2).unwrap();
    assert!(matches!(
        LogDb::open(&other),
        Err(Error::ForeignNode { found: 1, .. })
    ));
    let mut other = options(dir.path());
    other.identity.cluster_id = 8;
    assert!(matches!(
        LogDb::open(&other),
        Err(Error::ForeignCluster {
            found: 9,
            wanted: 8,
            ..
        })
    ));
    let identity = dir.path().join("log/IDENTITY");
    let newer = std::fs::read_to_string(&identity)
        .unwrap()
        .replace("\"format\": 1", "\"format\": 2");
    std::fs::write(&identity, newer).unwrap();
    assert!(matches!(
        LogDb::open(&options(dir.path())),
        Err(Error::NewerFormat { found: 2, .. })
    ));
    std::fs::remove_file(&identity).unwrap();
    assert!(matches!(
        LogDb::open(&options(dir.path())),
        Err(Error::NoIdentity { .. })
    ));
}
