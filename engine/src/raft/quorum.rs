//! Votes and commit index of majority and joint configurations: pure functions.
//!
//! A joint configuration decides only when both halves decide (Raft §6). An empty half agrees
//! with everything.

use std::collections::BTreeSet;

use crate::planted;
use crate::types::{Index, NodeId};

/// Where an election stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum said yes.
    Won,
    /// No quorum can say yes any more.
    Lost,
    /// More votes are needed.
    Pending,
}

/// The highest index that a majority of `voters` holds; `None` without voters: no limit.
pub fn majority_index(
    voters: &BTreeSet<NodeId>,
    matched: impl Fn(NodeId) -> Index,
) -> Option<Index> {
    let mut indexes: Vec<Index> = voters.iter().map(|&id| matched(id)).collect();
    indexes.sort_unstable();
    let quorum = indexes.len() / 2 + usize::from(!planted!("quorum"));
    indexes
        .len()
        .checked_sub(quorum)
        .and_then(|i| indexes.get(i))
        .copied()
}

/// The highest index that both halves of a configuration hold.
pub fn joint_index(
    halves: [&BTreeSet<NodeId>; 2],
    matched: impl Fn(NodeId) -> Index,
) -> Option<Index> {
    let [incoming, outgoing] = halves.map(|half| majority_index(half, &matched));
    if planted!("B14") {
        return incoming;
    }
    match (incoming, outgoing) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The highest index that so many of those who stay hold that no majority of `voters` is without one of
/// them; zero if too few stay.
pub fn blocking_index(
    voters: &BTreeSet<NodeId>,
    stays: impl Fn(NodeId) -> bool,
    matched: impl Fn(NodeId) -> Index,
) -> Index {
    let stayers = voters.iter().copied().filter(|&id| stays(id));
    let mut indexes: Vec<Index> = stayers.map(matched).collect();
    indexes.sort_unstable();
    let count = voters.len().div_ceil(2);
    let at = indexes.len().checked_sub(count);
    at.and_then(|at| indexes.get(at))
        .copied()
        .unwrap_or_default()
}

/// The votes of one majority: `None` is not heard yet.
pub fn majority_vote(
    voters: &BTreeSet<NodeId>,
    vote: impl Fn(NodeId) -> Option<bool>,
) -> VoteResult {
    if voters.is_empty() {
        return VoteResult::Won;
    }
    let quorum = voters.len() / 2 + 1;
    let yes = voters.iter().filter(|&&id| vote(id) == Some(true)).count();
    let no = voters.iter().filter(|&&id| vote(id) == Some(false)).count();
    if yes >= quorum {
        VoteResult::Won
    } else if voters.len() - no < quorum {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

/// The votes of a joint configuration: won by both halves, lost by either.
pub fn joint_vote(
    halves: [&BTreeSet<NodeId>; 2],
    vote: impl Fn(NodeId) -> Option<bool>,
) -> VoteResult {
    if planted!("B14") {
        return majority_vote(halves[0], vote);
    }
    match halves.map(|half| majority_vote(half, &vote)) {
        [VoteResult::Won, VoteResult::Won] => VoteResult::Won,
        [VoteResult::Lost, _] | [_, VoteResult::Lost] => VoteResult::Lost,
        [VoteResult::Pending, _] | [_, VoteResult::Pending] => VoteResult::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: u32) -> BTreeSet<NodeId> {
        (1..=count).filter_map(NodeId::new).collect()
    }

    #[test]
    fn majority_index_is_the_highest_index_a_majority_holds() {
        for (matched, want) in [
            (&[][..], None), // no voters, no quorum
            (&[4], Some(4)),
            (&[4, 9], Some(4)), // half is not a majority
            (&[7, 5, 3], Some(5)),
            (&[7, 7, 3, 3], Some(3)),
            (&[1, 9, 9, 2, 9], Some(9)),
        ] {
            let voters = ids(u32::try_from(matched.len()).expect("small"));
            let got = majority_index(&voters, |id| Index(matched[id.get() as usize - 1]));
            assert_eq!(got, want.map(Index), "matched={matched:?}");
        }
    }

    #[test]
    fn enough_of_those_who_stay_hold_it_that_no_majority_is_without_one() {
        for (matched, leaving, want) in [
            (&[9, 0][..], 2, 9), // of two a majority is both
            (&[9, 0, 9], 3, 0),
            (&[9, 7, 9], 3, 7),
            (&[9, 7, 0, 9], 4, 7), // three of four are a majority
            (&[9, 8, 7, 0, 9], 5, 7),
            (&[9], 1, 0), // nobody stays
        ] {
            let voters = ids(u32::try_from(matched.len()).expect("small"));
            let stays = |id: NodeId| id.get() != leaving;
            let held = |id: NodeId| Index(matched[id.get() as usize - 1]);
            let got = blocking_index(&voters, stays, held);
            assert_eq!(got, Index(want), "matched={matched:?}, {leaving} leaves");
        }
        assert_eq!(blocking_index(&ids(0), |_| true, |_| Index(9)), Index::ZERO);
    }

    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let (old, new) = (ids(3), [NodeId::new(4)].into_iter().flatten().collect());
        let matched = |id: NodeId| Index(u64::from(10 - id.get()));
        assert_eq!(joint_index([&new, &old], matched), Some(Index(6)));
        assert_eq!(
            joint_index([&old, &BTreeSet::new()], matched),
            Some(Index(8))
        );
        let old_only = |id: NodeId| (id.get() < 4).then_some(true);
        assert_eq!(joint_vote([&new, &old], old_only), VoteResult::Pending);
        assert_eq!(
            joint_vote([&new, &old], |id| Some(id.get() != 4)),
            VoteResult::Lost
        );
        assert_eq!(joint_vote([&new, &old], |_| Some(true)), VoteResult::Won);
    }

    #[test]
    fn an_election_is_lost_once_no_majority_is_left() {
        let voters = ids(4);
        for (votes, want) in [
            ([Some(true), Some(true), None, None], VoteResult::Pending),
            ([Some(true), Some(true), Some(true), None], VoteResult::Won),
            (
                [Some(true), Some(true), Some(false), Some(false)],
                VoteResult::Lost,
            ),
            ([None, None, Some(false), Some(false)], VoteResult::Lost),
        ] {
            let got = majority_vote(&voters, |id| votes[id.get() as usize - 1]);
            assert_eq!(got, want, "votes={votes:?}");
        }
    }
}
