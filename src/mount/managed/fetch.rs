//! One fetch a chunk, however many wait for it; and how its bytes get into the store.
//!
//! A fetch asks for its chunk in pieces. Where an application waits for a part of it, that part goes at
//! once and the rest follows as read-ahead: the first byte takes a round trip, not the time of a chunk.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::Shared;
use super::buffers::Buffer;
use super::flow::UnderWay;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ChunkIndex};
use crate::volume::{Backend, Errno, Outcome, Priority};

/// In how many pieces a chunk comes, at most, and how long they are at least, in bytes.
const PIECES_MAX: u64 = 4;
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// In pieces of how many bytes a chunk comes.
pub(super) fn piece_bytes(chunk_bytes: u64) -> u64 {
    (chunk_bytes / PIECES_MAX).max(PIECE_BYTES_MIN.min(chunk_bytes))
}

/// A rest of a chunk that is shorter, in blocks, goes with what is waited for.
const REST_BLOCKS_MIN: u64 = 4;

/// Rests of chunks that are under way at once, in bytes of whole chunks. Beyond it they are left out:
/// reads all over the volume would ask for far more than the link brings.
const RESTS_BYTES_MAX: u64 = 8 << 20;

/// The fetches that are under way or wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    by_chunk: Mutex<HashMap<ChunkIndex, Arc<Fetch>>>,
    /// Those that began as read-ahead.
    ahead: AtomicU32,
    /// Those of which a part has gone before the rest.
    rests: AtomicU32,
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

    /// The right to fetch one more rest of a chunk, unless there are `most`.
    fn rest(&self, most: u32) -> Option<Rest<'_>> {
        let more = |rests| (rests < most).then_some(rests + 1);
        let relaxed = Ordering::Relaxed;
        let counted = self.rests.fetch_update(relaxed, relaxed, more);
        counted.is_ok().then(|| Rest(&self.rests))
    }
}

/// One rest that is under way, until this is dropped.
struct Rest<'a>(&'a AtomicU32);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Blocks of one chunk on their way into the store.
#[derive(Debug)]
struct Fetch {
    chunk: ChunkIndex,
    blocks: BlockRange,
    /// What it began as.
    first: Priority,
    wish: watch::Sender<Wish>,
    waiters: AtomicU32,
    /// Nobody waits any more.
    left: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

/// How urgent a fetch has become.
#[derive(Debug, Clone, Copy)]
struct Wish {
    /// Of what nobody waits for.
    priority: Priority,
    /// From the first to the last block that somebody waits for.
    awaited: BlockRange,
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
        self.brought(|| false).await
    }

    /// Waits until it has brought what is waited for, or has ended.
    pub(super) async fn brought(&self, is_here: impl Fn() -> bool) -> Outcome {
        let mut outcome = self.0.outcome.subscribe();
        let ended = outcome
            .wait_for(|outcome| outcome.is_some() || is_here())
            .await;
        match ended {
            Ok(outcome) => outcome.filter(|_| !is_here()).unwrap_or(Ok(())),
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
            wish: watch::Sender::new(Wish {
                priority: priority.max(Priority::ReadAhead),
                awaited: BlockRange::new(0, 0),
            }),
            waiters: AtomicU32::new(0),
            left: Notify::new(),
            outcome: watch::Sender::new(None),
        }
    }

    /// Somebody more urgent waits for it too; an application, for `part`. That changes nothing of what
    /// was sent.
    fn raise(&self, priority: Priority, part: BlockRange) {
        self.wish.send_if_modified(|wish| {
            let before = *wish;
            wish.priority = wish.priority.min(priority.max(Priority::ReadAhead));
            wish.awaited = hull(wish.awaited, part);
            before.priority != wish.priority || before.awaited != wish.awaited
        });
    }

    /// What of these blocks goes at once, because somebody waits for it, and what of them is behind it
    /// and before it.
    fn split(&self, blocks: BlockRange) -> Option<(BlockRange, [BlockRange; 2])> {
        let mut first = self.wish.borrow().awaited.intersection(blocks);
        if first.is_empty() {
            return None;
        }
        if first.first.0 - blocks.first.0 < REST_BLOCKS_MIN {
            first.first = blocks.first;
        }
        if blocks.end.0 - first.end.0 < REST_BLOCKS_MIN {
            first.end = blocks.end;
        }
        let before = BlockRange::new(blocks.first.0, first.first.0);
        let behind = BlockRange::new(first.end.0, blocks.end.0);
        Some((first, [behind, before]))
    }

    /// Waits until somebody waits for one of these blocks, or all of the fetch is more urgent than this.
    async fn raised_above(&self, priority: Priority, blocks: BlockRange) {
        let mut wish = self.wish.subscribe();
        // The sender is ours.
        let _ = wish
            .wait_for(|wish| wish.priority < priority || wish.awaited.overlaps(blocks))
            .await;
    }

    /// A part is in the store.
    fn came(&self) {
        self.outcome.send_modify(|_| ());
    }
}

/// From the first to the last block of both.
fn hull(one: BlockRange, other: BlockRange) -> BlockRange {
    match (one.is_empty(), other.is_empty()) {
        (true, _) => other,
        (_, true) => one,
        _ => BlockRange {
            first: one.first.min(other.first),
            end: one.end.max(other.end),
        },
    }
}

/// Blocks that may be asked for now.
struct Turn<'a> {
    blocks: BlockRange,
    priority: Priority,
    buffer: Buffer,
    under_way: UnderWay<'a>,
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
        self.join_or_start(chunk, blocks, priority, BlockRange::new(0, 0))
    }

    /// The same where an application waits for `part`.
    pub(super) fn fetch_for(
        self: &Arc<Self>,
        chunk: ChunkIndex,
        blocks: BlockRange,
        part: BlockRange,
    ) -> Waiter {
        self.join_or_start(chunk, blocks, Priority::Demand, part)
    }

    fn join_or_start(
        self: &Arc<Self>,
        chunk: ChunkIndex,
        blocks: BlockRange,
        priority: Priority,
        part: BlockRange,
    ) -> Waiter {
        let mut fetches = self.fetches.lock();
        if let Some(fetch) = fetches.get(&chunk) {
            let waiter = Waiter::new(fetch);
            fetch.raise(priority, part);
            return waiter;
        }
        let fetch = Arc::new(Fetch::new(chunk, blocks, priority));
        fetch.raise(priority, part);
        let waiter = Waiter::new(&fetch);
        fetches.insert(chunk, Arc::clone(&fetch));
        drop(fetches);
        let running = Running::new(Arc::clone(self), fetch);
        self.tasks.spawn(async move {
            let (shared, fetch) = (&running.shared, &running.fetch);
            let outcome = shared.run_fetch(fetch).await;
            shared.chunk_filled(fetch.chunk);
            running.end(outcome);
        });
        waiter
    }

    async fn run_fetch(self: &Arc<Self>, fetch: &Fetch) -> Outcome {
        let most = (RESTS_BYTES_MAX / self.options.chunk_bytes) as u32;
        let waited_for = fetch.split(fetch.blocks);
        let Some((first, _)) = waited_for.filter(|_| fetch.first == Priority::Demand) else {
            return self.bring_all(fetch, fetch.blocks).await;
        };
        match self.fetches.rest(most) {
            Some(_rest) => self.bring_all(fetch, fetch.blocks).await,
            None => self.bring_at_once(fetch, first).await,
        }
    }

    /// Brings blocks in the order in which they are waited for.
    fn bring_all<'a>(
        self: &'a Arc<Self>,
        fetch: &'a Fetch,
        blocks: BlockRange,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        Box::pin(async move {
            if blocks.is_empty() {
                return Ok(());
            }
            loop {
                if let Some((first, [behind, before])) = fetch.split(blocks) {
                    // That the rest fails is nothing to those who wait for the first part.
                    let ((), behind, before) = tokio::try_join!(
                        self.bring_at_once(fetch, first),
                        async { Ok(self.bring_all(fetch, behind).await) },
                        async { Ok(self.bring_all(fetch, before).await) },
                    )?;
                    return behind.and(before);
                }
                if let Some((one, other)) = self.halves(blocks) {
                    let (one, other) = (self.bring_all(fetch, one), self.bring_all(fetch, other));
                    return tokio::try_join!(one, other).map(drop);
                }
                let priority = fetch.wish.borrow().priority;
                tokio::select! {
                    turn = self.bulk_turn(priority, blocks) => return self.bring(fetch, turn).await,
                    () = fetch.raised_above(priority, blocks) => {}
                }
            }
        })
    }

    /// Two parts of what is longer than a piece.
    fn halves(&self, blocks: BlockRange) -> Option<(BlockRange, BlockRange)> {
        let piece = piece_bytes(self.options.chunk_bytes) / BLOCK_BYTES;
        let first_piece = blocks.first.0 / piece;
        let pieces = blocks.end.0.div_ceil(piece) - first_piece;
        let mut other = blocks;
        let middle = (first_piece + pieces / 2) * piece;
        let one = other.take(middle.saturating_sub(blocks.first.0));
        (pieces > 1).then_some((one, other))
    }

    async fn bring_at_once(self: &Arc<Self>, fetch: &Fetch, blocks: BlockRange) -> Outcome {
        match self.demand_turn(fetch, blocks).await {
            Some(turn) => self.bring(fetch, turn).await,
            None => Err(Errno::EIO),
        }
    }

    /// Asks the origin for blocks and puts them into the store.
    async fn bring(self: &Arc<Self>, fetch: &Fetch, turn: Turn<'_>) -> Outcome {
        let Turn {
            blocks,
            priority,
            mut buffer,
            under_way,
        } = turn;
        let (offset, len) = self.bytes_of(blocks);
        let to = &mut buffer.bytes_mut()[..len];
        let count = self
            .origin
            .read_at(to, offset, priority)
            .await
            .map_err(|error| self.failed("fetch", offset, len, &error))?;
        self.deadline.answered();
        // What is past the end of what the origin has reads as zeros (L9).
        buffer.bytes_mut()[count.min(len)..].fill(0);
        let data_bytes = data_bytes(&buffer.bytes()[..len]);
        under_way.arrived(data_bytes);
        self.fetched(len as u64);
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || shared.fill(blocks, &buffer))
            .await
            .map_err(|error| self.store_failed("fill", offset, len, &error))?;
        self.stored(len as u64, data_bytes);
        fetch.came();
        Ok(())
    }

    /// Waits for memory and for the link.
    async fn bulk_turn(&self, priority: Priority, blocks: BlockRange) -> Turn<'_> {
        let len = self.bytes_of(blocks).1 as u64;
        if priority == Priority::Pull {
            self.pull_rate.pass(len).await;
        }
        let buffer = self.buffers.take(buffer_bytes(blocks), priority).await;
        Turn {
            blocks,
            priority,
            buffer,
            under_way: self.downlink.go_when_free(len, priority).await,
        }
    }

    /// Waits for memory alone. `None`: nobody waits for the fetch any more.
    async fn demand_turn(&self, fetch: &Fetch, blocks: BlockRange) -> Option<Turn<'_>> {
        let memory = self.buffers.take(buffer_bytes(blocks), Priority::Demand);
        let mut memory = std::pin::pin!(memory);
        loop {
            tokio::select! {
                buffer = &mut memory => return Some(Turn {
                    blocks,
                    priority: Priority::Demand,
                    buffer,
                    under_way: self.downlink.go(self.bytes_of(blocks).1 as u64),
                }),
                () = fetch.left.notified() => if self.fetches.give_up(fetch) {
                    return None;
                }
            }
        }
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

    /// Tells, if somebody wants to know, that all of a chunk is local. Nobody waits for him.
    pub(super) fn chunk_filled(&self, chunk: ChunkIndex) {
        if let Some(told) = &self.told
            && self.store.map.is_present(self.blocks_of(chunk))
        {
            told.tell(chunk);
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

fn buffer_bytes(blocks: BlockRange) -> usize {
    (blocks.len() * BLOCK_BYTES) as usize
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
