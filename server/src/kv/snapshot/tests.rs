#![allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
//! States that are well formed but for one thing, and snapshots in memory for other tests.

use bytes::Bytes;
use multiraft_proto::mvccpb::KeyValue;

use super::*;
use crate::kv::rows::{KeyRow, Revision, RevisionRow, revision_key};

/// A snapshot being written, in memory.
#[derive(Debug, Default)]
pub struct Memory(pub Vec<u8>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotOut for Memory {
    fn begin_file(&mut self, name: &str) -> io::Result<()> {
        panic!("all is in one stream, and not in {name}");
    }
}

/// What happens where a reader has taken all bytes up to some place.
type Hook<'a> = Box<dyn FnOnce() -> io::Result<()> + 'a>;

/// A snapshot being read, from memory.
pub struct Source<'a> {
    bytes: &'a [u8],
    position: usize,
    hook: Option<(usize, Hook<'a>)>,
    files: usize,
}

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            hook: None,
            files: 0,
        }
    }

    /// Calls `hook` when all before `at` is read and more is asked for; an error of it is the
    /// reader's.
    pub fn with_hook(
        bytes: &'a [u8],
        at: usize,
        hook: impl FnOnce() -> io::Result<()> + 'a,
    ) -> Self {
        Self {
            hook: Some((at, Box::new(hook))),
            ..Self::new(bytes)
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let due = self.hook.take_if(|(at, _)| *at <= self.position);
        if let Some((_, hook)) = due {
            hook()?;
        }
        let stop = self.hook.as_ref().map_or(self.bytes.len(), |(at, _)| *at);
        let read = (&self.bytes[self.position..stop]).read(buffer)?;
        self.position += read;
        Ok(read)
    }
}

impl SnapshotIn for Source<'_> {
    fn next_file(&mut self) -> io::Result<Option<String>> {
        let file = self.files.checked_sub(1);
        self.files = file.unwrap_or_default();
        Ok(file.map(|_| "beside".to_owned()))
    }
}

const STATE: GroupState = GroupState {
    applied: Index(9),
    term: Term(3),
    revision: 7,
};

fn state_bytes(rows: &[(RowKind, Vec<u8>, Vec<u8>)], counts: [u64; 2]) -> Vec<u8> {
    let mut out = Summed::new(Vec::new());
    write_header(&mut out, STATE).unwrap();
    for (kind, key, value) in rows {
        write_row(&mut out, *kind, key, value).unwrap();
    }
    write_end(&mut out, counts).unwrap();
    out.inner
}

fn key_row(key: &str) -> (RowKind, Vec<u8>, Vec<u8>) {
    let row = KeyRow {
        modified: Revision { main: 7, sub: 0 },
        created: 7,
        version: 1,
    };
    (RowKind::Key, key.into(), row.encode())
}

fn revision_row(main: u64, sub: u32) -> (RowKind, Vec<u8>, Vec<u8>) {
    let row = RevisionRow {
        previous: Revision::default(),
        kv: KeyValue {
            key: Bytes::from_static(b"k"),
            mod_revision: i64::try_from(main).unwrap(),
            version: 1,
            ..KeyValue::default()
        },
    };
    let key = revision_key(GroupId(0), Revision { main, sub });
    (
        RowKind::Revision,
        without_group(&key).to_vec(),
        row.encode(),
    )
}

/// Reads all; the rows, or what was wrong.
fn read_all(source: &mut Source<'_>) -> Result<usize, String> {
    let mut read = || {
        let mut reader = Reader::open(source)?;
        assert_eq!(reader.state(), STATE);
        let mut rows = 0;
        while reader.next()?.is_some() {
            rows += 1;
        }
        Ok(rows)
    };
    read().map_err(|error: io::Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        error.to_string()
    })
}

#[test]
fn a_whole_state_is_read() {
    let rows = [
        key_row("k"),
        key_row("ka"),
        key_row("l"),
        revision_row(6, 1),
        revision_row(7, 0),
    ];
    let bytes = state_bytes(&rows, [3, 2]);
    assert_eq!(read_all(&mut Source::new(&bytes)), Ok(5));
    assert_eq!(read_all(&mut Source::new(&state_bytes(&[], [0, 0]))), Ok(0));
}

#[test]
fn rows_out_of_order_or_missing_are_refused() {
    let order = "rows are not in order";
    let missing = "rows are missing";
    for (rows, counts, want) in [
        (vec![key_row("b"), key_row("a")], [2, 0], order),
        (vec![key_row("a"), key_row("a")], [2, 0], order),
        (vec![revision_row(7, 0), key_row("a")], [1, 1], order),
        (vec![revision_row(7, 0), revision_row(6, 1)], [0, 2], order),
        (vec![key_row("a")], [2, 0], missing),
        (vec![key_row("a")], [0, 1], missing),
        (vec![revision_row(7, 0)], [0, 0], missing),
        (vec![revision_row(8, 0)], [0, 1], "a row does not decode"),
    ] {
        let bytes = state_bytes(&rows, counts);
        let error = read_all(&mut Source::new(&bytes)).unwrap_err();
        assert!(error.contains(want), "{error}, not {want}");
    }
}

#[test]
fn other_bytes_are_refused_by_name() {
    let good = state_bytes(&[key_row("k")], [1, 0]);
    let header_bytes = state_bytes(&[], [0, 0]).len() - 21;
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    for (bytes, want) in [
        (with(0, b"m"), "not a state of the key-value machine"),
        (with(8, &[2]), "in version 2, this node reads version 1"),
        (with(28, &[0]), "a revision that no group has"),
        (with(35, &[0x80]), "a revision that no group has"),
        (with(header_bytes, &[3]), "a kind of row that is not known"),
        (
            with(good.len() - 1, &[good[good.len() - 1] ^ 1]),
            "the checksum is not right",
        ),
        (good[..good.len() - 1].to_vec(), "it ends too early"),
        (Vec::new(), "it ends too early"),
        ([&good[..], b"."].concat(), "there is more after the end"),
    ] {
        let error = read_all(&mut Source::new(&bytes)).unwrap_err();
        assert!(error.contains(want), "{error}, not {want}");
    }
    let mut with_file = Source {
        files: 1,
        ..Source::new(&good)
    };
    let error = read_all(&mut with_file).unwrap_err();
    assert!(error.contains("there is more after the end"), "{error}");
}

#[test]
fn lengths_at_the_limit_are_believed_only_as_bytes_come() {
    let long = "k".repeat(MAX_KEY_BYTES);
    let bytes = state_bytes(&[key_row(&long)], [1, 0]);
    assert_eq!(read_all(&mut Source::new(&bytes)), Ok(1));
    let bytes = state_bytes(&[key_row(&(long + "k"))], [1, 0]);
    let error = read_all(&mut Source::new(&bytes)).unwrap_err();
    assert!(error.contains("a row is too long"), "{error}");

    // A value that claims to be of the longest length, and is cut off after a few bytes.
    let mut out = Summed::new(Vec::new());
    write_header(&mut out, STATE).unwrap();
    for (claimed, want) in [
        (MAX_ROW_VALUE_BYTES, "it ends too early"),
        (MAX_ROW_VALUE_BYTES + 1, "a row is too long"),
    ] {
        let mut bytes = out.inner.clone();
        bytes.push(KIND_REVISION);
        bytes.extend(12_u32.to_le_bytes());
        bytes.extend(u32::try_from(claimed).unwrap().to_le_bytes());
        bytes.extend([0; 12 + 5]);
        let mut source = Source::new(&bytes);
        let mut reader = Reader::open(&mut source).unwrap();
        let error = reader.next().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{error}, not {want}");
        assert!(reader.value.capacity() <= 2 * STEP_BYTES);
    }
}

#[test]
fn a_state_at_another_entry_is_refused() {
    assert!(check_position(STATE, Index(9), Term(3)).is_ok());
    for (index, term) in [(8, 3), (9, 2), (10, 4)] {
        let error = check_position(STATE, Index(index), Term(term)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
