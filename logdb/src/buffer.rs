//! Memory that a disk takes without the page cache: it begins at a page.

use std::ops::{Deref, DerefMut};

use crate::format::PAGE_BYTES;

/// The alignment, which is at least any disk's logical block, bytes.
const ALIGN: usize = 4096;
const _: () = assert!(ALIGN as u64 == PAGE_BYTES);

/// Bytes that grow at their end, the first of them always at the beginning of a page of memory: what direct
/// I/O asks for (`open(2)`, `O_DIRECT`).
#[derive(Debug, Default)]
pub(crate) struct PageBuffer {
    /// Bytes before the first page's beginning, then the content. Never grows beyond its capacity, so it
    /// never moves.
    memory: Vec<u8>,
    /// Where the content begins.
    start: usize,
}

impl PageBuffer {
    /// Forgets the content, keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.memory.truncate(self.start);
    }

    /// Bytes that fit without new memory.
    pub(crate) fn capacity(&self) -> usize {
        self.memory.capacity() - self.start
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    /// Makes it `bytes` long, with zeros where it grows.
    pub(crate) fn resize(&mut self, bytes: usize) {
        self.reserve(bytes.saturating_sub(self.len()));
        self.memory.resize(self.start + bytes, 0);
    }

    /// Makes room for so many bytes more.
    pub(crate) fn reserve(&mut self, more: usize) {
        let bytes = self.len() + more;
        if bytes <= self.capacity() {
            return;
        }
        let room = bytes.next_power_of_two().max(ALIGN);
        let mut memory: Vec<u8> = Vec::with_capacity(room + ALIGN);
        let start = memory.as_ptr().align_offset(ALIGN);
        assert!(start < ALIGN, "memory of bytes can be aligned");
        memory.resize(start, 0);
        memory.extend_from_slice(self);
        *self = Self { memory, start };
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_however_it_grows() {
        let mut buffer = PageBuffer::default();
        let mut expected = Vec::new();
        for round in 0..2 {
            for step in 1..400_usize {
                let bytes = vec![u8::try_from(step % 251).expect("small"); 1 + step * 7 % 900];
                buffer.extend_from_slice(&bytes);
                expected.extend_from_slice(&bytes);
                assert!(buffer.as_ptr().addr().is_multiple_of(ALIGN));
            }
            let padded = expected.len().next_multiple_of(ALIGN);
            buffer.resize(padded);
            expected.resize(padded, 0);
            assert!(
                *buffer == *expected && buffer.capacity() >= padded,
                "{round}"
            );
            buffer.clear();
            expected.clear();
            assert!(buffer.is_empty());
        }
    }
}
