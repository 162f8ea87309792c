//! One fetch a chunk, however many wait for it; and how its bytes get into the store.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::Shared;
use super::buffers::{Buffer, Purpose};
use super::flow::UnderWay;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ChunkIndex};
use crate::volume::{Backend, Errno, Outcome, Priority};

/// The fetches that are under way or wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    by_chunk: Mutex<HashMap<ChunkIndex, Arc<Fetch>>>,
}

impl Fetches {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkIndex, Arc<Fetch>>> {
        self.by_chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }
}

/// Blocks of one chunk on their way into the store.
#[derive(Debug)]
pub(super) struct Fetch {
    chunk: ChunkIndex,
    blocks: BlockRange,
    urgency: AtomicU8,
    raised: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Fetch {
    fn new(chunk: ChunkIndex, blocks: BlockRange, priority: Priority) -> Self {
        Self {
            chunk,
            blocks,
            urgency: AtomicU8::new(priority as u8),
            raised: Notify::new(),
            outcome: watch::Sender::new(None),
        }
    }

    /// Somebody more urgent waits for it too. Once its request was sent that changes nothing.
    fn raise(&self, priority: Priority) {
        if self.urgency.fetch_min(priority as u8, Ordering::Relaxed) > priority as u8 {
            self.raised.notify_one();
        }
    }

    fn priority(&self) -> Priority {
        match self.urgency.load(Ordering::Relaxed) {
            0 => Priority::Demand,
            1 => Priority::ReadAhead,
            _ => Priority::Pull,
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => (*outcome).unwrap_or(Err(Errno::EIO)),
            Err(_) => Err(Errno::EIO),
        }
    }
}

impl Shared {
    /// The fetch of this chunk: the one that there is, or a new one for `blocks`, all of them in the
    /// chunk.
    pub(super) fn fetch(
        self: &Arc<Self>,
        chunk: ChunkIndex,
        blocks: BlockRange,
        priority: Priority,
    ) -> Arc<Fetch> {
        let mut fetches = self.fetches.lock();
        if let Some(fetch) = fetches.get(&chunk) {
            fetch.raise(priority);
            return Arc::clone(fetch);
        }
        let fetch = Arc::new(Fetch::new(chunk, blocks, priority));
        fetches.insert(chunk, Arc::clone(&fetch));
        drop(fetches);
        let (shared, running) = (Arc::clone(self), Arc::clone(&fetch));
        self.tasks.spawn(async move {
            let outcome = shared.run_fetch(&running).await;
            shared.fetches.lock().remove(&running.chunk);
            running.outcome.send_replace(Some(outcome));
        });
        fetch
    }

    async fn run_fetch(self: &Arc<Self>, fetch: &Fetch) -> Outcome {
        let blocks = fetch.blocks;
        let (offset, len) = self.bytes_of(blocks);
        let (mut buffer, under_way) = self.turn(fetch, blocks, len).await;
        let to = &mut buffer.bytes_mut()[..len];
        let count = self
            .origin
            .read_at(to, offset, fetch.priority())
            .await
            .map_err(|error| self.failed("fetch", offset, len, &error))?;
        self.deadline.answered();
        under_way.arrived();
        self.counters.fetched(len as u64);
        // What is past the end of what the origin has reads as zeros (L9).
        buffer.bytes_mut()[count.min(len)..].fill(0);
        let (shared, chunk) = (Arc::clone(self), fetch.chunk);
        self.tasks
            .blocking(move || {
                shared.fill(blocks, &buffer)?;
                shared.chunk_filled(chunk);
                Ok(())
            })
            .await
            .map_err(|error| self.store_failed("fill", offset, len, &error))
    }

    /// Waits for memory and for the link, unless somebody urgent waits for the chunk.
    async fn turn(&self, fetch: &Fetch, blocks: BlockRange, len: usize) -> (Buffer, UnderWay<'_>) {
        let buffer_bytes = (blocks.len() * BLOCK_BYTES) as usize;
        if fetch.priority() != Priority::Demand {
            let bulk = async {
                if fetch.priority() == Priority::Pull {
                    self.pull_rate.pass(len as u64).await;
                }
                let buffer = self.buffers.take(buffer_bytes, Purpose::Bulk).await;
                let way = self.downlink.go_when_free(len as u64, fetch.priority());
                (buffer, way.await)
            };
            let urgent = async {
                while fetch.priority() != Priority::Demand {
                    fetch.raised.notified().await;
                }
            };
            tokio::select! {
                turn = bulk => return turn,
                () = urgent => {}
            }
        }
        let buffer = self.buffers.take(buffer_bytes, Purpose::Demand).await;
        (buffer, self.downlink.go(len as u64))
    }

    /// Where the blocks are in the resource, and how many bytes of them it has.
    pub(super) fn bytes_of(&self, blocks: BlockRange) -> (u64, usize) {
        let offset = blocks.first.start();
        let len = blocks.len() * BLOCK_BYTES;
        (
            offset.0,
            self.geometry.within_resource(offset, len) as usize,
        )
    }

    /// Puts fetched bytes into the store, where nothing was written meanwhile (L6). Blocks.
    fn fill(&self, blocks: BlockRange, buffer: &Buffer) -> io::Result<()> {
        let map = &self.store.map;
        for region in blocks.regions() {
            map.prepare_fill(region)?;
        }
        let claim = map.claim_fill(blocks);
        let written = claim.runs().iter().try_for_each(|run| {
            let from = ((run.first.0 - blocks.first.0) * BLOCK_BYTES) as usize;
            let len = (run.len() * BLOCK_BYTES) as usize;
            self.write_run(*run, &buffer.bytes()[from..from + len])
        });
        map.finish_fill(claim, written.is_ok());
        self.store.claim_released();
        written
    }

    /// Writes blocks; those that are zeros become holes.
    fn write_run(&self, run: BlockRange, bytes: &[u8]) -> io::Result<()> {
        let mut offset = run.first.start().0;
        for (zeros, part) in runs_of_blocks(bytes) {
            if zeros {
                self.store.data.discard(offset, part.len() as u64)?;
            } else {
                self.store.data.write_at(part, offset)?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn chunk_filled(&self, chunk: ChunkIndex) {
        let Some(hook) = &self.options.hooks.chunk_is_local else {
            return;
        };
        if self.store.map.is_present(self.blocks_of(chunk)) {
            hook(chunk);
        }
    }

    /// The blocks of a chunk.
    pub(super) fn blocks_of(&self, chunk: ChunkIndex) -> BlockRange {
        let chunk_bytes = self.options.chunk_bytes;
        let start = chunk.start(chunk_bytes);
        let len = self.geometry.within_resource(start, chunk_bytes);
        BlockRange::touched(start, len)
    }
}

/// Splits whole blocks into runs that are all zeros or have no block of zeros.
pub(super) fn runs_of_blocks(bytes: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let mut blocks = bytes
        .chunks(BLOCK_BYTES as usize)
        .map(is_zero)
        .enumerate()
        .peekable();
    std::iter::from_fn(move || {
        let (first, zeros) = blocks.next()?;
        let mut end = first + 1;
        while blocks.next_if(|(_, next)| *next == zeros).is_some() {
            end += 1;
        }
        let end = (end * BLOCK_BYTES as usize).min(bytes.len());
        Some((zeros, &bytes[first * BLOCK_BYTES as usize..end]))
    })
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any bytes make an integer.
    let (before, words, after) = unsafe { bytes.align_to::<u128>() };
    before.iter().chain(after).all(|byte| *byte == 0) && words.iter().all(|word| *word == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_tell_blocks_of_zeros_from_others_and_miss_nothing() {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![0; 5 * block];
        bytes[2 * block - 1] = 1;
        bytes[2 * block] = 1;
        let runs: Vec<_> = runs_of_blocks(&bytes)
            .map(|(zeros, part)| (zeros, part.len() / block))
            .collect();
        assert_eq!(runs, [(true, 1), (false, 2), (true, 2)]);
        assert!(is_zero(&bytes[3 * block + 1..]) && !is_zero(&bytes[block + 3..3 * block]));
    }
}
