//! One fetch a chunk, however many wait for it.
//!
//! A fetch asks for its chunk in pieces. Where an application waits for a part of it, that part goes at
//! once and the rest follows as read-ahead: the first byte takes a round trip, not the time of a chunk.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::buffers::Buffer;
use super::fetches::{Fetch, Waiter};
use super::fill::data_bytes;
use crate::net::flow::UnderWay;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ChunkIndex};
use crate::volume::{Errno, Outcome, Priority};

/// In how many pieces a chunk comes, at most, and how long they are at least, in bytes.
const PIECES_MAX: u64 = 4;
const PIECE_BYTES_MIN: u64 = 64 << 10;

/// In pieces of how many bytes a chunk comes.
pub(super) fn piece_bytes(chunk_bytes: u64) -> u64 {
    (chunk_bytes / PIECES_MAX).max(PIECE_BYTES_MIN.min(chunk_bytes))
}

/// Rests of chunks that are under way at once, in bytes of whole chunks. Beyond it they are left out:
/// reads all over the volume would ask for far more than the link brings.
const RESTS_BYTES_MAX: u64 = 8 << 20;

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

    /// Tells, if somebody wants to know, that all of a chunk is local. Nobody waits for him.
    pub(super) fn chunk_filled(&self, chunk: ChunkIndex) {
        if let Some(announcer) = &self.announcer
            && self.store.map.is_present(self.blocks_of(chunk))
        {
            announcer.tell(chunk);
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
