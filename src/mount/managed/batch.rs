//! One batch of a sweep: dirty blocks are sent, and a flush of the origin covers them.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::buffers::Buffer;
use super::fill::runs_of_blocks;
use super::{Shared, zeros};
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange, ByteOffset};
use crate::volume::{Backend, Priority};

/// The most that goes in one request, in bytes.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

/// The shortest run of zeros that goes as such beside other bytes.
const ZEROS_BYTES_MIN: usize = 64 << 10;

/// After how many bytes the origin has to flush, so that no sweep is without end.
const BATCH_BYTES: u64 = 256 << 20;

/// After how many runs it has to, however short they are.
const BATCH_RUNS: usize = 64 << 10;

impl Shared {
    /// Sends a batch of what is dirty from `from` on and has the origin flush it; gives where to go
    /// on, if anywhere.
    pub(super) async fn send_batch(
        self: &Arc<Self>,
        from: BlockIndex,
        priority: Priority,
    ) -> io::Result<Option<BlockIndex>> {
        let mut batch = Batch::new(Arc::clone(self), priority);
        let mut at = from;
        let mut result = Ok(());
        while batch.has_room() && result.is_ok() {
            let Some(run) = self.store.map.take_dirty(at, self.piece_blocks()) else {
                break;
            };
            at = run.end;
            batch.sending.push(run);
            result = batch.send(run).await;
        }
        result = result.and(batch.all_sent().await);
        if batch.sending.is_empty() {
            return Ok(None);
        }
        if result.is_ok() {
            result = self.origin.flush().await;
        }
        if let Err(error) = result {
            let len = (at.0 - from.0) * BLOCK_BYTES;
            let _ = self.failed("push", from.start().0, len as usize, &error);
            return Err(error);
        }
        self.deadline.answered();
        batch.flushed();
        Ok(Some(at))
    }

    fn piece_blocks(&self) -> u64 {
        PIECE_BYTES.max(self.options.chunk_bytes) / BLOCK_BYTES
    }

    /// The parts of a long run in the store: holes and others.
    async fn stored_parts(
        self: &Arc<Self>,
        run: BlockRange,
    ) -> io::Result<Vec<(bool, BlockRange)>> {
        let shared = Arc::clone(self);
        let (start, end) = (run.first.start().0, run.end.start().0);
        let extents = self
            .tasks
            .blocking(move || shared.store.data.allocated(start..end))
            .await
            .inspect_err(|error| {
                let _ = self.store_failed("map of holes", start, (end - start) as usize, error);
            })?;
        let holes = extents.into_iter().filter(|extent| !extent.data);
        Ok(by_holes(run, holes.map(|hole| hole.range)))
    }

    async fn send_piece(self: Arc<Self>, run: BlockRange, priority: Priority) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let stored = (run.len() * BLOCK_BYTES) as usize;
        let mut buffer = self.buffers.take(stored, priority).await;
        let shared = Arc::clone(&self);
        let (buffer, stretches) = self
            .tasks
            .blocking(move || {
                let stretches = shared.read_sparse(run, &mut buffer)?;
                Ok((buffer, stretches))
            })
            .await
            .inspect_err(|error| {
                let _ = self.store_failed("read for the origin", offset, len, error);
            })?;
        for (is_hole, stretch) in stretches {
            match is_hole {
                true => self.send_zeros(stretch).await?,
                false => {
                    let bytes = &buffer.bytes()[within(run, stretch)];
                    self.send_bytes(stretch, bytes, priority).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads a run of the store, but for a long hole that it may begin with, whose memory stays untouched.
    /// Gives this, and what is behind it. To ask for holes further on would be dear: where one ends is
    /// found at once, where the data ends only by going through it.
    fn read_sparse(
        &self,
        run: BlockRange,
        buffer: &mut Buffer,
    ) -> io::Result<Vec<(bool, BlockRange)>> {
        let (start, end) = (run.first.start().0, run.end.start().0);
        let data = self.store.data.first_data(start)?.unwrap_or(end).min(end);
        let is_long = data - start >= ZEROS_BYTES_MIN as u64;
        let hole = is_long.then_some(start..data);
        let stretches = by_holes(run, hole.into_iter());
        for (_, stretch) in stretches.iter().filter(|(is_hole, _)| !is_hole) {
            let bytes = &mut buffer.bytes_mut()[within(run, *stretch)];
            self.read_store(bytes, stretch.first.start().0)?;
        }
        Ok(stretches)
    }

    /// Sends a run of blocks; long runs of zeros in it as such.
    async fn send_bytes(
        &self,
        run: BlockRange,
        bytes: &[u8],
        priority: Priority,
    ) -> io::Result<()> {
        let mut rest = run;
        for (zeros, part) in parts(bytes) {
            let part_run = rest.take(part.len() as u64 / BLOCK_BYTES);
            if zeros {
                self.send_zeros(part_run).await?;
                continue;
            }
            let (offset, len) = self.bytes_of(part_run);
            self.push_rate.pass(len as u64).await;
            let under_way = self.uplink.go_when_free(len as u64, Priority::Push).await;
            self.origin
                .write_at(&part[..len], offset, false, priority)
                .await?;
            under_way.arrived(len as u64);
            self.pushing.moved(len as u64, Instant::now());
            let pushed = &self.counters.pushed_bytes;
            pushed.fetch_add(len as u64, Ordering::Relaxed);
            self.deadline.answered();
        }
        Ok(())
    }

    async fn send_zeros(&self, run: BlockRange) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let since = Instant::now();
        self.origin
            .write_zeroes(offset, len as u64, false, false)
            .await?;
        let zeroed = &self.counters.pushed_zeroes_bytes;
        zeroed.fetch_add(len as u64, Ordering::Relaxed);
        self.zeros.took(run.len(), since.elapsed());
        self.deadline.answered();
        Ok(())
    }
}

/// Where blocks of a run are in a buffer that begins with it.
fn within(run: BlockRange, part: BlockRange) -> Range<usize> {
    let at = |block: BlockIndex| ((block.0 - run.first.0) * BLOCK_BYTES) as usize;
    at(part.first)..at(part.end)
}

/// Splits a run of blocks into those that lie in a hole as a whole, and others. Blocks of a file system
/// may be smaller than ours: then a block may have bytes between holes.
fn by_holes(run: BlockRange, holes: impl Iterator<Item = Range<u64>>) -> Vec<(bool, BlockRange)> {
    let mut parts = Vec::new();
    let mut rest = run;
    for hole in holes {
        let hole = BlockRange::inside(ByteOffset(hole.start), hole.end - hole.start);
        let hole = hole.intersection(rest);
        if hole.is_empty() {
            continue;
        }
        let before = rest.take(hole.first.0 - rest.first.0);
        let hole = rest.take(hole.len());
        parts.extend([(false, before), (true, hole)]);
    }
    parts.push((false, rest));
    parts.retain(|(_, part)| !part.is_empty());
    parts
}

/// Splits whole blocks into those that go as zeros, which take no space at the origin, and those that
/// go as bytes. A few blocks of zeros among others are not worth a request.
fn parts(bytes: &[u8]) -> Vec<(bool, &[u8])> {
    let mut parts: Vec<(bool, usize)> = Vec::new();
    for (zeros, run) in runs_of_blocks(bytes) {
        let whole = run.len() == bytes.len();
        let zeros = zeros && (whole || run.len() >= ZEROS_BYTES_MIN);
        match parts.last_mut() {
            Some(last) if last.0 == zeros => last.1 += run.len(),
            _ => parts.push((zeros, run.len())),
        }
    }
    let mut rest = bytes;
    parts
        .into_iter()
        .map(|(zeros, len)| {
            let (part, later) = rest.split_at(len);
            rest = later;
            (zeros, part)
        })
        .collect()
}

fn joined(sent: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    sent.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Blocks that were sent and are not durable at the origin yet. Dropped as such they are dirty
/// again.
struct Batch {
    shared: Arc<Shared>,
    priority: Priority,
    sending: Vec<BlockRange>,
    /// What of them is no hole of the store.
    data_bytes: u64,
    /// A hole that the next one may make longer.
    hole: Option<BlockRange>,
    workers: Arc<Semaphore>,
    sends: JoinSet<io::Result<()>>,
}

impl Batch {
    fn new(shared: Arc<Shared>, priority: Priority) -> Self {
        Self {
            priority,
            sending: Vec::new(),
            data_bytes: 0,
            hole: None,
            workers: Arc::new(Semaphore::new(shared.push_workers as usize)),
            sends: JoinSet::new(),
            shared,
        }
    }

    fn has_room(&self) -> bool {
        self.data_bytes < BATCH_BYTES && self.sending.len() < BATCH_RUNS
    }

    /// Starts to send a run, as soon as workers are free; holes of the store as such, neighbours
    /// together. An error is one of what was sent before.
    async fn send(&mut self, run: BlockRange) -> io::Result<()> {
        let piece_blocks = self.shared.piece_blocks();
        if run.len() <= piece_blocks {
            return self.start_piece(run).await;
        }
        for (is_hole, mut part) in self.shared.stored_parts(run).await? {
            if is_hole {
                self.add_hole(part).await?;
                continue;
            }
            while !part.is_empty() {
                self.start_piece(part.take(piece_blocks)).await?;
            }
        }
        Ok(())
    }

    async fn add_hole(&mut self, part: BlockRange) -> io::Result<()> {
        match &mut self.hole {
            Some(hole) if hole.end == part.first && hole.len() < zeros::BLOCKS_MAX => {
                hole.end = part.end;
                Ok(())
            }
            _ => match self.hole.replace(part) {
                Some(hole) => self.start_zeros(hole).await,
                None => Ok(()),
            },
        }
    }

    async fn start_piece(&mut self, run: BlockRange) -> io::Result<()> {
        self.data_bytes += run.len() * BLOCK_BYTES;
        let (shared, priority) = (Arc::clone(&self.shared), self.priority);
        self.start(shared.send_piece(run, priority)).await
    }

    async fn start_zeros(&mut self, mut run: BlockRange) -> io::Result<()> {
        let mut result = Ok(());
        while !run.is_empty() && result.is_ok() {
            let worker = self.workers.clone().acquire_owned().await;
            // Only now: what was answered meanwhile says how much.
            let part = self.shared.zeros.take(&mut run);
            let shared = Arc::clone(&self.shared);
            result = self.spawn(worker, async move { shared.send_zeros(part).await });
        }
        result
    }

    async fn start(
        &mut self,
        sending: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> io::Result<()> {
        let worker = self.workers.clone().acquire_owned().await;
        self.spawn(worker, sending)
    }

    fn spawn(
        &mut self,
        worker: Result<OwnedSemaphorePermit, AcquireError>,
        sending: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> io::Result<()> {
        // The mount has not ended before this has.
        let at_work = self.shared.tasks.at_work();
        self.sends.spawn(async move {
            let sent = sending.await;
            drop((worker, at_work));
            sent
        });
        let mut result = Ok(());
        while let Some(sent) = self.sends.try_join_next() {
            result = result.and(joined(sent));
        }
        result
    }

    /// Waits for all that was started.
    async fn all_sent(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        if let Some(hole) = self.hole.take() {
            result = self.start_zeros(hole).await;
        }
        while let Some(sent) = self.sends.join_next().await {
            result = result.and(joined(sent));
        }
        result
    }

    /// The origin has flushed them.
    fn flushed(mut self) {
        let map = &self.shared.store.map;
        let sent = std::mem::take(&mut self.sending);
        sent.iter().for_each(|run| map.flushed(*run));
        map.collapse_if_crowded(&sent);
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Nothing more is sent of what is dirty again.
        self.sends.abort_all();
        for run in self.sending.drain(..) {
            self.shared.store.map.send_failed(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_bytes_between_holes_goes_once_and_as_bytes() {
        let holes = [(0, 9), (10, 20), (24, 28), (31, 64)];
        let holes = holes.map(|(from, to)| from * 1024..to * 1024);
        let parts: Vec<_> = by_holes(BlockRange::new(1, 12), holes.into_iter())
            .into_iter()
            .map(|(hole, part)| (hole, part.first.0, part.end.0))
            .collect();
        assert_eq!(
            parts,
            [
                (true, 1, 2),
                (false, 2, 3),
                (true, 3, 5),
                (false, 5, 6),
                (true, 6, 7),
                (false, 7, 8),
                (true, 8, 12)
            ]
        );
    }

    #[test]
    fn long_runs_of_zeros_go_as_such_and_nothing_is_left_out() {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![0; 64 * block];
        for written in [0, 3, 40] {
            bytes[written * block] = 1;
        }
        let lens = |bytes| -> Vec<_> {
            parts(bytes)
                .into_iter()
                .map(|(zeros, part)| (zeros, part.len() / block))
                .collect()
        };
        assert_eq!(
            lens(&bytes),
            [(false, 4), (true, 36), (false, 1), (true, 23)]
        );
        assert_eq!(lens(&bytes[block..2 * block]), [(true, 1)]);
        assert_eq!(lens(&bytes[..3 * block]), [(false, 3)]);
    }
}
