//! Requests that a queue's thread could not begin: each is made possible here, and then starts anew
//! on its queue; what only this side can do is done here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Shared;
use super::fetches::Waiter;
use super::slots::Slot;
use crate::volume::geometry::{BlockRange, ChunkIndex};
use crate::volume::managed::queue::{edges_of, touched_blocks};
use crate::volume::state_map::WriteStart;
use crate::volume::{Durability, Errno, Miss, Op, Outcome, Priority, Request};

/// Takes requests as they come and serves each in a task of its own. The device's tags bound how
/// many there are.
pub(super) async fn serve(shared: Arc<Shared>) {
    loop {
        let miss = shared.store.misses.next().await;
        let task = Arc::clone(&shared).answer(miss);
        shared.tasks.spawn_request(task);
    }
}

/// A request that is being served, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Serving {
    pub(super) request: Request,
    pub(super) since: Instant,
}

impl Shared {
    async fn answer(self: Arc<Self>, miss: Miss) {
        let Miss {
            request,
            mut memory,
            answer,
        } = miss;
        let serving = Serving {
            request,
            since: Instant::now(),
        };
        let outcome = if self.on_rings {
            self.make_possible(&serving).await
        } else {
            self.carry_out(&serving, &mut memory).await
        };
        answer.send(memory, outcome);
    }

    pub(super) async fn make_possible(self: &Arc<Self>, serving: &Serving) -> Outcome {
        match serving.request.op {
            Op::Read => self.make_readable(serving).await,
            Op::Write => self.make_writable(serving).await,
            Op::Flush => self.flush(serving).await,
            Op::Discard | Op::WriteZeroes => self.zero(serving).await,
        }
    }

    /// Waits for the origin, but not for ever, nor longer than the mount lives. Nothing else has a
    /// deadline: what is done to the local store ends by itself, and nobody may be told that it failed
    /// whom it could then overtake.
    async fn in_time(&self, serving: &Serving, waiting: impl Future<Output = Outcome>) -> Outcome {
        let deadline = &self.deadline;
        tokio::select! {
            outcome = deadline.keep_since(serving.since, &serving.request, waiting) => outcome,
            () = self.tasks.over() => Err(Errno::EIO),
        }
    }

    async fn make_readable(self: &Arc<Self>, serving: &Serving) -> Outcome {
        let blocks = touched_blocks(&serving.request);
        if self.store.map.is_present(blocks) {
            return Ok(());
        }
        let fetches = self.start_fetches(blocks, Whole::Chunks);
        self.read_ahead_of(&serving.request);
        let outcome = self
            .in_time(serving, self.make_present(blocks, Whole::Chunks))
            .await;
        drop(fetches);
        self.store.missed.fetch_add(1, Ordering::Relaxed);
        self.miss_times.note(serving.since.elapsed());
        outcome
    }

    /// Fetches the edges of which the write has only a part, and gets the regions ready.
    async fn make_writable(self: &Arc<Self>, serving: &Serving) -> Outcome {
        let request = &serving.request;
        self.make_edges_present(serving, request).await?;
        let blocks = touched_blocks(request);
        self.make_write_ready(blocks).await?;
        self.unclaimed(blocks).await
    }

    /// Waits until nobody has a claim on a block of the range, or the mount ends: whoever has one may
    /// be a queue that is gone.
    pub(super) async fn unclaimed(&self, blocks: BlockRange) -> Outcome {
        let map = &self.store.map;
        tokio::select! {
            () = self.store.claims_free(|| !map.is_claimed(blocks)) => Ok(()),
            () = self.tasks.over() => Err(Errno::EIO),
        }
    }

    /// Fetches the blocks of which `request`, which is the one that is served or a part of it, has
    /// only a part.
    pub(super) async fn make_edges_present(
        self: &Arc<Self>,
        serving: &Serving,
        request: &Request,
    ) -> Outcome {
        let edges = edges_of(request, &self.geometry);
        let absent = |edge: &BlockRange| !self.store.map.is_present(*edge);
        if !edges.iter().flatten().any(absent) {
            return Ok(());
        }
        let present = async {
            // Both are under way before the first is waited for.
            let fetches = edges.map(|edge| Some(self.start_fetches(edge?, Whole::Nothing)));
            for edge in edges.into_iter().flatten() {
                self.make_present(edge, Whole::Nothing).await?;
            }
            drop(fetches);
            Ok(())
        };
        self.in_time(serving, present).await
    }

    /// Starts to fetch what is absent of the blocks.
    fn start_fetches(self: &Arc<Self>, blocks: BlockRange, whole: Whole) -> Vec<Waiter> {
        blocks
            .by_chunk(self.options.chunk_bytes)
            .filter_map(|(chunk, part)| {
                let part = self.absent_within(part)?;
                let absent = self.wanted(chunk, part, whole)?;
                Some(self.fetch_for(chunk, absent, part))
            })
            .collect()
    }

    fn wanted(&self, chunk: ChunkIndex, part: BlockRange, whole: Whole) -> Option<BlockRange> {
        match whole {
            Whole::Chunks => self.absent_within(self.blocks_of(chunk)),
            Whole::Nothing => self.absent_within(part),
        }
    }

    /// Brings the blocks into the store; with their whole chunks behind them, or alone.
    async fn make_present(self: &Arc<Self>, blocks: BlockRange, whole: Whole) -> Outcome {
        let map = &self.store.map;
        for (chunk, part) in blocks.by_chunk(self.options.chunk_bytes) {
            while !map.is_present(part) {
                if let Some(absent) = self.wanted(chunk, part, whole) {
                    let fetch = self.fetch_for(chunk, absent, part);
                    fetch.brought(|| map.is_present(part)).await?;
                }
                // Somebody may be writing there: what was fetched did not take its place.
                self.store
                    .claims_free(|| map.is_present(part) || !map.is_claimed(part))
                    .await;
            }
        }
        Ok(())
    }

    /// From the first to the last block of the range that is not here.
    pub(super) fn absent_within(&self, range: BlockRange) -> Option<BlockRange> {
        let map = &self.store.map;
        let mut hull = map.next_absent(range.first, range.end)?;
        while let Some(next) = map.next_absent(hull.end, range.end) {
            hull.end = next.end;
        }
        Some(hull)
    }

    /// Gets the regions of a write ready: memory for their bits, and durable intents.
    async fn make_write_ready(self: &Arc<Self>, blocks: BlockRange) -> Outcome {
        if self.store.map.can_write(blocks) {
            return Ok(());
        }
        let checkpointer = Arc::clone(&self.checkpointer);
        let regions: Vec<_> = blocks.regions().collect();
        self.tasks
            .blocking(move || checkpointer.make_write_ready(&regions))
            .await
            .map_err(|error| self.store_failed("write intent", blocks.start().0, 0, &error))
    }

    pub(super) async fn flush(self: &Arc<Self>, serving: &Serving) -> Outcome {
        match self.options.durability {
            Durability::None => Ok(()),
            Durability::Local => {
                // It may be given up: it changes nothing that anybody could see too late.
                let flushed = async {
                    self.checkpoint().await?;
                    match self.store.data.flush_failed() {
                        true => Err(Errno::EIO),
                        false => Ok(()),
                    }
                };
                self.deadline
                    .keep_local(serving.since, &serving.request, flushed)
                    .await
            }
            Durability::Remote => {
                let flushed = async {
                    let (swept, synced) = tokio::join!(self.sweep_all(), self.sync_store());
                    swept.map_err(|error| self.failed("flush", 0, 0, &error))?;
                    synced.map_err(Errno::from)
                };
                self.in_time(serving, flushed).await
            }
        }
    }

    /// Begins a write of this side, as soon as that is possible.
    pub(super) async fn begin_write(
        self: &Arc<Self>,
        slot: &Slot,
        blocks: BlockRange,
    ) -> Result<WriteStart, Errno> {
        let map = &self.store.map;
        loop {
            self.make_write_ready(blocks).await?;
            match map.begin_write(slot.number, blocks) {
                WriteStart::NotReady(_) => self.store.claim_released(),
                WriteStart::Busy => {
                    self.store.claim_released();
                    self.unclaimed(blocks).await?;
                }
                start => return Ok(start),
            }
        }
    }

    fn read_ahead_of(self: &Arc<Self>, request: &Request) {
        let chunk_bytes = self.options.chunk_bytes;
        let chunks_max = self.options.read_ahead_bytes / chunk_bytes;
        let last = request.offset.advanced(request.len_bytes.max(1) - 1);
        let chunk = last.chunk(chunk_bytes);
        let ahead = super::lock(&self.read_ahead).missed(chunk, chunks_max);
        for chunk in ahead {
            let behind = chunk.start(chunk_bytes).0 >= self.geometry.resource_bytes();
            if behind || u64::from(self.fetches.ahead()) >= chunks_max {
                break;
            }
            if let Some(absent) = self.absent_within(self.blocks_of(chunk)) {
                drop(self.fetch(chunk, absent, Priority::ReadAhead));
            }
        }
    }

    /// The origin failed a request: counted, and logged the first time of each power of two.
    pub(super) fn failed(&self, what: &str, offset: u64, len: usize, error: &io::Error) -> Errno {
        let failures = self
            .counters
            .origin_failures
            .fetch_add(1, Ordering::Relaxed)
            + 1;
        if failures.is_power_of_two() {
            tracing::warn!(what, offset, len, %error, failures, "the origin failed a request");
        }
        self.note_error(format!("the origin failed a {what}: {error}"));
        Errno::from(error)
    }

    /// The same for the local store.
    pub(super) fn store_failed(
        &self,
        what: &str,
        offset: u64,
        len: usize,
        error: &io::Error,
    ) -> Errno {
        self.store.room.refused(Errno::from(error));
        let failures = self.counters.store_failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::error!(what, offset, len, %error, failures, "the local store failed");
        }
        self.note_error(format!("the local store failed ({what}): {error}"));
        Errno::from(error)
    }
}

/// What is fetched beside the blocks that are asked for.
#[derive(Debug, Clone, Copy)]
enum Whole {
    /// The chunks that they are in.
    Chunks,
    Nothing,
}
