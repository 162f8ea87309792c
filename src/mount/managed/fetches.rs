//! Which fetches there are, who waits for each, and how urgent that has made it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::volume::geometry::{BlockRange, ChunkIndex};
use crate::volume::{Errno, Outcome, Priority};

/// A rest of a chunk that is shorter, in blocks, goes with what is waited for.
const REST_BLOCKS_MIN: u64 = 4;

/// The fetches that are under way or wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    by_chunk: Mutex<HashMap<ChunkIndex, Arc<Fetch>>>,
    /// Those that began as read-ahead.
    pub(super) ahead: AtomicU32,
    /// Those of which a part has gone before the rest.
    rests: AtomicU32,
}

impl Fetches {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ChunkIndex, Arc<Fetch>>> {
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
    pub(super) fn give_up(&self, fetch: &Fetch) -> bool {
        let mut fetches = self.lock();
        let given_up = fetch.waiters.load(Ordering::Relaxed) == 0;
        if given_up {
            fetches.remove(&fetch.chunk);
        }
        given_up
    }

    /// The right to fetch one more rest of a chunk, unless there are `most`.
    pub(super) fn rest(&self, most: u32) -> Option<Rest<'_>> {
        let more = |rests| (rests < most).then_some(rests + 1);
        let relaxed = Ordering::Relaxed;
        let counted = self.rests.fetch_update(relaxed, relaxed, more);
        counted.is_ok().then(|| Rest(&self.rests))
    }
}

/// One rest that is under way, until this is dropped.
pub(super) struct Rest<'a>(&'a AtomicU32);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Blocks of one chunk on their way into the store.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) chunk: ChunkIndex,
    pub(super) blocks: BlockRange,
    /// What it began as.
    pub(super) first: Priority,
    pub(super) wish: watch::Sender<Wish>,
    waiters: AtomicU32,
    /// Nobody waits any more.
    pub(super) left: Notify,
    pub(super) outcome: watch::Sender<Option<Outcome>>,
}

/// How urgent a fetch has become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Of what nobody waits for.
    pub(super) priority: Priority,
    /// From the first to the last block that somebody waits for.
    awaited: BlockRange,
}

/// One who waits for a fetch.
#[derive(Debug)]
pub(super) struct Waiter(Arc<Fetch>);

impl Waiter {
    /// The table is locked, or the fetch is not in it yet.
    pub(super) fn new(fetch: &Arc<Fetch>) -> Self {
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
    pub(super) fn new(chunk: ChunkIndex, blocks: BlockRange, priority: Priority) -> Self {
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
    pub(super) fn raise(&self, priority: Priority, part: BlockRange) {
        self.wish.send_if_modified(|wish| {
            let before = *wish;
            wish.priority = wish.priority.min(priority.max(Priority::ReadAhead));
            wish.awaited = hull(wish.awaited, part);
            before.priority != wish.priority || before.awaited != wish.awaited
        });
    }

    /// What of these blocks goes at once, because somebody waits for it, and what of them is behind it
    /// and before it.
    pub(super) fn split(&self, blocks: BlockRange) -> Option<(BlockRange, [BlockRange; 2])> {
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
    pub(super) async fn raised_above(&self, priority: Priority, blocks: BlockRange) {
        let mut wish = self.wish.subscribe();
        // The sender is ours.
        let _ = wish
            .wait_for(|wish| wish.priority < priority || wish.awaited.overlaps(blocks))
            .await;
    }

    /// A part is in the store.
    pub(super) fn came(&self) {
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
