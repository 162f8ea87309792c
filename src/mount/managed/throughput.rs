//! How fast bytes move at the moment.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time that the rate is of.
const SPAN: Duration = Duration::from_secs(3);

/// What moves within it is counted together.
const STEP: Duration = Duration::from_millis(250);

/// Counts bytes as they move.
#[derive(Debug)]
pub(super) struct Throughput {
    since: Instant,
    /// When a step began, and what moved in it; at most SPAN / STEP + 1 of them.
    steps: Mutex<VecDeque<(Instant, u64)>>,
}

impl Throughput {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            steps: Mutex::default(),
        }
    }

    pub(super) fn moved(&self, bytes: u64, now: Instant) {
        let mut steps = self.recent(now);
        match steps.back_mut() {
            Some((began, sum)) if now.saturating_duration_since(*began) < STEP => *sum += bytes,
            _ => steps.push_back((now, bytes)),
        }
    }

    /// What moved in the last three seconds, in bytes a second.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        let steps = self.recent(now);
        let bytes: u64 = steps.iter().map(|(_, bytes)| bytes).sum();
        let counted = now.saturating_duration_since(self.since);
        (bytes as f64 / counted.clamp(STEP, SPAN).as_secs_f64()) as u64
    }

    fn recent(&self, now: Instant) -> MutexGuard<'_, VecDeque<(Instant, u64)>> {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        while steps
            .front()
            .is_some_and(|(began, _)| now.saturating_duration_since(*began) >= SPAN)
        {
            steps.pop_front();
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_now_and_not_of_what_once_was() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pulled = Throughput::new(start);
        assert_eq!(pulled.rate(at(0)), 0);
        for ms in (0..10_000).step_by(10) {
            pulled.moved(10_000, at(ms));
        }
        let rate = pulled.rate(at(10_000));
        assert!((900_000..=1_000_000).contains(&rate), "{rate}");
        assert!(pulled.steps.lock().expect("whole").len() <= 13);
        // What is over for a second counts less, and then not at all.
        let rate = pulled.rate(at(11_000));
        assert!((550_000..=700_000).contains(&rate), "{rate}");
        assert_eq!(pulled.rate(at(13_000)), 0);
    }

    #[test]
    fn what_has_just_begun_is_not_averaged_over_time_before_it() {
        let start = Instant::now();
        let pulled = Throughput::new(start);
        pulled.moved(1 << 20, start + Duration::from_millis(400));
        let rate = pulled.rate(start + Duration::from_millis(500));
        assert_eq!(rate, 2 << 20);
    }
}
