//! Telling a program which chunks became local, on a thread of its own: its closure may take its
//! time, or never return, and holds up nothing of the mount.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::volume::geometry::ChunkIndex;

/// The closure to call.
pub(crate) type Hook = Arc<dyn Fn(ChunkIndex) + Send + Sync>;

/// How many runs of neighbouring chunks it may not have heard of yet.
const RUNS_MAX: usize = 64 << 10;

/// How long a mount that ends waits until it has heard of all.
const END_WAIT: Duration = Duration::from_secs(5);

/// The thread that calls a closure, and what it has to tell.
#[derive(Debug)]
pub(crate) struct Announcer {
    queue: Arc<Queue>,
    untold: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Range<u64>>,
    /// There will be no more.
    closed: bool,
    /// The thread is done with the closure.
    ended: bool,
}

impl Announcer {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system reports.
    pub(crate) fn new(hook: Hook) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new().name("chunk-is-local".to_owned());
        thread.spawn({
            let queue = Arc::clone(&queue);
            move || {
                queue.tell_all(&hook);
                drop(hook);
                queue.lock().ended = true;
                queue.changed.notify_all();
            }
        })?;
        Ok(Self {
            queue,
            untold: AtomicU64::new(0),
        })
    }

    /// Has it told of a chunk. Never waits: if it is too far behind the chunk is counted alone.
    pub(crate) fn tell(&self, chunk: ChunkIndex) {
        let mut state = self.queue.lock();
        let has_room = state.runs.len() < RUNS_MAX;
        match state.runs.back_mut() {
            Some(last) if last.end == chunk.0 => last.end += 1,
            _ if has_room => state.runs.push_back(chunk.0..chunk.0 + 1),
            _ => {
                drop(state);
                let untold = self.untold.fetch_add(1, Ordering::Relaxed) + 1;
                if untold.is_power_of_two() {
                    tracing::warn!(
                        untold,
                        "the hook that a chunk is local is too far behind, and is not told of all"
                    );
                }
                return;
            }
        }
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Of how many chunks it was not told.
    pub(crate) fn untold(&self) -> u64 {
        self.untold.load(Ordering::Relaxed)
    }

    /// Has the thread end once it has told all, and gives it some time for that.
    pub(crate) async fn end(&self) {
        self.close();
        let queue = Arc::clone(&self.queue);
        let in_time = tokio::task::spawn_blocking(move || queue.has_ended_within(END_WAIT)).await;
        if !matches!(in_time, Ok(true)) {
            tracing::warn!("the hook that a chunk is local has not ended, and is left alone");
        }
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_all(&self, hook: &Hook) {
        while let Some(run) = self.next() {
            for chunk in run.map(ChunkIndex) {
                let told = catch_unwind(AssertUnwindSafe(|| hook(chunk)));
                if told.is_err() {
                    tracing::error!(chunk = chunk.0, "the hook that a chunk is local panicked");
                }
            }
        }
    }

    /// Waits for something to tell; `None` when there will be no more.
    fn next(&self) -> Option<Range<u64>> {
        let idle = |state: &mut State| state.runs.is_empty() && !state.closed;
        let waited = self.changed.wait_while(self.lock(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.runs.pop_front()
    }

    fn has_ended_within(&self, time: Duration) -> bool {
        let waits = |state: &mut State| !state.ended;
        let waited = self.changed.wait_timeout_while(self.lock(), time, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_closure_that_never_returns_stops_nobody_and_what_it_missed_is_counted() {
        let (begun, has_begun) = mpsc::channel();
        let announcer = Announcer::new(Arc::new(move |chunk| {
            begun.send(chunk).expect("heard");
            std::thread::park();
            loop {
                std::thread::park();
            }
        }));
        let announcer = announcer.expect("a thread");
        announcer.tell(ChunkIndex(0));
        assert_eq!(has_begun.recv(), Ok(ChunkIndex(0)));
        // Every other one, so that they are no neighbours.
        for chunk in 1..=RUNS_MAX as u64 + 3 {
            announcer.tell(ChunkIndex(2 * chunk));
        }
        assert_eq!(announcer.untold(), 3);
        assert!(!announcer.queue.has_ended_within(Duration::ZERO));
    }

    #[tokio::test]
    async fn all_is_told_in_order_before_the_end_also_after_a_panic() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let announcer = Announcer::new({
            let heard = Arc::clone(&heard);
            Arc::new(move |chunk: ChunkIndex| {
                assert_ne!(chunk.0, 7, "as planned");
                heard.lock().expect("whole").push(chunk.0);
            })
        });
        let announcer = announcer.expect("a thread");
        let all = (0..2 * RUNS_MAX as u64).chain([5, 3]);
        all.clone()
            .for_each(|chunk| announcer.tell(ChunkIndex(chunk)));
        announcer.end().await;
        assert_eq!(announcer.untold(), 0, "neighbours are one");
        let expected: Vec<u64> = all.filter(|chunk| *chunk != 7).collect();
        assert_eq!(*heard.lock().expect("whole"), expected);
    }
}
