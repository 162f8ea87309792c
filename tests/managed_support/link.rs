//! A link with a delay and a rate, and a queue without end in which nobody overtakes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Both ways of a link.
pub(crate) struct Link {
    bytes_a_second: f64,
    round_trip: Duration,
    down_free_at: Mutex<Instant>,
    up_free_at: Mutex<Instant>,
}

impl Link {
    pub(crate) fn new(bytes_a_second: f64, round_trip: Duration) -> Self {
        Self {
            bytes_a_second,
            round_trip,
            down_free_at: Mutex::new(Instant::now()),
            up_free_at: Mutex::new(Instant::now()),
        }
    }

    /// How long so many bytes take on it.
    pub(crate) fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_a_second)
    }

    /// A request goes there, and its answer of so many bytes comes back.
    pub(crate) async fn brings(&self, bytes: u64) {
        self.pass(&self.down_free_at, bytes).await;
    }

    /// A request of so many bytes goes there, and its answer comes back.
    pub(crate) async fn takes(&self, bytes: u64) {
        self.pass(&self.up_free_at, bytes).await;
    }

    async fn pass(&self, free_at: &Mutex<Instant>, bytes: u64) {
        let arrives = {
            let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begins = (*free_at).max(Instant::now() + self.round_trip / 2);
            *free_at = begins + self.time_of(bytes);
            *free_at + self.round_trip / 2
        };
        sleep_until(arrives).await;
    }
}
