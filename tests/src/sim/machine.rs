//! A small deterministic key-value machine: what it has applied survives a crash only up to its last
//! flush, as the engine's trait allows.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multiraft_engine::block::Entry;
use multiraft_engine::snapshot::{SnapshotIn, SnapshotOut, SnapshotView};
use multiraft_engine::state_machine::{RestoreError, StateMachine};
use multiraft_engine::types::{GroupId, Index, Term};
use parking_lot::Mutex;

/// A key.
pub type Key = u8;
/// A value: the serial number of the write that made it, unique in a run. Zero: nothing.
pub type Value = u64;

/// What a client wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Sets a key.
    Put(Key, Value),
    /// Sets it if it has the first value.
    Swap(Key, Value, Value),
    /// Clears it; the number only makes the entry unique.
    Delete(Key, Value),
}

impl Command {
    /// The bytes of an entry.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        let (kind, key, old, new) = match self {
            Self::Put(key, new) => (1, key, 0, new),
            Self::Swap(key, old, new) => (2, key, old, new),
            Self::Delete(key, new) => (3, key, 0, new),
        };
        out.put_u8(kind);
        out.put_u8(key);
        out.put_u64_le(old);
        out.put_u64_le(new);
        out.freeze()
    }

    /// Nothing but our commands and empty entries is ever in a log.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        assert!(bytes.len() == 18, "an entry that no client proposed");
        let (kind, key) = (bytes.get_u8(), bytes.get_u8());
        let (old, new) = (bytes.get_u64_le(), bytes.get_u64_le());
        Some(match kind {
            1 => Self::Put(key, new),
            2 => Self::Swap(key, old, new),
            3 => Self::Delete(key, new),
            _ => panic!("an entry of unknown kind {kind}"),
        })
    }
}

/// What became of a command: where it was applied, and the value that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// The entry.
    pub index: Index,
    /// Before it.
    pub old: Value,
}

/// One group's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Applied up to.
    pub applied: Index,
    /// What is set.
    pub keys: BTreeMap<Key, Value>,
}

impl State {
    /// What the view wrote; the file's checksums have seen to it that it is.
    fn decode(mut bytes: &[u8]) -> Self {
        let applied = Index(bytes.get_u64_le());
        let mut keys = BTreeMap::new();
        while !bytes.is_empty() {
            let key = bytes.get_u8();
            keys.insert(key, bytes.get_u64_le());
        }
        Self { applied, keys }
    }

    fn apply(&mut self, entry: &Entry) -> Output {
        assert!(
            entry.index == self.applied.next(),
            "entry {} applied after {}",
            entry.index,
            self.applied
        );
        self.applied = entry.index;
        let index = entry.index;
        let kind_is_command = entry.kind == multiraft_engine::block::EntryKind::Normal;
        let command = kind_is_command.then(|| Command::decode(&entry.payload));
        let Some(command) = command.flatten() else {
            return Output { index, old: 0 };
        };
        let (Command::Put(key, _) | Command::Swap(key, ..) | Command::Delete(key, _)) = command;
        let old = self.keys.get(&key).copied().unwrap_or(0);
        match command {
            Command::Put(key, new) => {
                self.keys.insert(key, new);
            }
            Command::Swap(key, expected, new) if expected == old => {
                self.keys.insert(key, new);
            }
            Command::Swap(..) => {}
            Command::Delete(key, _) => {
                self.keys.remove(&key);
            }
        }
        Output { index, old }
    }
}

type Groups = BTreeMap<GroupId, State>;

/// All groups of a node.
#[derive(Debug, Default)]
pub struct Machine(Mutex<(Groups, Groups)>);

impl Machine {
    /// The process ended: what was not flushed is lost.
    pub fn crash(&self) {
        let (now, flushed) = &mut *self.0.lock();
        now.clone_from(flushed);
    }

    /// One group as it is now.
    pub fn state(&self, group: GroupId) -> State {
        self.0.lock().0.get(&group).cloned().unwrap_or_default()
    }
}

impl StateMachine for Machine {
    type Output = Output;
    type Error = Infallible;

    fn applied(&self, group: GroupId) -> Result<Index, Infallible> {
        Ok(self.state(group).applied)
    }

    fn apply(&self, entries: &[(GroupId, Entry)]) -> Result<Vec<Output>, Infallible> {
        let groups = &mut self.0.lock().0;
        let apply =
            |(group, entry): &(GroupId, Entry)| groups.entry(*group).or_default().apply(entry);
        Ok(entries.iter().map(apply).collect())
    }

    fn flush(&self) -> Result<(), Infallible> {
        let (now, flushed) = &mut *self.0.lock();
        flushed.clone_from(now);
        Ok(())
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotView>, Infallible> {
        Ok(Box::new(self.state(group)))
    }

    fn restore(
        &self,
        group: GroupId,
        index: Index,
        _: Term,
        from: &mut dyn SnapshotIn,
    ) -> Result<(), RestoreError<Infallible>> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        assert!(from.next_file()?.is_none(), "a file that nobody wrote");
        let state = State::decode(&bytes);
        assert!(
            state.applied == index,
            "another snapshot than was announced"
        );
        let (now, flushed) = &mut *self.0.lock();
        now.insert(group, state.clone());
        flushed.insert(group, state);
        Ok(())
    }

    fn remove(&self, group: GroupId) -> Result<(), Infallible> {
        let (now, flushed) = &mut *self.0.lock();
        now.remove(&group);
        flushed.remove(&group);
        Ok(())
    }
}

impl SnapshotView for State {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        out.write_all(&self.applied.0.to_le_bytes())?;
        for (key, value) in &self.keys {
            out.write_all(&[*key])?;
            out.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }
}
