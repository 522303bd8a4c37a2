//! What a replica knows when it comes back.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use multiraft_engine::description::{Description, Standing};
use multiraft_engine::raft::incarnation::Identity;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::{Group, Limits};
use multiraft_engine::traits::{PeerAddress, StoredGroup};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};

fn restored(standing: Standing, changed_at: Index) -> Group {
    let node = NodeId::new(1).unwrap();
    let address = PeerAddress {
        host: "n1".to_owned(),
        port: 1,
    };
    let role = MemberRole::Voter;
    let mut membership = Membership::new(BTreeMap::from([(node, Member { role, address })]));
    membership.index = changed_at;
    let stored = StoredGroup {
        group: GroupId(1),
        meta: bytes::Bytes::new(),
        hard_state: HardState {
            term: Term(2),
            vote: None,
            commit: Index(3),
        },
        compacted: (Index::ZERO, Term::ZERO),
        terms: vec![(Index(1), Index(9), Term(2))],
    };
    let description = Description {
        standing,
        is_witness: false,
        membership,
    };
    let limits = Limits::default();
    Group::restore(
        Identity::new(node),
        &stored,
        description,
        Index(3),
        limits,
        false,
        1,
    )
}

/// Found by simulation: seed 1388 of 20,000 ticks. See [`Group::restore`].
#[test]
fn the_entry_that_made_the_membership_is_committed() {
    assert_eq!(
        restored(Standing::Member, Index(7)).log().commit(),
        Index(7)
    );
    assert_eq!(
        restored(Standing::Member, Index(2)).log().commit(),
        Index(3)
    );
}

/// Its membership's index is that of the configuration by which it left, of a log that is gone.
#[test]
fn who_waits_to_join_knows_nothing_of_what_is_committed() {
    assert_eq!(
        restored(Standing::Joining, Index(7)).log().commit(),
        Index(3)
    );
}
