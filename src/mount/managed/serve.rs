//! Requests that a queue's thread could not begin: each is made possible here, and then starts anew
//! on its queue; what only this side can do is done here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Shared;
use super::slots::Slot;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ByteOffset};
use crate::volume::managed::queue::{edges_of, touched_blocks};
use crate::volume::state_map::{WriteStart, ZeroStart};
use crate::volume::{Backend, Durability, Errno, Miss, Op, Outcome, Priority, Request};

/// Takes requests as they come and serves each in a task of its own. The device's tags bound how
/// many there are.
pub(super) async fn serve(shared: Arc<Shared>) {
    loop {
        let miss = shared.store.misses.next().await;
        let task = Arc::clone(&shared).answer(miss);
        shared.tasks.spawn(task);
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, miss: Miss) {
        let Miss {
            request,
            mut memory,
            answer,
        } = miss;
        let since = Instant::now();
        let serving = async {
            if self.on_rings {
                self.make_possible(&request).await
            } else {
                self.carry_out(&request, &mut memory).await
            }
        };
        let outcome = self.deadline.keep(&request, serving).await;
        if request.op == Op::Read {
            self.store.missed.fetch_add(1, Ordering::Relaxed);
            self.miss_times.note(since.elapsed());
        }
        answer.send(memory, outcome);
    }

    pub(super) async fn make_possible(self: &Arc<Self>, request: &Request) -> Outcome {
        match request.op {
            Op::Read => self.make_readable(request).await,
            Op::Write => self.make_writable(request).await,
            Op::Flush => self.flush().await,
            Op::Discard | Op::WriteZeroes => self.zero(request).await,
        }
    }

    async fn make_readable(self: &Arc<Self>, request: &Request) -> Outcome {
        let blocks = touched_blocks(request);
        self.read_ahead_of(request);
        self.make_present(blocks, Priority::Demand, true).await
    }

    /// Fetches the edges of which the write has only a part, and gets the regions ready.
    async fn make_writable(self: &Arc<Self>, request: &Request) -> Outcome {
        for edge in edges_of(request, &self.geometry).into_iter().flatten() {
            self.make_present(edge, Priority::Demand, false).await?;
        }
        let blocks = touched_blocks(request);
        self.make_write_ready(blocks).await?;
        if !self.store.map.is_present(blocks) {
            self.store
                .claims_free(|| !self.store.map.is_claimed(blocks))
                .await;
        }
        Ok(())
    }

    /// Brings the blocks into the store; with their whole chunks, or alone.
    pub(super) async fn make_present(
        self: &Arc<Self>,
        blocks: BlockRange,
        priority: Priority,
        whole_chunks: bool,
    ) -> Outcome {
        let wanted = |chunk, part| match whole_chunks {
            true => self.absent_within(self.blocks_of(chunk)),
            false => self.absent_within(part),
        };
        // All of them are under way before the first is waited for.
        for (chunk, part) in blocks.by_chunk(self.options.chunk_bytes) {
            if !self.store.map.is_present(part)
                && let Some(absent) = wanted(chunk, part)
            {
                self.fetch(chunk, absent, priority);
            }
        }
        for (chunk, part) in blocks.by_chunk(self.options.chunk_bytes) {
            while !self.store.map.is_present(part) {
                if let Some(absent) = wanted(chunk, part) {
                    self.fetch(chunk, absent, priority).ended().await?;
                }
                // Somebody may be writing there: what was fetched did not take its place.
                let map = &self.store.map;
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
        let checkpointer = Arc::clone(&self.checkpointer);
        let regions: Vec<_> = blocks.regions().collect();
        self.tasks
            .blocking(move || checkpointer.make_write_ready(&regions))
            .await
            .map_err(|error| self.store_failed("write intent", blocks.start().0, 0, &error))
    }

    /// The same for a discard, which needs no bits where it covers a whole region.
    async fn make_zero_ready(self: &Arc<Self>, blocks: BlockRange) -> Outcome {
        let checkpointer = Arc::clone(&self.checkpointer);
        self.tasks
            .blocking(move || checkpointer.make_zero_ready(blocks))
            .await
            .map_err(|error| self.store_failed("write intent", blocks.start().0, 0, &error))
    }

    pub(super) async fn flush(self: &Arc<Self>) -> Outcome {
        match self.options.durability {
            Durability::None => Ok(()),
            Durability::Local => self.checkpoint().await,
            Durability::Remote => self
                .pushes
                .sweep_all()
                .await
                .map_err(|error| self.failed("flush", 0, 0, &error)),
        }
    }

    /// Makes everything that was written durable in the store.
    pub(super) async fn checkpoint(self: &Arc<Self>) -> Outcome {
        let checkpointer = Arc::clone(&self.checkpointer);
        self.tasks
            .blocking(move || checkpointer.checkpoint())
            .await
            .map_err(|error| self.store_failed("checkpoint", 0, 0, &error))
    }

    /// Makes the range read as zeros: whole blocks become a hole, parts of blocks are written.
    async fn zero(self: &Arc<Self>, request: &Request) -> Outcome {
        let inside = self
            .geometry
            .within_resource(request.offset, request.len_bytes);
        let end = request.offset.advanced(inside);
        // The last block of the resource is whole, however short it is.
        let end = if end.0 == self.geometry.resource_bytes() {
            ByteOffset(end.0.next_multiple_of(BLOCK_BYTES))
        } else {
            end
        };
        let whole = BlockRange::inside(request.offset, end.0 - request.offset.0);
        let request = Request {
            len_bytes: end.0 - request.offset.0,
            ..*request
        };
        for edge in edges_of(&request, &self.geometry).into_iter().flatten() {
            self.zero_edge(&request, edge).await?;
        }
        if !whole.is_empty() {
            self.zero_blocks(whole, request.no_unmap).await?;
        }
        if request.fua {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Writes zeros to the part of a block that the request covers.
    async fn zero_edge(self: &Arc<Self>, request: &Request, edge: BlockRange) -> Outcome {
        let from = request.offset.max(edge.first.start());
        let to = request
            .offset
            .advanced(request.len_bytes)
            .min(edge.end.start());
        self.make_present(edge, Priority::Demand, false).await?;
        let slot = self.slots.take().await;
        let start = self.begin_write(&slot, edge).await?;
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || {
                let zeroed = shared.store.data.write_zeroes(from.0, to.0 - from.0, false);
                let map = &shared.store.map;
                if map.end_write(slot.number, edge, start, zeroed.is_ok()) {
                    shared.store.claim_released();
                }
                drop(slot);
                zeroed
            })
            .await
            .map_err(|error| self.store_failed("zeros", from.0, (to.0 - from.0) as usize, &error))
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
                    self.store.claims_free(|| !map.is_claimed(blocks)).await;
                }
                start => return Ok(start),
            }
        }
    }

    async fn zero_blocks(self: &Arc<Self>, blocks: BlockRange, no_unmap: bool) -> Outcome {
        // There are as many places as the map has for discards.
        let slot = self.slots.take().await;
        let map = &self.store.map;
        let claim = loop {
            self.make_zero_ready(blocks).await?;
            match map.claim_zero(blocks) {
                ZeroStart::Claimed(claim) => break claim,
                ZeroStart::NotReady(_) => self.store.claim_released(),
                ZeroStart::Busy => {
                    self.store.claim_released();
                    self.store.claims_free(|| !map.is_claimed(blocks)).await;
                }
                ZeroStart::Full => return Err(Errno::EIO),
            }
        };
        let (offset, len) = (blocks.first.start().0, blocks.len() * BLOCK_BYTES);
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || {
                let zeroed = shared.store.data.write_zeroes(offset, len, no_unmap);
                shared.store.map.finish_zero(claim, zeroed.is_ok());
                shared.store.claim_released();
                drop(slot);
                zeroed
            })
            .await
            .map_err(|error| self.store_failed("zeros", offset, len as usize, &error))
    }

    fn read_ahead_of(self: &Arc<Self>, request: &Request) {
        let chunk_bytes = self.options.chunk_bytes;
        let chunks_max = self.options.read_ahead_bytes / chunk_bytes;
        let last = request.offset.advanced(request.len_bytes.max(1) - 1);
        let chunk = last.chunk(chunk_bytes);
        let ahead: Vec<_> = super::lock(&self.read_ahead)
            .missed(chunk, chunks_max)
            .collect();
        for chunk in ahead {
            if chunk.start(chunk_bytes).0 >= self.geometry.resource_bytes() {
                break;
            }
            if let Some(absent) = self.absent_within(self.blocks_of(chunk)) {
                self.fetch(chunk, absent, Priority::ReadAhead);
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
        let failures = self.counters.store_failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::error!(what, offset, len, %error, failures, "the local store failed");
        }
        self.note_error(format!("the local store failed ({what}): {error}"));
        Errno::from(error)
    }
}
