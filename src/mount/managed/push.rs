//! Local writes on their way to the origin.
//!
//! In sweeps: everything dirty is sent, all of it is waited for, the origin flushes, and only then
//! the blocks are clean (L8). What is written meanwhile goes with the next sweep, once, however
//! often it was written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use super::Shared;
use super::buffers::Purpose;
use super::fetch::runs_of_blocks;
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange, ByteOffset};
use crate::volume::{Backend, Errno, Priority};

/// The most that goes in one request, in bytes.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

/// The shortest run of zeros that goes as such beside other bytes.
const ZEROS_BYTES_MIN: usize = 64 << 10;

/// After how many bytes the origin has to flush, so that no sweep is without end.
const BATCH_BYTES: u64 = 256 << 20;

/// How long to wait after a failure, at most.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Who waits for sweeps, and how far they are.
#[derive(Debug)]
pub(super) struct Pushes {
    wanted: AtomicU64,
    asked: Notify,
    /// The sweeps that have ended, and how the last one ended.
    ended: watch::Sender<(u64, Option<Errno>)>,
}

impl Pushes {
    pub(super) fn new() -> Self {
        Self {
            wanted: AtomicU64::new(0),
            asked: Notify::new(),
            ended: watch::Sender::new((0, None)),
        }
    }

    /// Waits until everything that was written before this call is durable at the origin.
    pub(super) async fn sweep_all(&self) -> io::Result<()> {
        let mut ended = self.ended.subscribe();
        let ticket = self.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        self.asked.notify_one();
        let done = ended
            .wait_for(|(sweep, _)| *sweep >= ticket)
            .await
            .map_err(io::Error::other)?;
        match done.1 {
            None => Ok(()),
            Some(errno) => Err(errno.into()),
        }
    }
}

/// Sweeps again and again: at each interval while something is dirty (unless nothing is to be pushed
/// by itself), and whenever somebody asks.
pub(super) async fn push(shared: Arc<Shared>) {
    let mut pause = Duration::ZERO;
    loop {
        let interval = shared.options.push_interval.max(pause);
        tokio::select! {
            () = shared.pushes.asked.notified() => {}
            () = tokio::time::sleep(interval) => {
                if !shared.options.push || shared.store.map.counts().dirty == 0 {
                    continue;
                }
            }
        }
        // Whoever asked before the sweep began is answered by it.
        let ticket = shared.pushes.wanted.load(Ordering::Acquire);
        let swept = shared.sweep().await;
        pause = match &swept {
            Ok(()) => Duration::ZERO,
            Err(_) => (pause * 2).clamp(Duration::from_millis(500), PAUSE_MAX),
        };
        let errno = swept.err().map(Errno::from);
        shared.pushes.ended.send_replace((ticket, errno));
    }
}

impl Shared {
    /// Sends everything that is dirty and makes it durable at the origin.
    async fn sweep(self: &Arc<Self>) -> io::Result<()> {
        let mut at = BlockIndex(0);
        while let Some(next) = self.batch(at).await? {
            at = next;
        }
        Ok(())
    }

    /// Sends what is dirty from `from` on, up to [`BATCH_BYTES`]; gives where to go on, if anywhere.
    async fn batch(self: &Arc<Self>, from: BlockIndex) -> io::Result<Option<BlockIndex>> {
        let workers = Arc::new(Semaphore::new(self.options.push_workers as usize));
        let mut batch = Batch::new(Arc::clone(self));
        // Dropped before the batch: nothing is sent any more when its blocks are dirty again.
        let mut sends = JoinSet::new();
        let (mut at, mut bytes) = (from, 0);
        let mut result = Ok(());
        while bytes < BATCH_BYTES && result.is_ok() {
            let piece_blocks = PIECE_BYTES.max(self.options.chunk_bytes) / BLOCK_BYTES;
            let Some(run) = self.store.map.take_dirty(at, piece_blocks) else {
                break;
            };
            at = run.end;
            bytes += run.len() * BLOCK_BYTES;
            batch.sending.push(run);
            let Ok(worker) = workers.clone().acquire_owned().await else {
                break;
            };
            let shared = Arc::clone(self);
            sends.spawn(async move {
                let sent = shared.send(run).await;
                drop(worker);
                sent
            });
            while let Some(sent) = sends.try_join_next() {
                result = result.and(joined(sent));
            }
        }
        while let Some(sent) = sends.join_next().await {
            result = result.and(joined(sent));
        }
        if batch.sending.is_empty() {
            return Ok(None);
        }
        if result.is_ok() {
            result = self.origin.flush().await;
        }
        if let Err(error) = result {
            let _ = self.failed("push", from.start().0, bytes as usize, &error);
            return Err(error);
        }
        self.deadline.answered();
        batch.flushed();
        self.counters
            .pushed_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        Ok(Some(at))
    }

    /// Sends a run of blocks; holes of the store as such.
    async fn send(self: Arc<Self>, run: BlockRange) -> io::Result<()> {
        let piece_blocks = PIECE_BYTES.max(self.options.chunk_bytes) / BLOCK_BYTES;
        if run.len() <= piece_blocks {
            return self.send_piece(run).await;
        }
        let shared = Arc::clone(&self);
        let (start, end) = (run.first.start().0, run.end.start().0);
        let extents = self
            .tasks
            .blocking(move || shared.store.data.allocated(start..end))
            .await?;
        for extent in extents {
            let len = extent.range.end - extent.range.start;
            let mut part = BlockRange::touched(ByteOffset(extent.range.start), len);
            if !extent.data {
                self.send_zeros(part).await?;
                continue;
            }
            while !part.is_empty() {
                let piece = part.take(piece_blocks);
                self.send_piece(piece).await?;
            }
        }
        Ok(())
    }

    async fn send_piece(self: &Arc<Self>, run: BlockRange) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let stored = (run.len() * BLOCK_BYTES) as usize;
        let mut buffer = self.buffers.take(stored, Purpose::Bulk).await;
        let shared = Arc::clone(self);
        let buffer = self
            .tasks
            .blocking(move || {
                shared.store.data.read_at(buffer.bytes_mut(), offset)?;
                Ok(buffer)
            })
            .await
            .inspect_err(|error| {
                let _ = self.store_failed("read for the origin", offset, len, error);
            })?;
        let mut rest = run;
        for (zeros, part) in parts(buffer.bytes()) {
            let part_run = rest.take(part.len() as u64 / BLOCK_BYTES);
            if zeros {
                self.send_zeros(part_run).await?;
                continue;
            }
            let (offset, len) = self.bytes_of(part_run);
            self.push_rate.pass(len as u64).await;
            let under_way = self.uplink.go_when_free(len as u64, Priority::Push).await;
            self.origin
                .write_at(&part[..len], offset, false, Priority::Push)
                .await?;
            under_way.arrived();
            self.deadline.answered();
        }
        Ok(())
    }

    async fn send_zeros(&self, run: BlockRange) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        self.origin
            .write_zeroes(offset, len as u64, false, false)
            .await?;
        self.deadline.answered();
        Ok(())
    }
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
    sending: Vec<BlockRange>,
}

impl Batch {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sending: Vec::new(),
        }
    }

    fn flushed(mut self) {
        for run in self.sending.drain(..) {
            self.shared.store.map.flushed(run);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for run in self.sending.drain(..) {
            self.shared.store.map.send_failed(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
