//! What is stored and sent comes back as it was, and damage is refused, whatever it holds.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use multiraft_engine::block::{Block, BlockError, EntryKind};
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{Configuration, Member, MemberRole, Membership};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{Index, NodeId, Term};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as At;

/// Nodes that changes are about: all their sets can be tried.
const NODES: u32 = 5;

fn node() -> impl Strategy<Value = NodeId> {
    (1..=NODES).prop_map(|id| NodeId::new(id).unwrap())
}

fn entries() -> impl Strategy<Value = Vec<(EntryKind, Bytes)>> {
    let kind = prop_oneof![
        Just(EntryKind::Normal),
        Just(EntryKind::Noop),
        Just(EntryKind::ConfChange)
    ];
    let payload = vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    vec((kind, payload), 1..12)
}

fn block() -> impl Strategy<Value = Block> {
    let first = 1..u64::MAX - 12;
    (first, any::<u64>(), entries())
        .prop_map(|(first, term, entries)| Block::encode(Index(first), Term(term), &entries))
}

fn address() -> impl Strategy<Value = PeerAddress> {
    (".{0,12}", any::<u16>()).prop_map(|(host, port)| PeerAddress { host, port })
}

fn membership() -> impl Strategy<Value = Membership> {
    let role = prop_oneof![
        3 => Just(MemberRole::Voter),
        1 => Just(MemberRole::Learner),
        1 => Just(MemberRole::Witness)
    ];
    let member = (role, address()).prop_map(|(role, address)| Member { role, address });
    let members = proptest::collection::btree_map(node(), member, 1..=NODES as usize);
    let has_voter =
        |members: &BTreeMap<NodeId, Member>| members.values().any(|m| m.role == MemberRole::Voter);
    members
        .prop_filter("a voter with data", has_voter)
        .prop_map(Membership::new)
}

fn change() -> impl Strategy<Value = ConfChange> {
    let step = prop_oneof![
        node().prop_map(Change::Voter),
        node().prop_map(Change::Learner),
        node().prop_map(Change::Witness),
        node().prop_map(Change::Remove),
        node().prop_map(Change::Update),
    ];
    let transition = prop_oneof![
        Just(Transition::Auto),
        Just(Transition::Implicit),
        Just(Transition::Explicit)
    ];
    let addresses = proptest::collection::btree_map(node(), address(), 0..3);
    let expected = proptest::option::of((0..9_u64).prop_map(Index));
    let incarnations = proptest::collection::btree_map(node(), 1..=u64::MAX, 0..3);
    (
        transition,
        vec(step, 0..4),
        expected,
        addresses,
        incarnations,
    )
        .prop_map(
            |(transition, changes, expected, addresses, incarnations)| ConfChange {
                transition,
                changes,
                expected,
                addresses,
                incarnations,
            },
        )
}

/// Whether `nodes` are a majority of every half that has members.
fn is_quorum(configuration: &Configuration, nodes: &BTreeSet<NodeId>) -> bool {
    let halves = [&configuration.voters, &configuration.outgoing];
    let is_majority = |half: &&BTreeSet<NodeId>| 2 * half.intersection(nodes).count() > half.len();
    halves
        .iter()
        .filter(|half| !half.is_empty())
        .all(is_majority)
}

/// Every set of nodes.
fn subsets() -> Vec<BTreeSet<NodeId>> {
    let all = 0..1_u32 << NODES;
    let members = |bits: u32| (1..=NODES).filter(move |id| bits & (1 << (id - 1)) != 0);
    all.map(|bits| members(bits).filter_map(NodeId::new).collect())
        .collect()
}

proptest! {
    #[test]
    fn blocks_come_back_and_damage_is_refused(block in block(), at in any::<At>(), bit in 0..8) {
        prop_assert_eq!(Block::decode(block.bytes().clone()), Ok(block.clone()));
        let mut damaged = block.bytes().to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= 1_u8 << bit;
        prop_assert!(Block::decode(damaged.into()).is_err(), "bit {bit} of byte {at}");
        let cut = Block::decode(block.bytes().slice(..at));
        prop_assert_eq!(cut, Err(BlockError::Short));
    }

    #[test]
    fn a_part_of_a_block_has_its_entries(block in block(), from in any::<At>(), to in any::<At>()) {
        let whole: Vec<_> = block.entries().collect();
        let (from, to) = (from.index(whole.len()), to.index(whole.len()));
        let (from, to) = (from.min(to), from.max(to));
        let part = block.slice(whole[from].index, whole[to].index);
        prop_assert_eq!(part.entries().collect::<Vec<_>>(), &whole[from..=to]);
        prop_assert_eq!(Block::decode(part.bytes().clone()), Ok(part));
    }

    #[test]
    fn a_witness_keeps_places_terms_and_changes(block in block()) {
        let headers = block.headers_only();
        prop_assert_eq!(Block::decode(headers.bytes().clone()), Ok(headers.clone()));
        for (entry, header) in block.entries().zip(headers.entries()) {
            let is_change = entry.kind == EntryKind::ConfChange;
            prop_assert_eq!((entry.index, entry.term, entry.kind), (header.index, header.term, header.kind));
            prop_assert_eq!(header.payload, if is_change { entry.payload } else { Bytes::new() });
        }
        prop_assert_eq!(headers.count(), block.count());
    }

    #[test]
    fn memberships_and_changes_come_back(membership in membership(), change in change()) {
        prop_assert_eq!(Membership::decode(&membership.encode()), Ok(membership.clone()));
        prop_assert_eq!(ConfChange::decode(&change.encode()), Ok(change.clone()));
        if let Ok(joint) = membership.enter_joint(&change) {
            prop_assert_eq!(Membership::decode(&joint.encode()), Ok(joint));
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..200)) {
        Membership::decode(&bytes).ok();
        ConfChange::decode(&bytes).ok();
        Block::decode(bytes.into()).ok();
    }

    /// Whatever is asked for: where both configurations could decide, they share a voter, there is
    /// somebody to lead, and what was joint can be left.
    #[test]
    fn neighbouring_configurations_share_a_voter(
        membership in membership(),
        changes in vec(change(), 1..6),
    ) {
        let subsets = subsets();
        let mut present = membership;
        for (change, index) in changes.iter().zip(1..) {
            let Ok(next) = present.changed(change, Index(index)) else { continue };
            let (old, new) = (present.configuration(), next.configuration());
            let quorums_of_old = subsets.iter().filter(|set| is_quorum(&old, set));
            for first in quorums_of_old {
                for second in subsets.iter().filter(|set| is_quorum(&new, set)) {
                    prop_assert!(!first.is_disjoint(second), "{first:?} {second:?}: {old:?} {new:?}");
                }
            }
            prop_assert!(new.voters.iter().any(|&id| new.may_lead(id)));
            prop_assert_eq!(next.leave_joint().is_ok(), next.joint.is_some());
            prop_assert_eq!(next.index, Index(index));
            present = next;
        }
    }
}
