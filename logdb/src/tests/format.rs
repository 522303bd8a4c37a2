//! The bytes: what is encoded is decoded, what is changed is refused.

use bytes::Bytes;
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use proptest::prelude::*;

use super::block;
use crate::batch::PendingBatch;
use crate::buffer::PageBuffer;
use crate::format::{Batch, BlockItem, Checkpoint, Generation, Header, Item, PAGE_BYTES};
use crate::pack::{Compression, Packed, unpack};
use crate::segment::SegmentId;

const GENERATION: Generation = Generation {
    incarnation: 5,
    segment: SegmentId(3),
};

fn sealed(items: &[(u32, Item, Option<multiraft_engine::block::Block>)]) -> (Bytes, Header) {
    let mut pending = PendingBatch::new(9, PageBuffer::default());
    for (group, item, block) in items {
        let body = match (item.block(), block) {
            (Some(item), Some(block)) if item.bytes < item.block_bytes => {
                Some(Packed::new(block, Compression::Lz4).bytes)
            }
            (_, block) => block.as_ref().map(|block| block.bytes().clone()),
        };
        pending.push(GroupId(*group), item, body.as_ref());
    }
    let header = pending.header(8, SegmentId(2), 1 << 20);
    let bytes = pending.seal(&header, GENERATION);
    (Bytes::copy_from_slice(&bytes), header)
}

fn any_item() -> impl Strategy<Value = (Item, Option<multiraft_engine::block::Block>)> {
    let small = prop_oneof![
        Just(Item::Remove),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|m| Item::Meta(m.into())),
        any::<(u64, u64)>().prop_map(|(i, t)| Item::CompactTo {
            index: Index(i),
            term: Term(t)
        }),
        any::<u64>().prop_map(|i| Item::TruncateFrom(Index(i))),
        any::<(u64, u32, u64)>().prop_map(|(term, vote, commit)| {
            let hard_state = HardState {
                term: Term(term),
                vote: NodeId::new(vote),
                commit: Index(commit),
            };
            Item::HardState(hard_state)
        }),
        any::<(u64, u64)>().prop_map(|(i, t)| Item::Checkpoint(Checkpoint {
            compacted: (Index(i), Term(t)),
            meta: Bytes::from_static(b"meta"),
            ..Checkpoint::default()
        })),
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..5000);
    let kinds = any::<(bool, bool)>();
    let blocks = (1..u64::from(u32::MAX), any::<u64>(), payload, kinds);
    let blocks = blocks.prop_map(|(first, term, payload, (moved, is_compressed))| {
        let block = block(first, term, &[&payload[..], &[0; 100]]);
        let compression = if is_compressed {
            Compression::Lz4
        } else {
            Compression::None
        };
        let item = Packed::new(&block, compression).item;
        let item = if moved {
            Item::Moved(item)
        } else {
            Item::Append(item)
        };
        (item, Some(block))
    });
    prop_oneof![small.prop_map(|item| (item, None)), blocks]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_decodes_to_what_was_encoded(items in prop::collection::vec((any::<u32>(), any_item()), 0..12)) {
        let items: Vec<_> = items.into_iter().map(|(g, (i, b))| (g, i, b)).collect();
        let (bytes, header) = sealed(&items);
        prop_assert_eq!(bytes.len() as u64 % PAGE_BYTES, 0);
        let batch = Batch::decode(&bytes, GENERATION).unwrap();
        prop_assert_eq!(batch.header, header);
        prop_assert_eq!(batch.records.len(), items.len());
        for (record, (group, item, block)) in batch.records.iter().zip(&items) {
            prop_assert_eq!((record.group.0, &record.item), (*group, item));
            if let Some(block) = block {
                let start = record.offset as usize;
                let stored = item.block().unwrap();
                let body = bytes.slice(start..start + stored.bytes as usize);
                prop_assert_eq!(&unpack(body, stored.block_bytes).unwrap(), block);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Batch::decode(&bytes.into(), GENERATION).is_err());
    }
}

#[test]
fn every_changed_byte_and_every_other_generation_is_refused() {
    let block = block(1, 1, &[b"payload"]);
    let item = Item::Append(BlockItem::of(&block));
    let (bytes, header) = sealed(&[(4, item, Some(block)), (4, Item::Remove, None)]);
    for at in 0..usize::try_from(header.unpadded_bytes()).unwrap() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        assert!(
            Batch::decode(&changed.into(), GENERATION).is_err(),
            "byte {at}"
        );
    }
    for (incarnation, segment) in [(5, 4), (6, 3)] {
        let segment = SegmentId(segment);
        let other = Generation {
            incarnation,
            segment,
        };
        assert!(Batch::decode(&bytes, other).is_err());
    }
}
