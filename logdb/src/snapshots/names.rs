//! Names of files: made of numbers alone, so that nothing that a peer or a machine says becomes a path.
//!
//! ```text
//! 7-12345.snap            group 7, last entry 12345: whole, and durable under this name
//! 7-12345.snap.damaged    set aside; at most one a group
//! 7-12345-3.snap.tmp      being written, with a number of this run; deleted at the next start
//! ```
//! A group has at most one file an index, by its name. All other files are left alone.

use multiraft_engine::types::{GroupId, Index};

const WHOLE: &str = ".snap";
const DAMAGED: &str = ".snap.damaged";
const TEMPORARY: &str = ".snap.tmp";

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Temporary(GroupId, Index, u64),
    Damaged(GroupId, Index),
    Whole(GroupId, Index),
}

impl Name {
    /// Reads a name; `None` for files that are none of ours.
    pub(crate) fn from_file_name(name: &str) -> Option<Self> {
        let (stem, ending) = name.split_at_checked(name.find('.')?)?;
        let mut numbers = stem.split('-').map(str::parse::<u64>);
        let group = GroupId(u32::try_from(numbers.next()?.ok()?).ok()?);
        let index = Index(numbers.next()?.ok()?);
        let number = numbers.next().transpose().ok()?;
        let read = match (ending, number) {
            (WHOLE, None) => Self::Whole(group, index),
            (DAMAGED, None) => Self::Damaged(group, index),
            (TEMPORARY, Some(number)) => Self::Temporary(group, index, number),
            _ => return None,
        };
        // One spelling only: no sign, no zeros in front, nothing behind.
        (read.file_name() == name).then_some(read)
    }

    /// The name.
    pub(crate) fn file_name(self) -> String {
        match self {
            Self::Whole(group, index) => format!("{group}-{index}{WHOLE}"),
            Self::Damaged(group, index) => format!("{group}-{index}{DAMAGED}"),
            Self::Temporary(group, index, number) => {
                format!("{group}-{index}-{number}{TEMPORARY}")
            }
        }
    }
}
