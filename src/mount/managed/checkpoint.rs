//! When the store is made durable unasked, so that a power cut costs little of what was pulled.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;

/// How often.
const INTERVAL: Duration = Duration::from_secs(10);

/// Makes checkpoints while there is something to save, and withdraws write intents of regions that
/// became clean.
pub(super) async fn keep_durable(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
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
    }
}
