//! The signals that end a process in good order.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT (Ctrl-C) and SIGTERM, from the moment this is made: one that comes while nobody waits is not lost.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Returns when one has come. Dropping the future loses nothing.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_waits_is_not_lost() {
        for name in ["-INT", "-TERM"] {
            let mut signals = StopSignals::new().expect("they can be had");
            let own = id().to_string();
            let sent = Command::new("kill").args([name, &own]).status();
            assert!(sent.expect("there is kill").success());
            tokio::time::sleep(Duration::from_millis(20)).await;
            let seen = tokio::time::timeout(Duration::from_secs(30), signals.recv());
            seen.await.expect("it is seen");
        }
    }
}
