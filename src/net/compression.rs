//! Which parts of a body are sent compressed. The sender decides, since it knows how fast the link
//! takes what it sends, and what compressing costs it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::Connection;

use super::transport::FIRST_FLIGHT_BYTES;
use crate::wire::codec::{Codec, Compression, UNIT_BYTES_MAX, compress};
use crate::wire::segment::{Segment, runs};

/// How much of a unit is tried first.
const SAMPLE_BYTES: usize = 4 << 10;

/// A unit shorter than this is its own sample.
const SAMPLED_BYTES_MIN: usize = 4 * SAMPLE_BYTES;

/// What is supposed to be left of bytes of which there is no sample.
const USUAL_RATIO: f64 = 0.5;

/// How many bytes a second LZ4 takes in this process. Until it was measured: what an ordinary
/// processor does.
static LZ4_BYTES_PER_S: AtomicU64 = AtomicU64::new(400_000_000);

/// Of a new measurement so much counts.
const NEW_PART: u64 = 8;

/// How the parts of one body are compressed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Plan {
    /// All that get shorter.
    Always(Codec),
    /// Those on which more time is saved on the link than compressing takes.
    OnLink { bytes_per_s: f64 },
}

/// How a part of a body travels.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As its header alone.
    Zeros,
    /// As it is.
    Plain(Range<usize>),
    /// Compressed.
    Packed(Vec<u8>),
}

impl Plan {
    /// The plan for a body on this connection; `None` if nothing of it is to be compressed.
    pub(super) fn of(compression: Compression, connection: &Connection) -> Option<Self> {
        match compression {
            Compression::Off => None,
            Compression::Lz4 => Some(Self::Always(Codec::Lz4)),
            Compression::Zstd => Some(Self::Always(Codec::Zstd)),
            Compression::Auto => Self::on_link(link_bytes_per_s(connection)?),
        }
    }

    /// On a link that takes more than the codec nothing can be saved.
    fn on_link(bytes_per_s: f64) -> Option<Self> {
        (bytes_per_s < lz4_bytes_per_s()).then_some(Self::OnLink { bytes_per_s })
    }

    fn codec(self) -> Codec {
        match self {
            Self::Always(codec) => codec,
            Self::OnLink { .. } => Codec::Lz4,
        }
    }

    /// Whether compressing to this part of the bytes pays.
    fn pays(self, ratio: f64) -> bool {
        match self {
            Self::Always(_) => ratio < 1.0,
            Self::OnLink { bytes_per_s } => bytes_per_s < lz4_bytes_per_s() * (1.0 - ratio),
        }
    }

    fn pack(self, unit: &[u8]) -> Option<Vec<u8>> {
        let ratio = match sample_of(unit) {
            Some(sample) => compress(Codec::Lz4, sample)
                .map_or(1.0, |stored| stored.len() as f64 / sample.len() as f64),
            None => USUAL_RATIO,
        };
        if !self.pays(ratio) {
            return None;
        }
        let begun = Instant::now();
        let packed = compress(self.codec(), unit);
        if self.codec() == Codec::Lz4 {
            note_lz4(unit.len(), begun);
        }
        packed
    }
}

/// The middle of the unit.
fn sample_of(unit: &[u8]) -> Option<&[u8]> {
    let middle = unit.len() / 2;
    (unit.len() >= SAMPLED_BYTES_MIN).then(|| &unit[middle..middle + SAMPLE_BYTES])
}

fn lz4_bytes_per_s() -> f64 {
    LZ4_BYTES_PER_S.load(Ordering::Relaxed) as f64
}

fn note_lz4(bytes: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    if seconds > 0.0 {
        let measured = (bytes as f64 / seconds) as u64;
        let before = LZ4_BYTES_PER_S.load(Ordering::Relaxed);
        let now = before - before / NEW_PART + measured / NEW_PART;
        LZ4_BYTES_PER_S.store(now, Ordering::Relaxed);
    }
}

/// How fast the link takes what we send, once that can be told: a window of bytes a round trip. One that
/// has grown says something of the link: it was full once.
fn link_bytes_per_s(connection: &Connection) -> Option<f64> {
    let path = connection.stats().path;
    let known = path.cwnd > FIRST_FLIGHT_BYTES || path.congestion_events > 0;
    let seconds = path.rtt.as_secs_f64();
    (known && seconds > 0.0).then(|| path.cwnd as f64 / seconds)
}

/// The parts of the body in order, each with its header.
pub(super) fn parts(body: &[u8], plan: Plan) -> impl Iterator<Item = (Segment, Part)> {
    runs(body)
        .flat_map(|(segment, range)| units(segment.is_zeros(), range))
        .map(move |(zeros, range)| {
            let len = range.len() as u32;
            if zeros {
                return (Segment::zeros(len), Part::Zeros);
            }
            match plan.pack(&body[range.clone()]) {
                Some(packed) => {
                    let stored = packed.len() as u32;
                    let segment = Segment::packed(plan.codec(), len, stored);
                    (segment, Part::Packed(packed))
                }
                None => (Segment::data(len), Part::Plain(range)),
            }
        })
}

/// A run of data in the units that are compressed; zeros in one.
fn units(zeros: bool, run: Range<usize>) -> impl Iterator<Item = (bool, Range<usize>)> {
    let step = if zeros { run.len() } else { UNIT_BYTES_MAX };
    let end = run.end;
    run.step_by(step.max(1))
        .map(move |start| (zeros, start..end.min(start + step)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::{Codecs, decompress};
    use crate::wire::control::FEATURES;
    use crate::wire::segment::Encoding;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u8
        })
        .take(len)
        .collect()
    }

    fn text(len: usize) -> Vec<u8> {
        b"some text, ".iter().copied().cycle().take(len).collect()
    }

    /// What the other end makes of the parts, and how many were sent in which way.
    fn received(body: &[u8], plan: Plan) -> (Vec<u8>, [usize; 3]) {
        let codecs = Codecs::from_features(FEATURES);
        let mut place = vec![0xEE; body.len()];
        let (mut at, mut kinds) = (0, [0; 3]);
        for (segment, part) in parts(body, plan) {
            let left = (body.len() - at) as u64;
            let read = Segment::decode(&segment.encode(), left, codecs);
            assert_eq!(read, Ok(segment));
            let to = &mut place[at..at + segment.len as usize];
            match (segment.encoding, part) {
                (Encoding::Zeros, Part::Zeros) => {
                    kinds[0] += 1;
                    to.fill(0);
                }
                (Encoding::Data, Part::Plain(range)) => {
                    kinds[1] += 1;
                    to.copy_from_slice(&body[range]);
                }
                (Encoding::Packed(codec), Part::Packed(stored)) => {
                    kinds[2] += 1;
                    assert_eq!(segment.stored as usize, stored.len());
                    decompress(codec, &stored, to).expect("whole");
                }
                (encoding, part) => panic!("{encoding:?} {part:?}"),
            }
            at += segment.len as usize;
        }
        assert_eq!(at, body.len());
        (place, kinds)
    }

    #[test]
    fn a_body_of_all_kinds_arrives_as_it_was() {
        let body = [
            text(3 * UNIT_BYTES_MAX / 2).as_slice(),
            &[0; 300_000],
            &noise(2 * UNIT_BYTES_MAX),
            &[0; 8192],
            &text(1000),
        ]
        .concat();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let (place, [zeros, plain, packed]) = received(&body, Plan::Always(codec));
            assert!(place == body);
            assert!(
                zeros == 2 && plain > 0 && packed > 1,
                "{zeros} {plain} {packed}"
            );
        }
        assert_eq!(received(&[], Plan::Always(Codec::Lz4)), (vec![], [0; 3]));
        assert_eq!(
            received(&[7], Plan::Always(Codec::Lz4)),
            (vec![7], [0, 1, 0])
        );
    }

    #[test]
    fn what_does_not_get_shorter_is_sent_as_it_is_on_every_link() {
        let body = noise(4 * UNIT_BYTES_MAX);
        let slow = Plan::OnLink { bytes_per_s: 1e3 };
        for plan in [slow, Plan::Always(Codec::Lz4), Plan::Always(Codec::Zstd)] {
            assert_eq!(received(&body, plan).1, [0, 4, 0]);
        }
    }

    #[test]
    fn on_a_fast_link_nothing_is_compressed_and_on_a_slow_one_what_gets_shorter() {
        let body = text(4 * UNIT_BYTES_MAX);
        assert_eq!(Plan::on_link(1e12), None);
        let plan = Plan::on_link(1e3).expect("slow");
        assert_eq!(received(&body, plan).1, [0, 0, 4]);
        // As fast as the codec, or nearly: what is saved on the link is lost here.
        let plan = Plan::OnLink { bytes_per_s: 1e12 };
        assert_eq!(received(&body, plan).1, [0, 4, 0]);
        assert!(!plan.pays(0.1) && Plan::OnLink { bytes_per_s: 1.0 }.pays(0.9));
    }
}
