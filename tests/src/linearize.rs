//! Is a history of concurrent operations on one register linearizable (Herlihy and Wing 1990)?
//!
//! The search of Wing and Gong with the memory of Lowe: try each operation that could come first
//! among those left, and never come back to the same set of done operations with the same state.

use std::collections::HashSet;

/// What a client did to the register. Zero is the empty register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read this.
    Get(u64),
    /// Wrote the second and found the first, if it was told.
    Put(Option<u64>, u64),
    /// Wrote the second if the first was there; found the third, if it was told.
    Swap(u64, u64, Option<u64>),
}

/// An operation with its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What.
    pub operation: Operation,
    /// When it was asked.
    pub start: u64,
    /// When it was answered; `None`: never, so it may have happened at any time since, or not.
    pub end: Option<u64>,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains all answers.
    Linearizable,
    /// There is none.
    Violation,
    /// The search was given up.
    TooHard,
}

/// States visited before the search is given up.
const LIMIT: usize = 2_000_000;

impl Operation {
    /// The register after it; `None`: it could not have got its answer here.
    fn apply(self, state: u64) -> Option<u64> {
        match self {
            Self::Get(found) => (found == state).then_some(state),
            Self::Put(found, new) => found.is_none_or(|found| found == state).then_some(new),
            Self::Swap(expected, new, found) => {
                let fits = found.is_none_or(|found| found == state);
                fits.then_some(if expected == state { new } else { state })
            }
        }
    }
}

/// Searches for an order. The register is empty at first.
pub fn check(calls: &[Call]) -> Verdict {
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| (call.end.is_none(), call.start));
    let mut search = Search {
        answered: calls.iter().filter(|call| call.end.is_some()).count(),
        done: vec![0; calls.len().div_ceil(64)],
        calls: &calls,
        seen: HashSet::new(),
    };
    // A stack of our own: histories are longer than a thread's stack is deep.
    let mut path = vec![search.step(None, 0, 0)];
    while let Some(step) = path.last_mut() {
        if step.first == search.answered {
            return Verdict::Linearizable;
        }
        if search.seen.len() > LIMIT {
            return Verdict::TooHard;
        }
        let first = step.first;
        let Some((at, next)) = search.next(step) else {
            let undone = path.pop().and_then(|step| step.by);
            if let Some(at) = undone {
                search.set(at, false);
            }
            continue;
        };
        search.set(at, true);
        if search.seen.insert((search.done.clone(), next)) {
            path.push(search.step(Some(at), next, first));
        } else {
            search.set(at, false);
        }
    }
    Verdict::Violation
}

/// A place in the search.
struct Step {
    state: u64,
    /// The operation that led here.
    by: Option<usize>,
    /// The first answered operation that is left.
    first: usize,
    /// When the first answer among those left was given: what began later cannot come next.
    deadline: u64,
    /// The next operation to try.
    cursor: usize,
}

struct Search<'a> {
    /// The answered ones in the order of their starts, then those that were never answered.
    calls: &'a [Call],
    /// How many were answered.
    answered: usize,
    /// A bit for each operation that has its place.
    done: Vec<u64>,
    seen: HashSet<(Vec<u64>, u64)>,
}

impl Search<'_> {
    fn is_done(&self, at: usize) -> bool {
        self.done[at / 64] & (1 << (at % 64)) != 0
    }

    fn set(&mut self, at: usize, done: bool) {
        let bit = 1 << (at % 64);
        if done {
            self.done[at / 64] |= bit;
        } else {
            self.done[at / 64] &= !bit;
        }
    }

    /// The place after the operation `by`, where everything before `from` is done.
    fn step(&self, by: Option<usize>, state: u64, from: usize) -> Step {
        let left = (from..self.answered).find(|&at| !self.is_done(at));
        let first = left.unwrap_or(self.answered);
        let mut deadline = u64::MAX;
        for (at, call) in (first..).zip(&self.calls[first..self.answered]) {
            if call.start > deadline {
                break;
            }
            if !self.is_done(at) {
                deadline = deadline.min(call.end.unwrap_or(u64::MAX));
            }
        }
        Step {
            state,
            by,
            first,
            deadline,
            cursor: first,
        }
    }

    /// The next operation that may come first among those left, and the register after it.
    fn next(&self, step: &mut Step) -> Option<(usize, u64)> {
        while step.cursor < self.calls.len() {
            let at = step.cursor;
            step.cursor += 1;
            if self.calls[at].start > step.deadline {
                if at >= self.answered {
                    return None;
                }
                step.cursor = self.answered;
            } else if !self.is_done(at)
                && let Some(next) = self.calls[at].operation.apply(step.state)
            {
                return Some((at, next));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Operation::{Get, Put, Swap};
    use super::*;

    fn call(operation: Operation, start: u64, end: u64) -> Call {
        Call {
            operation,
            start,
            end: Some(end),
        }
    }

    fn lost(operation: Operation, start: u64) -> Call {
        Call {
            operation,
            start,
            end: None,
        }
    }

    #[test]
    fn histories_are_told_apart() {
        use Verdict::{Linearizable, Violation};
        for (name, calls, verdict) in [
            ("nothing happened", vec![], Linearizable),
            (
                "one after the other",
                vec![call(Put(Some(0), 1), 0, 1), call(Get(1), 2, 3)],
                Linearizable,
            ),
            (
                "a read beside a write sees either",
                vec![
                    call(Put(None, 1), 0, 9),
                    call(Get(0), 1, 2),
                    call(Get(1), 3, 4),
                ],
                Linearizable,
            ),
            (
                "and not first the new, then the old",
                vec![
                    call(Put(None, 1), 0, 9),
                    call(Get(1), 1, 2),
                    call(Get(0), 3, 4),
                ],
                Violation,
            ),
            (
                "a stale read",
                vec![
                    call(Put(None, 1), 0, 1),
                    call(Put(None, 2), 2, 3),
                    call(Get(1), 4, 5),
                ],
                Violation,
            ),
            (
                "a lost write",
                vec![call(Put(None, 1), 0, 1), call(Get(0), 2, 3)],
                Violation,
            ),
            (
                "a write that nobody made",
                vec![call(Put(None, 1), 0, 1), call(Get(7), 2, 3)],
                Violation,
            ),
            (
                "an unknown write takes effect late",
                vec![
                    lost(Put(None, 1), 0),
                    call(Get(0), 5, 6),
                    call(Get(1), 7, 8),
                ],
                Linearizable,
            ),
            (
                "an unknown write takes effect never",
                vec![lost(Put(None, 1), 0), call(Get(0), 5, 6)],
                Linearizable,
            ),
            (
                "an unknown write takes effect once",
                vec![
                    lost(Put(None, 1), 0),
                    call(Get(1), 5, 6),
                    call(Put(Some(1), 2), 7, 8),
                    call(Get(1), 9, 10),
                ],
                Violation,
            ),
            (
                "not before it was asked",
                vec![call(Get(1), 0, 1), lost(Put(None, 1), 2)],
                Violation,
            ),
            (
                "a swap that failed found something else",
                vec![
                    call(Put(None, 1), 0, 1),
                    call(Swap(9, 2, Some(1)), 2, 3),
                    call(Get(1), 4, 5),
                ],
                Linearizable,
            ),
            (
                "two swaps from one value cannot both win",
                vec![
                    call(Swap(0, 1, Some(0)), 0, 9),
                    call(Swap(0, 2, Some(0)), 0, 9),
                    call(Get(2), 10, 11),
                ],
                Violation,
            ),
            (
                "what a write found must have been there",
                vec![call(Put(Some(3), 1), 0, 1)],
                Violation,
            ),
        ] {
            assert_eq!(check(&calls), verdict, "{name}");
        }
    }

    #[test]
    fn a_long_history_with_many_unknowns_is_decided() {
        let mut calls = Vec::new();
        for i in 1..400_u64 {
            calls.push(call(Put(None, 2 * i), 4 * i, 4 * i + 2));
            calls.push(call(Get(2 * i), 4 * i + 2, 4 * i + 3));
            if i % 40 == 0 {
                calls.push(lost(Put(None, 2 * i + 1), 4 * i));
            }
        }
        assert_eq!(check(&calls), Verdict::Linearizable);
        calls.push(call(Get(2), 5000, 5001));
        assert_eq!(check(&calls), Verdict::Violation);
    }
}
