//! Reading a snapshot's file: first what it says of itself, then chunk by chunk.
//!
//! ```text
//! Opened::read   header, length and trailer: three reads, whatever the file's length
//! Chunks::next   one chunk, checked before it is handed out; behind the last one the whole sum
//! Reader         the state, then the files beside it, for the state machine
//! ```
//! Not more than one chunk is in memory. What cannot be read at all, because the device says so or
//! the file ends, is damage: another copy has to be fetched.

use std::io;
use std::sync::Arc;

use crc32fast::Hasher;
use multiraft_engine::planted;
use multiraft_engine::snapshot::{SnapshotFile, SnapshotIn};

use super::files::Origin;
use super::format::{
    CHUNK_HEAD_BYTES, ChunkHead, Flaw, HEADER_BYTES, Header, Kind, Seed, TRAILER_BYTES, Trailer,
};
use crate::disk::DiskFile;

/// Why a file cannot be read on.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The bytes are wrong, or lost.
    Flaw(Flaw),
    /// The disk cannot be asked now.
    Io(io::Error),
}

impl From<Flaw> for ReadError {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        let device = rustix::io::Errno::IO.raw_os_error();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Flaw(Flaw::Damaged("it is cut off"))
        } else if error.raw_os_error() == Some(device) {
            Self::Flaw(Flaw::Damaged("the device cannot read it"))
        } else {
            Self::Io(error)
        }
    }
}

/// A file whose header, length and trailer are right.
pub(crate) struct Opened {
    pub(crate) header: Header,
    pub(crate) bytes: u64,
    /// Of the whole file, as its trailer says.
    pub(crate) checksum: u32,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) chunks: Chunks,
}

impl Opened {
    /// Reads and checks the two ends of a file.
    pub(crate) fn read(file: Arc<dyn DiskFile>) -> Result<Self, ReadError> {
        let bytes = file.len()?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let length = Header::membership_bytes(&head)?;
        let start = (HEADER_BYTES + length) as u64;
        let end = bytes.checked_sub(TRAILER_BYTES as u64);
        let end = end.filter(|end| start <= *end);
        let end = end.ok_or(Flaw::Damaged("it is cut off"))?;
        let mut membership = vec![0; length]; // at most 1 MiB, and not more than the file has
        file.read_exact_at(&mut membership, HEADER_BYTES as u64)?;
        let header = Header::decode(&head, &membership)?;
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, end)?;
        let seed = header.seed();
        let trailer = Trailer::decode(&trailer, seed, bytes)?;
        let mut sum = Hasher::new();
        sum.update(&head);
        sum.update(&membership);
        let chunks = Chunks {
            file: Arc::clone(&file),
            seed,
            trailer,
            at: start,
            end,
            number: 0,
            sum,
            content: Vec::new(),
        };
        Ok(Self {
            header,
            bytes,
            checksum: trailer.checksum(seed),
            file,
            chunks,
        })
    }

    /// Reads and checks every byte.
    pub(crate) fn verify(mut self) -> Result<(), ReadError> {
        while let Some(kind) = self.chunks.next()? {
            if kind == Kind::File {
                self.chunks.name()?;
            }
        }
        Ok(())
    }
}

/// The chunks of a file, one after the other.
pub(crate) struct Chunks {
    file: Arc<dyn DiskFile>,
    seed: Seed,
    trailer: Trailer,
    /// Where the next chunk begins.
    at: u64,
    /// Where the trailer begins.
    end: u64,
    /// Of the next chunk.
    number: u64,
    /// Of all bytes before `at`.
    sum: Hasher,
    /// Of the chunk before.
    content: Vec<u8>,
}

impl Chunks {
    /// Goes on to the next chunk, whose content is then in memory; `None` behind the last one, when
    /// the sum of the whole file is right.
    fn next(&mut self) -> Result<Option<Kind>, ReadError> {
        self.content.clear();
        if self.at == self.end {
            let is_right = self.trailer.crc == self.sum.clone().finalize() || planted!("B21");
            let is_whole = self.trailer.chunks == self.number && is_right;
            let whole = is_whole.then_some(None);
            return Ok(whole.ok_or(Flaw::Damaged("checksum mismatch of the whole file"))?);
        }
        let content_at = self.at + CHUNK_HEAD_BYTES as u64;
        let room = self.end.checked_sub(content_at);
        let room = room.ok_or(Flaw::Damaged("a chunk does not end"))?;
        let mut head_bytes = [0; CHUNK_HEAD_BYTES];
        self.file.read_exact_at(&mut head_bytes, self.at)?;
        let head = ChunkHead::decode(head_bytes)?;
        if room < head.length as u64 {
            return Err(Flaw::Damaged("a chunk does not end").into());
        }
        self.content.resize(head.length, 0); // at most 1 MiB, and not more than the file has
        self.file.read_exact_at(&mut self.content, content_at)?;
        head.check(self.seed, self.number, &self.content)?;
        if head.kind == Kind::End {
            return Err(Flaw::Damaged("an end before the end").into());
        }
        self.sum.update(&head_bytes);
        self.sum.update(&self.content);
        self.number += 1;
        self.at = content_at + head.length as u64;
        Ok(Some(head.kind))
    }

    /// The present chunk's content as a file's name.
    fn name(&self) -> Result<String, Flaw> {
        let name = std::str::from_utf8(&self.content);
        let name = name.map_err(|_| Flaw::Damaged("a file's name is not UTF-8"))?;
        Ok(name.to_owned())
    }
}

/// Where a reader is.
enum Position {
    /// In a part; this many bytes of the present chunk were handed out.
    Part(usize),
    /// Behind a part: this file is next.
    Before(String),
    /// Behind all.
    End,
    /// Nothing comes out any more.
    Failed,
}

/// A snapshot for the state machine. Damage that it finds is made known to the store.
pub(super) struct Reader {
    chunks: Chunks,
    position: Position,
    origin: Origin,
}

impl Reader {
    pub(super) fn new(chunks: Chunks, origin: Origin) -> Self {
        Self {
            chunks,
            position: Position::Part(0),
            origin,
        }
    }

    /// Reads the next chunk.
    fn advance(&mut self) -> io::Result<()> {
        let position = self.chunks.next().and_then(|kind| {
            Ok(match kind {
                Some(Kind::Bytes) => Position::Part(0),
                Some(Kind::File) => Position::Before(self.chunks.name()?),
                Some(Kind::End) | None => Position::End,
            })
        });
        match position {
            Ok(position) => {
                self.position = position;
                Ok(())
            }
            Err(error) => {
                self.position = Position::Failed;
                Err(self.origin.refuse_read(error))
            }
        }
    }
}

fn failed_before() -> io::Error {
    let what = "the snapshot could not be read before";
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.position {
                Position::Part(at) if *at < self.chunks.content.len() => {
                    let rest = &self.chunks.content[*at..];
                    let count = rest.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&rest[..count]);
                    *at += count;
                    return Ok(count);
                }
                Position::Part(_) => self.advance()?,
                Position::Before(_) | Position::End => return Ok(0),
                Position::Failed => return Err(failed_before()),
            }
        }
    }
}

impl SnapshotIn for Reader {
    fn next_file(&mut self) -> io::Result<Option<String>> {
        loop {
            match &mut self.position {
                Position::Part(_) => self.advance()?,
                Position::Before(name) => {
                    let name = std::mem::take(name);
                    let handed_out = self.chunks.content.len(); // the name
                    self.position = Position::Part(handed_out);
                    return Ok(Some(name));
                }
                Position::End => return Ok(None),
                Position::Failed => return Err(failed_before()),
            }
        }
    }
}

/// A file on its way to a peer.
pub(super) struct Outgoing {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    pub(super) checksum: u32,
}

impl SnapshotFile for Outgoing {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
