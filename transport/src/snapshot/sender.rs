//! One snapshot on its way to one peer, over as many connections as it takes.
//!
//! ```text
//!            connect: Offer          Resume(n)             all acknowledged        Done
//!  Down ───────────────▶ Offered ──────────────▶ Sending ────────────▶ Sending ──────────▶ Completed
//!   ▲                       │                       │    Ack(n) ▲ │ Chunk  │
//!   └──── disconnected ─────┴───────────────────────┴───────────┴─┴────────┘
//!  anywhere: nothing acknowledged for the stall time-out, a refusal, an unreadable file ──▶ Aborted
//! ```
//! It does no input or output but reading the file, knows no clock but `now` (time since a moment of
//! the caller's choosing), and starts nothing: the caller has the sockets, the threads and the timers.
//!
//! Invariants: one end is told, once, and last; `Completed` never without `Started`; at most a window
//! of chunks is unacknowledged; no acknowledged byte is sent again, unless the receiver lost it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::{SnapshotFile, SnapshotSending, Travelling};

use super::wire::{self, Frame, MAX_CHUNK_BYTES, MAX_OFFER_BYTES, Offer, Refusal};
use crate::config::SnapshotLimits;
use crate::error::Error;

/// How often a receiver may lose what it had acknowledged before the transfer is given up. Each time
/// the acknowledgements begin anew, so the stall time-out alone would let that go on for ever.
pub const MAX_RESTARTS: u32 = 3;

/// A snapshot that is being sent.
pub struct SendingSnapshot {
    travelling: Travelling,
    offer: Bytes,
    file: Arc<dyn SnapshotFile>,
    limits: Limits,
    link: Link,
    /// Bytes that the receiver has.
    acked: u64,
    /// One past the highest byte that ever left.
    highest: u64,
    restarts: u32,
    resent_chunks: u64,
    /// When the last acknowledgement came, or the beginning.
    progress: Duration,
    /// The receiver has all bytes and checks the file; when it was last heard.
    checking: Option<Duration>,
    started: bool,
    ended: bool,
    events: Vec<SnapshotSending>,
}

/// What of the configuration counts here.
#[derive(Clone, Copy)]
struct Limits {
    chunk_bytes: usize,
    window_bytes: u64,
    stall_timeout: Duration,
    finish_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Offered,
    /// `next`: where the next chunk begins.
    Sending {
        next: u64,
    },
}

/// A piece of the file that is to be read.
pub struct ChunkRead {
    file: Arc<dyn SnapshotFile>,
    offset: u64,
    bytes: usize,
}

/// A chunk that was read and may leave.
pub struct Chunk {
    offset: u64,
    bytes: usize,
    frame: Bytes,
}

impl ChunkRead {
    /// Reads it. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn run(self) -> io::Result<Chunk> {
        let read = |buffer: &mut [u8]| self.file.read_exact_at(buffer, self.offset);
        Ok(Chunk {
            offset: self.offset,
            bytes: self.bytes,
            frame: wire::encode_chunk(self.offset, self.bytes, read)?,
        })
    }
}

impl Chunk {
    /// Its bytes of the file, what the rate limit counts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl SendingSnapshot {
    /// Begins to send the file of the snapshot that `envelope` names.
    ///
    /// # Errors
    /// It is no [`Message::InstallSnapshot`], or its membership is beyond the limit of an offer.
    pub fn new(
        envelope: Envelope,
        file: Box<dyn SnapshotFile>,
        limits: &SnapshotLimits,
        now: Duration,
    ) -> Result<Self, Error> {
        let Message::InstallSnapshot { snapshot } = envelope.message else {
            return Err(Error::Malformed("a message that goes without a file"));
        };
        let travelling = Travelling {
            group: envelope.group,
            to: envelope.to,
            index: snapshot.index,
        };
        let offer = wire::encode(&Frame::Offer(Offer {
            group: envelope.group,
            term: envelope.term,
            snapshot,
            bytes: file.bytes(),
            checksum: file.checksum(),
        }));
        if offer.len() > wire::HEADER_BYTES + MAX_OFFER_BYTES {
            return Err(Error::Malformed("a membership beyond the limits"));
        }
        let chunk_bytes = limits.chunk_bytes.clamp(1, MAX_CHUNK_BYTES);
        Ok(Self {
            travelling,
            offer,
            file: file.into(),
            limits: Limits {
                chunk_bytes,
                window_bytes: chunk_bytes as u64 * limits.window_chunks.max(1) as u64,
                stall_timeout: limits.stall_timeout,
                finish_timeout: limits.finish_timeout,
            },
            link: Link::Down,
            acked: 0,
            highest: 0,
            restarts: 0,
            resent_chunks: 0,
            progress: now,
            checking: None,
            started: false,
            ended: false,
            events: Vec::new(),
        })
    }

    /// What travels, and to whom.
    pub fn travelling(&self) -> Travelling {
        self.travelling
    }

    /// A new connection is up: what to write first. Whatever was on an older one is lost.
    pub fn connect(&mut self) -> Bytes {
        self.link = Link::Offered;
        self.offer.clone()
    }

    /// The connection broke; nothing that was on it will arrive.
    pub fn disconnected(&mut self) {
        self.link = Link::Down;
    }

    /// The piece of the file that should leave next, if the window has room for it. Asking again
    /// before [`SendingSnapshot::leave`] gives the same piece.
    pub fn next_chunk(&self) -> Option<ChunkRead> {
        let Link::Sending { next } = self.link else {
            return None;
        };
        let left = self.file.bytes() - next;
        let window = self.limits.window_bytes - (next - self.acked);
        let bytes = left.min(self.limits.chunk_bytes as u64);
        if self.ended || bytes == 0 || bytes > window {
            return None;
        }
        Some(ChunkRead {
            file: Arc::clone(&self.file),
            offset: next,
            bytes: usize::try_from(bytes).expect("at most chunk_bytes"),
        })
    }

    /// A chunk is about to be written: what to write. `None`: it was read for a connection that is
    /// gone, or the transfer has ended.
    pub fn leave(&mut self, chunk: Chunk) -> Option<Bytes> {
        let Link::Sending { next } = &mut self.link else {
            return None;
        };
        if self.ended || *next != chunk.offset {
            return None;
        }
        *next += chunk.bytes as u64;
        self.resent_chunks += u64::from(chunk.offset < self.highest);
        self.highest = self.highest.max(*next);
        self.start();
        Some(chunk.frame)
    }

    /// [`SendingSnapshot::next_chunk`], its reading and [`SendingSnapshot::leave`] in one, for callers
    /// that may block.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        match self.next_chunk()?.run() {
            Ok(chunk) => self.leave(chunk),
            Err(error) => {
                self.on_unreadable(&error);
                None
            }
        }
    }

    /// The file could not be read: given up, for another try would read the same.
    pub fn on_unreadable(&mut self, error: &io::Error) {
        let Travelling { group, to, index } = self.travelling;
        tracing::warn!(%group, %to, %index, %error, "cannot read a snapshot to send it");
        self.abort();
    }

    /// The receiver said something.
    ///
    /// # Errors
    /// The connection is of no use any more: it counts as broken, and a new one may go on.
    pub fn on_frame(&mut self, frame: Frame, now: Duration) -> Result<(), Error> {
        if self.ended {
            return Ok(());
        }
        if let Some(heard) = &mut self.checking {
            *heard = now;
        }
        let result = self.on_open_frame(frame, now);
        if result.is_err() {
            self.link = Link::Down;
        }
        result
    }

    fn on_open_frame(&mut self, frame: Frame, now: Duration) -> Result<(), Error> {
        match (frame, self.link) {
            (Frame::Alive, _) => Ok(()),
            (Frame::Resume { offset }, Link::Offered) => self.on_resume(offset, now),
            (Frame::Ack { offset }, Link::Sending { next }) => {
                if offset <= self.acked || offset > next {
                    return Err(Error::Malformed(
                        "an acknowledgement of what is not under way",
                    ));
                }
                self.on_acked(offset, now);
                Ok(())
            }
            (Frame::Done, Link::Offered) => {
                self.complete();
                Ok(())
            }
            (Frame::Done, Link::Sending { .. }) if self.checking.is_some() => {
                self.complete();
                Ok(())
            }
            (Frame::Refuse(Refusal::Busy), Link::Offered | Link::Sending { .. }) => {
                Err(Error::Busy)
            }
            (Frame::Refuse(refusal), Link::Offered | Link::Sending { .. }) => {
                let Travelling { group, to, index } = self.travelling;
                tracing::warn!(%group, %to, %index, %refusal, "a snapshot was refused");
                self.abort();
                Ok(())
            }
            (Frame::Refuse(_), Link::Down)
            | (
                Frame::Offer(_)
                | Frame::Chunk { .. }
                | Frame::Resume { .. }
                | Frame::Ack { .. }
                | Frame::Done,
                _,
            ) => Err(Error::Malformed("a frame that does not belong here")),
        }
    }

    fn on_resume(&mut self, offset: u64, now: Duration) -> Result<(), Error> {
        if offset > self.file.bytes() {
            return Err(Error::Malformed("more than the whole file"));
        }
        self.link = Link::Sending { next: offset };
        if offset < self.acked {
            self.restarts += 1;
            self.acked = offset;
            self.checking = None;
            if self.restarts > MAX_RESTARTS {
                self.abort();
            }
        } else if offset > self.acked || offset == self.file.bytes() {
            self.on_acked(offset, now);
        }
        Ok(())
    }

    fn on_acked(&mut self, offset: u64, now: Duration) {
        if offset > self.acked {
            self.progress = now;
        }
        self.acked = offset;
        if offset == self.file.bytes() && self.checking.is_none() {
            self.checking = Some(now);
        }
    }

    /// When it is given up if nothing is acknowledged until then. While the receiver checks the file
    /// it has longer, as long as it shows that it is still there.
    pub fn deadline(&self) -> Duration {
        match self.checking {
            None => self.progress + self.limits.stall_timeout,
            Some(heard) => {
                let finish = self.progress + self.limits.finish_timeout;
                finish.min(heard + self.limits.stall_timeout)
            }
        }
    }

    /// Time passed: gives up if it is too late.
    pub fn tick(&mut self, now: Duration) {
        if now >= self.deadline() {
            self.abort();
        }
    }

    /// Gives up; no effect after the end.
    pub fn abort(&mut self) {
        self.end(SnapshotSending::Aborted);
    }

    /// Whether its end is among the events, or was.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Bytes of the file that the receiver has.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// What happened since the last call, for watchers.
    pub fn take_events(&mut self) -> Vec<SnapshotSending> {
        std::mem::take(&mut self.events)
    }

    /// Chunks that left again since the last call: lost with their connection, or by the receiver.
    pub fn take_resent_chunks(&mut self) -> u64 {
        std::mem::take(&mut self.resent_chunks)
    }

    fn complete(&mut self) {
        self.start(); // the receiver may have had all of it without a chunk
        self.end(SnapshotSending::Completed);
    }

    fn start(&mut self) {
        if !self.started && !self.ended {
            self.started = true;
            self.events.push(SnapshotSending::Started);
        }
    }

    fn end(&mut self, end: SnapshotSending) {
        if !self.ended {
            self.ended = true;
            self.events.push(end);
        }
    }
}
