//! Fetches blocks from the seeder, writes them to the store, and reads them back.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::AsyncBackend;
use crate::migrate::protocol::BlockSet;
use crate::migrate::prover::Prover;
use crate::migrate::wire_form::Piece;
use crate::net::Remote;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, CHUNK_BYTES_DEFAULT};
use crate::volume::{ByteOffset, Priority};
use crate::wire::segment::runs;

/// What one task fetches: the blocks of a chunk. A chunk is whole leaves, so that no two tasks have one.
const CHUNK_BLOCKS: u64 = CHUNK_BYTES_DEFAULT / BLOCK_BYTES;

/// How many chunks are on their way at once.
const CHUNKS_AT_ONCE: usize = 32;

/// Blocks between two that are wanted are fetched with them, up to so many.
const GAP_BLOCKS_MAX: u64 = 2;

/// From where to where. Copies are of the same store.
#[derive(Clone)]
pub(super) struct Puller {
    pub(super) remote: Arc<Remote>,
    pub(super) store: Arc<dyn AsyncBackend>,
    pub(super) prover: Prover,
    /// How many bytes have come.
    pub(super) pulled_bytes: Arc<AtomicU64>,
}

/// Which bytes are to get into the store, and how they come.
pub(super) enum Bytes {
    /// They are asked for.
    Fetch(BlockSet, Priority),
    /// The seeder sends them unasked.
    Come(BlockSet, mpsc::Receiver<Piece>),
}

impl Bytes {
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Self::Fetch(blocks, _) | Self::Come(blocks, _) => blocks.len_bytes(),
        }
    }
}

/// A pull under way.
pub(super) struct Pulling {
    cancel: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    store: Arc<dyn AsyncBackend>,
}

impl Pulling {
    /// Gets the bytes into the store. `ended` is told, unless it is stopped before.
    pub(super) fn begin<F: Future<Output = ()> + Send + 'static>(
        puller: Puller,
        bytes: Bytes,
        ended: impl FnOnce(io::Result<()>) -> F + Send + 'static,
    ) -> Self {
        let (cancel, cancelled) = oneshot::channel();
        let store = Arc::clone(&puller.store);
        let task = tokio::spawn(async move {
            let result = match bytes {
                Bytes::Fetch(blocks, priority) => puller.pull(&blocks, priority, cancelled).await,
                Bytes::Come(blocks, pieces) => puller.take(blocks, pieces, cancelled).await,
            };
            if let Some(result) = result {
                ended(result).await;
            }
        });
        Self {
            cancel: Some(cancel),
            task,
            store,
        }
    }

    /// Nothing of it reaches the store when this returns.
    pub(super) async fn stop(mut self) {
        drop(self.cancel.take());
        let _ = (&mut self.task).await;
        let _ = self.store.settled().await;
    }
}

impl Puller {
    /// `None` when it was cancelled. Nothing of it goes on when this returns, but for writes that were
    /// given up.
    async fn pull(
        &self,
        blocks: &BlockSet,
        priority: Priority,
        mut cancelled: oneshot::Receiver<()>,
    ) -> Option<io::Result<()>> {
        let mut chunks = in_chunks(blocks.runs());
        let mut fetching = JoinSet::new();
        let result = loop {
            if fetching.len() < CHUNKS_AT_ONCE
                && let Some(chunk) = chunks.next()
            {
                let puller = self.clone();
                fetching.spawn(async move { puller.fetch(&chunk, priority).await });
                continue;
            }
            tokio::select! {
                biased;
                _ = &mut cancelled => break None,
                fetched = fetching.join_next() => match fetched {
                    None => break Some(Ok(())),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => break Some(Err(error)),
                    Some(Err(panic)) => break Some(Err(io::Error::other(panic))),
                },
            }
        };
        fetching.shutdown().await;
        match result {
            // What is durable now need not be made so while the seeder's requests wait.
            Some(Ok(())) if priority != Priority::Demand => Some(self.store.flush().await),
            _ => result,
        }
    }

    /// As [`pull`](Self::pull), of what comes by itself.
    async fn take(
        &self,
        mut blocks: BlockSet,
        mut pieces: mpsc::Receiver<Piece>,
        mut cancelled: oneshot::Receiver<()>,
    ) -> Option<io::Result<()>> {
        while !blocks.is_empty() {
            let piece = tokio::select! {
                biased;
                _ = &mut cancelled => return None,
                piece = pieces.recv() => piece,
            };
            let Some(piece) = piece else {
                // The stream ended, which ends the attempt.
                let _ = cancelled.await;
                return None;
            };
            let len_bytes = piece.bytes.len() as u64;
            let run = BlockRange::touched(ByteOffset(piece.offset), len_bytes);
            let end = run.end.start().0.min(self.store.size());
            let is_whole = run.start().0 == piece.offset && end == piece.offset + len_bytes;
            if !is_whole || !blocks.remove(run) {
                return Some(Err(io::Error::other(
                    "the seeder sent bytes that were not due",
                )));
            }
            if let Err(error) = self.write(run, &piece.bytes, Priority::Demand).await {
                return Some(Err(error));
            }
        }
        Some(Ok(()))
    }

    /// Fetches runs of one chunk, and has its leaves read back.
    async fn fetch(&self, runs: &[BlockRange], priority: Priority) -> io::Result<()> {
        for run in runs {
            self.fetch_run(*run, priority).await?;
        }
        match (runs.first(), runs.last()) {
            (Some(first), Some(last)) => {
                let whole = BlockRange::new(first.first.0, last.end.0);
                self.prover.hash_those_of(whole).await
            }
            _ => Ok(()),
        }
    }

    async fn fetch_run(&self, run: BlockRange, priority: Priority) -> io::Result<()> {
        let offset = run.start().0;
        let end = run.end.start().0.min(self.store.size());
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let filled = self.remote.read_at(&mut bytes, offset, priority).await?;
        bytes[filled.min((end - offset) as usize)..].fill(0);
        self.write(run, &bytes, priority).await
    }

    /// Writes the bytes of a run of blocks, zeros as holes.
    async fn write(&self, run: BlockRange, bytes: &[u8], priority: Priority) -> io::Result<()> {
        let offset = run.start().0;
        self.prover.change(run);
        for (segment, range) in runs(bytes) {
            let at = offset + range.start as u64;
            if segment.is_zeros() {
                let len = (range.end - range.start) as u64;
                self.store.write_zeroes(at, len, false, false).await?;
            } else {
                let part = &bytes[range];
                self.store.write_at(part, at, false, priority).await?;
            }
        }
        self.pulled_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The runs by chunk, those that are close to each other as one.
fn in_chunks(runs: impl Iterator<Item = BlockRange>) -> impl Iterator<Item = Vec<BlockRange>> {
    let parts = runs.flat_map(|run| {
        run.by_chunk(CHUNK_BLOCKS * BLOCK_BYTES)
            .collect::<Vec<_>>()
            .into_iter()
    });
    let mut parts = parts.peekable();
    std::iter::from_fn(move || {
        let (chunk, first) = parts.next()?;
        let mut runs = vec![first];
        while let Some((_, next)) = parts.next_if(|(other, _)| *other == chunk) {
            match runs.last_mut() {
                Some(last) if next.first.0 - last.end.0 <= GAP_BLOCKS_MAX => last.end = next.end,
                _ => runs.push(next),
            }
        }
        Some(runs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tasks_have_blocks_of_one_leaf_and_no_block_is_left_out() {
        let runs = [(0, 1), (3, 4), (8, 9), (63, 130), (200, 201)];
        let runs = runs.map(|(first, end)| BlockRange::new(first, end));
        let chunks: Vec<Vec<BlockRange>> = in_chunks(runs.into_iter()).collect();
        let expected = [
            vec![(0, 4), (8, 9), (63, 64)],
            vec![(64, 128)],
            vec![(128, 130)],
            vec![(200, 201)],
        ];
        let expected = expected.map(|runs| {
            let runs = runs.into_iter();
            runs.map(|(first, end)| BlockRange::new(first, end))
                .collect::<Vec<_>>()
        });
        assert_eq!(chunks, expected);
    }
}
