//! How many bytes of bulk may be on their way (L4): no I/O, no clock.
//!
//! Bytes that sit in a link's queue delay a demand read, whatever its priority. So what the
//! background has in flight is what the link can hold without a queue: the best delivery rate seen
//! lately times the shortest time an answer took, and one piece. At the start it grows until the
//! rate no longer does; later it lets the link run empty now and then, to see its shortest time again.
//!
//! As long as the fastest piece of a round shows that nothing queues, the window goes on growing: the
//! link may have become faster, or, where packets are lost, the sender's congestion window may grow,
//! which it does only while it is asked for more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much may be in flight before anything is known, in bytes and at least in pieces.
const START_BYTES: u64 = 128 << 10;
const START_PIECES: u64 = 2;

/// The same when the link has run empty, in pieces.
const REFILL_PIECES: u64 = 4;

/// What is asked for at least, in pieces: a chunk. One that waits for a lost packet does not leave the
/// link idle then, and a demand read waits for a chunk at most.
const LEAST_PIECES: u64 = 4;

/// The start ends when the rate has not grown by a quarter in as many rounds.
const FULL_ROUNDS: u32 = 3;

/// How much more than what came in the last round trip is asked for at the start. The sender's congestion
/// window doubles in a round trip, and what it lets through was asked for one before.
const START_GAIN: f64 = 4.0;

/// For how many rounds the best rate counts.
const RATE_ROUNDS: u64 = 10;

/// A round shows no queue when its fastest piece took at most so much longer than the shortest: the time
/// of as many pieces at the present rate, and this share of the shortest.
const SLACK_PIECES: f64 = 0.5;
const SLACK_SHARE: f64 = 1.0 / 32.0;

/// How often the link is let run empty.
const DRAIN_EVERY: Duration = Duration::from_secs(10);

/// An answer that took longer than this, and as many times longer than the shortest, says nothing of
/// the link: the other end was away meanwhile.
const OUTAGE: Duration = Duration::from_secs(1);
const OUTAGE_FACTOR: u32 = 8;

/// Zeros take no room on the link, so more of them may be under way: as many times more, when there was
/// nothing else lately. It is not known before they arrive that they are zeros.
const ZEROS_GAIN: f64 = 4.0;

/// How much may be in flight as long as nothing but zeros came, before that factor, in bytes.
const ZEROS_START_BYTES: u64 = 1 << 20;

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
    /// The shortest time in this round.
    shortest_in_round: Option<Duration>,
    /// What is in flight above what rate and time say, as nothing queues.
    above_bytes: u64,
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
            shortest_in_round: None,
            above_bytes: 0,
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
            let start = match self.dense < 1.0 {
                true => ZEROS_START_BYTES.max(start_bytes(self.piece_bytes)),
                false => start_bytes(self.piece_bytes),
            };
            return ((start as f64 * more) as u64).min(self.limit_bytes);
        };
        let gain = match &self.starting {
            Some(_) => START_GAIN,
            None => 1.0,
        };
        let size = (held * gain * more) as u64 + self.piece_bytes + self.above_bytes;
        let least = LEAST_PIECES * self.piece_bytes;
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
        self.shortest_in_round = shorter(self.shortest_in_round);
        let drained_at = *self.drained_at.get_or_insert(now);
        if now.saturating_duration_since(drained_at) >= DRAIN_EVERY {
            // What was seen since the last time, on a link that had run empty then, is the truth now.
            self.shortest = self.shortest_since.take().or(self.shortest);
            self.drained_at = Some(now);
            self.draining_until = self.shortest.map(|shortest| now + 2 * shortest);
            self.opened_bytes = REFILL_PIECES * self.piece_bytes;
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
        let queues = self.queues();
        let Some(start) = &mut self.starting else {
            self.grow_above(queues);
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

    /// Grows every other round: the pieces of one were asked for in the one before.
    fn grow_above(&mut self, queues: bool) {
        if queues {
            self.above_bytes = 0;
            return;
        }
        let held = self.held_by_link().unwrap_or(0.0) as u64;
        let is_open = self.opened_bytes > held + self.piece_bytes + self.above_bytes;
        if is_open && self.round.is_multiple_of(2) {
            self.above_bytes = (2 * self.above_bytes).clamp(self.piece_bytes, self.limit_bytes);
        }
    }

    /// Whether even the fastest piece of the round that ends had to wait; unknown counts as waiting.
    fn queues(&mut self) -> bool {
        let (Some(fastest), Some(shortest)) = (self.shortest_in_round.take(), self.shortest) else {
            return true;
        };
        let piece_s = self.piece_bytes as f64 / self.rate().max(1.0);
        let slack_s = SLACK_PIECES * piece_s + SLACK_SHARE * shortest.as_secs_f64();
        fastest.as_secs_f64() > shortest.as_secs_f64() + slack_s
    }
}

fn start_bytes(piece_bytes: u64) -> u64 {
    START_BYTES.max(START_PIECES * piece_bytes)
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
