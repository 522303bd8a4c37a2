//! Callers that wait for their own appends, on threads of their own.

use std::sync::Arc;
use std::thread;

use multiraft_engine::traits::{Log, LogError, WriteBatch};
use multiraft_engine::types::GroupId;

use super::{batch, block, entries, options, payloads};
use crate::sim::SimDisk;
use crate::{LogDb, Options, Writes};

const THREADS: u32 = 8;
const APPENDS: u64 = 60;

fn at(dir: &tempfile::TempDir, writes: Writes) -> Options {
    Options {
        dir: dir.path().join("log"),
        writes,
        segment_bytes: 1 << 20,
        ..options()
    }
}

/// Each thread appends to a group of its own, and reads what it was told is there.
fn append(log: &LogDb, group: u32) {
    for index in 1..=APPENDS {
        let payload = format!("{group} {index}").into_bytes();
        let write = entries(group, vec![block(2 * index - 1, 1, &[&payload, &[7; 900]])]);
        log.append_durable(&[write]).expect("it becomes durable");
    }
}

fn has_all(log: &LogDb) {
    for group in 1..=THREADS {
        let found = payloads(log, group, 1, 2 * APPENDS).expect("all is there");
        let texts = found.iter().step_by(2);
        let expected = (1..=APPENDS).map(|index| format!("{group} {index}").into_bytes());
        assert!(texts.eq(&expected.collect::<Vec<_>>()), "group {group}");
    }
}

#[test]
fn threads_that_wait_share_writes_and_find_all_after_a_restart() {
    for writes in [Writes::Direct, Writes::Buffered] {
        let dir = tempfile::tempdir().expect("a directory");
        let log = LogDb::open(at(&dir, writes)).expect("it opens");
        thread::scope(|scope| {
            for group in 1..=THREADS {
                let log = &log;
                scope.spawn(move || append(log, group));
            }
        });
        let (syncs, appends) = (log.metrics().syncs.get(), u64::from(THREADS) * APPENDS);
        assert!(syncs <= appends, "{syncs} syncs of {appends} appends");
        has_all(&log);
        drop(log);
        // Through the page cache, whatever it was written by.
        let log = LogDb::open(at(&dir, Writes::Buffered)).expect("it opens");
        has_all(&log);
    }
}

#[test]
fn a_lone_caller_writes_by_itself_and_others_go_on_beside_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = LogDb::open(at(&dir, Writes::Direct)).expect("it opens");
    for index in 1..=20 {
        let waited = entries(1, vec![block(index, 1, &[b"waited"])]);
        log.append_durable(&[waited]).expect("it becomes durable");
        // Nobody waits for this one: the log's thread writes it.
        let told = entries(2, vec![block(index, 1, &[b"told"])]);
        log.append(batch(index, vec![told])).expect("it is open");
    }
    log.close();
    let closed = log.append_durable(&[entries(1, vec![block(21, 1, &[b"late"])])]);
    assert!(matches!(closed, Err(LogError::Fenced(_))), "{closed:?}");
    drop(log);
    let log = LogDb::open(at(&dir, Writes::Direct)).expect("it opens");
    assert_eq!(payloads(&log, 1, 1, 20).expect("all").len(), 20);
    assert_eq!(payloads(&log, 2, 1, 20).expect("all").len(), 20);
}

#[test]
fn after_a_failed_sync_every_caller_that_waits_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    let log = LogDb::open_with(Arc::<SimDisk>::clone(&disk), at(&dir, Writes::Direct));
    let log = log.expect("it opens");
    let write = |group, index| entries(group, vec![block(index, 1, &[b"x"])]);
    log.append_durable(&[write(1, 1)]).expect("durable");
    disk.fail_next_sync();
    thread::scope(|scope| {
        let waiting = (2..2 + THREADS).map(|group| {
            let log = &log;
            scope.spawn(move || log.append_durable(&[write(group, 1)]))
        });
        let waiting: Vec<_> = waiting.collect();
        for caller in waiting {
            let result = caller.join().expect("no panic");
            assert!(matches!(result, Err(LogError::Fenced(_))), "{result:?}");
        }
    });
    let nothing = WriteBatch {
        shard: 0,
        ticket: 1,
        writes: Vec::new(),
    };
    assert!(log.append(nothing).is_err() && log.groups().contains(&GroupId(1)));
}

#[test]
fn who_waits_for_space_is_told_when_the_log_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = SimDisk::new();
    let options = Options {
        segment_bytes: 64 << 10,
        ..at(&dir, Writes::Direct)
    };
    let log = LogDb::open_with(Arc::<SimDisk>::clone(&disk), options).expect("it opens");
    disk.set_free_bytes(0);
    let large = vec![7; 40 << 10];
    thread::scope(|scope| {
        // Two segments may be there; a third has no place.
        let callers = (1..=4).map(|group| {
            let (log, large) = (&log, &large);
            scope.spawn(move || {
                let write = entries(group, vec![block(1, 1, &[large])]);
                log.append_durable(&[write])
            })
        });
        let callers: Vec<_> = callers.collect();
        while callers.iter().filter(|caller| caller.is_finished()).count() < 1 {
            thread::yield_now();
        }
        while log.has_room() {
            thread::yield_now();
        }
        log.close();
        let results = callers.into_iter().map(|c| c.join().expect("no panic"));
        let refused = results.filter(|r| matches!(r, Err(LogError::Fenced(_))));
        assert!(refused.count() >= 2);
    });
}
