//! When the store is made durable: for those who ask, together where they can be, and unasked, so that
//! a power cut costs little of what was pulled.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::Shared;
use crate::volume::Outcome;

/// The checkpoints that were asked for.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    begun: AtomicU64,
    /// The last one that succeeded.
    succeeded: Mutex<u64>,
}

impl Shared {
    /// Makes everything that was written durable in the store. Those who ask while a checkpoint is
    /// under way share the next one.
    pub(super) async fn checkpoint(self: &Arc<Self>) -> Outcome {
        let checkpoints = &self.checkpoints;
        let begun = checkpoints.begun.load(Ordering::Acquire);
        let mut succeeded = checkpoints.succeeded.lock().await;
        if *succeeded > begun {
            // It began after this was asked for.
            return Ok(());
        }
        let number = checkpoints.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let checkpointer = Arc::clone(&self.checkpointer);
        self.tasks
            .blocking(move || checkpointer.checkpoint())
            .await
            .map_err(|error| self.store_failed("checkpoint", 0, 0, &error))?;
        *succeeded = number;
        Ok(())
    }

    /// Makes the bytes of the store durable that were written before. What the origin was told to keep
    /// would otherwise be overwritten there after a power cut, by what this disk had before.
    pub(super) async fn sync_store(&self) -> io::Result<()> {
        let checkpointer = Arc::clone(&self.checkpointer);
        self.tasks
            .blocking(move || checkpointer.sync_data())
            .await
            .inspect_err(|error| {
                let _ = self.store_failed("sync", 0, 0, error);
            })
    }
}

/// How often.
const INTERVAL: Duration = Duration::from_secs(10);

/// Makes checkpoints while there is something to save, withdraws write intents of regions that
/// became clean, has regions that became alike give their bits up, and gives memory back.
pub(super) async fn keep_durable(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        for buffers in [&shared.buffers, &shared.local_buffers] {
            buffers.give_back_unused();
        }
        let map = &shared.store.map;
        if map.needs_checkpoint() || map.unsaved_regions().next().is_some() {
            let checkpointer = Arc::clone(&shared.checkpointer);
            let saved = shared
                .tasks
                .blocking(move || checkpointer.checkpoint_in_background())
                .await;
            if let Err(error) = saved {
                // It was logged, shows in the status, and makes every later flush fail.
                let _ = shared.store_failed("checkpoint", 0, 0, &error);
            }
        }
        let checkpointer = Arc::clone(&shared.checkpointer);
        let settled = shared
            .tasks
            .blocking(move || checkpointer.settle_intents())
            .await;
        if let Err(error) = settled {
            let _ = shared.store_failed("write intents", 0, 0, &error);
        }
        let quiet = Arc::clone(&shared);
        let collapse = move || {
            quiet.store.map.collapse_quiet();
            Ok(())
        };
        // It cannot fail, and another time does as well.
        let _ = shared.tasks.blocking(collapse).await;
    }
}
