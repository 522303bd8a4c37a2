//! The ceiling: the same appends into one bare file, with one flusher, one `pwrite` and one
//! `fdatasync` for all that waits; no index, no recovery, nothing given back.
//!
//! The file is filled with zeros and synced first, then overwritten round and round, so that a sync
//! writes no metadata.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use atomic_wait::{wait, wake_all};
use parking_lot::Mutex;

use super::payload::payload;
use super::store::{Append, Store, Writer};
use super::sync_counter::SyncCounter;
use super::{BenchError, Stop};

const PAGE_BYTES: usize = 4096;
/// Checksum and length before each record.
const RECORD_HEADER_BYTES: usize = 8;
/// What recovery reads at a time.
const SCAN_BYTES: usize = 1 << 20;

/// What waits for the flusher.
#[derive(Default)]
struct Pending {
    buffer: Vec<u8>,
    /// Rises with each buffer that the flusher takes.
    epoch: u64,
}

struct Shared {
    file: File,
    file_bytes: u64,
    pending: Mutex<Pending>,
    /// Epochs that are durable.
    durable: AtomicU64,
    /// Changes when an even, or an odd, epoch is durable: its neighbours sleep on.
    done: [AtomicU32; 2],
    /// 1 when there may be work.
    work: AtomicU32,
    syncs: SyncCounter,
    failed: Mutex<Option<BenchError>>,
    /// Ends the flusher.
    end: Stop,
    stop: Stop,
}

/// See the module's documentation.
pub(super) struct Raw {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
    payload_bytes: u32,
}

impl Raw {
    /// A new file of `file_bytes` at `path`.
    pub(super) fn create(
        path: &Path,
        file_bytes: u64,
        payload_bytes: u32,
        stop: &Stop,
    ) -> Result<Self, BenchError> {
        let file = create(path)?;
        // In small steps: big writes fill the page cache with large folios, and the kernel's
        // `write_bytes` then counts a whole folio for every small overwrite.
        let page = [0; PAGE_BYTES];
        for offset in (0..file_bytes).step_by(PAGE_BYTES) {
            stop.check()?;
            let written = file.write_all_at(&page, offset);
            written.map_err(BenchError::file("filling", path))?;
        }
        file.sync_all().map_err(BenchError::file("syncing", path))?;
        let shared = Arc::new(Shared {
            file,
            file_bytes,
            pending: Mutex::default(),
            durable: AtomicU64::new(0),
            done: Default::default(),
            work: AtomicU32::new(0),
            syncs: SyncCounter::default(),
            failed: Mutex::new(None),
            end: Stop::default(),
            stop: stop.clone(),
        });
        shared.syncs.count();
        let flusher = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                if let Err(error) = shared.flush_until_end() {
                    *shared.failed.lock() = Some(error);
                    shared.stop.set();
                    shared.done.iter().for_each(change);
                }
            })
        };
        Ok(Self {
            shared,
            flusher: Some(flusher),
            payload_bytes,
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.shared.end.set();
        self.shared.call_flusher();
        if let Some(flusher) = self.flusher.take()
            && flusher.join().is_err()
        {
            eprintln!("the raw file's flusher panicked");
        }
    }
}

impl Shared {
    fn flush_until_end(&self) -> Result<(), BenchError> {
        let (mut buffer, mut position) = (Vec::new(), 0);
        loop {
            self.work.store(0, Ordering::SeqCst);
            let epoch = {
                let mut pending = self.pending.lock();
                std::mem::swap(&mut buffer, &mut pending.buffer);
                pending.epoch += u64::from(!buffer.is_empty());
                pending.epoch
            };
            if buffer.is_empty() {
                if self.end.check().is_err() {
                    return Ok(());
                }
                wait(&self.work, 0);
                continue;
            }
            if position + buffer.len() as u64 > self.file_bytes {
                position = 0;
            }
            let written = self.file.write_all_at(&buffer, position);
            written.map_err(BenchError::io("writing the raw file"))?;
            self.syncs.count();
            let synced = self.file.sync_data();
            synced.map_err(BenchError::io("syncing the raw file"))?;
            position += buffer.len() as u64;
            buffer.clear();
            self.durable.store(epoch, Ordering::SeqCst);
            change(self.done(epoch));
        }
    }

    /// One system call a batch: who finds the flusher called already calls it no more.
    fn call_flusher(&self) {
        if self.work.swap(1, Ordering::SeqCst) == 0 {
            wake_all(&raw const self.work);
        }
    }

    fn done(&self, epoch: u64) -> &AtomicU32 {
        &self.done[usize::from(!epoch.is_multiple_of(2))]
    }

    fn wait(&self, epoch: u64) -> Result<(), BenchError> {
        loop {
            let seen = self.done(epoch).load(Ordering::SeqCst);
            if self.durable.load(Ordering::SeqCst) >= epoch {
                return Ok(());
            }
            self.stop.check()?;
            wait(self.done(epoch), seen);
        }
    }
}

impl Store for Raw {
    fn writer(&self, _: u32) -> impl Writer {
        RawWriter {
            raw: self,
            record: Vec::new(),
        }
    }

    fn syncs(&self) -> u64 {
        self.shared.syncs.get()
    }

    fn check(&self) -> Result<(), BenchError> {
        self.shared.failed.lock().take().map_or(Ok(()), Err)
    }
}

struct RawWriter<'a> {
    raw: &'a Raw,
    record: Vec<u8>,
}

impl Writer for RawWriter<'_> {
    fn append(&mut self, round: &[Append]) -> Result<(), BenchError> {
        self.record.clear();
        for append in round {
            encode(&mut self.record, append, self.raw.payload_bytes);
        }
        let shared = &self.raw.shared;
        let epoch = {
            let mut pending = shared.pending.lock();
            pending.buffer.extend_from_slice(&self.record);
            pending.epoch + 1
        };
        shared.call_flusher();
        shared.wait(epoch)
    }
}

/// Changes a word and wakes who sleeps on it.
fn change(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
    wake_all(word);
}

fn create(path: &Path) -> Result<File, BenchError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path);
    file.map_err(BenchError::file("creating", path))
}

/// One record: checksum, length, the append's numbers, its payloads.
fn encode(out: &mut Vec<u8>, append: &Append, payload_bytes: u32) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    let group = u64::from(append.group);
    for number in [group, append.first, 1, 1, append.commit(), append.count] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for index in append.first..=append.last() {
        out.extend_from_slice(&payload_bytes.to_le_bytes());
        out.extend_from_slice(&payload(append.group, index, payload_bytes));
    }
    let body = &out[start + RECORD_HEADER_BYTES..];
    let length = u32::try_from(body.len()).expect("a small record");
    let crc = crc32fast::hash(body);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

/// Writes all rounds into a new file that grows, synced at the end: what [`scan`] reads.
pub(super) fn load(
    path: &Path,
    rounds: impl Iterator<Item = Vec<Append>>,
    payload_bytes: u32,
    stop: &Stop,
) -> Result<(), BenchError> {
    let file = create(path)?;
    let (mut buffer, mut offset) = (Vec::new(), 0);
    let mut write = |buffer: &mut Vec<u8>| {
        let written = file.write_all_at(buffer, offset);
        offset += buffer.len() as u64;
        buffer.clear();
        written.map_err(BenchError::file("writing", path))
    };
    for round in rounds {
        for append in &round {
            encode(&mut buffer, append, payload_bytes);
        }
        if buffer.len() >= SCAN_BYTES {
            stop.check()?;
            write(&mut buffer)?;
        }
    }
    write(&mut buffer)?;
    file.sync_all().map_err(BenchError::file("syncing", path))
}

/// Reads a file from front to end, checks every record, and returns how many entries it holds.
pub(super) fn scan(path: &Path) -> Result<u64, BenchError> {
    let file = File::open(path).map_err(BenchError::file("opening", path))?;
    let mut file = BufReader::with_capacity(SCAN_BYTES, file);
    let (mut entries, mut body) = (0, Vec::new());
    loop {
        let mut header = [0; RECORD_HEADER_BYTES];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(entries),
            Err(error) => return Err(BenchError::file("reading", path)(error)),
        }
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|nth| header[at + nth]));
        body.resize(number(4) as usize, 0);
        let read = file.read_exact(&mut body);
        read.map_err(BenchError::file("reading", path))?;
        if crc32fast::hash(&body) != number(0) {
            let what = "records of the raw file";
            return Err(BenchError::Wrong {
                what,
                wrong: 1,
                of: entries,
            });
        }
        let count: [u8; 8] = body[40..48].try_into().expect("eight bytes");
        entries += u64::from_le_bytes(count);
    }
}
