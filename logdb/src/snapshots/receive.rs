//! A snapshot's file on its way in from a peer.
//!
//! What the peer says is trusted nowhere: the name is ours, the length is limited to what was
//! announced and has room, and before the file counts, it is read back from the device, and every
//! byte of it must be what was announced.

use multiraft_engine::snapshot::{IncomingSnapshot, SnapshotError};

use super::format::{Flaw, Header};
use super::no_room;
use super::read::{Opened, ReadError};
use super::write::Temporary;

/// See the module's documentation.
pub(super) struct Incoming {
    temporary: Temporary,
    announced: Header,
    bytes: u64,
    checksum: u32,
}

impl Incoming {
    pub(super) fn new(temporary: Temporary, announced: Header, bytes: u64, checksum: u32) -> Self {
        Self {
            temporary,
            announced,
            bytes,
            checksum,
        }
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        self.temporary.files.metrics.refused.inc();
        let (group, index) = (self.announced.group, self.announced.snapshot.index);
        tracing::warn!(%group, %index, what, "a snapshot from a peer is refused");
        SnapshotError::Damaged { group, index, what }
    }

    /// Reads every byte back from the device and compares with what was announced.
    fn check(&self) -> Result<(), ReadError> {
        let file = &self.temporary.file;
        file.drop_cache()?;
        let opened = Opened::read(std::sync::Arc::clone(file))?;
        if opened.header != self.announced {
            return Err(Flaw::Damaged("it is another snapshot than announced").into());
        }
        if opened.checksum != self.checksum {
            return Err(Flaw::Damaged("its checksum is another than announced").into());
        }
        opened.verify()
    }
}

impl IncomingSnapshot for Incoming {
    fn written(&self) -> u64 {
        self.temporary.written
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let count = bytes.len() as u64;
        if self.bytes - self.temporary.written < count {
            let error = std::io::Error::from(std::io::ErrorKind::InvalidData);
            self.temporary.fail(error);
            return Err(self.damaged("it is longer than announced"));
        }
        let needed = self.bytes;
        let appended = self.temporary.append(bytes);
        appended.map_err(|error| no_room(error, needed))?;
        let files = &self.temporary.files;
        files.on_received(self.temporary.number, count);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotError> {
        self.temporary.check_whole()?;
        if self.temporary.written != self.bytes {
            return Err(self.damaged("it is shorter than announced"));
        }
        let synced = self.temporary.sync();
        synced.map_err(|error| no_room(error, self.bytes))?;
        match self.check() {
            Ok(()) => {}
            Err(ReadError::Flaw(Flaw::Damaged(what))) => return Err(self.damaged(what)),
            Err(ReadError::Flaw(Flaw::Newer(_))) => {
                return Err(self.damaged("its format is newer than this program"));
            }
            Err(ReadError::Io(error)) => return Err(error.into()),
        }
        let files = std::sync::Arc::clone(&self.temporary.files);
        if files.has_whole(&self.announced)? {
            return Ok(());
        }
        files.publish(self.temporary, self.announced)?;
        files.metrics.received.inc();
        Ok(())
    }
}
