//! Whole requests on this side, for machines where queues have no ring (containers often forbid
//! io_uring).

use std::io;
use std::sync::Arc;

use super::Shared;
use super::serve::Serving;
use crate::volume::geometry::BLOCK_BYTES;
use crate::volume::managed::queue::touched_blocks;
use crate::volume::state_map::WriteStart;
use crate::volume::{Backend, Op, Outcome, Priority, Request, RequestMemory};

/// The store takes no parts of a sector.
const SECTOR_BYTES: usize = 512;

impl Shared {
    /// Does what the request asks for.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        serving: &Serving,
        memory: &mut RequestMemory,
    ) -> Outcome {
        let request = &serving.request;
        let hit = request.op == Op::Read && self.store.map.is_present(touched_blocks(request));
        if let (Op::Read | Op::Write, Some(touched)) = (request.op, &self.store.touched) {
            touched.note(request.offset, request.len_bytes);
        }
        self.make_possible(serving).await?;
        match request.op {
            Op::Read => self.read_stored(request, memory).await?,
            Op::Write => self.write_stored(serving, memory).await?,
            Op::Flush | Op::Discard | Op::WriteZeroes => {}
        }
        if hit {
            self.store.hits.note(serving.since.elapsed());
        }
        Ok(())
    }

    async fn read_stored(
        self: &Arc<Self>,
        request: &Request,
        memory: &mut RequestMemory,
    ) -> Outcome {
        let blocks = touched_blocks(request);
        let (start, len) = (blocks.first.start().0, blocks.len() * BLOCK_BYTES);
        let len = len as usize;
        let mut buffer = self.local_buffers.take(len, Priority::Demand).await;
        let shared = Arc::clone(self);
        let buffer = self
            .tasks
            .blocking(move || {
                shared.read_store(buffer.bytes_mut(), start)?;
                Ok(buffer)
            })
            .await
            .map_err(|error| self.store_failed("read", start, len, &error))?;
        let from = (request.offset.0 - start) as usize;
        let count = request.len_bytes as usize;
        memory.bytes_mut()[..count].copy_from_slice(&buffer.bytes()[from..from + count]);
        Ok(())
    }

    /// Reads whole blocks of the store, which has all of them.
    pub(super) fn read_store(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        if self.store.data.read_at(to, offset)? < to.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    async fn write_stored(self: &Arc<Self>, serving: &Serving, memory: &RequestMemory) -> Outcome {
        let request = &serving.request;
        let (offset, len) = (request.offset.0, request.len_bytes as usize);
        // A request that ends with the resource may end within a sector; zeros follow there.
        let stored = len.next_multiple_of(SECTOR_BYTES);
        let mut buffer = self.local_buffers.take(stored, Priority::Demand).await;
        buffer.bytes_mut()[..len].copy_from_slice(&memory.bytes()[..len]);
        buffer.bytes_mut()[len..].fill(0);
        let blocks = touched_blocks(request);
        let slot = self.slots.take().await;
        let start = self.begin_write(&slot, blocks).await?;
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || {
                let written = shared.store.data.write_at(buffer.bytes(), offset);
                let map = &shared.store.map;
                if map.end_write(slot.number, blocks, start, written.is_ok()) {
                    shared.store.claim_released();
                }
                // Not before the write has ended, however long anybody waits for it.
                drop(slot);
                written
            })
            .await
            .map_err(|error| self.store_failed("write", offset, len, &error))?;
        let room = &self.store.room;
        match start {
            WriteStart::Claimed => room.taken(),
            _ if room.full_since().is_some() => _ = room.maybe_taken(),
            _ => {}
        }
        if request.fua {
            self.flush(serving).await?;
        }
        Ok(())
    }
}
