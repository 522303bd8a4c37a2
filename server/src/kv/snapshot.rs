//! The bytes of a group's state in a snapshot; the only file that knows them. What a row's own bytes
//! mean is known to `rows` alone.
//!
//! ```text
//! state   = header | row … | end                   one stream, integers little endian
//! header  = "MRKVSNAP", version u32, applied u64, term u64, revision u64
//! row     = kind u8 (1 of keys, 2 of revisions), key length u32, value length u32, key, value
//! end     = 255 u8, rows of keys u64, rows of revisions u64, CRC-32 of all before u32
//! ```
//! Rows are sorted by kind, then by key, and their keys are without the group: equal states give
//! equal bytes on each replica, and a snapshot can be taken over under another group's id.
//!
//! Invariants:
//! - All history is in it: a read at an old revision has the same answer on each replica.
//! - What is not whole is noticed here, whatever the file around it says: a snapshot cut short has
//!   no end.
//! - Neither side holds more than a few rows at once; no length is believed before the bytes came.
//!
//! The checksum guards the whole way from one machine to the other. Of the rows it is checked that
//! each decodes and fits the group's revision, but not that each points to one that is there: the
//! writer's store was of one piece.

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};

use multiraft_engine::snapshot::{SnapshotIn, SnapshotOut, SnapshotView};
use multiraft_engine::types::{GroupId, Index, Term};

use super::check::MAX_KEY_BYTES;
use super::rows::{FIRST_REVISION, GroupState, MAX_ROW_VALUE_BYTES, RowKind, without_group};
use super::store::{View, damaged_row};

const MAGIC: [u8; 8] = *b"MRKVSNAP";
/// The version written, and the only one read.
const VERSION: u32 = 1;
const KIND_KEY: u8 = 1;
const KIND_REVISION: u8 = 2;
const KIND_END: u8 = 255;

/// Bytes that are read or written at once, and by which a buffer grows towards a row's length.
const STEP_BYTES: usize = 64 << 10;

/// One group at one moment, to be written while the group goes on.
pub(super) struct GroupView {
    view: View,
    group: GroupId,
    state: GroupState,
}

impl GroupView {
    /// What `view` shows of a group; `state` is what it says of itself there.
    pub fn new(view: View, group: GroupId, state: GroupState) -> Self {
        Self { view, group, state }
    }
}

impl SnapshotView for GroupView {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        let mut out = Summed::new(BufWriter::with_capacity(STEP_BYTES, out));
        write_header(&mut out, self.state)?;
        let mut counts = [0_u64; RowKind::ALL.len()];
        for (kind, count) in RowKind::ALL.into_iter().zip(&mut counts) {
            for row in self.view.rows(self.group, kind) {
                let (row_key, value) = row.map_err(io::Error::other)?;
                let key = without_group(&row_key);
                // Damage here must not travel to the peers.
                if !kind.is_sound(key, &value, self.state.revision) {
                    let error = damaged_row(self.group, kind);
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
                write_row(&mut out, kind, key, &value)?;
                *count += 1;
            }
        }
        write_end(&mut out, counts)?;
        out.inner.flush()
    }
}

fn write_header(out: &mut impl Write, state: GroupState) -> io::Result<()> {
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&state.applied.0.to_le_bytes())?;
    out.write_all(&state.term.0.to_le_bytes())?;
    out.write_all(&state.revision.to_le_bytes())
}

fn write_row(out: &mut impl Write, kind: RowKind, key: &[u8], value: &[u8]) -> io::Result<()> {
    let kind = match kind {
        RowKind::Key => KIND_KEY,
        RowKind::Revision => KIND_REVISION,
    };
    out.write_all(&[kind])?;
    out.write_all(&length(key)?.to_le_bytes())?;
    out.write_all(&length(value)?.to_le_bytes())?;
    out.write_all(key)?;
    out.write_all(value)
}

fn write_end<W: Write>(out: &mut Summed<W>, counts: [u64; RowKind::ALL.len()]) -> io::Result<()> {
    out.write_all(&[KIND_END])?;
    for count in counts {
        out.write_all(&count.to_le_bytes())?;
    }
    let sum = out.sum();
    out.write_all(&sum.to_le_bytes())
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| invalid("a row is too long"))
}

/// One row read; its key is without the group.
pub(super) struct Row<'a> {
    pub kind: RowKind,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Reads a group's state, checking each byte. What is wrong is an [`ErrorKind::InvalidData`].
pub(super) struct Reader<'a> {
    from: Summed<BufReader<&'a mut dyn SnapshotIn>>,
    state: GroupState,
    /// The row read last, to compare the next one with; `None` before the first.
    last: Option<RowKind>,
    key: Vec<u8>,
    value: Vec<u8>,
    key_before: Vec<u8>,
    counts: [u64; RowKind::ALL.len()],
}

impl<'a> Reader<'a> {
    /// Reads the header.
    pub fn open(from: &'a mut dyn SnapshotIn) -> io::Result<Self> {
        let mut from = Summed::new(BufReader::with_capacity(STEP_BYTES, from));
        if from.take_bytes()? != MAGIC {
            return Err(invalid("not a state of the key-value machine"));
        }
        let version = from.take_u32()?;
        if version != VERSION {
            return Err(unknown_version(version));
        }
        let state = GroupState {
            applied: Index(from.take_u64()?),
            term: Term(from.take_u64()?),
            revision: from.take_u64()?,
        };
        // The API's revisions are signed.
        if state.revision < FIRST_REVISION || i64::try_from(state.revision).is_err() {
            return Err(invalid("a revision that no group has"));
        }
        Ok(Self {
            from,
            state,
            last: None,
            key: Vec::new(),
            value: Vec::new(),
            key_before: Vec::new(),
            counts: [0; RowKind::ALL.len()],
        })
    }

    /// How far the group was.
    pub fn state(&self) -> GroupState {
        self.state
    }

    /// The next row; after the last one checks the end and that nothing follows, then `None`.
    pub fn next(&mut self) -> io::Result<Option<Row<'_>>> {
        let [kind] = self.from.take_bytes()?;
        let kind = match kind {
            KIND_KEY => RowKind::Key,
            KIND_REVISION => RowKind::Revision,
            KIND_END => return self.check_end().map(|()| None),
            _ => return Err(invalid("a kind of row that is not known")),
        };
        let key_bytes = self.take_length(MAX_KEY_BYTES)?;
        let value_bytes = self.take_length(MAX_ROW_VALUE_BYTES)?;
        std::mem::swap(&mut self.key, &mut self.key_before);
        self.from.fill(&mut self.key, key_bytes)?;
        self.from.fill(&mut self.value, value_bytes)?;
        let is_sorted = self
            .last
            .is_none_or(|last| (last, self.key_before.as_slice()) < (kind, self.key.as_slice()));
        if !is_sorted {
            return Err(invalid("rows are not in order"));
        }
        if !kind.is_sound(&self.key, &self.value, self.state.revision) {
            return Err(invalid("a row does not decode"));
        }
        self.last = Some(kind);
        self.counts[kind as usize] += 1;
        Ok(Some(Row {
            kind,
            key: &self.key,
            value: &self.value,
        }))
    }

    fn take_length(&mut self, limit: usize) -> io::Result<usize> {
        usize::try_from(self.from.take_u32()?)
            .ok()
            .filter(|length| *length <= limit)
            .ok_or_else(|| invalid("a row is too long"))
    }

    fn check_end(&mut self) -> io::Result<()> {
        for count in self.counts {
            if self.from.take_u64()? != count {
                return Err(invalid("rows are missing"));
            }
        }
        let sum = self.from.sum();
        if self.from.take_u32()? != sum {
            return Err(invalid("the checksum is not right"));
        }
        let from = &mut self.from.inner;
        let more = from.by_ref().bytes().next().transpose()?;
        if more.is_some() || from.get_mut().next_file()?.is_some() {
            return Err(invalid("there is more after the end"));
        }
        Ok(())
    }
}

/// A reader or writer, and the checksum of what went through.
struct Summed<T> {
    inner: T,
    hasher: crc32fast::Hasher,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        let hasher = crc32fast::Hasher::new();
        Self { inner, hasher }
    }

    fn sum(&self) -> u32 {
        self.hasher.clone().finalize()
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Summed<R> {
    fn take_bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn take_u32(&mut self) -> io::Result<u32> {
        self.take_bytes().map(u32::from_le_bytes)
    }

    fn take_u64(&mut self) -> io::Result<u64> {
        self.take_bytes().map(u64::from_le_bytes)
    }

    /// Replaces what is in `buffer` by the next `bytes` bytes. Grows it as they come: a length that
    /// lies costs no memory.
    fn fill(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> io::Result<()> {
        buffer.clear();
        while buffer.len() < bytes {
            let start = buffer.len();
            buffer.resize(start + STEP_BYTES.min(bytes - start), 0);
            self.take_exact(&mut buffer[start..])?;
        }
        Ok(())
    }

    fn take_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => invalid("it ends too early"),
                _ => error,
            })?;
        self.hasher.update(bytes);
        Ok(())
    }
}

/// What is wrong with a state's bytes.
#[derive(Debug, thiserror::Error)]
#[error("a group's state: {0}")]
struct Invalid(&'static str);

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, Invalid(what))
}

/// The sender is newer: this node is to be upgraded.
#[derive(Debug, thiserror::Error)]
#[error("a group's state in version {0}, this node reads version {VERSION}")]
struct UnknownVersion(u32);

fn unknown_version(version: u32) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, UnknownVersion(version))
}

/// A state that is not the one that was announced.
#[derive(Debug, thiserror::Error)]
#[error("a group's state at {found:?}, not at {wanted:?}")]
struct Mismatch {
    found: (Index, Term),
    wanted: (Index, Term),
}

/// Whether the state is that after entry `index` of term `term`.
pub(super) fn check_position(state: GroupState, index: Index, term: Term) -> io::Result<()> {
    let (found, wanted) = ((state.applied, state.term), (index, term));
    if found == wanted {
        return Ok(());
    }
    let error = Mismatch { found, wanted };
    Err(io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
pub(super) mod tests;
