//! The signals that tell a process to end: SIGINT, SIGTERM, and SIGHUP when its terminal goes.

use std::time::Duration;

use blockferry::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// A signal that follows another within this time says no more than that one: a terminal and what was
/// started in it may both pass Ctrl-C on.
const SAME_WITHIN: Duration = Duration::from_secs(1);

/// These signals, caught.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// When the last one came that counted.
    last: Option<Instant>,
}

impl Signals {
    /// Catches them from here on. Has to be called in a runtime.
    pub(super) fn catch() -> Result<Self> {
        let of = |kind| signal(kind).context_io(|| "cannot catch signals");
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hang_up: of(SignalKind::hangup())?,
            last: None,
        })
    }

    /// Waits for one of them, those left out that follow another within a second. May be cancelled.
    pub(super) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
                _ = self.hang_up.recv() => {}
            }
            if self.last.is_none_or(|last| last.elapsed() >= SAME_WITHIN) {
                self.last = Some(Instant::now());
                return;
            }
        }
    }
}
