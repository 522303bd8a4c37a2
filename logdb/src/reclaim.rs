//! Which entries' space was given back: what was compacted, until the segments that held it are gone.
//!
//! Only the oldest segment is ever given back, so the space of a group's entries is free when the newest batch
//! that holds anything of them lies in a segment that is.

use std::collections::{BTreeMap, VecDeque};

use multiraft_engine::types::{GroupId, Index};

/// Compactions of a group that are told apart while they wait; later ones are told together.
const MAX_WAITING: usize = 8;

/// Entries that were compacted and still take space.
#[derive(Debug)]
struct Waiting {
    /// The newest batch with anything of them.
    batch: u64,
    /// The last of them.
    last: Index,
}

/// What was compacted and whose space was not given back yet, group by group, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reclaiming {
    groups: BTreeMap<GroupId, VecDeque<Waiting>>,
}

impl Reclaiming {
    /// A group's entries up to `last` were compacted; nothing of them lies in a batch after `batch`. Both rise
    /// from call to call.
    pub(crate) fn add(&mut self, group: GroupId, last: Index, batch: u64) {
        let waiting = self.groups.entry(group).or_default();
        let is_full = waiting.len() == MAX_WAITING;
        match waiting.back_mut().filter(|w| is_full || w.batch == batch) {
            Some(newest) => *newest = Waiting { batch, last },
            None => waiting.push_back(Waiting { batch, last }),
        }
    }

    /// Nothing of the group is told any more.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }

    /// Takes out what lay in batches before `first`, the oldest that is left: each group's last entry.
    pub(crate) fn take_before(&mut self, first: u64) -> Vec<(GroupId, Index)> {
        let mut reclaimed = Vec::new();
        self.groups.retain(|&group, waiting| {
            let gone = waiting.iter().take_while(|w| w.batch < first).count();
            if let Some(newest) = waiting.drain(..gone).next_back() {
                reclaimed.push((group, newest.last));
            }
            !waiting.is_empty()
        });
        reclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_when_its_batch_is_gone_and_never_too_early() {
        const GROUP: GroupId = GroupId(7);
        let mut reclaiming = Reclaiming::default();
        for step in 1..=20 {
            reclaiming.add(GROUP, Index(10 * step), step);
            reclaiming.add(GROUP, Index(10 * step + 1), step);
        }
        reclaiming.add(GroupId(8), Index(1), 1);
        reclaiming.add(GroupId(9), Index(1), 1);
        reclaiming.forget(GroupId(9));
        assert_eq!(reclaiming.take_before(1), []);
        let both = [(GROUP, Index(11)), (GroupId(8), Index(1))];
        assert_eq!(reclaiming.take_before(2), both);
        assert_eq!(reclaiming.take_before(2), []);
        assert_eq!(reclaiming.take_before(5), [(GROUP, Index(41))]);
        assert_eq!(reclaiming.take_before(20), [(GROUP, Index(71))]);
        assert_eq!(reclaiming.take_before(21), [(GROUP, Index(201))]);
        assert!(reclaiming.groups.is_empty());
    }
}
