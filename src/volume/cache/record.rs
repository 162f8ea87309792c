//! Bits records: which blocks of a mixed region are present, and which of them are dirty.
//!
//! A page with the head and zeros, a page of present bits, a page of dirty bits. Block *b* of the
//! region is bit *b* % 64 of the *b* / 64th word of 8 bytes.

use super::layout::RECORD_BYTES;
use super::page::{Checksum, PAGE_BYTES, PageFault, PageKind, Place};
use crate::volume::geometry::RegionIndex;
use crate::volume::state_map::RegionBits;

/// Makes a record in `bytes`.
pub(super) fn encode(
    store: [u8; 16],
    region: RegionIndex,
    sequence: u64,
    bits: &RegionBits,
    bytes: &mut [u8; RECORD_BYTES],
) -> Checksum {
    bytes[..PAGE_BYTES].fill(0);
    let (present_bytes, dirty_bytes) = bytes[PAGE_BYTES..].split_at_mut(PAGE_BYTES);
    put(&bits.present, present_bytes);
    put(&bits.dirty, dirty_bytes);
    place(store, region).finish(bytes, sequence)
}

/// Checks a record: its sequence and its checksum.
pub(super) fn check(
    store: [u8; 16],
    region: RegionIndex,
    bytes: &[u8; RECORD_BYTES],
) -> Result<(u64, Checksum), PageFault> {
    place(store, region).check(bytes)
}

/// What a record says.
pub(super) fn bits(bytes: &[u8; RECORD_BYTES]) -> RegionBits {
    let (present, dirty) = bytes[PAGE_BYTES..].split_at(PAGE_BYTES);
    RegionBits {
        present: take(present),
        dirty: take(dirty),
    }
}

fn put(words: &[u64], bytes: &mut [u8]) {
    for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
        at.copy_from_slice(&word.to_le_bytes());
    }
}

fn take<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*at);
    }
    words
}

fn place(store: [u8; 16], region: RegionIndex) -> Place {
    Place {
        store,
        kind: PageKind::Bits,
        index: region.0,
    }
}
