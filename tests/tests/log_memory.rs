//! What the log's index takes of memory: for each group that does nothing, and for each block that is stored.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::sync::Arc;

use allocation_counter::measure;
use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::traits::{GroupWrite, Log, WriteBatch};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Identity, LogDb, Options, Turn, Writer};

const MAX_GROUP_BYTES: u64 = 1024;
const MAX_SPAN_BYTES: u64 = 100;
/// Of a group's description, which is kept.
const DESCRIPTION_BYTES: usize = 100;

fn open(disk: &Arc<SimDisk>) -> (Arc<LogDb>, Writer) {
    let identity = Identity {
        cluster_id: 1,
        node: NodeId::new(1).unwrap(),
    };
    let options = Options {
        segment_bytes: 1 << 20,
        min_free_bytes: 1,
        cache_bytes: 0,
        ..Options::new(Path::new(""), identity)
    };
    LogDb::open_on(Arc::<SimDisk>::clone(disk), 5, options).unwrap()
}

fn write(disk: &Arc<SimDisk>, batches: impl Iterator<Item = Vec<GroupWrite>>) {
    let (log, mut writer) = open(disk);
    for (ticket, writes) in (1..).zip(batches) {
        let batch = WriteBatch {
            shard: 0,
            ticket,
            writes,
        };
        log.append(batch).unwrap();
        while writer.turn() == Turn::Worked {}
        log.prepare().unwrap();
    }
}

/// Bytes that an open log keeps of what is on the disk.
fn kept_bytes(disk: &Arc<SimDisk>) -> u64 {
    drop(open(disk)); // the disk has nothing left to give back after that
    let mut opened = None;
    let measured = measure(|| {
        let (log, writer) = open(disk);
        drop(log.take_stored_groups());
        opened = Some((log, writer));
    });
    u64::try_from(measured.bytes_current).unwrap()
}

fn block(index: u64) -> Block {
    let payload = Bytes::from_static(b"payload");
    Block::encode(Index(index), Term(1), &[(EntryKind::Normal, payload)])
}

#[test]
fn an_idle_group_takes_less_than_a_kibibyte() {
    const GROUPS: u32 = 10_000;
    let group = |id: u32| GroupWrite {
        meta: Some(vec![1; DESCRIPTION_BYTES].into()),
        hard_state: Some(HardState {
            term: Term(1),
            vote: NodeId::new(1),
            commit: Index(1),
        }),
        blocks: vec![block(1)],
        ..GroupWrite::new(GroupId(id))
    };
    let disk = SimDisk::new();
    let nothing = kept_bytes(&disk);
    let ids: Vec<u32> = (1..=GROUPS).collect();
    write(
        &disk,
        ids.chunks(100)
            .map(|ids| ids.iter().map(|&id| group(id)).collect()),
    );
    let each = (kept_bytes(&disk) - nothing) / u64::from(GROUPS);
    println!("{each} bytes for each idle group");
    assert!(
        (DESCRIPTION_BYTES as u64..=MAX_GROUP_BYTES).contains(&each),
        "{each}"
    );
}

#[test]
fn a_stored_block_takes_less_than_a_hundred_bytes() {
    const SPANS: u64 = 100_000;
    let disk = SimDisk::new();
    let nothing = kept_bytes(&disk);
    let indexes: Vec<u64> = (1..=SPANS).collect();
    write(
        &disk,
        indexes.chunks(500).map(|indexes| {
            let blocks = indexes.iter().map(|&index| block(index)).collect();
            vec![GroupWrite {
                blocks,
                ..GroupWrite::new(GroupId(1))
            }]
        }),
    );
    let each = (kept_bytes(&disk) - nothing) / SPANS;
    println!("{each} bytes for each block");
    assert!((1..=MAX_SPAN_BYTES).contains(&each), "{each}");
}
