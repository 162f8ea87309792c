//! Fetches blocks from the seeder, writes them to the store, and reads them back.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::announced::Announced;
use super::compare::in_spans;
use crate::AsyncBackend;
use crate::migrate::proof::LEAF_BYTES;
use crate::migrate::protocol::BlockSet;
use crate::migrate::prover::Prover;
use crate::migrate::wire_form::Piece;
use crate::net::Remote;
use crate::net::flow::{Flow, UnderWay};
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
use crate::volume::{ByteOffset, Priority};
use crate::wire::segment::{Segment, runs};

/// What one task fetches, and one request asks for, at least: whole leaves until they have so many bytes.
const BATCH_BYTES: u64 = 64 << 10;

/// How many batches are fetched, or being written and read back, at once.
const BATCHES_AT_ONCE: usize = 256;

/// How many spans are compared at once.
const SPANS_AT_ONCE: usize = 4;

/// The disk is kept busy while more comes, so that a round's flush has little left.
const FLUSH_EVERY_BYTES: u64 = 64 << 20;

/// How many pieces that came unasked are written at once.
const WRITES_AT_ONCE: usize = 16;

/// How many bytes may be on their way at most.
const IN_FLIGHT_BYTES_MAX: u64 = BATCHES_AT_ONCE as u64 * BATCH_BYTES;

/// From where to where. Copies are of the same store.
#[derive(Clone)]
pub(super) struct Puller {
    pub(super) remote: Arc<Remote>,
    pub(super) store: Arc<dyn AsyncBackend>,
    pub(super) prover: Prover,
    pub(super) line: Arc<Line>,
    /// How many bytes of what is being pulled are here.
    pub(super) pulled_bytes: Arc<AtomicU64>,
    /// Who is told of it.
    pub(super) announced: Option<Arc<Announced>>,
    /// How many bytes were asked for, in all.
    pub(super) fetched_bytes: Arc<AtomicU64>,
}

/// What is left to do of a pull.
struct Work<'a> {
    /// To be compared, a span at a time.
    spans: Box<dyn Iterator<Item = Vec<BlockRange>> + Send + 'a>,
    spans_under_way: usize,
    /// To be fetched: what differed, and what is not compared.
    different: VecDeque<Vec<BlockRange>>,
    batches: Box<dyn Iterator<Item = Vec<BlockRange>> + Send + 'a>,
    /// How many blocks were fetched since the last flush began, and whether that is under way.
    unflushed_blocks: u64,
    is_flushing: bool,
}

/// What a task does.
enum Next {
    Fetch(Vec<BlockRange>),
    Compare(Vec<BlockRange>),
    Flush,
}

/// What a task has done.
enum Done {
    /// So many blocks.
    Fetched(u64),
    /// What differs.
    Compared(Vec<Vec<BlockRange>>),
    Flushed,
}

impl<'a> Work<'a> {
    fn all(blocks: &'a BlockSet) -> Self {
        Self {
            spans: Box::new(std::iter::empty()),
            spans_under_way: 0,
            different: VecDeque::new(),
            batches: Box::new(in_batches(blocks.runs())),
            unflushed_blocks: 0,
            is_flushing: false,
        }
    }

    fn differing(blocks: &'a BlockSet) -> Self {
        Self {
            spans: Box::new(in_spans(blocks.runs())),
            batches: Box::new(std::iter::empty()),
            ..Self::all(blocks)
        }
    }

    /// Nothing is compared while something waits to be fetched, so that not much of that waits.
    fn next(&mut self) -> Option<Next> {
        if self.unflushed_blocks * BLOCK_BYTES >= FLUSH_EVERY_BYTES && !self.is_flushing {
            (self.unflushed_blocks, self.is_flushing) = (0, true);
            return Some(Next::Flush);
        }
        let batch = self.different.pop_front().or_else(|| self.batches.next());
        if let Some(batch) = batch {
            return Some(Next::Fetch(batch));
        }
        if self.spans_under_way == SPANS_AT_ONCE {
            return None;
        }
        let span = self.spans.next()?;
        self.spans_under_way += 1;
        Some(Next::Compare(span))
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Fetched(blocks) => self.unflushed_blocks += blocks,
            Done::Compared(different) => {
                self.spans_under_way -= 1;
                self.different.extend(different);
            }
            Done::Flushed => self.is_flushing = false,
        }
    }
}

/// What there is room for on the link. One batch at a time waits for it.
pub(super) struct Line {
    flow: Flow,
    turn: Mutex<()>,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            flow: Flow::new(BATCH_BYTES, IN_FLIGHT_BYTES_MAX),
            turn: Mutex::new(()),
        }
    }

    async fn enter(&self, bytes: u64, priority: Priority) -> UnderWay<'_> {
        if priority == Priority::Demand {
            return self.flow.go(bytes);
        }
        let _turn = self.turn.lock().await;
        self.flow.go_when_free(bytes, priority).await
    }
}

/// Which bytes are to get into the store, and how they come.
pub(super) enum Bytes {
    /// They are asked for.
    Fetch(BlockSet, Priority),
    /// The same, but for what the store has as the seeder has it.
    FetchDiffering(BlockSet),
    /// The seeder sends them unasked.
    Come(BlockSet, mpsc::Receiver<Piece>),
}

impl Bytes {
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Self::Fetch(blocks, _) | Self::FetchDiffering(blocks) | Self::Come(blocks, _) => {
                blocks.len_bytes()
            }
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
                Bytes::Fetch(blocks, priority) => {
                    let work = Work::all(&blocks);
                    puller.pull(work, priority, cancelled).await
                }
                Bytes::FetchDiffering(blocks) => {
                    let work = Work::differing(&blocks);
                    puller.pull(work, Priority::Pull, cancelled).await
                }
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
        mut work: Work<'_>,
        priority: Priority,
        mut cancelled: oneshot::Receiver<()>,
    ) -> Option<io::Result<()>> {
        let mut working = JoinSet::new();
        let result = loop {
            if working.len() < BATCHES_AT_ONCE
                && let Some(next) = work.next()
            {
                let puller = self.clone();
                working.spawn(async move {
                    match next {
                        Next::Fetch(batch) => {
                            let fetched = puller.fetch(&batch, priority).await;
                            fetched.map(|()| Done::Fetched(blocks_of(&batch)))
                        }
                        Next::Compare(runs) => {
                            let different = puller.differing(runs, priority).await;
                            different.map(Done::Compared)
                        }
                        Next::Flush => puller.store.flush().await.map(|()| Done::Flushed),
                    }
                });
                continue;
            }
            tokio::select! {
                biased;
                _ = &mut cancelled => break None,
                worked = working.join_next() => match worked {
                    None => break Some(Ok(())),
                    Some(Ok(Ok(done))) => work.done(done),
                    Some(Ok(Err(error))) => break Some(Err(error)),
                    Some(Err(panic)) => break Some(Err(io::Error::other(panic))),
                },
            }
        };
        working.shutdown().await;
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
        let mut writing = JoinSet::new();
        let result = loop {
            if blocks.is_empty() && writing.is_empty() {
                break Some(Ok(()));
            }
            let may_take = !blocks.is_empty() && writing.len() < WRITES_AT_ONCE;
            tokio::select! {
                biased;
                _ = &mut cancelled => break None,
                Some(written) = writing.join_next() => match written {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Some(Err(error)),
                    Err(panic) => break Some(Err(io::Error::other(panic))),
                },
                piece = pieces.recv(), if may_take => {
                    let Some(piece) = piece else {
                        // The stream ended, which ends the attempt.
                        let _ = (&mut cancelled).await;
                        break None;
                    };
                    let Some(run) = self.due(&mut blocks, &piece) else {
                        let what = "the seeder sent bytes that were not due";
                        break Some(Err(io::Error::other(what)));
                    };
                    let puller = self.clone();
                    writing.spawn(async move {
                        let segments = runs(&piece.bytes).collect();
                        puller.write(run, &piece.bytes, segments, Priority::Demand).await
                    });
                }
            }
        };
        writing.shutdown().await;
        result
    }

    /// Which blocks the piece is, all of which were awaited. They are not any more.
    fn due(&self, blocks: &mut BlockSet, piece: &Piece) -> Option<BlockRange> {
        let len_bytes = piece.bytes.len() as u64;
        let run = BlockRange::touched(ByteOffset(piece.offset), len_bytes);
        let end = run.end.start().0.min(self.store.size());
        let is_whole = run.start().0 == piece.offset && end == piece.offset + len_bytes;
        (is_whole && blocks.remove(run)).then_some(run)
    }

    /// Fetches a batch, and has its leaves read back.
    async fn fetch(&self, batch: &[BlockRange], priority: Priority) -> io::Result<()> {
        let size = self.store.size();
        let places: Vec<Range<u64>> = batch
            .iter()
            .map(|run| run.start().0..run.end.start().0.min(size))
            .collect();
        let len = places.iter().map(|place| place.end - place.start).sum();
        let mut bytes = vec![0; len as usize];
        let under_way = self.line.enter(len, priority).await;
        self.remote.read_runs(&mut bytes, &places, priority).await?;
        self.fetched_bytes.fetch_add(len, Ordering::Relaxed);
        let mut rest = &bytes[..];
        let parts = places.iter().map(|place| {
            let (part, later) = rest.split_at((place.end - place.start) as usize);
            rest = later;
            (part, runs(part).collect::<Vec<_>>())
        });
        let parts: Vec<_> = parts.collect();
        let data = parts.iter().flat_map(|(_, segments)| segments);
        let data = data.filter(|(segment, _)| !segment.is_zeros());
        under_way.arrived(data.map(|(_, range)| range.len() as u64).sum());
        for (run, (part, segments)) in batch.iter().zip(parts) {
            self.write(*run, part, segments, priority).await?;
        }
        self.prover.hash_those_of(batch).await?;
        self.announce(batch);
        Ok(())
    }

    /// These are here, with their leaves.
    pub(super) fn announce(&self, runs: &[BlockRange]) {
        if let Some(announced) = &self.announced {
            announced.came(runs);
        }
    }

    /// Writes the bytes of a run of blocks, segment by segment, zeros as holes.
    async fn write(
        &self,
        run: BlockRange,
        bytes: &[u8],
        segments: Vec<(Segment, Range<usize>)>,
        priority: Priority,
    ) -> io::Result<()> {
        let offset = run.start().0;
        self.prover.change(run);
        for (segment, range) in segments {
            let at = offset + range.start as u64;
            if segment.is_zeros() {
                let len = (range.end - range.start) as u64;
                self.store.write_zeroes(at, len, false, false).await?;
            } else {
                let part = &bytes[range];
                self.store.write_at(part, at, false, priority).await?;
            }
        }
        self.count(run);
        Ok(())
    }

    /// The blocks are here.
    pub(super) fn count(&self, run: BlockRange) {
        let len = run.len() * BLOCK_BYTES;
        self.pulled_bytes.fetch_add(len, Ordering::Relaxed);
    }
}

fn blocks_of(batch: &[BlockRange]) -> u64 {
    batch.iter().map(|run| run.len()).sum()
}

/// The runs in batches of whole leaves, so that no two tasks have one leaf.
pub(super) fn in_batches(
    runs: impl Iterator<Item = BlockRange>,
) -> impl Iterator<Item = Vec<BlockRange>> {
    let parts = runs.flat_map(|run| run.by_chunk(LEAF_BYTES));
    let mut parts = parts.peekable();
    std::iter::from_fn(move || {
        let (mut leaf, first) = parts.next()?;
        let (mut batch, mut blocks) = (vec![first], first.len());
        while let Some((next_leaf, next)) =
            parts.next_if(|(other, _)| *other == leaf || blocks < BATCH_BYTES / BLOCK_BYTES)
        {
            (leaf, blocks) = (next_leaf, blocks + next.len());
            match batch.last_mut() {
                Some(last) if last.end == next.first => last.end = next.end,
                _ => batch.push(next),
            }
        }
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tasks_have_blocks_of_one_leaf_and_no_block_is_left_out() {
        let runs = [
            (0, 1),
            (3, 4),
            (8, 9),
            (31, 66),
            (70, 71),
            (90, 92),
            (200, 201),
        ];
        let runs = runs.map(|(first, end)| BlockRange::new(first, end));
        let batches: Vec<Vec<BlockRange>> = in_batches(runs.into_iter()).collect();
        let expected = [
            vec![(0, 1), (3, 4), (8, 9), (31, 48)],
            vec![(48, 64)],
            vec![(64, 66), (70, 71), (90, 92), (200, 201)],
        ];
        let expected = expected.map(|runs| {
            let runs = runs.into_iter();
            runs.map(|(first, end)| BlockRange::new(first, end))
                .collect::<Vec<_>>()
        });
        assert_eq!(batches, expected);
    }
}
