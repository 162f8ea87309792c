//! The signals that tell a process to end: SIGINT, SIGTERM, and SIGHUP when its terminal goes.

use blockferry::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// These signals, caught.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Catches them from here on. Has to be called in a runtime.
    pub(super) fn catch() -> Result<Self> {
        let of = |kind| signal(kind).context_io(|| "cannot catch signals");
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hang_up: of(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them. May be cancelled.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
