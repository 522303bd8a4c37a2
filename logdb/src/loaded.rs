//! Reading a segment from front to end, a window of it in memory at a time.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::DiskFile;
use crate::error::Error;
use crate::format::{Batch, Damage, Generation, Header, PAGE_BYTES};
use crate::options::MIN_SEGMENT_BYTES;
use crate::repairs::{Loss, Repairs};

/// Bytes read at a time; more for a batch that is larger.
const WINDOW_BYTES: u64 = 1 << 20;

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a part of a file that fits into memory")
}

/// What lies at a place.
pub(crate) enum Found {
    /// A batch that verifies, but for what was given up of it.
    Batch(Batch),
    /// Nothing: it was given up.
    Hole { first: u64, next: u64, end: u64 },
}

impl Found {
    pub(crate) fn first_sequence(&self) -> u64 {
        match self {
            Self::Batch(batch) => batch.header.sequence,
            Self::Hole { first, .. } => *first,
        }
    }
}

/// A segment that is read.
pub(crate) struct Loaded {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) generation: Generation,
    bytes: u64,
    window: RefCell<Window>,
}

/// What is in memory of a segment.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Bytes,
    /// Nothing is read any more after the first error.
    failed: Option<io::Error>,
}

impl Loaded {
    pub(crate) fn new(file: Arc<dyn DiskFile>, generation: Generation) -> io::Result<Self> {
        Ok(Self {
            bytes: file.len()?,
            file,
            generation,
            window: RefCell::default(),
        })
    }

    /// The bytes from `offset` on: so many, or more, or up to the end of the file; none after a read failed.
    pub(crate) fn view(&self, offset: u64, wanted: u64) -> Bytes {
        let end = self.bytes.min(offset.saturating_add(wanted));
        let mut window = self.window.borrow_mut();
        let window_end = window.start + window.bytes.len() as u64;
        if offset < window.start || window_end < end {
            let end = self
                .bytes
                .min(offset.saturating_add(wanted.max(WINDOW_BYTES)));
            let mut bytes = vec![0; place(end.saturating_sub(offset))];
            let read = self.file.read_exact_at(&mut bytes, offset);
            window.start = offset;
            window.bytes = match read {
                Ok(()) if window.failed.is_none() => bytes.into(),
                read => {
                    let failed = window.failed.take();
                    window.failed = failed.or_else(|| read.err());
                    Bytes::new()
                }
            };
        }
        let start = place(offset - window.start).min(window.bytes.len());
        window.bytes.slice(start..)
    }

    /// Whether all was read that was asked for: else nothing follows from what was not found.
    pub(crate) fn check_read(&self) -> Result<(), Error> {
        let failed = self.window.borrow_mut().failed.take();
        failed.map_or(Ok(()), |error| Err(Error::io("reading a segment")(error)))
    }

    /// What is at `offset`, in the light of what was given up.
    pub(crate) fn find_at(&self, offset: u64, repairs: &Repairs) -> Result<Found, Damage> {
        match repairs.loss_at(self.generation.segment, offset) {
            Some(&Loss::Bytes {
                end,
                first_sequence: first,
                next_sequence: next,
            }) => Ok(Found::Hole { first, next, end }),
            Some(Loss::Blocks { offsets }) => {
                Batch::decode_without(&self.batch_bytes(offset), self.generation, offsets)
                    .map(Found::Batch)
            }
            None => self.batch_at(offset).map(Found::Batch),
        }
    }

    pub(crate) fn batch_at(&self, offset: u64) -> Result<Batch, Damage> {
        Batch::decode(&self.batch_bytes(offset), self.generation)
    }

    /// As many bytes as the header says, if there is one.
    fn batch_bytes(&self, offset: u64) -> Bytes {
        let bytes = self.header_at(offset).map(|header| header.padded_bytes());
        self.view(offset, bytes.unwrap_or(PAGE_BYTES))
    }

    pub(crate) fn header_at(&self, offset: u64) -> Option<Header> {
        Header::decode(&self.view(offset, PAGE_BYTES), self.generation)
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// The first batch tells how long the file was made; none is shorter than what the options allow.
    pub(crate) fn check_length(&self) -> Result<(), Error> {
        let bytes = self.len();
        let first = (bytes > 0).then(|| self.header_at(0)).flatten();
        let expected = first.map(|header| header.file_bytes);
        if bytes >= MIN_SEGMENT_BYTES && expected.is_none_or(|expected| expected == bytes) {
            return Ok(());
        }
        Err(Error::WrongLength {
            segment: self.generation.segment,
            bytes,
            expected,
        })
    }

    /// Whether a header from `offset` on says that batch `sequence` was synced; or is a batch from there on itself,
    /// written to another segment: pages are in each other's place. What an earlier use of the file left has
    /// lower sequences.
    pub(crate) fn promises(&self, sequence: u64, offset: u64) -> bool {
        let mut pages = (offset..self.len()).step_by(usize::try_from(PAGE_BYTES).expect("4096"));
        pages.any(|at| {
            let bytes = self.view(at, PAGE_BYTES);
            let misplaced = || Header::decode_misplaced(&bytes, self.generation);
            match self.header_at(at) {
                Some(header) => header.synced_through >= sequence,
                None => misplaced().is_some_and(|header| header.sequence >= sequence),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentId;

    /// Zeros, of which the device can read only the beginning.
    struct Rotten {
        readable: u64,
    }

    impl DiskFile for Rotten {
        fn len(&self) -> io::Result<u64> {
            Ok(32 << 20)
        }

        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            if offset + buffer.len() as u64 > self.readable {
                return Err(io::Error::other("unreadable"));
            }
            buffer.fill(0);
            Ok(())
        }

        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("nothing is changed")
        }

        fn sync_data(&self) -> io::Result<()> {
            unreachable!("nothing is changed")
        }

        fn drop_cache(&self) -> io::Result<()> {
            unreachable!("not asked for")
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_the_end_of_the_log() {
        let generation = Generation {
            incarnation: 1,
            segment: SegmentId(1),
        };
        let load = |readable| {
            let file = Arc::new(Rotten { readable });
            Loaded::new(file, generation).expect("it has a length")
        };
        let loaded = load(8 << 20);
        assert_eq!(loaded.view(4096, PAGE_BYTES).len(), 1 << 20);
        assert!(loaded.check_read().is_ok());
        assert!(!loaded.promises(1, 0), "nothing is found");
        assert!(loaded.check_read().is_err(), "which proves nothing");
        let whole = load(32 << 20);
        assert!(!whole.promises(1, 0));
        assert!(whole.check_read().is_ok());
        assert_eq!(whole.view((32 << 20) - 10, PAGE_BYTES).len(), 10);
        assert_eq!(whole.view(32 << 20, PAGE_BYTES).len(), 0);
        assert_eq!(whole.view(0, 9 << 20).len(), 9 << 20, "a large batch");
    }
}
