//! A limit in bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How much may be used at once after a pause, as a time at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// Lets so many bytes a second through.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// `None`: all.
    bytes_a_second: Option<u64>,
    /// When the next byte may go.
    next: Mutex<Instant>,
}

impl RateLimit {
    pub(super) fn new(bytes_a_second: Option<u64>) -> Self {
        Self {
            bytes_a_second,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` more may go.
    pub(super) async fn pass(&self, bytes: u64) {
        let Some(rate) = self.bytes_a_second else {
            return;
        };
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = Instant::now().checked_sub(BURST);
            let turn = earliest.map_or(*next, |earliest| (*next).max(earliest));
            *next = turn + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let limit = RateLimit::new(Some(1 << 20));
        let start = Instant::now();
        for _ in 0..21 {
            limit.pass(64 << 10).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((1.1..1.3).contains(&took), "{took}");
    }
}
