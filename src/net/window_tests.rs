use super::*;

const PIECE: u64 = 64 << 10;

/// A link with a rate and a round trip, and a queue without end.
struct Link {
    bytes_a_second: f64,
    round_trip: Duration,
    free_at: Instant,
}

impl Link {
    fn new(mbit: f64, rtt_ms: u64, free_at: Instant) -> Self {
        Self {
            bytes_a_second: mbit * 125_000.0,
            round_trip: Duration::from_millis(rtt_ms),
            free_at,
        }
    }

    fn arrives_at(&mut self, bytes: u64, now: Instant) -> Instant {
        let there = now + self.round_trip / 2;
        let begins = self.free_at.max(there);
        self.free_at = begins + Duration::from_secs_f64(bytes as f64 / self.bytes_a_second);
        self.free_at + self.round_trip / 2
    }
}

/// Keeps the window full for a while; gives the rate in the second half, and the longest time that
/// a byte waited in the link's queue then.
fn fill(window: &mut Window, link: &mut Link, start: Instant, time: Duration) -> (f64, Duration) {
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
        let mut link = Link::new(f64::from(mbit), rtt_ms, start);
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
        let mut link = Link::new(mbit, 20, now);
        let time = Duration::from_secs(60);
        let (rate, _) = fill(&mut window, &mut link, now, time);
        now += time + Duration::from_secs(5);
        let share = rate / link.bytes_a_second;
        assert!(share > 0.85, "{mbit} Mbit/s: {share:.2} of the link");
    }
}

#[test]
fn it_grows_while_nothing_queues_and_no_longer() {
    let mut now = Instant::now();
    let mut window = Window::new(PIECE, 256 << 20);
    // A sender that lets four pieces through in a round trip, whatever it is asked for.
    let mut rounds = |window: &mut Window, time: Duration| {
        for _ in 0..40 {
            let sent: Vec<_> = (0..4).map(|_| window.sent(PIECE, now)).collect();
            now += time;
            for sent in sent {
                window.delivered(sent, PIECE, now);
            }
        }
        window.size_bytes(now)
    };
    let least = 6 * PIECE;
    let grown = rounds(&mut window, Duration::from_millis(25));
    assert!(grown > 2 * least, "{grown} bytes");
    let queued = rounds(&mut window, Duration::from_millis(40));
    assert!(queued <= least, "{queued} bytes");
}

#[test]
fn an_outage_does_not_change_what_the_link_is_taken_to_hold() {
    let start = Instant::now();
    let mut link = Link::new(1000.0, 25, start);
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
    let mut link = Link::new(1000.0, 25, start);
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
