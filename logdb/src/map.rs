//! Files as memory, for reading: the only module with `unsafe` in it.
//!
//! Reads of full segments take bytes from the page cache where they are, without a system call and without a copy.
//! Nothing is ever stored through a map: a full disk would end the process (SIGBUS), and errors would be hidden.
//!
//! A page that the device cannot read would end the process as well, when it is touched. So before a chunk is
//! touched for the first time the kernel is asked to read all of it, and says so if it cannot (`MADV_POPULATE_READ`,
//! Linux 5.14; where it does not know that, there are no maps). What remains: a chunk that was read, was dropped from
//! the page cache for want of memory, and cannot be read a second time.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapMut};

/// What the kernel is asked for at a time, bytes: sixteen pages.
const CHUNK_BYTES: usize = 64 << 10;

/// A whole file. Cloning shares it.
#[derive(Clone)]
pub struct Map(Arc<Inner>);

struct Inner {
    memory: Mmap,
    /// The same file, for what the kernel cannot map at the moment.
    file: File,
    /// What keeps others from writing to the file.
    guard: Option<Arc<dyn Send + Sync>>,
    /// A bit for each chunk that was read.
    read: Vec<AtomicU64>,
}

/// A part of a map, and what keeps it there.
struct Part {
    map: Map,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.map.0.memory[self.range.clone()]
    }
}

impl Map {
    /// Maps a file of the log to which nobody writes as long as somebody holds the map; `None` where maps cannot be
    /// read safely.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn new(file: &File) -> io::Result<Option<Self>> {
        if !can_populate() {
            return Ok(None);
        }
        // SAFETY: the bytes must not change while they are borrowed. The caller maps full segments only, to which
        // the log writes no more; the file is used again only when nobody holds the map (`Map::is_held`), and is
        // deleted by name otherwise, which leaves the bytes. It is never cut short. The map itself keeps the
        // directory's lock (`Map::guarded`), so that nobody else opens the log while bytes of it are held.
        let memory = unsafe { Mmap::map(file)? };
        let chunks = memory.len().div_ceil(CHUNK_BYTES);
        let words = chunks.div_ceil(64);
        let read = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Some(Self(Arc::new(Inner {
            memory,
            file: file.try_clone()?,
            guard: None,
            read,
        }))))
    }

    /// The same, which keeps the guard as long as somebody has bytes of it. Nobody has yet.
    #[must_use]
    pub(crate) fn guarded(mut self, guard: Option<Arc<dyn Send + Sync>>) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("nobody has it yet");
        inner.guard = guard;
        self
    }

    /// Whether somebody else has the map, or bytes of it.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Bytes of the file, without a copy. They keep the map.
    ///
    /// # Errors
    /// The device cannot read them, or the file ends before.
    pub fn get(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(bytes));
        let range = match (start, end) {
            (Some(start), Some(end)) if end <= self.0.memory.len() => start..end,
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        match self.read(&range) {
            Ok(()) => {
                let map = self.clone();
                Ok(Bytes::from_owner(Part { map, range }))
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::other("the device cannot read it"))
            }
            Err(_) => {
                let mut copy = vec![0; bytes];
                self.0.file.read_exact_at(&mut copy, offset)?;
                Ok(copy.into())
            }
        }
    }

    /// Has the kernel read what was not read before.
    fn read(&self, range: &Range<usize>) -> io::Result<()> {
        let Inner { memory, read, .. } = &*self.0;
        for chunk in range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES) {
            let (word, bit) = (&read[chunk / 64], 1 << (chunk % 64));
            if word.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            let start = chunk * CHUNK_BYTES;
            let bytes = CHUNK_BYTES.min(memory.len() - start);
            if memory
                .advise_range(Advice::PopulateRead, start, bytes)
                .is_ok()
            {
                word.fetch_or(bit, Ordering::Relaxed);
                continue;
            }
            // Something of the chunk cannot be read; perhaps not what is asked for.
            let wanted = range.start.max(start)..range.end.min(start + bytes);
            memory.advise_range(Advice::PopulateRead, wanted.start, wanted.len())?;
        }
        Ok(())
    }
}

/// Whether the kernel knows how to read pages ahead of their use and to say so if it cannot.
fn can_populate() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let page = MmapMut::map_anon(1);
        page.is_ok_and(|page| page.advise(Advice::PopulateRead).is_ok())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_of_a_map_are_those_of_the_file_and_outlive_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..200_001_u32).map(|n| n.to_le_bytes()[1]).collect();
        File::create(&path).unwrap().write_all(&content).unwrap();
        let map = Map::new(&File::open(&path).unwrap()).unwrap().unwrap();
        assert!(!map.is_held());
        let part = map.get(65_000, 100_000).unwrap();
        assert_eq!(part, content[65_000..165_000]);
        assert_eq!(map.get(200_000, 1).unwrap(), content[200_000..]);
        assert_eq!(map.get(200_001, 0).unwrap().len(), 0);
        for (offset, bytes) in [(200_000, 2), (u64::MAX, 1), (1, usize::MAX)] {
            let end = map.get(offset, bytes).map_err(|e| e.kind());
            assert_eq!(end, Err(io::ErrorKind::UnexpectedEof));
        }
        assert!(map.is_held());
        std::fs::remove_file(&path).unwrap();
        let slice = part.slice(7..9);
        drop(part);
        assert!(map.is_held());
        assert_eq!(slice, content[65_007..65_009]);
        drop(slice);
        assert!(!map.is_held());
    }
}
