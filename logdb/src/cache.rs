//! The batches written last, whole, as they were written: reads of recent entries do not touch the disk.
//!
//! A batch is here from before its write on, so that its blocks can be read all the time, and at least until it is
//! durable. Blocks of batches that still grow are in [`crate::batch::PendingBatch`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::buffer::PageBuffer;
use crate::index::Position;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct BatchCache {
    /// Of batches that follow each other.
    batches: VecDeque<Arc<PageBuffer>>,
    /// Sequence of the first of them.
    first: u64,
    /// Memory that they take.
    bytes: u64,
}

/// A part of a batch, and what keeps it there.
struct Part {
    batch: Arc<PageBuffer>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.batch[self.range.clone()]
    }
}

impl BatchCache {
    /// Adds the next batch.
    pub(crate) fn push(&mut self, sequence: u64, batch: Arc<PageBuffer>) {
        if self.batches.is_empty() {
            self.first = sequence;
        }
        let next = self.first + self.batches.len() as u64;
        assert!(sequence == next, "batch {sequence} does not follow {next}");
        self.bytes += batch.capacity() as u64;
        self.batches.push_back(batch);
    }

    /// The bytes of a block, without a copy; `None` if its batch is not here.
    pub(crate) fn get(&self, at: Position) -> Option<Bytes> {
        let nth = usize::try_from(at.sequence.checked_sub(self.first)?).ok()?;
        let batch = Arc::clone(self.batches.get(nth)?);
        let start = at.offset as usize;
        let range = start..start + at.bytes as usize;
        Some(Bytes::from_owner(Part { batch, range }))
    }

    /// Forgets the oldest batches, but none after `durable`, until the rest fits into `max_bytes`. Returns the memory
    /// of one that nobody reads, for the next batch.
    pub(crate) fn shrink(&mut self, max_bytes: u64, durable: u64) -> Option<PageBuffer> {
        let mut free = None;
        while self.bytes > max_bytes && self.first <= durable {
            let Some(batch) = self.batches.pop_front() else {
                break;
            };
            self.first += 1;
            self.bytes -= batch.capacity() as u64;
            free = Arc::into_inner(batch).or(free);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(byte: u8) -> Arc<PageBuffer> {
        let mut buffer = PageBuffer::default();
        buffer.extend_from_slice(&[byte; 100]);
        Arc::new(buffer)
    }

    fn at(sequence: u64) -> Position {
        Position {
            sequence,
            offset: 90,
            bytes: 10,
            block_bytes: 10,
            checksum: 0,
        }
    }

    #[test]
    fn it_forgets_the_oldest_and_nothing_that_is_on_its_way() {
        let mut cache = BatchCache::default();
        for sequence in 5..=8 {
            cache.push(sequence, batch(u8::try_from(sequence).expect("small")));
        }
        let read = cache.get(at(5)).expect("it is here");
        assert!(cache.shrink(u64::MAX, 8).is_none());
        assert!(cache.get(at(4)).is_none() && cache.get(at(9)).is_none());
        let free = cache.shrink(0, 6).expect("nobody reads batch 6");
        assert_eq!(free[..], [6; 100]);
        assert_eq!(read, [5; 10][..], "who reads keeps it");
        assert!(cache.get(at(6)).is_none());
        assert_eq!(cache.get(at(7)).expect("not durable yet"), [7; 10][..]);
        assert!(cache.shrink(0, 8).is_some());
        cache.push(9, batch(9));
        assert_eq!(cache.get(at(9)).expect("it is here"), [9; 10][..]);
    }
}
