//! The orderly end of a mount.

use std::sync::Arc;
use std::time::Duration;

use super::{Hook, Shared, touch_record};
use crate::{Context, Error, ErrorKind, Result};

/// How long the end of a mount waits for writes to the origin that were given up.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

impl Shared {
    /// See [`ManagedMount::finish`](super::ManagedMount::finish).
    pub(super) async fn finish(self: &Arc<Self>) -> Result<()> {
        let mut result = Ok(());
        if let Some(hook) = self.options.hooks.before_close.clone() {
            result = result.and(self.hook("before-close", hook).await);
        }
        self.store.misses.close();
        self.tasks.ended().await;
        if let Some(announcer) = &self.announcer {
            announcer.end().await;
        }
        result
            .and(touch_record::record(self).await)
            .and(self.close().await)
            .and(self.settle().await)
    }

    /// The last checkpoint.
    async fn close(self: &Arc<Self>) -> Result<()> {
        let shared = Arc::clone(self);
        let close = move || {
            let idle = shared.store.map.end_writes();
            match idle {
                true => shared.checkpointer.close()?,
                false => shared.checkpointer.checkpoint()?,
            }
            Ok(idle)
        };
        let idle = self
            .tasks
            .blocking(close)
            .await
            .context_io(|| "cannot make the local store durable")?;
        match idle {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Busy,
                "a write is under way on the volume whose mount ends",
            )),
        }
    }

    /// Waits for writes to the origin that were given up.
    async fn settle(&self) -> Result<()> {
        match tokio::time::timeout(SETTLE_LIMIT, self.origin.settled()).await {
            Ok(settled) => settled.context_io(|| "cannot wait for the last writes to the origin"),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "a write to the origin that was given up still goes on after {} s: open the origin \
                     again only when it is over, or in another process when this one has ended",
                    SETTLE_LIMIT.as_secs()
                ),
            )),
        }
    }

    pub(super) async fn hook(&self, what: &'static str, hook: Hook) -> Result<()> {
        tokio::task::spawn_blocking(move || hook())
            .await
            .unwrap_or_else(|error| Err(Error::new(ErrorKind::Io, error.to_string())))
            .map_err(|error| {
                Error::new(error.kind(), format!("the {what} hook failed")).because(error)
            })
    }
}
