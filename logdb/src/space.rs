//! Who needs how much of the log, for people who run out of disk.

use std::collections::BTreeMap;

use multiraft_engine::types::GroupId;

use crate::LogDb;
use crate::segment::Segment;

/// What a log takes, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogSpace {
    /// Bytes of the segments.
    pub file_bytes: u64,
    /// Bytes of them that some group needs.
    pub live_bytes: u64,
    /// Bytes of entries that each group needs; groups without entries are not in it.
    pub groups: BTreeMap<GroupId, u64>,
    /// Only the oldest segment is ever given back, and only whole: the group that needs most of it, and
    /// how many bytes.
    pub pinned_by: Option<(GroupId, u64)>,
    /// Bytes that the file system has left; zero if it does not say.
    pub free_bytes: u64,
}

impl LogDb {
    /// Who needs how much. Looks at every group: for people, not for loops.
    pub fn space(&self) -> LogSpace {
        let state = self.shared.state.lock();
        let (file_bytes, live_bytes) = state.table.used_and_live_bytes();
        let active = state.table.active().id;
        let through = {
            let oldest = state.table.iter().next().filter(|s| s.id != active);
            oldest.map(Segment::last_sequence)
        };
        let mut space = LogSpace {
            file_bytes,
            live_bytes,
            ..LogSpace::default()
        };
        for (id, group) in state.index.groups_from(GroupId(0)) {
            let (all, oldest) = group.needed_bytes(through);
            if all > 0 {
                space.groups.insert(id, all);
            }
            if oldest > space.pinned_by.map_or(0, |pin| pin.1) {
                space.pinned_by = Some((id, oldest));
            }
        }
        drop(state);
        space.free_bytes = self.shared.reserve.free_bytes();
        space
    }
}
