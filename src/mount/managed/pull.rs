//! The background pull: brings in what nobody has asked for yet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Shared;
use super::order::PullOrder;
use crate::volume::Priority;
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange, ByteOffset, ChunkIndex};

/// How much of the origin's map of holes is asked for at once, in bytes.
const MAP_BYTES: u64 = 1 << 30;

/// How long to wait after a failure of the origin or of the store; longer if there are many in a row, so
/// that a full disk does not cost what the link can carry.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// After how many failures in a row the pause is a second longer.
const FAILURES_A_SECOND: u32 = 16;

/// Pulls until everything is here. What fails is tried again for as long as the mount lives.
pub(super) async fn pull(shared: Arc<Shared>) {
    if matches!(shared.options.pull, PullOrder::Nothing) {
        return;
    }
    let workers = Arc::new(Semaphore::new(shared.pull_workers as usize));
    let chunk_bytes = shared.options.chunk_bytes;
    for chunk in shared.options.pull.first(&shared.geometry, chunk_bytes) {
        shared.pull_chunk(chunk, &workers).await;
    }
    loop {
        shared.pull_rest(&workers).await;
        // All workers idle: nothing is under way any more.
        drop(workers.acquire_many(shared.pull_workers).await);
        if shared
            .store
            .map
            .next_absent(BlockIndex(0), shared.end())
            .is_none()
        {
            break;
        }
        tokio::time::sleep(PAUSE_MIN).await;
    }
    shared.pulled.send_replace(true);
}

impl Shared {
    /// Goes through the volume once, from the first absent block to the last.
    async fn pull_rest(self: &Arc<Self>, workers: &Arc<Semaphore>) {
        let chunk_bytes = self.options.chunk_bytes;
        let mut at = BlockIndex(0);
        let mut holes_until = ByteOffset(0);
        while let Some(absent) = self.store.map.next_absent(at, self.end()) {
            let offset = absent.first.start();
            if self.origin.capabilities().sparse_map && offset >= holes_until {
                holes_until = self.fill_holes(offset).await;
                continue;
            }
            let chunk = offset.chunk(chunk_bytes);
            self.pull_chunk(chunk, workers).await;
            at = self.blocks_of(chunk).end;
        }
    }

    /// Starts to pull a chunk as soon as a worker is free.
    async fn pull_chunk(self: &Arc<Self>, chunk: ChunkIndex, workers: &Arc<Semaphore>) {
        let Ok(worker) = workers.clone().acquire_owned().await else {
            return;
        };
        let Some(absent) = self.absent_within(self.blocks_of(chunk)) else {
            return;
        };
        let fetch = self.fetch(chunk, absent, Priority::Pull);
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let failures = &shared.pull_failures;
            if fetch.ended().await.is_ok() {
                failures.store(0, Ordering::Relaxed);
            } else {
                let in_a_row = failures.fetch_add(1, Ordering::Relaxed);
                let more = Duration::from_secs(u64::from(in_a_row / FAILURES_A_SECOND));
                tokio::time::sleep((PAUSE_MIN + more).min(PAUSE_MAX)).await;
            }
            drop(worker);
        });
    }

    /// Asks the origin for its holes from `offset` on and makes them holes here, without asking for
    /// their bytes. Gives where what was asked about ends.
    async fn fill_holes(self: &Arc<Self>, offset: ByteOffset) -> ByteOffset {
        let end = ByteOffset((offset.0 + MAP_BYTES).min(self.geometry.resource_bytes()));
        let extents = match self.origin.allocated(offset.0..end.0).await {
            Ok(extents) => extents,
            Err(error) => {
                // Without a map the bytes are pulled; they will read as zeros as well.
                let _ = self.failed("map of holes", offset.0, MAP_BYTES as usize, &error);
                return end;
            }
        };
        self.deadline.answered();
        for extent in extents.into_iter().filter(|extent| !extent.data) {
            let mut range = extent.range;
            if range.end == self.geometry.resource_bytes() {
                range.end = range.end.next_multiple_of(BLOCK_BYTES);
            }
            let len = range.end - range.start;
            let blocks = BlockRange::inside(ByteOffset(range.start), len);
            if !blocks.is_empty() {
                let shared = Arc::clone(self);
                let filled = self
                    .tasks
                    .blocking(move || shared.fill_with_zeros(blocks))
                    .await;
                match filled {
                    Ok(()) => self.chunks_filled(blocks),
                    Err(error) => {
                        let _ = self.store_failed("hole", range.start, len as usize, &error);
                    }
                }
            }
        }
        end
    }

    fn chunks_filled(&self, blocks: BlockRange) {
        if self.announcer.is_some() {
            for (chunk, _) in blocks.by_chunk(self.options.chunk_bytes) {
                self.chunk_filled(chunk);
            }
        }
    }

    fn fill_with_zeros(&self, blocks: BlockRange) -> std::io::Result<()> {
        use crate::volume::Backend;
        let map = &self.store.map;
        for region in blocks.regions() {
            map.prepare_fill(region)?;
        }
        let claim = map.claim_fill(blocks);
        let done = claim.runs().iter().try_for_each(|run| {
            let (offset, len) = (run.first.start().0, run.len() * BLOCK_BYTES);
            self.store.data.write_zeroes(offset, len, false)
        });
        map.finish_fill(claim, done.is_ok());
        map.collapse_all(blocks);
        self.store.claim_released();
        done
    }

    /// The end of the volume.
    pub(super) fn end(&self) -> BlockIndex {
        BlockIndex(self.geometry.resource_bytes().div_ceil(BLOCK_BYTES))
    }
}
