//! How long a request may wait for the other end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::volume::{Errno, Outcome, Request};

/// How long a request may take unless another time is asked for.
pub const IO_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How many times its time a request may take while others are being answered.
const STRETCH_MAX: u32 = 10;

/// The deadline of every request of a volume: so long without an answer to any, and ten times as
/// long in any case. A link that is slow but works is no failure.
#[derive(Debug)]
pub(super) struct Deadline {
    /// `None`: for ever.
    limit: Option<Duration>,
    last_answer: Mutex<Instant>,
    timeouts: Arc<AtomicU64>,
}

impl Deadline {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            last_answer: Mutex::new(Instant::now()),
            timeouts: Arc::default(),
        }
    }

    /// How many requests failed because their time was over.
    pub(super) fn timeouts(&self) -> &Arc<AtomicU64> {
        &self.timeouts
    }

    /// How long ago the other end last gave an answer.
    pub(super) fn silent_for(&self) -> Duration {
        self.lock().elapsed()
    }

    /// The other end gave an answer.
    pub(super) fn answered(&self) {
        *self.lock() = Instant::now();
    }

    /// The outcome of `running`, or an I/O error once its time is over.
    pub(super) async fn keep(
        &self,
        request: &Request,
        running: impl Future<Output = Outcome>,
    ) -> Outcome {
        let Some(limit) = self.limit else {
            return running.await;
        };
        let mut running = std::pin::pin!(running);
        let started = Instant::now();
        let mut deadline = started + limit;
        loop {
            if let Ok(outcome) = timeout_at(deadline, &mut running).await {
                return outcome;
            }
            let later = (*self.lock() + limit).min(started + limit * STRETCH_MAX);
            if later <= deadline {
                return self.timed_out(request);
            }
            deadline = later;
        }
    }

    fn timed_out(&self, request: &Request) -> Outcome {
        if self.timeouts.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(
                op = ?request.op, offset = request.offset.0, len = request.len_bytes,
                "a request was not answered in time and failed; further ones are counted"
            );
        }
        Err(Errno::EIO)
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.last_answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
