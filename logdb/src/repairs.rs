//! What was given up of a log after damage: the one file beside the segments that changes what they say.
//!
//! ```text
//! dir/REPAIR   JSON: a checksum, and the repairs, oldest first
//!              repair: after batch `through` the named groups have nothing but a description and a hard state;
//!                      and before it these holes tell nothing: bytes of a segment, or blocks of a batch
//! ```
//! Rules:
//! - The file takes effect with the rename that puts it there, whole: holes are skipped and groups given up in
//!   the same moment. Half of that would be a log that opens and has silently lost something.
//! - A hole is skipped for ever, also if its bytes should verify again: what was decided without them stays.
//! - What a repair says of a group counts as if batch `through` said it. It lives in that batch's segment: when
//!   that one is given back, newer batches have taken the place of all of it, and the repair is forgotten.
//! - No segment is changed, and no file of the log deleted.

use bytes::Bytes;
use crc32fast::Hasher;
use multiraft_engine::types::{GroupId, HardState, Index as LogIndex, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::Error;
use crate::format::Item;
use crate::segment::SegmentId;

const NAME: &str = "REPAIR";
const NAME_TMP: &str = "REPAIR.tmp";

/// A place in the log that tells nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hole {
    pub(crate) segment: u64,
    /// From the segment's first byte; where a batch began, or should have.
    pub(crate) offset: u64,
    pub(crate) loss: Loss,
}

/// What is lost in a hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Loss {
    /// All bytes up to `end`, and with them the batches from `first_sequence` to the one before
    /// `next_sequence`; equal if it is not known that there were any.
    Bytes {
        end: u64,
        first_sequence: u64,
        next_sequence: u64,
    },
    /// Of one batch, whose items verify, the blocks at these offsets from its first byte.
    Blocks { offsets: Vec<u32> },
}

/// A group that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenUp {
    pub(crate) group: u32,
    /// Its new description.
    description: Vec<u8>,
    /// As far as it could still be read.
    term: u64,
    /// 0 for none.
    vote: u32,
}

impl GivenUp {
    pub(crate) fn new(group: GroupId, description: &[u8], hard_state: HardState) -> Self {
        Self {
            group: group.0,
            description: description.to_vec(),
            term: hard_state.term.0,
            vote: hard_state.vote.map_or(0, NodeId::get),
        }
    }

    /// What the log holds of the group from then on.
    pub(crate) fn items(&self) -> [Item; 3] {
        let hard_state = HardState {
            term: Term(self.term),
            vote: NodeId::new(self.vote),
            commit: LogIndex::ZERO,
        };
        [
            Item::Remove,
            Item::Meta(Bytes::copy_from_slice(&self.description)),
            Item::HardState(hard_state),
        ]
    }
}

/// One decision of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repair {
    /// The last batch then.
    pub(crate) through: u64,
    /// The segment that it lies in.
    pub(crate) segment: u64,
    /// The oldest segment that was needed then.
    pub(crate) oldest: u64,
    pub(crate) holes: Vec<Hole>,
    pub(crate) groups: Vec<GivenUp>,
}

/// All repairs of a log, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Repairs {
    pub(crate) list: Vec<Repair>,
}

#[derive(Serialize, Deserialize)]
struct RepairFile {
    /// Over the repairs as they are written, seeded with the log's incarnation.
    checksum: u32,
    repairs: Vec<Repair>,
}

fn checksum(repairs: &[Repair], incarnation: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&incarnation.to_le_bytes());
    hasher.update(&serde_json::to_vec(repairs).expect("numbers and text have a text form"));
    hasher.finalize()
}

impl Repairs {
    /// What the file says; nothing if there is none.
    pub(crate) fn load(disk: &dyn Disk, incarnation: u64) -> Result<Self, Error> {
        let failed = "reading REPAIR";
        let names = disk.list().map_err(Error::io(failed))?;
        if !names.iter().any(|name| name == NAME) {
            return Ok(Self::default());
        }
        let file = disk.open(NAME).map_err(Error::io(failed))?;
        let length = file.len().map_err(Error::io(failed))?;
        let mut text = vec![0; usize::try_from(length).expect("it fits into memory")];
        file.read_exact_at(&mut text, 0)
            .map_err(Error::io(failed))?;
        let parsed: RepairFile =
            serde_json::from_slice(&text).map_err(|_| Error::RepairFileDamaged)?;
        let list = parsed.repairs;
        if checksum(&list, incarnation) == parsed.checksum {
            Ok(Self { list })
        } else {
            Err(Error::RepairFileDamaged)
        }
    }

    /// Puts all of this into effect, durably.
    pub(crate) fn store(&self, disk: &dyn Disk, incarnation: u64) -> Result<(), Error> {
        let failed = "writing REPAIR";
        let file = RepairFile {
            checksum: checksum(&self.list, incarnation),
            repairs: self.list.clone(),
        };
        let text = serde_json::to_vec(&file).expect("numbers and text have a text form");
        let write = || {
            if disk.list()?.iter().any(|name| name == NAME_TMP) {
                disk.remove(NAME_TMP)?; // a crash left it
            }
            let file = disk.create_growing(NAME_TMP)?;
            file.write_all_at(&text, 0)?;
            file.sync_data()?;
            disk.rename(NAME_TMP, NAME)?;
            disk.sync_dir()
        };
        write().map_err(Error::io(failed))
    }

    /// Deletes the file once all that it says is superseded: `oldest` is the oldest segment needed, durably.
    pub(crate) fn forget_if_old(&self, disk: &dyn Disk, oldest: SegmentId) -> Result<(), Error> {
        let is_old = |repair: &Repair| repair.segment < oldest.0;
        if self.list.is_empty() || !self.list.iter().all(is_old) {
            return Ok(());
        }
        disk.remove(NAME)
            .and_then(|()| disk.sync_dir())
            .map_err(Error::io("removing REPAIR"))
    }

    /// What is lost at a place, if a hole begins there.
    pub(crate) fn loss_at(&self, segment: SegmentId, offset: u64) -> Option<&Loss> {
        let holes = self.list.iter().flat_map(|repair| &repair.holes);
        let mut here = holes.filter(|hole| (hole.segment, hole.offset) == (segment.0, offset));
        here.next_back().map(|hole| &hole.loss)
    }

    /// Whether a place lies in a hole, or right behind one.
    pub(crate) fn explains(&self, segment: SegmentId, offset: u64) -> bool {
        let mut holes = self.list.iter().flat_map(|repair| &repair.holes);
        holes.any(|hole| {
            let is_in = match hole.loss {
                Loss::Bytes { end, .. } => (hole.offset..=end).contains(&offset),
                Loss::Blocks { .. } => offset == hole.offset,
            };
            hole.segment == segment.0 && is_in
        })
    }

    /// All batches up to this one were durable when it was last repaired.
    pub(crate) fn through(&self) -> u64 {
        self.list.last().map_or(0, |repair| repair.through)
    }

    /// The oldest segment that was needed when it was last repaired.
    pub(crate) fn oldest(&self) -> SegmentId {
        SegmentId(self.list.last().map_or(0, |repair| repair.oldest))
    }
}
