//! Times, counted by magnitude, by many threads at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Each power of two is split in as many steps.
const STEPS: u64 = 8;

/// From 0 to above an hour, in microseconds.
const BUCKETS: usize = 33 * STEPS as usize;

/// A histogram of times in steps of an eighth of their magnitude: what it tells is at most 13 % off.
#[derive(Debug)]
pub struct Latencies {
    buckets: Box<[AtomicU64]>,
}

/// What a histogram says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencySummary {
    /// How many were counted.
    pub count: u64,
    /// Half of them took at most that long, in microseconds.
    pub p50_us: u64,
    /// Nine of ten.
    pub p90_us: u64,
    /// All but one in a hundred.
    pub p99_us: u64,
    /// All.
    pub max_us: u64,
    /// The histogram: its steps in which anything was counted, shortest times first.
    pub steps: Vec<LatencyStep>,
}

/// Times that are about the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyStep {
    /// The longest time that falls into it, in microseconds.
    pub upto_us: u64,
    /// How many did.
    pub count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Latencies {
    /// Counts a time.
    pub fn note(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(time_us)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn summary(&self) -> LatencySummary {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let below = |share: f64| {
            let wanted = ((count as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            counts
                .iter()
                .position(|bucket| {
                    seen += bucket;
                    seen >= wanted
                })
                .map_or(0, highest_in)
        };
        if count == 0 {
            return LatencySummary::default();
        }
        LatencySummary {
            count,
            p50_us: below(0.5),
            p90_us: below(0.9),
            p99_us: below(0.99),
            max_us: below(1.0),
            steps: counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
                .map(|(bucket, count)| LatencyStep {
                    upto_us: highest_in(bucket),
                    count: *count,
                })
                .collect(),
        }
    }
}

fn bucket_of(time_us: u64) -> usize {
    if time_us < STEPS {
        return time_us as usize;
    }
    let magnitude = u64::from(time_us.ilog2());
    let step = (time_us >> (magnitude - 3)) - STEPS;
    (((magnitude - 2) * STEPS + step) as usize).min(BUCKETS - 1)
}

/// The longest time that falls into a bucket, in microseconds.
fn highest_in(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let (magnitude, step) = (bucket / STEPS + 2, bucket % STEPS);
    ((STEPS + step + 1) << (magnitude - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_is_told_at_most_an_eighth_too_long(time_us in 0u64..1 << 34) {
            let told = highest_in(bucket_of(time_us));
            prop_assert!(told >= time_us);
            prop_assert!(told <= time_us + time_us / 8);
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let latencies = Latencies::default();
        assert_eq!(latencies.summary(), LatencySummary::default());
        for time_us in 1..=100 {
            latencies.note(Duration::from_micros(time_us));
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, 100);
        assert!((50..=56).contains(&summary.p50_us), "{summary:?}");
        assert!((99..=111).contains(&summary.p99_us), "{summary:?}");
        let sum: u64 = summary.steps.iter().map(|step| step.count).sum();
        assert_eq!(sum, 100);
        let first = LatencyStep {
            upto_us: 1,
            count: 1,
        };
        assert_eq!(summary.steps[0], first);
        latencies.note(Duration::MAX);
        assert!(latencies.summary().max_us > 3_600_000_000, "{summary:?}");
    }
}
