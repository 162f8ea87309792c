//! Local writes on their way to the origin.
//!
//! In sweeps: everything dirty is sent, all of it is waited for, the origin flushes, and only then
//! the blocks are clean (L8). What is written meanwhile goes with the next sweep, once, however
//! often it was written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Shared;
use crate::volume::geometry::BlockIndex;
use crate::volume::{Errno, Priority};

/// How long to wait after a failure, at most.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Who waits for sweeps, and how far they are.
#[derive(Debug)]
pub(super) struct Pushes {
    wanted: AtomicU64,
    asked: Notify,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Everything that was wanted up to this number was swept.
    sweep: u64,
    /// How the last sweep ended.
    errno: Option<Errno>,
    /// There will be no more.
    over: bool,
}

impl Pushes {
    pub(super) fn new() -> Self {
        Self {
            wanted: AtomicU64::new(0),
            asked: Notify::new(),
            progress: watch::Sender::default(),
        }
    }

    /// Waits until everything that was written before this call is durable at the origin.
    async fn wait_for_sweep(&self) -> io::Result<()> {
        let mut progress = self.progress.subscribe();
        let ticket = self.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        self.asked.notify_one();
        let reached = progress
            .wait_for(|progress| progress.sweep >= ticket || progress.over)
            .await
            .map_err(io::Error::other)?;
        match (reached.sweep >= ticket, reached.errno) {
            (true, None) => Ok(()),
            (true, Some(errno)) => Err(errno.into()),
            (false, _) => Err(io::Error::other("the mount has ended")),
        }
    }

    /// Whether somebody waits for what the next sweep does.
    fn is_wanted(&self, ticket: u64) -> bool {
        self.progress.borrow().sweep < ticket
    }
}

/// Nobody sweeps any more, once this is dropped.
pub(super) struct Sweeper(Arc<Shared>);

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0
            .pushes
            .progress
            .send_modify(|progress| progress.over = true);
    }
}

impl Sweeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Sweeps again and again: at each interval while something is dirty (unless nothing is to be
    /// pushed by itself), and whenever somebody asks.
    pub(super) async fn push(self) {
        let shared = &self.0;
        let mut pause = Duration::ZERO;
        loop {
            let interval = shared.options.push_interval.max(pause);
            tokio::select! {
                () = shared.pushes.asked.notified() => {}
                () = tokio::time::sleep(interval) => {
                    if !shared.options.push || shared.store.map.counts().dirty == 0 {
                        continue;
                    }
                }
            }
            // Whoever asked before the sweep began is answered by it.
            let ticket = shared.pushes.wanted.load(Ordering::Acquire);
            let swept = shared.sweep(ticket).await;
            pause = match &swept {
                Ok(()) => Duration::ZERO,
                Err(_) => (pause * 2).clamp(Duration::from_millis(500), PAUSE_MAX),
            };
            shared.pushes.progress.send_modify(|progress| {
                progress.sweep = ticket;
                progress.errno = swept.err().map(Errno::from);
            });
        }
    }
}

impl Shared {
    /// Makes everything that was written before this call durable at the origin.
    pub(super) async fn sweep_all(&self) -> io::Result<()> {
        if self.read_only {
            return match self.dirty_bytes() {
                0 => Ok(()),
                _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            };
        }
        self.pushes.wait_for_sweep().await
    }

    /// Sends everything that is dirty and makes it durable at the origin. What somebody waits for
    /// does not stay behind what is pulled.
    async fn sweep(self: &Arc<Self>, ticket: u64) -> io::Result<()> {
        let priority = match self.pushes.is_wanted(ticket) {
            true => Priority::ReadAhead,
            false => Priority::Push,
        };
        let mut at = BlockIndex(0);
        while let Some(next) = self.send_batch(at, priority).await? {
            at = next;
        }
        Ok(())
    }
}
