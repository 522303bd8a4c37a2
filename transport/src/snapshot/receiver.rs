//! Snapshots on their way in: what one connection says, and the partial files of all of them.
//!
//! ```text
//! Incoming (one a connection)  ─ Offer ─▶ a place in the table ─ Resume(n), or Done, or Refuse
//!                              ─ Chunk ─▶ append ─ Ack ─ … ─ all bytes ─▶ finish ─ Done, message
//! connection breaks            the file stays in the table, and the next offer of it goes on
//! no progress for a while      [`Receiver::expire`] deletes it
//! ```
//! Calls of [`Incoming`] use the disk and may block for long; none holds the table's lock meanwhile:
//! who works on a file has taken it out of its place, and an offer that finds the place empty is
//! answered *busy*. So a place has one worker at most, and a hanging disk holds no second thread.
//!
//! Invariants: no more places than the limit; one place for each (sender, group), a newer offer of
//! another snapshot takes it over; a chunk is taken only right behind the last byte, so that what is
//! acknowledged is written once and in order; the message is delivered only when the store has
//! said that the whole file is durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use multiraft_engine::raft::message::Envelope;
use multiraft_engine::snapshot::{IncomingSnapshot, SnapshotError, SnapshotStore};
use multiraft_engine::types::{GroupId, NodeId};
use parking_lot::Mutex;

use super::wire::{Frame, Offer, Refusal};
use crate::config::SnapshotLimits;
use crate::error::Error;

/// All partial files of a node.
pub struct Receiver {
    store: Arc<dyn SnapshotStore>,
    places: usize,
    retention: Duration,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    closed: bool,
    connections: u64,
    partials: BTreeMap<Place, Partial>,
}

/// Who sends it, and whose it is.
type Place = (NodeId, GroupId);

struct Partial {
    offer: Offer,
    /// `None` while a thread works on it.
    file: Option<Box<dyn IncomingSnapshot>>,
    /// The connection that may add to it; `None` when that broke.
    owner: Option<u64>,
    /// When it last grew, or was offered.
    progress: Duration,
}

/// The ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Who sends.
    pub from: NodeId,
    /// The incarnation in its hello.
    pub incarnation: u64,
    /// This node.
    pub to: NodeId,
}

/// One connection's side of the table.
pub struct Incoming {
    receiver: Arc<Receiver>,
    ends: Ends,
    id: u64,
    current: Current,
}

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    /// Nothing, until there is an offer.
    Nothing,
    /// The file of this place.
    Transfer(Place),
    /// As `Nothing`; but the sender may not know yet that we gave up, and its chunks are skipped. To
    /// close the connection in their face could lose the word that says so (TCP resets it).
    Refused,
}

/// What to do about a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Say this, if anything.
    pub reply: Option<Frame>,
    /// And then?
    pub then: Then,
}

/// What follows a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// Wait for the next frame.
    Wait,
    /// Call [`Incoming::finish`] when the reply is on its way: all bytes are here.
    Finish,
    /// The snapshot has arrived: deliver its message.
    Deliver(Envelope),
}

impl Answer {
    fn new(reply: Frame, then: Then) -> Self {
        let reply = Some(reply);
        Self { reply, then }
    }

    fn nothing() -> Self {
        let (reply, then) = (None, Then::Wait);
        Self { reply, then }
    }
}

impl Receiver {
    /// Without partial files: the store deletes those of an earlier run.
    pub fn new(store: Arc<dyn SnapshotStore>, limits: &SnapshotLimits) -> Arc<Self> {
        Arc::new(Self {
            store,
            places: limits.parallel_receives,
            retention: limits.partial_retention,
            table: Mutex::default(),
        })
    }

    /// A new connection. Dropping it leaves its partial file for the next one.
    pub fn connection(self: &Arc<Self>, ends: Ends) -> Incoming {
        let mut table = self.table.lock();
        table.connections += 1;
        Incoming {
            receiver: Arc::clone(self),
            ends,
            id: table.connections,
            current: Current::Nothing,
        }
    }

    /// Deletes the files that did not grow for too long, and returns their number. Blocks.
    pub fn expire(&self, now: Duration) -> usize {
        let mut table = self.table.lock();
        let is_old = |partial: &Partial| partial.progress + self.retention <= now;
        let partials = std::mem::take(&mut table.partials);
        let (expired, kept): (BTreeMap<_, _>, _) = partials
            .into_iter()
            .partition(|(_, partial)| partial.file.is_some() && is_old(partial));
        table.partials = kept;
        drop(table);
        expired.len()
    }

    /// Deletes all partial files and takes no more: the end. Blocks.
    pub fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        let partials = std::mem::take(&mut table.partials);
        drop(table);
        drop(partials);
    }

    /// Partial files at the moment.
    pub fn partials(&self) -> usize {
        self.table.lock().partials.len()
    }
}

impl Table {
    /// Takes the file of a place out, if it is this connection's.
    fn take(&mut self, place: Place, owner: u64) -> Option<Box<dyn IncomingSnapshot>> {
        let partial = self.partials.get_mut(&place)?;
        partial.file.take_if(|_| partial.owner == Some(owner))
    }

    /// Makes room for one more; the file that had to go for it is returned.
    fn make_room(&mut self, places: usize) -> Result<Option<Partial>, Refusal> {
        if self.partials.len() < places {
            return Ok(None);
        }
        let left = |partial: &Partial| partial.owner.is_none() && partial.file.is_some();
        let mut idle: Vec<_> = self.partials.iter().filter(|(_, p)| left(p)).collect();
        idle.sort_by_key(|(_, partial)| partial.progress);
        let oldest = *idle.first().ok_or(Refusal::Busy)?.0;
        Ok(self.partials.remove(&oldest))
    }
}

/// What an offer finds in the table.
enum Found {
    /// Its file, with so many bytes.
    Begun(u64),
    /// A place, reserved; what was in its way is to be dropped without the lock.
    New(Option<Partial>),
}

impl Incoming {
    /// The sender said something. Blocks.
    ///
    /// # Errors
    /// The connection is to be ended; what was taken so far stays for the next one.
    pub fn on_frame(&mut self, frame: Frame, now: Duration) -> Result<Answer, Error> {
        match (frame, self.current) {
            (Frame::Offer(offer), Current::Nothing | Current::Refused) => {
                Ok(self.on_offer(&offer, now))
            }
            (Frame::Chunk { offset, bytes }, Current::Transfer(place)) => {
                self.on_chunk(place, offset, &bytes, now)
            }
            (Frame::Chunk { .. }, Current::Refused) => Ok(Answer::nothing()),
            (Frame::Chunk { .. }, Current::Nothing) => Err(Error::Malformed("a chunk of nothing")),
            (Frame::Offer(_), Current::Transfer(_)) => {
                Err(Error::Malformed("an offer within a transfer"))
            }
            (
                Frame::Resume { .. }
                | Frame::Ack { .. }
                | Frame::Done
                | Frame::Refuse(_)
                | Frame::Alive,
                _,
            ) => Err(Error::Malformed("a receiver's frame from a sender")),
        }
    }

    /// [`Incoming::on_frame`] and, if it is due, [`Incoming::finish`]: all replies, in order, and
    /// the message to deliver.
    ///
    /// # Errors
    /// As [`Incoming::on_frame`].
    pub fn on_frame_to_end(
        &mut self,
        frame: Frame,
        now: Duration,
    ) -> Result<(Vec<Frame>, Option<Envelope>), Error> {
        let mut answer = self.on_frame(frame, now)?;
        let mut replies = Vec::new();
        if answer.then == Then::Finish {
            replies.extend(answer.reply);
            answer = self.finish()?;
        }
        replies.extend(answer.reply);
        let delivered = match answer.then {
            Then::Deliver(envelope) => Some(envelope),
            Then::Wait | Then::Finish => None,
        };
        Ok((replies, delivered))
    }

    fn on_offer(&mut self, offer: &Offer, now: Duration) -> Answer {
        let place = (self.ends.from, offer.group);
        match self.find(place, offer, now) {
            Err(refusal) => self.refuse(refusal),
            Ok(Found::Begun(written)) => self.resume(place, written, offer),
            Ok(Found::New(in_the_way)) => {
                drop(in_the_way);
                match self.receiver.begin(offer) {
                    Err(refusal) => {
                        self.receiver.leave(place);
                        self.refuse(refusal)
                    }
                    Ok(None) => {
                        self.receiver.leave(place);
                        self.delivered(offer)
                    }
                    Ok(Some(file)) => {
                        self.receiver.put_back(place, file, now);
                        self.resume(place, 0, offer)
                    }
                }
            }
        }
    }

    /// Looks for the offered file in the table, or reserves a place for it.
    fn find(&self, place: Place, offer: &Offer, now: Duration) -> Result<Found, Refusal> {
        let mut table = self.receiver.table.lock();
        if table.closed {
            return Err(Refusal::Busy);
        }
        let owner = Some(self.id);
        let mut in_the_way = None;
        if let Some(partial) = table.partials.get_mut(&place) {
            let Some(file) = &partial.file else {
                return Err(Refusal::Busy);
            };
            if partial.offer.is_same_file(offer) {
                let written = file.written();
                partial.offer.term = offer.term;
                partial.owner = owner;
                partial.progress = now;
                return Ok(Found::Begun(written));
            }
            in_the_way = table.partials.remove(&place);
        } else if let Some(oldest) = table.make_room(self.receiver.places)? {
            in_the_way = Some(oldest);
        }
        let reserved = Partial {
            offer: offer.clone(),
            file: None,
            owner,
            progress: now,
        };
        table.partials.insert(place, reserved);
        Ok(Found::New(in_the_way))
    }

    fn resume(&mut self, place: Place, offset: u64, offer: &Offer) -> Answer {
        self.current = Current::Transfer(place);
        let then = if offset == offer.bytes {
            Then::Finish
        } else {
            Then::Wait
        };
        Answer::new(Frame::Resume { offset }, then)
    }

    fn refuse(&mut self, refusal: Refusal) -> Answer {
        self.current = Current::Refused;
        Answer::new(Frame::Refuse(refusal), Then::Wait)
    }

    fn delivered(&mut self, offer: &Offer) -> Answer {
        self.current = Current::Nothing;
        let Ends {
            from,
            incarnation,
            to,
        } = self.ends;
        let arrived = offer.envelope(from, to, incarnation);
        Answer::new(Frame::Done, Then::Deliver(arrived))
    }

    fn on_chunk(
        &mut self,
        place: Place,
        offset: u64,
        bytes: &Bytes,
        now: Duration,
    ) -> Result<Answer, Error> {
        let (mut file, length) = {
            let mut table = self.receiver.table.lock();
            let file = table.take(place, self.id);
            let file = file.ok_or(Error::Replaced(self.ends.from))?;
            (file, table.partials[&place].offer.bytes)
        };
        let written = file.written();
        if offset != written || bytes.is_empty() || bytes.len() as u64 > length - written {
            self.receiver.put_back(place, file, now);
            return Err(Error::Malformed("a chunk that does not follow"));
        }
        if let Err(error) = file.append(bytes) {
            drop(file);
            return Ok(self.give_up(place, &error));
        }
        let offset = file.written();
        self.receiver.put_back(place, file, now);
        let then = if offset == length {
            Then::Finish
        } else {
            Then::Wait
        };
        Ok(Answer::new(Frame::Ack { offset }, then))
    }

    /// All bytes are here: checks them, makes them durable. Blocks for as long as that takes.
    ///
    /// # Errors
    /// As [`Incoming::on_frame`].
    pub fn finish(&mut self) -> Result<Answer, Error> {
        let Current::Transfer(place) = self.current else {
            return Err(Error::Malformed("nothing to finish"));
        };
        let (file, offer) = {
            let mut table = self.receiver.table.lock();
            let file = table.take(place, self.id);
            let file = file.ok_or(Error::Replaced(self.ends.from))?;
            (file, table.partials[&place].offer.clone())
        };
        if let Err(error) = file.finish() {
            return Ok(self.give_up(place, &error));
        }
        self.receiver.leave(place);
        Ok(self.delivered(&offer))
    }

    fn give_up(&mut self, place: Place, error: &SnapshotError) -> Answer {
        let (from, group) = place;
        tracing::warn!(%from, %group, %error, "a snapshot on its way in is given up");
        self.receiver.leave(place);
        self.refuse(refusal(error))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Current::Transfer(place) = self.current else {
            return;
        };
        if let Some(partial) = self.receiver.table.lock().partials.get_mut(&place) {
            partial.owner.take_if(|owner| *owner == self.id);
        }
    }
}

impl Receiver {
    /// A file for what was offered; `None`: the store has that snapshot. One that it knows by another
    /// description is refused: the message that is delivered must describe the file that is here, and
    /// the log restarts by what the message says before anybody reads the file.
    fn begin(&self, offer: &Offer) -> Result<Option<Box<dyn IncomingSnapshot>>, Refusal> {
        let Offer {
            group,
            ref snapshot,
            bytes,
            checksum,
            ..
        } = *offer;
        match self.store.open(group, snapshot.index) {
            Ok(_) => {
                let mut known = self.store.of(group).into_iter();
                match known.find(|known| known.index == snapshot.index) {
                    Some(known) if known == *snapshot => return Ok(None),
                    Some(_) => return Err(Refusal::Damaged),
                    None => {} // removed meanwhile
                }
            }
            Err(SnapshotError::NotFound { .. } | SnapshotError::Damaged { .. }) => {}
            Err(error) => return Err(refusal(&error)),
        }
        let file = self.store.receive(group, snapshot, bytes, checksum);
        file.map(Some).map_err(|error| refusal(&error))
    }

    /// A file goes back to its place; nobody could take the place meanwhile, but all may have ended.
    fn put_back(&self, place: Place, file: Box<dyn IncomingSnapshot>, now: Duration) {
        let mut table = self.table.lock();
        if let Some(partial) = table.partials.get_mut(&place) {
            partial.file = Some(file);
            partial.progress = now;
        } else {
            assert!(table.closed, "a place with a worker was given away");
            drop(table);
            drop(file);
        }
    }

    /// The worker of a place gives it up.
    fn leave(&self, place: Place) {
        self.table.lock().partials.remove(&place);
    }
}

fn refusal(error: &SnapshotError) -> Refusal {
    match error {
        SnapshotError::NoRoom { .. } => Refusal::NoRoom,
        SnapshotError::Damaged { .. } => Refusal::Damaged,
        _ => Refusal::Failed, // `NotFound` is no answer to a write; `Io`; and what is yet to come
    }
}
