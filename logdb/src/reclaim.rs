//! Which entries' space was given back: what was compacted, until the segments that held it are gone.
//!
//! Only the oldest segment is ever given back, so the space of a group's entries is free when the newest batch
//! that holds anything of them lies in a segment that is. It is told when the compaction itself is durable too: of
//! entries that were cut off long ago the space may be free before.

use std::collections::{BTreeMap, VecDeque};

use multiraft_engine::types::{GroupId, Index};

/// Compactions of a group that are told apart while they wait; later ones are told together.
const MAX_WAITING: usize = 8;

/// Entries that were compacted and still take space.
#[derive(Debug)]
struct Waiting {
    /// The newest batch with anything of them.
    batch: u64,
    /// The batch that compacts them.
    killer: u64,
    /// The last of them.
    last: Index,
}

/// What was compacted and whose space was not given back yet, group by group, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reclaiming {
    groups: BTreeMap<GroupId, VecDeque<Waiting>>,
    /// Space of some was given back before their compaction was durable.
    pub(crate) is_early: bool,
}

impl Reclaiming {
    /// A group's entries up to `last` were compacted by batch `killer`; nothing of them lies in a batch after
    /// `batch`. All rise from call to call.
    pub(crate) fn add(&mut self, group: GroupId, last: Index, batch: u64, killer: u64) {
        let waiting = self.groups.entry(group).or_default();
        let is_full = waiting.len() == MAX_WAITING;
        let new = Waiting {
            batch,
            killer,
            last,
        };
        match waiting.back_mut().filter(|w| is_full || w.batch == batch) {
            Some(newest) => *newest = new,
            None => waiting.push_back(new),
        }
    }

    /// Nothing of the group is told any more.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }

    /// Takes out what lay in batches before `first`, the oldest that is left, and was compacted by batches up to
    /// `durable`: each group's last entry.
    pub(crate) fn take_before(&mut self, first: u64, durable: u64) -> Vec<(GroupId, Index)> {
        let mut reclaimed = Vec::new();
        let mut is_early = false;
        self.groups.retain(|&group, waiting| {
            let is_due = |w: &&Waiting| w.batch < first && w.killer <= durable;
            let gone = waiting.iter().take_while(is_due).count();
            is_early |= waiting.get(gone).is_some_and(|w| w.batch < first);
            if let Some(newest) = waiting.drain(..gone).next_back() {
                reclaimed.push((group, newest.last));
            }
            !waiting.is_empty()
        });
        self.is_early = is_early;
        reclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(7);

    #[test]
    fn each_is_told_once_when_its_batch_is_gone_and_never_too_early() {
        let mut reclaiming = Reclaiming::default();
        for step in 1..=20 {
            reclaiming.add(GROUP, Index(10 * step), step, 20 + step);
            reclaiming.add(GROUP, Index(10 * step + 1), step, 20 + step);
        }
        reclaiming.add(GroupId(8), Index(1), 1, 40);
        reclaiming.add(GroupId(9), Index(1), 1, 40);
        reclaiming.forget(GroupId(9));
        let mut take_before = |first| reclaiming.take_before(first, 40);
        assert_eq!(take_before(1), []);
        let both = [(GROUP, Index(11)), (GroupId(8), Index(1))];
        assert_eq!(take_before(2), both);
        assert_eq!(take_before(2), []);
        assert_eq!(take_before(5), [(GROUP, Index(41))]);
        assert_eq!(take_before(20), [(GROUP, Index(71))]);
        assert_eq!(take_before(21), [(GROUP, Index(201))]);
        assert!(reclaiming.groups.is_empty());
    }

    #[test]
    fn a_compaction_that_is_not_durable_is_told_later_though_its_space_is_free() {
        let mut reclaiming = Reclaiming::default();
        reclaiming.add(GROUP, Index(26), 10, 19);
        reclaiming.add(GROUP, Index(27), 11, 24);
        assert_eq!(reclaiming.take_before(16, 23), [(GROUP, Index(26))]);
        assert!(reclaiming.is_early);
        assert_eq!(reclaiming.take_before(16, 24), [(GROUP, Index(27))]);
        assert!(!reclaiming.is_early);
    }
}
