//! Pauses between attempts to reach a peer.

use std::time::Duration;

use rand::Rng;

use crate::config::Config;

/// Doubles from [`Config::backoff_min`] to [`Config::backoff_max`].
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with the shortest pause.
    pub fn new(config: &Config) -> Self {
        Self {
            min: config.backoff_min,
            max: config.backoff_max,
            next: config.backoff_min,
        }
    }

    /// It went well: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Waits. Half of the pause is drawn, so that many nodes do not return in step.
    pub async fn pause(&mut self) {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        let drawn = pause.mul_f64(rand::rng().random_range(0.0..0.5));
        tokio::time::sleep(pause / 2 + drawn).await;
    }
}
