//! One fetch a chunk, however many wait for it; and how its bytes get into the store.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::Shared;
use super::buffers::Buffer;
use super::flow::UnderWay;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ChunkIndex};
use crate::volume::{Backend, Errno, Outcome, Priority};

/// The fetches that are under way or wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    by_chunk: Mutex<HashMap<ChunkIndex, Arc<Fetch>>>,
    /// Those that began as read-ahead.
    ahead: AtomicU32,
}

impl Fetches {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkIndex, Arc<Fetch>>> {
        self.by_chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// How many of them nobody had asked for, but probably will.
    pub(super) fn ahead(&self) -> u32 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// Takes a fetch out that nobody waits for; false if somebody does.
    fn give_up(&self, fetch: &Fetch) -> bool {
        let mut fetches = self.lock();
        let given_up = fetch.waiters.load(Ordering::Relaxed) == 0;
        if given_up {
            fetches.remove(&fetch.chunk);
        }
        given_up
    }
}

/// Blocks of one chunk on their way into the store.
#[derive(Debug)]
struct Fetch {
    chunk: ChunkIndex,
    blocks: BlockRange,
    /// What it began as.
    first: Priority,
    urgency: AtomicU8,
    raised: Notify,
    waiters: AtomicU32,
    /// Nobody waits any more.
    left: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

/// One who waits for a fetch.
#[derive(Debug)]
pub(super) struct Waiter(Arc<Fetch>);

impl Waiter {
    /// The table is locked, or the fetch is not in it yet.
    fn new(fetch: &Arc<Fetch>) -> Self {
        fetch.waiters.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(fetch))
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) -> Outcome {
        let mut outcome = self.0.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => (*outcome).unwrap_or(Err(Errno::EIO)),
            Err(_) => Err(Errno::EIO),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.0.waiters.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.left.notify_one();
        }
    }
}

impl Fetch {
    fn new(chunk: ChunkIndex, blocks: BlockRange, priority: Priority) -> Self {
        Self {
            chunk,
            blocks,
            first: priority,
            urgency: AtomicU8::new(priority as u8),
            raised: Notify::new(),
            waiters: AtomicU32::new(0),
            left: Notify::new(),
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

    async fn raised_above(&self, priority: Priority) {
        while self.priority() >= priority {
            self.raised.notified().await;
        }
    }
}

/// A fetch that runs. However it ends, it leaves the table, and those who wait are told.
struct Running {
    shared: Arc<Shared>,
    fetch: Arc<Fetch>,
}

impl Running {
    fn new(shared: Arc<Shared>, fetch: Arc<Fetch>) -> Self {
        if fetch.first == Priority::ReadAhead {
            shared.fetches.ahead.fetch_add(1, Ordering::Relaxed);
        }
        Self { shared, fetch }
    }

    fn end(&self, outcome: Outcome) {
        let mut fetches = self.shared.fetches.lock();
        let ours = |it: &Arc<Fetch>| Arc::ptr_eq(it, &self.fetch);
        if fetches.get(&self.fetch.chunk).is_some_and(ours) {
            fetches.remove(&self.fetch.chunk);
        }
        drop(fetches);
        self.fetch.outcome.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(outcome);
            first
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.fetch.first == Priority::ReadAhead {
            self.shared.fetches.ahead.fetch_sub(1, Ordering::Relaxed);
        }
        self.end(Err(Errno::EIO));
    }
}

impl Shared {
    /// Waits for the fetch of this chunk: the one that there is, or a new one for `blocks`, all of
    /// them in the chunk.
    pub(super) fn fetch(
        self: &Arc<Self>,
        chunk: ChunkIndex,
        blocks: BlockRange,
        priority: Priority,
    ) -> Waiter {
        let mut fetches = self.fetches.lock();
        if let Some(fetch) = fetches.get(&chunk) {
            let waiter = Waiter::new(fetch);
            fetch.raise(priority);
            return waiter;
        }
        let fetch = Arc::new(Fetch::new(chunk, blocks, priority));
        let waiter = Waiter::new(&fetch);
        fetches.insert(chunk, Arc::clone(&fetch));
        drop(fetches);
        let running = Running::new(Arc::clone(self), fetch);
        self.tasks.spawn(async move {
            let (shared, fetch) = (&running.shared, &running.fetch);
            let outcome = shared.run_fetch(fetch).await;
            shared.chunk_filled(fetch.chunk).await;
            running.end(outcome);
        });
        waiter
    }

    async fn run_fetch(self: &Arc<Self>, fetch: &Fetch) -> Outcome {
        let blocks = fetch.blocks;
        let (offset, len) = self.bytes_of(blocks);
        let Some((mut buffer, under_way)) = self.turn(fetch, len).await else {
            return Err(Errno::EIO);
        };
        let to = &mut buffer.bytes_mut()[..len];
        let count = self
            .origin
            .read_at(to, offset, fetch.priority())
            .await
            .map_err(|error| self.failed("fetch", offset, len, &error))?;
        self.deadline.answered();
        // What is past the end of what the origin has reads as zeros (L9).
        buffer.bytes_mut()[count.min(len)..].fill(0);
        under_way.arrived(data_bytes(&buffer.bytes()[..len]));
        self.fetched(len as u64);
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || shared.fill(blocks, &buffer))
            .await
            .map_err(|error| self.store_failed("fill", offset, len, &error))
    }

    /// Waits for memory and for the link, unless somebody urgent waits for the chunk. `None`: nobody
    /// waits for it any more.
    async fn turn(&self, fetch: &Fetch, len: usize) -> Option<(Buffer, UnderWay<'_>)> {
        let buffer_bytes = (fetch.blocks.len() * BLOCK_BYTES) as usize;
        loop {
            let priority = fetch.priority();
            if priority == Priority::Demand {
                break;
            }
            tokio::select! {
                turn = self.bulk_turn(priority, buffer_bytes, len as u64) => return Some(turn),
                () = fetch.raised_above(priority) => {}
            }
        }
        let memory = self.buffers.take(buffer_bytes, Priority::Demand);
        let mut memory = std::pin::pin!(memory);
        loop {
            tokio::select! {
                buffer = &mut memory => return Some((buffer, self.downlink.go(len as u64))),
                () = fetch.left.notified() => if self.fetches.give_up(fetch) {
                    return None;
                }
            }
        }
    }

    async fn bulk_turn(
        &self,
        priority: Priority,
        buffer_bytes: usize,
        len: u64,
    ) -> (Buffer, UnderWay<'_>) {
        if priority == Priority::Pull {
            self.pull_rate.pass(len).await;
        }
        let buffer = self.buffers.take(buffer_bytes, priority).await;
        let way = self.downlink.go_when_free(len, priority);
        (buffer, way.await)
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
        map.collapse_all(blocks);
        self.store.claim_released();
        written
    }

    /// Writes blocks; those that are zeros become holes.
    fn write_run(&self, run: BlockRange, bytes: &[u8]) -> io::Result<()> {
        let mut offset = run.first.start().0;
        for (zeros, part) in runs_of_blocks(bytes) {
            if zeros {
                self.store
                    .data
                    .write_zeroes(offset, part.len() as u64, false)?;
            } else {
                self.store.data.write_at(part, offset)?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Tells, if somebody wants to know, that all of a chunk is local. Nobody waits for him, unless
    /// he is behind with many.
    pub(super) async fn chunk_filled(self: &Arc<Self>, chunk: ChunkIndex) {
        let Some(hook) = self.options.hooks.chunk_is_local.clone() else {
            return;
        };
        if self.store.map.is_present(self.blocks_of(chunk)) {
            let turn = self.hook_turns.clone().acquire_owned().await;
            drop(self.tasks.blocking(move || {
                hook(chunk);
                drop(turn);
                Ok(())
            }));
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

/// How many bytes are in blocks that are not all zeros.
fn data_bytes(bytes: &[u8]) -> u64 {
    let data = bytes.chunks(BLOCK_BYTES as usize).filter(|it| !is_zero(it));
    data.map(|block| block.len() as u64).sum()
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
