//! The body of a reply to a map request: extents, each its end and whether it holds data.
//!
//! ```text
//!  0  where it ends, in bytes (8); it starts where the one before it ended
//!  8  1 data, 0 hole (4)
//! 12  zero (4)
//! ```

use std::ops::Range;

use super::WireError;
use super::data::{u32_at, u64_at};
use super::limits::EXTENTS_MAX;
use crate::volume::Extent;

/// How long an extent is on the wire.
pub const EXTENT_BYTES: usize = 16;

/// The extents as they travel, at most [`EXTENTS_MAX`] of them.
pub fn encode(extents: &[Extent]) -> Vec<u8> {
    extents
        .iter()
        .take(EXTENTS_MAX as usize)
        .flat_map(|extent| {
            let mut bytes = [0; EXTENT_BYTES];
            bytes[..8].copy_from_slice(&extent.range.end.to_le_bytes());
            bytes[8] = u8::from(extent.data);
            bytes
        })
        .collect()
}

/// The extents in `bytes`, which have to lie within `asked` and to start where it starts.
///
/// # Errors
/// `Extent` for any that is empty, past the end, or not followed without a gap; also for none.
pub fn decode(bytes: &[u8], asked: &Range<u64>) -> Result<Vec<Extent>, WireError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(EXTENT_BYTES) {
        return Err(WireError::Extent);
    }
    let mut start = asked.start;
    bytes
        .chunks_exact(EXTENT_BYTES)
        .map(|bytes| {
            let end = u64_at(bytes, 0);
            let data = match u32_at(bytes, 8) {
                0 => false,
                1 => true,
                _ => return Err(WireError::Extent),
            };
            if end <= start || end > asked.end || u32_at(bytes, 12) != 0 {
                return Err(WireError::Extent);
            }
            let range = start..end;
            start = end;
            Ok(Extent { range, data })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extents_keep_their_bytes() {
        let extents = [
            Extent {
                range: 4096..8192,
                data: true,
            },
            Extent {
                range: 8192..1 << 40,
                data: false,
            },
        ];
        let bytes = encode(&extents);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&bytes),
            "0020000000000000010000000000000000000000000100000000000000000000"
        );
        assert_eq!(decode(&bytes, &(4096..1 << 40)), Ok(extents.to_vec()));
    }

    #[test]
    fn extents_that_go_nowhere_or_too_far_are_refused() {
        let one = |end| {
            encode(&[Extent {
                range: 0..end,
                data: true,
            }])
        };
        assert_eq!(decode(&[], &(0..10)), Err(WireError::Extent));
        assert_eq!(decode(&[0; 15], &(0..10)), Err(WireError::Extent));
        assert_eq!(decode(&one(5), &(5..10)), Err(WireError::Extent));
        assert_eq!(decode(&one(11), &(5..10)), Err(WireError::Extent));
    }

    proptest! {
        #[test]
        fn any_bytes_are_legal_extents_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..128),
            range in any::<Range<u64>>(),
        ) {
            if let Ok(extents) = decode(&bytes, &range) {
                prop_assert_eq!(extents[0].range.start, range.start);
                prop_assert!(extents.iter().all(|extent| extent.range.end <= range.end));
            }
        }
    }
}
