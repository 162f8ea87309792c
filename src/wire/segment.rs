//! Bodies: a row of segments, each a header and, unless it is all zeros, its bytes.
//!
//! ```text
//!  0  kind: 1 data, 2 zeros, 3 lz4, 4 zstd
//!  1  zero (3)
//!  4  length of what it stands for (4)
//!  8  length of what follows (4): the same for data, 0 for zeros, less for the others
//! ```

use std::ops::Range;

use super::WireError;
use super::codec::{Codec, Codecs, UNIT_BYTES_MAX};
use super::data::u32_at;
use super::limits::{SEGMENT_BYTES_MIN, ZERO_GRAIN_BYTES};

/// How long a segment's header is.
pub const SEGMENT_HEADER_BYTES: usize = 12;

const KIND_DATA: u8 = 1;
const KIND_ZEROS: u8 = 2;
const KIND_LZ4: u8 = 3;
const KIND_ZSTD: u8 = 4;

/// A part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// How it travels.
    pub encoding: Encoding,
    /// How many bytes of the body it stands for.
    pub len: u32,
    /// How many bytes follow its header.
    pub stored: u32,
}

/// How a part of a body travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Data,
    /// As nothing but its header.
    Zeros,
    /// Compressed.
    Packed(Codec),
}

impl Segment {
    /// Bytes as they are.
    pub fn data(len: u32) -> Self {
        Self {
            encoding: Encoding::Data,
            len,
            stored: len,
        }
    }

    /// Zeros.
    pub fn zeros(len: u32) -> Self {
        Self {
            encoding: Encoding::Zeros,
            len,
            stored: 0,
        }
    }

    /// Bytes of which `stored` are left.
    pub fn packed(codec: Codec, len: u32, stored: u32) -> Self {
        Self {
            encoding: Encoding::Packed(codec),
            len,
            stored,
        }
    }

    /// Whether it stands for zeros.
    pub fn is_zeros(&self) -> bool {
        self.encoding == Encoding::Zeros
    }

    /// The header as it travels.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0] = match self.encoding {
            Encoding::Data => KIND_DATA,
            Encoding::Zeros => KIND_ZEROS,
            Encoding::Packed(Codec::Lz4) => KIND_LZ4,
            Encoding::Packed(Codec::Zstd) => KIND_ZSTD,
        };
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stored.to_le_bytes());
        bytes
    }

    /// The header in `bytes`, for a body of which `left` bytes are still to come and which may be
    /// compressed by `codecs`.
    ///
    /// # Errors
    /// What is wrong with it; a segment that passes is not longer than `left`, and if it is
    /// compressed neither is longer than [`UNIT_BYTES_MAX`], what follows nor what it stands for.
    pub fn decode(
        bytes: &[u8; SEGMENT_HEADER_BYTES],
        left: u64,
        codecs: Codecs,
    ) -> Result<Self, WireError> {
        let encoding = match bytes[0] {
            KIND_DATA => Encoding::Data,
            KIND_ZEROS => Encoding::Zeros,
            KIND_LZ4 => Encoding::Packed(Codec::Lz4),
            KIND_ZSTD => Encoding::Packed(Codec::Zstd),
            _ => return Err(WireError::SegmentKind),
        };
        if bytes[1..4] != [0; 3] {
            return Err(WireError::Reserved);
        }
        let len = u32_at(bytes, 4);
        let stored = u32_at(bytes, 8);
        let fits = match encoding {
            Encoding::Data => stored == len,
            Encoding::Zeros => stored == 0,
            Encoding::Packed(codec) if !codecs.has(codec) => {
                return Err(WireError::SegmentCompression);
            }
            Encoding::Packed(_) => 0 < stored && stored < len && len as usize <= UNIT_BYTES_MAX,
        };
        let long_enough = u64::from(len) >= SEGMENT_BYTES_MIN.min(left) && len > 0;
        if !long_enough || u64::from(len) > left || !fits {
            return Err(WireError::SegmentLength);
        }
        Ok(Self {
            encoding,
            len,
            stored,
        })
    }
}

/// Splits a body into runs of zero blocks and runs of others, in order and without gaps.
pub fn runs(body: &[u8]) -> impl Iterator<Item = (Segment, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
        let mut blocks = rest.chunks(ZERO_GRAIN_BYTES);
        let first = blocks.next()?;
        let zeros = is_zero(first);
        let more: usize = blocks
            .take_while(|block| is_zero(block) == zeros)
            .map(<[u8]>::len)
            .sum();
        let len = first.len() + more;
        let range = at..at + len;
        at += len;
        let segment = match zeros {
            true => Segment::zeros(len as u32),
            false => Segment::data(len as u32),
        };
        Some((segment, range))
    })
}

/// Whether all bytes are zero. Its first word tells most blocks that are not.
pub fn is_zero(block: &[u8]) -> bool {
    const STEP: usize = 64;
    let first = block.len().min(8);
    if block[..first].iter().any(|byte| *byte != 0) {
        return false;
    }
    let steps = block.chunks_exact(STEP);
    let rest = steps.remainder();
    let mut steps = steps;
    steps.all(|step| step.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::{FEATURE_LZ4, FEATURES};
    use proptest::prelude::*;

    fn all() -> Codecs {
        Codecs::from_features(FEATURES)
    }

    #[test]
    fn segments_keep_their_bytes() {
        let hex = |segment: Segment| data_encoding::HEXLOWER.encode(&segment.encode());
        let golden = [
            (Segment::data(0x0102_0304), "010000000403020104030201"),
            (Segment::zeros(4096), "020000000010000000000000"),
            (
                Segment::packed(Codec::Lz4, 0x1_0000, 0x0203),
                "030000000000010003020000",
            ),
            (
                Segment::packed(Codec::Zstd, 4096, 1),
                "040000000010000001000000",
            ),
        ];
        for (segment, expected) in golden {
            assert_eq!(hex(segment), expected, "{segment:?}");
            let left = u64::from(segment.len);
            assert_eq!(Segment::decode(&segment.encode(), left, all()), Ok(segment));
        }
    }

    #[test]
    fn each_lie_in_a_segment_has_its_name() {
        let good = Segment::data(4096);
        let with = |at: usize, byte: u8, left: u64| {
            let mut bytes = good.encode();
            bytes[at] = byte;
            Segment::decode(&bytes, left, Codecs::NONE)
        };
        assert_eq!(with(0, 1, 4096), Ok(good));
        assert_eq!(with(0, 0, 4096), Err(WireError::SegmentKind));
        assert_eq!(with(0, 3, 4096), Err(WireError::SegmentCompression));
        assert_eq!(with(0, 4, 4096), Err(WireError::SegmentCompression));
        assert_eq!(with(0, 2, 4096), Err(WireError::SegmentLength));
        assert_eq!(with(2, 1, 4096), Err(WireError::Reserved));
        assert_eq!(with(0, 1, 4095), Err(WireError::SegmentLength));
        assert_eq!(with(5, 0, 4096), Err(WireError::SegmentLength));
        assert_eq!(with(11, 1, 4096), Err(WireError::SegmentLength));
        let decode = |segment: Segment, left| Segment::decode(&segment.encode(), left, all());
        let tail = Segment::zeros(3);
        assert_eq!(decode(tail, 3), Ok(tail));
        assert_eq!(decode(tail, 4096), Err(WireError::SegmentLength));
    }

    #[test]
    fn a_compressed_segment_is_shorter_than_what_it_stands_for_and_that_has_a_limit() {
        let limit = UNIT_BYTES_MAX as u32;
        let decode = |len, stored| {
            let segment = Segment::packed(Codec::Zstd, len, stored);
            let read = Segment::decode(&segment.encode(), 1 << 20, all());
            read.map(|read| assert_eq!(read, segment))
        };
        assert_eq!(decode(limit, limit - 1), Ok(()));
        assert_eq!(decode(512, 1), Ok(()));
        for (len, stored) in [
            (limit + 1, 100),
            (4096, 4096),
            (4096, u32::MAX),
            (4096, 0),
            (u32::MAX, 1),
            (511, 1),
            (0, 0),
        ] {
            assert_eq!(
                decode(len, stored),
                Err(WireError::SegmentLength),
                "{len} {stored}"
            );
        }
        let other = Codecs::from_features(FEATURE_LZ4);
        let zstd = Segment::packed(Codec::Zstd, 4096, 1).encode();
        assert_eq!(
            Segment::decode(&zstd, 4096, other),
            Err(WireError::SegmentCompression)
        );
    }

    #[test]
    fn zeros_are_told_from_everything_else() {
        for len in [0, 1, 7, 8, 9, 63, 64, 65, 4096] {
            let mut block = vec![0u8; len];
            assert!(is_zero(&block), "{len}");
            for at in 0..len {
                block[at] = 1;
                assert!(!is_zero(&block), "{len} {at}");
                block[at] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn runs_cover_the_body_and_say_the_truth(
            blocks in prop::collection::vec(any::<bool>(), 0..12),
            tail in 0usize..ZERO_GRAIN_BYTES,
        ) {
            let mut body = Vec::new();
            for data in blocks {
                body.resize(body.len() + ZERO_GRAIN_BYTES - 1, 0);
                body.push(u8::from(data));
            }
            body.resize(body.len() + tail, 0);
            let mut at = 0;
            let mut last = None;
            for (segment, range) in runs(&body) {
                prop_assert_eq!(range.start, at);
                prop_assert_eq!(segment.len as usize, range.len());
                let zeros = segment.is_zeros();
                prop_assert_ne!(last, Some(zeros), "neighbours are merged");
                prop_assert_eq!(zeros, body[range.clone()].iter().all(|byte| *byte == 0));
                let left = (body.len() - at) as u64;
                let read = Segment::decode(&segment.encode(), left, Codecs::NONE);
                prop_assert_eq!(read, Ok(segment));
                at = range.end;
                last = Some(zeros);
            }
            prop_assert_eq!(at, body.len());
        }

        #[test]
        fn any_bytes_are_a_legal_segment_or_an_error(
            mut bytes in any::<[u8; SEGMENT_HEADER_BYTES]>(),
            left in 0u64..1 << 33,
            head in any::<bool>(),
        ) {
            if head {
                let kind = bytes[0] % 5;
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            if let Ok(segment) = Segment::decode(&bytes, left, all()) {
                prop_assert!(u64::from(segment.len) <= left && segment.len > 0);
                prop_assert!(segment.stored <= segment.len);
                prop_assert_eq!(segment.encode(), bytes);
            }
        }
    }
}
