//! How fast all snapshots together may leave.

use std::time::Duration;

/// A token bucket that holds one chunk, told the time by its caller.
///
/// Who wants to send reserves, and is told when its turn is. Turns are given in the order of asking,
/// so no transfer starves another. In any `t` seconds no more leaves than `t` times the rate and one
/// chunk.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// When all that was reserved so far has passed at the rate.
    paid: Duration,
}

impl RateLimit {
    /// Of so many bytes a second; 0 = no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            paid: Duration::ZERO,
        }
    }

    /// Reserves `bytes`, and tells from what time on they may leave: `now`, or later.
    pub fn reserve(&mut self, bytes: usize, now: Duration) -> Duration {
        if self.bytes_per_second == 0 {
            return now;
        }
        let turn = self.paid.max(now);
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.paid = turn + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        turn
    }
}
