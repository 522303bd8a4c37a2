//! After a crash: every byte of the segments that the start did not read is checked in the background, while the
//! log is in use. Damage is told with segment, offset and groups, and counted; reads of a damaged block are refused
//! anyway, and hurt only its group. `multiraft log repair` gives it up once the node is stopped.

use std::io;
use std::sync::Arc;

use multiraft_engine::types::GroupId;

use crate::disk::DiskFile;
use crate::format::{Batch, Damage, Generation, Header, PAGE_BYTES};
use crate::segment::SegmentId;
use crate::writer::Shared;

/// The thread: ends when all are checked, or the log is closed.
pub(crate) fn run(shared: &Shared, segments: &[SegmentId]) {
    for id in segments {
        let segment = {
            let state = shared.state.lock();
            let segment = state.table.segment(*id);
            segment.map(|segment| (Arc::clone(&segment.file), segment.end))
        };
        let Some((file, end)) = segment else {
            continue; // it is not needed any more
        };
        let generation = Generation {
            incarnation: shared.incarnation,
            segment: *id,
        };
        let check = Check {
            file: file.as_ref(),
            generation,
        };
        let mut offset = 0;
        let mut is_lost = false;
        while offset < end {
            if shared.state.lock().closing {
                return;
            }
            let (next, found) = check.batch(offset);
            if let Err(damage) = found {
                // What follows a damaged header is told once, not page by page.
                let is_told = is_lost && damage.is_lost;
                is_lost = damage.is_lost;
                if !is_told {
                    shared.metrics.damaged_batches.inc();
                    tracing::error!(
                        segment = %id, offset, what = damage.what, groups = ?damage.groups,
                        "the log is damaged: stop this node and run 'multiraft log repair'"
                    );
                }
            } else {
                is_lost = false;
            }
            offset = next;
        }
    }
}

/// What is wrong at a place.
struct Found {
    what: String,
    groups: Vec<GroupId>,
    /// Where the next batch begins is not known.
    is_lost: bool,
}

struct Check<'a> {
    file: &'a dyn DiskFile,
    generation: Generation,
}

impl Check<'_> {
    /// Checks the batch at `offset`; tells where to go on.
    fn batch(&self, offset: u64) -> (u64, Result<(), Found>) {
        let lost = |what: String| Found {
            what,
            groups: Vec::new(),
            is_lost: true,
        };
        let header = self.read(offset, PAGE_BYTES).map_err(|e| e.to_string());
        let header = header.and_then(|page| {
            let header = Header::decode(&page, self.generation);
            header.ok_or_else(|| "no batch header".to_owned())
        });
        let header = match header {
            Ok(header) => header,
            Err(what) => return (offset + PAGE_BYTES, Err(lost(what))),
        };
        let damaged = |what: String, groups| Found {
            what,
            groups,
            is_lost: false,
        };
        let found = match self.read(offset, header.padded_bytes()) {
            Ok(bytes) => Batch::decode(&bytes.into(), self.generation)
                .map(drop)
                .map_err(|Damage { what, groups, .. }| damaged(what.to_owned(), groups)),
            Err(error) => Err(damaged(error.to_string(), Vec::new())),
        };
        (offset + header.padded_bytes(), found)
    }

    fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut read = vec![0; usize::try_from(bytes).expect("a batch of less than 4 GiB")];
        self.file.read_exact_at(&mut read, offset)?;
        Ok(read)
    }
}
