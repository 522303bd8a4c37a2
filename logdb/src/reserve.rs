//! Files ahead of need: the next segment exists, under its name, before the active one is full.
//!
//! A recycled or new file gets its name in the background, and the name is durable before the
//! file is handed out; so rolling to the next segment costs the writer no operation at all.
//! Names: a used-up segment becomes `spare-N.seg`, a spare becomes `<id>.seg`. A file is made
//! under a name in `.tmp` and renamed when its zeros are synced. Outlines of full segments are written here
//! too, and deleted before their segment's file is used again.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, DiskFile};
use crate::format::Generation;
use crate::outline::{self, Ending, Outline};
use crate::segment::SegmentId;
use multiraft_engine::planted;

const TMP: &str = "new.tmp";

/// A file that no batch lies in, under the name of its segment.
pub(crate) struct Prepared {
    pub(crate) id: SegmentId,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) bytes: u64,
}

/// An outline to be written.
struct Sketch {
    segment: SegmentId,
    file_bytes: u64,
    outline: Outline,
    ending: Ending,
}

/// Whether other batches may be written into a file that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Allowed,
    /// Somebody reads it.
    Forbidden,
}

/// What the writer and the background share; held for moments.
struct Desk {
    ready: Option<Prepared>,
    /// The id to prepare next.
    wanted: SegmentId,
    /// Segments that were given back, and the lengths of their files.
    retired: Vec<(SegmentId, u64, Reuse)>,
    sketches: Vec<Sketch>,
    stopping: bool,
}

/// The files on the shelf; held while the disk works.
struct Shelf {
    spares: Vec<String>,
    next_spare: u64,
    /// Segments that have an outline.
    outlined: BTreeSet<SegmentId>,
}

/// What a start finds beside the segments that count.
pub(crate) struct Left {
    pub(crate) spares: Vec<String>,
    pub(crate) ready: Option<Prepared>,
    /// Full segments that have an outline.
    pub(crate) outlined: BTreeSet<SegmentId>,
}

/// The prepared segment and the spares.
pub(crate) struct Reserve {
    disk: Arc<dyn Disk>,
    incarnation: u64,
    segment_bytes: u64,
    max_spares: usize,
    preallocated: usize,
    min_free_bytes: u64,
    desk: Mutex<Desk>,
    shelf: Mutex<Shelf>,
    wake: Condvar,
    has_room: AtomicBool,
}

impl Reserve {
    /// Starts with what is left in the directory; `wanted` is the id after the active one.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        incarnation: u64,
        options: &crate::Options,
        left: Left,
        wanted: SegmentId,
    ) -> Self {
        let Left {
            spares,
            ready,
            outlined,
        } = left;
        let numbers = spares.iter().filter_map(|name| spare_number(name));
        let next_spare = numbers.max().map_or(0, |n| n + 1);
        Self {
            disk,
            incarnation,
            segment_bytes: options.segment_bytes,
            max_spares: options.max_spares as usize,
            preallocated: options.preallocated as usize,
            min_free_bytes: options.min_free_bytes,
            desk: Mutex::new(Desk {
                ready,
                wanted,
                retired: Vec::new(),
                sketches: Vec::new(),
                stopping: false,
            }),
            shelf: Mutex::new(Shelf {
                spares,
                next_spare,
                outlined,
            }),
            wake: Condvar::new(),
            has_room: AtomicBool::new(true),
        }
    }

    /// Whether proposals may be accepted: the next segment stands ready for hard states and
    /// truncations, and the file system has its reserve. Asks the disk again after a no.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room.load(Ordering::Relaxed) || self.refresh_room()
    }

    /// Bytes that the file system has left; zero if it does not say.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.disk.free_bytes().unwrap_or(0)
    }

    /// Asks the disk; the writer does so at every batch, a microsecond beside a sync.
    pub(crate) fn refresh_room(&self) -> bool {
        let ready = self.desk.lock().ready.is_some();
        let free_bytes = self.free_bytes();
        // While the background prepares a segment, free space speaks for it.
        let room = free_bytes >= self.min_free_bytes && (ready || free_bytes >= self.segment_bytes);
        self.has_room.store(room, Ordering::Relaxed);
        room
    }

    /// Gives back a file whose segment is dead.
    pub(crate) fn retire(&self, id: SegmentId, bytes: u64, reuse: Reuse) {
        self.desk.lock().retired.push((id, bytes, reuse));
        self.wake.notify_one();
    }

    /// An outline to be written, of a segment to which nobody writes any more.
    pub(crate) fn put_outline(
        &self,
        segment: SegmentId,
        file_bytes: u64,
        outline: Outline,
        ending: Ending,
    ) {
        if outline.is_empty() {
            return;
        }
        self.desk.lock().sketches.push(Sketch {
            segment,
            file_bytes,
            outline,
            ending,
        });
        self.wake.notify_one();
    }

    /// Writes the outlines that wait. One that cannot be written is given up: its segment is read instead.
    pub(crate) fn store_outlines(&self) {
        loop {
            let mut files = self.shelf.lock(); // for one outline: the writer may wait for it
            let Some(sketch) = self.desk.lock().sketches.pop() else {
                return;
            };
            let Sketch {
                segment,
                file_bytes,
                outline,
                ending,
            } = sketch;
            let generation = Generation {
                incarnation: self.incarnation,
                segment,
            };
            match outline.store(&*self.disk, generation, file_bytes, ending) {
                Ok(()) => {
                    files.outlined.insert(segment);
                }
                Err(error) => {
                    tracing::warn!(%segment, %error, "no outline of a log segment: the next start reads it");
                }
            }
        }
    }

    /// The segment after the active one, of at least `min_bytes`. Waits for the disk only if the
    /// background has not kept up or the size is out of the ordinary.
    pub(crate) fn take_next(&self, min_bytes: u64) -> io::Result<Prepared> {
        {
            let mut desk = self.desk.lock();
            if let Some(ready) = desk.ready.take_if(|ready| ready.bytes >= min_bytes) {
                desk.wanted = ready.id.next();
                self.wake.notify_one();
                return Ok(ready);
            }
        }
        let mut files = self.shelf.lock();
        let (ready, id) = {
            let mut desk = self.desk.lock();
            (desk.ready.take(), desk.wanted)
        };
        let next = match ready {
            Some(ready) if ready.bytes >= min_bytes => ready,
            other => self.replace(&mut files, other, id, min_bytes)?,
        };
        self.desk.lock().wanted = next.id.next();
        self.wake.notify_one();
        Ok(next)
    }

    /// Makes a segment at once, putting one that is too small back to the spares.
    fn replace(
        &self,
        files: &mut Shelf,
        small: Option<Prepared>,
        id: SegmentId,
        min_bytes: u64,
    ) -> io::Result<Prepared> {
        self.shelve_retired(files)?;
        if let Some(small) = small {
            let name = small.id.file_name();
            if small.bytes == self.segment_bytes {
                let spare = files.new_name();
                self.disk.rename(&name, &spare)?;
                files.spares.push(spare);
            } else {
                self.disk.remove(&name)?; // of an earlier setting
            }
        }
        self.prepare(files, id, min_bytes.max(self.segment_bytes))
    }

    fn prepare(&self, files: &mut Shelf, id: SegmentId, bytes: u64) -> io::Result<Prepared> {
        let spare = match files.spares.pop() {
            Some(spare) if bytes == self.segment_bytes => spare,
            kept => {
                files.spares.extend(kept);
                self.disk.create(TMP, bytes)?;
                TMP.to_owned()
            }
        };
        self.disk.rename(&spare, &id.file_name())?;
        if !planted!("B8") {
            self.disk.sync_dir()?;
        }
        let file = self.disk.open_durable(&id.file_name())?;
        Ok(Prepared { id, file, bytes })
    }

    fn shelve_retired(&self, files: &mut Shelf) -> io::Result<()> {
        let mut retired = std::mem::take(&mut self.desk.lock().retired).into_iter();
        while let Some((id, bytes, reuse)) = retired.next() {
            if let Err(error) = self.shelve(files, id, bytes, reuse) {
                let mut desk = self.desk.lock();
                desk.retired.push((id, bytes, reuse));
                desk.retired.extend(retired);
                return Err(error);
            }
        }
        Ok(())
    }

    fn shelve(&self, files: &mut Shelf, id: SegmentId, bytes: u64, reuse: Reuse) -> io::Result<()> {
        let name = id.file_name();
        self.desk.lock().sketches.retain(|s| s.segment != id);
        if files.outlined.contains(&id) {
            match self.disk.remove(&outline::file_name(id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => files.outlined.remove(&id),
            };
        }
        let fits = bytes == self.segment_bytes && files.spares.len() < self.max_spares;
        if fits && reuse == Reuse::Allowed {
            let spare = files.new_name();
            self.disk.rename(&name, &spare)?;
            files.spares.push(spare);
            return Ok(());
        }
        self.disk.remove(&name)
    }

    /// One round of the background's work: shelves what was given back, prepares what is next.
    ///
    /// Tells whether there is more to do. An error leaves the log without a prepared segment, hence without
    /// room; it is tried again at the next round.
    pub(crate) fn turn(&self) -> io::Result<bool> {
        let mut files = self.shelf.lock();
        self.shelve_retired(&mut files)?;
        let wanted = {
            let desk = self.desk.lock();
            desk.ready.is_none().then_some(desk.wanted)
        };
        if let Some(id) = wanted {
            let next = self.prepare(&mut files, id, self.segment_bytes)?;
            self.desk.lock().ready = Some(next);
            self.refresh_room();
        }
        let is_made = self.preallocate(&mut files);
        drop(files);
        self.store_outlines();
        Ok(is_made)
    }

    /// Makes one spare ahead of need, if more are wanted and the file system has room for it beside its reserve.
    fn preallocate(&self, files: &mut Shelf) -> bool {
        let needed = self.min_free_bytes.saturating_add(2 * self.segment_bytes);
        if files.spares.len() >= self.preallocated || self.free_bytes() < needed {
            return false;
        }
        let spare = files.new_name();
        let made = self.disk.create(TMP, self.segment_bytes);
        let made = made.and_then(|_| self.disk.rename(TMP, &spare));
        match made {
            Ok(()) => files.spares.push(spare),
            Err(error) => {
                tracing::warn!(%error, "no log segment was made ahead of need");
                return false;
            }
        }
        true
    }

    /// The background thread: works until told to stop.
    pub(crate) fn run(&self) {
        while !self.desk.lock().stopping {
            let turn = self.turn();
            if matches!(turn, Ok(true)) {
                continue;
            }
            if let Err(error) = turn {
                tracing::warn!(%error, "no next log segment; proposals wait for disk space");
                self.refresh_room();
                let mut desk = self.desk.lock();
                if !desk.stopping {
                    self.wake.wait_for(&mut desk, RETRY);
                }
                continue;
            }
            let mut desk = self.desk.lock();
            let is_idle = desk.retired.is_empty() && desk.sketches.is_empty();
            if !desk.stopping && desk.ready.is_some() && is_idle {
                self.wake.wait(&mut desk);
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.desk.lock().stopping = true;
        self.wake.notify_all();
    }
}

/// How long the background waits before it asks a full disk again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);

impl Shelf {
    fn new_name(&mut self) -> String {
        let name = format!("spare-{}.seg", self.next_spare);
        self.next_spare += 1;
        name
    }
}

/// The number of a spare's file name; `None` for other files.
pub(crate) fn spare_number(name: &str) -> Option<u64> {
    name.strip_prefix("spare-")?
        .strip_suffix(".seg")?
        .parse()
        .ok()
}

/// Whether a crash left a half-made file under this name.
pub(crate) fn is_half_made(name: &str) -> bool {
    name == TMP
}
