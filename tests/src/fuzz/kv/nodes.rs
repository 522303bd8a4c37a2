//! Two machines in directories of their own, which many inputs share: to open one takes long.

use std::path::Path;
use std::sync::Arc;

use multiraft_engine::types::GroupId;
use multiraft_server::kv::{KvConfig, KvMachine};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Inputs before there are new directories: what groups leave behind in them is copied too.
const INPUTS: u32 = 64;

/// The machines, and how many groups they had.
pub struct Nodes {
    /// As of two nodes.
    pub all: [Node; 2],
    groups: u32,
}

/// A machine that can be killed.
pub struct Node {
    /// `None` between two lives.
    machine: Option<Arc<KvMachine>>,
    dir: TempDir,
}

impl Nodes {
    /// Calls `run` with a group that neither of them knows.
    pub fn with(run: impl FnOnce(&mut Self, GroupId)) {
        static NODES: Mutex<Option<Nodes>> = Mutex::new(None);
        let mut shared = NODES.lock();
        let mut nodes = shared.take().unwrap_or_else(|| Self {
            all: [(); 2].map(|()| Node::start(tempfile::tempdir().unwrap())),
            groups: 0,
        });
        nodes.groups += 1;
        let group = GroupId(nodes.groups);
        run(&mut nodes, group);
        *shared = (nodes.groups < INPUTS).then_some(nodes);
    }
}

impl Node {
    fn start(dir: TempDir) -> Self {
        let machine = Some(open(dir.path()));
        Self { machine, dir }
    }

    pub fn machine(&self) -> &KvMachine {
        self.machine.as_ref().expect("it runs")
    }

    /// The process is killed, and another one started.
    pub fn restart(&mut self) {
        self.machine = None;
        self.machine = Some(open(self.dir.path()));
    }

    /// What a process that is killed now leaves behind.
    pub fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), copy.path());
        copy
    }

    /// A process starts with what another one left behind.
    pub fn become_copy(&mut self, copy: TempDir) {
        *self = Self::start(copy);
    }
}

fn open(dir: &Path) -> Arc<KvMachine> {
    let cache_bytes = 1 << 20;
    KvMachine::open(dir, KvConfig { cache_bytes }).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
