//! Writing a file: under a temporary name, synced as it grows, deleted unless it is published.
//!
//! Invariants:
//! - After an error nothing more is written to a file, nor is it synced again, nor published: a
//!   failed sync may have dropped pages and marked them clean. Dropping a [`Temporary`] deletes it.
//! - What is in memory of a file is one chunk.

use std::io::{self, Write};
use std::sync::Arc;

use crc32fast::Hasher;
use multiraft_engine::planted;
use multiraft_engine::snapshot::SnapshotOut;

use super::files::Files;
use super::format::{CHUNK_HEAD_BYTES, Header, Kind, MAX_NAME_BYTES, Seed, TRAILER_BYTES, Trailer};
use crate::disk::DiskFile;

/// A file that nobody sees yet.
pub(super) struct Temporary {
    pub(super) files: Arc<Files>,
    /// In [`Files`]' list of what is being written.
    pub(super) number: u64,
    /// `None`: it has been published.
    pub(super) name: Option<String>,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) written: u64,
    unsynced: u64,
    is_failed: bool,
}

impl Temporary {
    pub(super) fn new(
        files: Arc<Files>,
        number: u64,
        name: String,
        file: Arc<dyn DiskFile>,
    ) -> Self {
        Self {
            files,
            number,
            name: Some(name),
            file,
            written: 0,
            unsynced: 0,
            is_failed: false,
        }
    }

    /// Writes at the end. Syncs from time to time, so that dirty pages do not pile up, to be written
    /// in one go while the log waits for its own sync.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.check_whole()?;
        if let Err(error) = self.file.write_all_at(bytes, self.written) {
            return Err(self.fail(error));
        }
        self.written += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.files.limits.sync_bytes <= self.unsynced {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes all that was written durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.check_whole()?;
        if let Err(error) = self.file.sync_data() {
            return Err(self.fail(error));
        }
        self.unsynced = 0;
        Ok(())
    }

    /// Remembers an error: there is no way back.
    pub(super) fn fail(&mut self, error: io::Error) -> io::Error {
        self.is_failed = true;
        error
    }

    /// Whether everything so far went well.
    pub(super) fn check_whole(&self) -> io::Result<()> {
        if self.is_failed {
            let what = "the snapshot's file failed before";
            return Err(io::Error::other(what));
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.files.forget_temporary(self.number);
        let Some(name) = self.name.take() else {
            return;
        };
        if let Err(error) = self.files.disk.remove(&name) {
            tracing::warn!(%error, name, "an unfinished snapshot stays until the next start");
        }
    }
}

/// Writes a snapshot as a state machine tells it.
pub(super) struct Writer {
    out: Temporary,
    seed: Seed,
    /// The present chunk, behind room for its head.
    chunk: Vec<u8>,
    /// Content of a full chunk. The cuts depend on the state's bytes alone: equal states, equal files.
    chunk_bytes: usize,
    sum: Hasher,
    chunks: u64,
}

impl Writer {
    /// Begins with the header.
    pub(super) fn begin(out: Temporary, header: &Header) -> io::Result<Self> {
        let bytes = header.encode().ok_or_else(|| {
            let what = "the membership is too long for a snapshot";
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let chunk_bytes = out.files.limits.chunk_bytes;
        let mut chunk = Vec::with_capacity(CHUNK_HEAD_BYTES + chunk_bytes);
        chunk.resize(CHUNK_HEAD_BYTES, 0);
        let mut writer = Self {
            out,
            seed: header.seed(),
            chunk,
            chunk_bytes,
            sum: Hasher::new(),
            chunks: 0,
        };
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Bytes of the file so far, and those that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.out.written + (self.chunk.len() + TRAILER_BYTES) as u64
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.append(bytes)?;
        self.sum.update(bytes);
        Ok(())
    }

    /// Writes the present chunk, if there is anything in it.
    fn end_chunk(&mut self) -> io::Result<()> {
        if self.chunk.len() == CHUNK_HEAD_BYTES {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let result = self.put_chunk(Kind::Bytes, &mut chunk);
        chunk.truncate(CHUNK_HEAD_BYTES);
        self.chunk = chunk;
        result
    }

    fn put_chunk(&mut self, kind: Kind, chunk: &mut [u8]) -> io::Result<()> {
        self.seed.seal(self.chunks, kind, chunk);
        self.chunks += 1;
        self.put(chunk)
    }

    /// Ends the file and makes it durable; it still has to be published.
    pub(super) fn finish(mut self) -> io::Result<Temporary> {
        self.end_chunk()?;
        let trailer = Trailer {
            bytes: self.out.written + TRAILER_BYTES as u64,
            chunks: self.chunks,
            crc: self.sum.clone().finalize(),
        };
        self.out.append(&trailer.encode(self.seed))?;
        if !planted!("early-saved") {
            self.out.sync()?;
        }
        Ok(self.out)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.check_whole()?;
        let room = CHUNK_HEAD_BYTES + self.chunk_bytes - self.chunk.len();
        let count = room.min(bytes.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if count == room {
            self.end_chunk()?;
        }
        Ok(count)
    }

    /// Does nothing: it must not change where chunks are cut, and a snapshot counts as a whole.
    fn flush(&mut self) -> io::Result<()> {
        self.out.check_whole()
    }
}

impl SnapshotOut for Writer {
    fn begin_file(&mut self, name: &str) -> io::Result<()> {
        if MAX_NAME_BYTES < name.len() {
            let what = "a file's name in a snapshot is longer than 255 bytes";
            let error = io::Error::new(io::ErrorKind::InvalidInput, what);
            // What follows would be taken for the file before.
            return Err(self.out.fail(error));
        }
        self.end_chunk()?;
        let mut chunk = vec![0; CHUNK_HEAD_BYTES];
        chunk.extend_from_slice(name.as_bytes());
        self.put_chunk(Kind::File, &mut chunk)
    }
}
