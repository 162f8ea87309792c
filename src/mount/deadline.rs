//! How long a request may wait for the other end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::volume::{Errno, MissQueue, Outcome, Request};

/// How long a request may take unless another time is asked for.
pub const IO_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// The longest time that can be asked for: a year.
pub const IO_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 86_400);

/// How many times its time a request may take while others are being answered.
const STRETCH_MAX: u32 = 10;

/// The deadline of every request of a volume: so long without an answer to any, and ten times as
/// long in any case. A link that is slow but works is no failure. A device may want its answers
/// earlier than that.
#[derive(Debug)]
pub(super) struct Deadline {
    /// `None`: for ever.
    limit: Option<Duration>,
    /// Where the device says what it wants.
    misses: Arc<MissQueue>,
    last_answer: Mutex<Instant>,
    timeouts: Arc<AtomicU64>,
}

impl Deadline {
    pub(super) fn new(limit: Option<Duration>, misses: Arc<MissQueue>) -> Self {
        Self {
            limit: limit.map(|limit| limit.min(IO_TIMEOUT_MAX)),
            misses,
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
        self.keep_since(Instant::now(), request, running).await
    }

    /// The same for a request that came at `started`.
    pub(super) async fn keep_since(
        &self,
        started: Instant,
        request: &Request,
        running: impl Future<Output = Outcome>,
    ) -> Outcome {
        self.keep_within(self.limit, started, request, running)
            .await
    }

    /// The same for what waits for this machine alone: it has no time but that of the device.
    pub(super) async fn keep_local(
        &self,
        started: Instant,
        request: &Request,
        running: impl Future<Output = Outcome>,
    ) -> Outcome {
        self.keep_within(None, started, request, running).await
    }

    async fn keep_within(
        &self,
        limit: Option<Duration>,
        started: Instant,
        request: &Request,
        running: impl Future<Output = Outcome>,
    ) -> Outcome {
        let device_limit = self.misses.request_limit();
        let Some(limit) = limit.into_iter().chain(device_limit).min() else {
            return running.await;
        };
        let longest = (limit * STRETCH_MAX).min(device_limit.unwrap_or(Duration::MAX));
        let mut running = std::pin::pin!(running);
        let mut deadline = started + limit;
        loop {
            if let Ok(outcome) = timeout_at(deadline, &mut running).await {
                return outcome;
            }
            let later = (*self.lock() + limit).min(started + longest);
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
