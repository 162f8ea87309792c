//! How long the hold would be if the leecher finalized now.

use std::time::Duration;

/// What a round took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The bytes of its blocks, as far as they had to be sent.
    pub bytes: u64,
    /// From the collection of its blocks until they were all here.
    pub took: Duration,
    /// The round trip time.
    pub rtt: Duration,
}

/// Kept up round by round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prediction {
    before: Option<Measured>,
    last: Option<Measured>,
}

/// Round trips of a hold: the request and its answer, the commit and its answer.
const ROUND_TRIPS: u32 = 2;

/// What is spent on flush and records at both ends, and what is left for bytes where the round trips
/// alone are above the target.
const FIXED: Duration = Duration::from_millis(10);

impl Prediction {
    /// Another round was pulled.
    pub fn pulled(&mut self, measured: Measured) {
        self.before = self.last.replace(measured);
    }

    /// The bytes that are written at the seeder each second, by the last round: its blocks changed
    /// while the one before was pulled. None before the second round.
    pub fn dirty_bytes_per_s(&self) -> Option<f64> {
        let (before, last) = (self.before?, self.last?);
        Some(last.bytes as f64 / seconds(before.took))
    }

    /// How long the hold would be; none before the second round.
    pub fn downtime(&self) -> Option<Duration> {
        let last = self.last?;
        Some(least(last.rtt) + self.bytes_time()?)
    }

    /// Whether the hold would be within `target`, or as short as the round trips let it be.
    pub fn is_within(&self, target: Duration) -> bool {
        let Some((last, bytes_time)) = self.last.zip(self.bytes_time()) else {
            return false;
        };
        bytes_time <= target.saturating_sub(least(last.rtt)).max(FIXED)
    }

    /// Whether no hold can be within `target`, whatever there is to send.
    pub fn is_out_of_reach(&self, target: Duration) -> bool {
        self.last.is_some_and(|last| least(last.rtt) > target)
    }

    /// For the bytes that have changed since the last collection.
    fn bytes_time(&self) -> Option<Duration> {
        let last = self.last?;
        let dirty = self.dirty_bytes_per_s()? * seconds(last.took);
        let sent_per_s = [self.before, self.last]
            .iter()
            .flatten()
            .map(|round| round.bytes as f64 / seconds(round.took))
            .fold(0.0, f64::max);
        if dirty == 0.0 {
            return Some(Duration::ZERO);
        }
        Some(Duration::try_from_secs_f64(dirty / sent_per_s).unwrap_or(Duration::MAX))
    }
}

fn least(rtt: Duration) -> Duration {
    rtt * ROUND_TRIPS + FIXED
}

/// A round took some time, whatever the clock says.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(bytes: u64, took_ms: u64, rtt_ms: u64) -> Measured {
        let [took, rtt] = [took_ms, rtt_ms].map(Duration::from_millis);
        Measured { bytes, took, rtt }
    }

    fn after(rounds: &[Measured]) -> Prediction {
        let mut prediction = Prediction::default();
        rounds.iter().for_each(|round| prediction.pulled(*round));
        prediction
    }

    #[test]
    fn nothing_is_predicted_before_it_is_known_how_much_is_written() {
        let prediction = after(&[round(1 << 30, 10_000, 1)]);
        assert_eq!(prediction.downtime(), None);
        assert!(!prediction.is_within(Duration::from_secs(3600)));
    }

    /// 10 MB/s are written, 100 MB/s are sent: each round is a tenth of the one before.
    #[test]
    fn rounds_that_get_shorter_come_within_the_target() {
        let rounds = [
            round(1_000_000_000, 10_000, 1),
            round(100_000_000, 1000, 1),
            round(10_000_000, 100, 1),
        ];
        let target = Duration::from_millis(100);
        assert!(!after(&rounds[..2]).is_within(target));
        let prediction = after(&rounds);
        assert!(prediction.is_within(target));
        // 1 MB at 100 MB/s, two round trips and what is fixed.
        let downtime = prediction.downtime().expect("predicted");
        assert_eq!(downtime.as_millis(), 22);
    }

    #[test]
    fn an_idle_volume_is_within_any_target() {
        let prediction = after(&[round(1 << 30, 10_000, 1), round(0, 1, 1)]);
        assert!(prediction.is_within(Duration::ZERO));
    }

    #[test]
    fn a_target_below_the_round_trips_is_said_to_be_and_the_best_is_done() {
        let target = Duration::from_millis(50);
        let rounds = [
            round(1_000_000_000, 10_000, 200),
            round(100_000_000, 1000, 200),
            round(5_000_000, 50, 200),
        ];
        let prediction = after(&rounds);
        assert!(prediction.is_out_of_reach(target));
        assert!(!after(&rounds[..2]).is_within(target));
        assert!(prediction.is_within(target));
    }

    #[test]
    fn a_clock_that_stood_still_divides_nothing_by_zero() {
        let prediction = after(&[round(0, 0, 0), round(4096, 0, 0)]);
        assert!(prediction.downtime().is_some());
    }
}
