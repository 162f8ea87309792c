//! Bodies: a row of segments, each a header and, unless it is all zeros, its bytes.
//!
//! ```text
//!  0  kind: 1 data, 2 zeros (3 lz4 and 4 zstd are reserved)
//!  1  zero (3)
//!  4  length of what it stands for (4)
//!  8  length of what follows (4): the same for data, 0 for zeros
//! ```

use std::ops::Range;

use super::WireError;
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
    /// Whether it stands for zeros; nothing follows its header then.
    pub zeros: bool,
    /// How many bytes of the body it stands for.
    pub len: u32,
}

impl Segment {
    /// The header as it travels.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0] = if self.zeros { KIND_ZEROS } else { KIND_DATA };
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        if !self.zeros {
            bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        }
        bytes
    }

    /// The header in `bytes`, for a body of which `left` bytes are still to come.
    ///
    /// # Errors
    /// What is wrong with it; a segment that passes is not longer than `left`.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES], left: u64) -> Result<Self, WireError> {
        let zeros = match bytes[0] {
            KIND_DATA => false,
            KIND_ZEROS => true,
            KIND_LZ4 | KIND_ZSTD => return Err(WireError::SegmentCompression),
            _ => return Err(WireError::SegmentKind),
        };
        if bytes[1..4] != [0; 3] {
            return Err(WireError::Reserved);
        }
        let len = u32_at(bytes, 4);
        let stored = u32_at(bytes, 8);
        let long_enough = u64::from(len) >= SEGMENT_BYTES_MIN.min(left) && len > 0;
        if !long_enough || u64::from(len) > left || stored != if zeros { 0 } else { len } {
            return Err(WireError::SegmentLength);
        }
        Ok(Self { zeros, len })
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
        Some((
            Segment {
                zeros,
                len: len as u32,
            },
            range,
        ))
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
    use proptest::prelude::*;

    #[test]
    fn segments_keep_their_bytes() {
        let hex = |segment: Segment| data_encoding::HEXLOWER.encode(&segment.encode());
        let data = Segment {
            zeros: false,
            len: 0x0102_0304,
        };
        let zeros = Segment {
            zeros: true,
            len: 4096,
        };
        assert_eq!(hex(data), "010000000403020104030201");
        assert_eq!(hex(zeros), "020000000010000000000000");
    }

    #[test]
    fn each_lie_in_a_segment_has_its_name() {
        let good = Segment {
            zeros: false,
            len: 4096,
        };
        let with = |at: usize, byte: u8, left: u64| {
            let mut bytes = good.encode();
            bytes[at] = byte;
            Segment::decode(&bytes, left)
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
        let tail = Segment {
            zeros: true,
            len: 3,
        };
        assert_eq!(Segment::decode(&tail.encode(), 3), Ok(tail));
        assert_eq!(
            Segment::decode(&tail.encode(), 4096),
            Err(WireError::SegmentLength)
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
                prop_assert_ne!(last, Some(segment.zeros), "neighbours are merged");
                prop_assert_eq!(segment.zeros, body[range.clone()].iter().all(|byte| *byte == 0));
                let left = (body.len() - at) as u64;
                prop_assert_eq!(Segment::decode(&segment.encode(), left), Ok(segment));
                at = range.end;
                last = Some(segment.zeros);
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
            if let Ok(segment) = Segment::decode(&bytes, left) {
                prop_assert!(u64::from(segment.len) <= left && segment.len > 0);
            }
        }
    }
}
