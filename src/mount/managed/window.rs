//! How many bytes of bulk may be on their way (L4): no I/O, no clock.
//!
//! Bytes that sit in a link's queue delay a demand read, whatever its priority. So what the
//! background has in flight is what the link can hold without a queue: the best delivery rate seen
//! lately times the shortest time an answer took, and one piece. At the start it doubles until the
//! rate no longer grows; later it asks for a little more from time to time, to notice a link that
//! became faster, and lets the link run empty now and then, to see its shortest time again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much may be in flight before anything is known, in bytes and at least in pieces, and in pieces
/// when the link has run empty.
const START_BYTES: u64 = 1 << 20;
const START_PIECES: u64 = 4;

/// The start ends when the rate has not grown by a quarter in as many rounds.
const FULL_ROUNDS: u32 = 3;

/// One round in as many asks for a quarter more.
const PROBE_EVERY: u64 = 8;

/// For how many rounds the best rate counts.
const RATE_ROUNDS: u64 = 10;

/// How often the link is let run empty.
const DRAIN_EVERY: Duration = Duration::from_secs(10);

/// An answer that took longer than this, and as many times longer than the shortest, says nothing of
/// the link: the other end was away meanwhile.
const OUTAGE: Duration = Duration::from_secs(1);
const OUTAGE_FACTOR: u32 = 8;

/// Zeros take no room on the link, so more of them may be under way: as many times more, when there was
/// nothing else lately. It is not known before they arrive that they are zeros.
const ZEROS_GAIN: f64 = 4.0;

/// Bytes that were asked for; to be given back to the window they came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    bytes: u64,
    at: Instant,
    /// What had been delivered when it was sent.
    delivered: u64,
}

/// The window of one direction.
#[derive(Debug)]
pub(super) struct Window {
    piece_bytes: u64,
    limit_bytes: u64,
    in_flight_bytes: u64,
    /// Without zeros.
    delivered_bytes: u64,
    /// Which share of what was asked for lately came as something else than zeros.
    dense: f64,
    /// A round is the time in which everything that was in flight is delivered.
    round: u64,
    round_ends_at_bytes: u64,
    /// The best rates lately, in bytes a second, with the round they are of; falling.
    rates: VecDeque<(u64, f64)>,
    starting: Option<Start>,
    shortest: Option<Duration>,
    /// The shortest time since the last drain.
    shortest_since: Option<Duration>,
    drained_at: Option<Instant>,
    draining_until: Option<Instant>,
    /// How far it has opened since the link ran empty, in bytes: not at once, which would be a burst.
    opened_bytes: u64,
}

#[derive(Debug, Default)]
struct Start {
    best_rate: f64,
    rounds_without_growth: u32,
}

impl Window {
    /// A window for requests of `piece_bytes` that never holds more than `limit_bytes`.
    pub(super) fn new(piece_bytes: u64, limit_bytes: u64) -> Self {
        Self {
            piece_bytes,
            limit_bytes: limit_bytes.max(piece_bytes),
            in_flight_bytes: 0,
            delivered_bytes: 0,
            dense: 1.0,
            round: 0,
            round_ends_at_bytes: 0,
            rates: VecDeque::new(),
            starting: Some(Start::default()),
            shortest: None,
            shortest_since: None,
            drained_at: None,
            draining_until: None,
            opened_bytes: start_bytes(piece_bytes),
        }
    }

    /// Whether `bytes` more of bulk may be sent now.
    pub(super) fn has_room(&self, bytes: u64, now: Instant) -> bool {
        self.in_flight_bytes == 0 || self.in_flight_bytes + bytes <= self.size_bytes(now)
    }

    /// How many bytes may be in flight.
    pub(super) fn size_bytes(&self, now: Instant) -> u64 {
        if self.draining_until.is_some_and(|until| now < until) {
            return self.piece_bytes;
        }
        let more = self.dense.max(1.0 / ZEROS_GAIN).recip();
        let Some(held) = self.held_by_link() else {
            let start = start_bytes(self.piece_bytes) as f64;
            return ((start * more) as u64).min(self.limit_bytes);
        };
        let gain = match &self.starting {
            Some(_) => 2.0,
            None if self.round.is_multiple_of(PROBE_EVERY) => 1.25,
            None => 1.0,
        };
        let size = (held * gain * more) as u64 + self.piece_bytes;
        let least = 2 * self.piece_bytes;
        size.min(self.opened_bytes)
            .clamp(least, self.limit_bytes.max(least))
    }

    /// When there will be more room without anything arriving.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.draining_until.filter(|until| now < *until)
    }

    /// The best rate lately, in bytes a second.
    pub(super) fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// What the link holds without a queue, in bytes.
    fn held_by_link(&self) -> Option<f64> {
        let (_, rate) = self.rates.front()?;
        Some(rate * self.shortest?.as_secs_f64())
    }

    /// `bytes` were asked for. Demand takes no notice of room, but counts.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) -> Sent {
        self.in_flight_bytes += bytes;
        Sent {
            bytes,
            at: now,
            delivered: self.delivered_bytes,
        }
    }

    /// They arrived; so many of them are not in runs of zeros, which travel as a header.
    pub(super) fn delivered(&mut self, sent: Sent, data_bytes: u64, now: Instant) {
        self.in_flight_bytes -= sent.bytes;
        self.delivered_bytes += data_bytes;
        self.note_density(data_bytes as f64 / sent.bytes.max(1) as f64);
        if self.draining_until.is_none_or(|until| now >= until) {
            self.opened_bytes = (self.opened_bytes + sent.bytes).min(self.limit_bytes);
        }
        if data_bytes == 0 {
            return;
        }
        let elapsed = now
            .saturating_duration_since(sent.at)
            .max(Duration::from_micros(1));
        // Short answers say how far the other end is, not how long a piece takes.
        if data_bytes >= self.piece_bytes / 2 && !self.was_away(elapsed) {
            self.note_time(elapsed, now);
        }
        let rate = (self.delivered_bytes - sent.delivered) as f64 / elapsed.as_secs_f64();
        self.note_rate(rate);
        if sent.delivered >= self.round_ends_at_bytes {
            self.round_ended();
        }
    }

    /// Bytes after zeros count soon, zeros after bytes late.
    fn note_density(&mut self, share: f64) {
        let step = if share > self.dense { 0.5 } else { 1.0 / 16.0 };
        self.dense += (share - self.dense) * step;
    }

    /// They will not arrive.
    pub(super) fn lost(&mut self, sent: Sent) {
        self.in_flight_bytes -= sent.bytes;
    }

    fn was_away(&self, elapsed: Duration) -> bool {
        self.shortest
            .is_some_and(|shortest| elapsed > OUTAGE.max(OUTAGE_FACTOR * shortest))
    }

    fn note_time(&mut self, elapsed: Duration, now: Instant) {
        let shorter = |known: Option<Duration>| Some(known.map_or(elapsed, |it| it.min(elapsed)));
        self.shortest = shorter(self.shortest);
        self.shortest_since = shorter(self.shortest_since);
        let drained_at = *self.drained_at.get_or_insert(now);
        if now.saturating_duration_since(drained_at) >= DRAIN_EVERY {
            // What was seen since the last time, on a link that had run empty then, is the truth now.
            self.shortest = self.shortest_since.take().or(self.shortest);
            self.drained_at = Some(now);
            self.draining_until = self.shortest.map(|shortest| now + 2 * shortest);
            self.opened_bytes = START_PIECES * self.piece_bytes;
        }
    }

    fn note_rate(&mut self, rate: f64) {
        while self.rates.back().is_some_and(|(_, known)| *known <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.round, rate));
        while let Some((round, _)) = self.rates.front()
            && round + RATE_ROUNDS < self.round
        {
            self.rates.pop_front();
        }
    }

    fn round_ended(&mut self) {
        self.round += 1;
        self.round_ends_at_bytes = self.delivered_bytes;
        let rate = self.rate();
        let Some(start) = &mut self.starting else {
            return;
        };
        if rate >= start.best_rate * 1.25 {
            start.best_rate = rate;
            start.rounds_without_growth = 0;
            return;
        }
        start.rounds_without_growth += 1;
        if start.rounds_without_growth >= FULL_ROUNDS {
            self.starting = None;
        }
    }
}

fn start_bytes(piece_bytes: u64) -> u64 {
    START_BYTES.max(START_PIECES * piece_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 64 << 10;

    /// A link with a rate and a round trip, and a queue without end.
    struct Link {
        bytes_a_second: f64,
        round_trip: Duration,
        free_at: Instant,
    }

    impl Link {
        fn arrives_at(&mut self, bytes: u64, now: Instant) -> Instant {
            let there = now + self.round_trip / 2;
            let begins = self.free_at.max(there);
            self.free_at = begins + Duration::from_secs_f64(bytes as f64 / self.bytes_a_second);
            self.free_at + self.round_trip / 2
        }
    }

    /// Keeps the window full for a while; gives the rate in the second half, and the longest time that
    /// a byte waited in the link's queue then.
    fn fill(
        window: &mut Window,
        link: &mut Link,
        start: Instant,
        time: Duration,
    ) -> (f64, Duration) {
        let mut now = start;
        let mut under_way: VecDeque<(Instant, Sent)> = VecDeque::new();
        let (mut bytes, mut longest) = (0, Duration::ZERO);
        let half = start + time / 2;
        while now < start + time {
            while window.has_room(PIECE, now) {
                if now > half {
                    longest = longest.max(
                        link.free_at
                            .saturating_duration_since(now + link.round_trip / 2),
                    );
                }
                let sent = window.sent(PIECE, now);
                under_way.push_back((link.arrives_at(PIECE, now), sent));
            }
            let (at, sent) = under_way.pop_front().expect("something is under way");
            now = at;
            window.delivered(sent, PIECE, now);
            if now > half {
                bytes += PIECE;
            }
        }
        for (_, sent) in under_way {
            window.lost(sent);
        }
        (bytes as f64 / (time.as_secs_f64() / 2.0), longest)
    }

    #[test]
    fn it_fills_links_of_any_delay_and_queues_about_a_piece() {
        for (mbit, rtt_ms) in [
            (100, 1),
            (1000, 0),
            (1000, 10),
            (1000, 50),
            (10_000, 25),
            (50, 100),
        ] {
            let start = Instant::now();
            let mut link = Link {
                bytes_a_second: f64::from(mbit) * 125_000.0,
                round_trip: Duration::from_millis(rtt_ms),
                free_at: start,
            };
            let mut window = Window::new(PIECE, 256 << 20);
            let (rate, longest) = fill(&mut window, &mut link, start, Duration::from_secs(40));
            let share = rate / link.bytes_a_second;
            assert!(
                share > 0.9,
                "{mbit} Mbit/s, {rtt_ms} ms: {share:.2} of the link"
            );
            let piece_time = PIECE as f64 / link.bytes_a_second;
            let allowed = 3.0 * piece_time + 0.4 * (rtt_ms as f64 / 1000.0 + piece_time);
            assert!(
                longest.as_secs_f64() <= allowed,
                "{mbit} Mbit/s, {rtt_ms} ms: {longest:?} queued, {allowed:.4} s allowed"
            );
        }
    }

    #[test]
    fn it_follows_a_link_that_becomes_faster_and_slower() {
        let mut now = Instant::now();
        let mut window = Window::new(PIECE, 256 << 20);
        for mbit in [100.0, 1000.0, 50.0] {
            let mut link = Link {
                bytes_a_second: mbit * 125_000.0,
                round_trip: Duration::from_millis(20),
                free_at: now,
            };
            let time = Duration::from_secs(60);
            let (rate, _) = fill(&mut window, &mut link, now, time);
            now += time + Duration::from_secs(5);
            let share = rate / link.bytes_a_second;
            assert!(share > 0.85, "{mbit} Mbit/s: {share:.2} of the link");
        }
    }

    #[test]
    fn an_outage_does_not_change_what_the_link_is_taken_to_hold() {
        let start = Instant::now();
        let mut link = Link {
            bytes_a_second: 125e6,
            round_trip: Duration::from_millis(25),
            free_at: start,
        };
        let mut window = Window::new(PIECE, 256 << 20);
        fill(&mut window, &mut link, start, Duration::from_secs(20));
        let mut now = start + Duration::from_secs(30);
        let before = window.size_bytes(now);
        let sent: Vec<_> = (0..before / PIECE)
            .map(|_| window.sent(PIECE, now))
            .collect();
        now += Duration::from_secs(90);
        for sent in sent {
            window.delivered(sent, PIECE, now);
        }
        let after = window.size_bytes(now);
        assert!(
            (before / 2..=2 * before).contains(&after),
            "{before} bytes before, {after} after"
        );
        let (rate, _) = fill(&mut window, &mut link, now, Duration::from_secs(10));
        assert!(rate > 0.9 * link.bytes_a_second, "{rate}");
    }

    #[test]
    fn zeros_go_faster_than_the_link_and_do_not_flood_it_when_they_end() {
        let start = Instant::now();
        let mut link = Link {
            bytes_a_second: 125e6,
            round_trip: Duration::from_millis(25),
            free_at: start,
        };
        let mut window = Window::new(PIECE, 256 << 20);
        fill(&mut window, &mut link, start, Duration::from_secs(5));
        let usual = window.size_bytes(start + Duration::from_secs(6));
        let mut now = start + Duration::from_secs(6);
        let mut zeros = 0;
        for _ in 0..200 {
            // All of a round trip at once.
            let mut sent = Vec::new();
            while window.has_room(PIECE, now) {
                sent.push(window.sent(PIECE, now));
            }
            now += link.round_trip;
            zeros += sent.len() as u64 * PIECE;
            for sent in sent {
                window.delivered(sent, 0, now);
            }
        }
        let rate = zeros as f64 / (200.0 * link.round_trip.as_secs_f64());
        assert!(
            rate > 2.0 * link.bytes_a_second,
            "{rate} bytes of zeros a second"
        );
        let most = window.size_bytes(now);
        assert!(most <= 5 * usual, "{usual} bytes before, {most} after");
        for _ in 0..8 {
            let sent = window.sent(PIECE, now);
            now += link.round_trip;
            window.delivered(sent, PIECE, now);
        }
        let after = window.size_bytes(now);
        assert!(
            after <= usual * 5 / 4,
            "{usual} bytes before, {after} after"
        );
    }

    #[test]
    fn one_request_goes_whatever_its_size_and_the_limit_holds() {
        let now = Instant::now();
        let mut window = Window::new(PIECE, 2 * PIECE);
        assert!(window.has_room(100 * PIECE, now));
        let first = window.sent(PIECE, now);
        assert!(window.has_room(PIECE, now));
        let _second = window.sent(PIECE, now);
        assert!(!window.has_room(PIECE, now));
        window.lost(first);
        assert!(window.has_room(PIECE, now));
    }
}
