//! When it is written in which order chunks were first touched: at the end, and now and then before, so
//! that a kill costs little of it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Shared, order};
use crate::Result;

/// How often, at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// As many times as long as it took is the pause behind it.
const PAUSE_FACTOR: u32 = 100;

/// Records while the mount lives, whenever more was touched.
pub(super) async fn keep_recorded(shared: Arc<Shared>) {
    let Some(touched) = &shared.store.touched else {
        return;
    };
    let (mut recorded, mut pause) = (touched.count(), INTERVAL);
    loop {
        tokio::time::sleep(pause).await;
        let count = touched.count();
        if count == recorded {
            continue;
        }
        let begun = Instant::now();
        match record(&shared).await {
            Ok(()) => recorded = count,
            Err(error) => shared.note_error(error.chain()),
        }
        pause = INTERVAL.max(begun.elapsed() * PAUSE_FACTOR);
    }
}

/// Records, if that is wanted.
pub(super) async fn record(shared: &Arc<Shared>) -> Result<()> {
    let recording = Arc::clone(shared);
    let saved = shared.tasks.blocking(move || {
        let (Some(path), Some(touched)) =
            (&recording.options.record_heat, &recording.store.touched)
        else {
            return Ok(Ok(()));
        };
        let chunk_bytes = recording.options.chunk_bytes;
        Ok(order::save(path, &touched.order(), chunk_bytes))
    });
    let cannot = |error: io::Error| crate::Error::io("cannot record what was touched", error);
    saved.await.map_err(cannot)?
}
