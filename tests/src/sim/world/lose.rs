//! Groups that are given up in a node's log after damage.

use rand::Rng;

use super::World;
use crate::sim::faults::Fault;

/// Ticks, on average, until the operators look whether a node needs a hand to come back.
const LOOK_TICKS: u64 = 60;

impl World {
    /// A group is given up in a node's log. Only while everybody else has all of theirs, as with a wiped disk.
    pub(super) fn lose(&mut self, at: usize) {
        let id = self.nodes[at].id;
        if !self.may_forget(id) {
            return;
        }
        self.crash(at);
        let group = self.any_group();
        let is_forgotten = self.rng.random();
        if let Some(hard_state) = self.nodes[at].lose(group, is_forgotten) {
            self.invariants.on_lose(id, group, hard_state);
            self.lost = Some((group, id));
            self.fault(Fault::Lose, Some(id), || format!("g{group}"));
        }
    }

    /// The node comes back by itself, unless it crashes on the way: then its operator lets it join again.
    pub(super) fn find_again_sometimes(&mut self) {
        let Some((group, id)) = self.lost else {
            return;
        };
        if self.rng.random_range(0..LOOK_TICKS) > 0 {
            return;
        }
        if self.is_complete(group) && self.is_known_everywhere(id) {
            self.lost = None;
        } else if self.rng.random_bool(0.3) {
            self.join_absent();
        }
    }
}
