//! The end that comes from outside: Ctrl-C, or a failure in another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::BenchError;

/// How often who waits looks whether it should go on.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// Told once, seen by all threads of a benchmark.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Everything ends soon.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Refuses when everything is to end.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        if self.0.load(Ordering::Acquire) {
            return Err(BenchError::Stopped);
        }
        Ok(())
    }

    /// Sleeps until `end`, or until `check` or somebody else says that it should stop.
    pub(super) fn sleep_until(
        &self,
        end: Instant,
        mut check: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        loop {
            self.check()?;
            check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(POLL));
        }
    }
}
