//! What `handoff` and `waiting` synchronise threads with. Tests build those two over another module of this shape.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard as Guard};

/// Locks a mutex.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Guard<'_, T> {
    mutex.lock()
}

/// Gives a lock up until somebody wakes, or now and then for no reason.
pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: Guard<'a, T>) -> Guard<'a, T> {
    condvar.wait(&mut guard);
    guard
}

/// Gives a lock up; returns when somebody wakes, after this time at most.
pub(crate) fn rest<T>(condvar: &Condvar, mut guard: Guard<'_, T>, time: Duration) {
    condvar.wait_for(&mut guard, time);
}

/// Sleeps while a word has this value, or returns for no reason.
pub(crate) fn sleep_on(word: &AtomicU32, value: u32) {
    atomic_wait::wait(word, value);
}

/// Wakes all that sleep on a word.
pub(crate) fn wake_all(word: &AtomicU32) {
    atomic_wait::wake_all(word);
}
