//! In which order the chunks of a volume were first touched.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::volume::geometry::{ByteOffset, ChunkIndex};

/// The most chunks whose order is recorded: 64 MiB of numbers.
const TOUCHED_CHUNKS_MAX: u64 = 16 << 20;

/// A number for each chunk: when it was first touched. Any thread may note.
#[derive(Debug)]
pub struct Touched {
    chunk_bytes: u64,
    /// 0: not yet; else its place in the order, from 1.
    places: Box<[AtomicU32]>,
    next: AtomicU32,
}

impl Touched {
    /// For a volume of `size_bytes`; `None` for one of more than 16 Mi chunks.
    pub fn new(size_bytes: u64, chunk_bytes: u64) -> Option<Self> {
        let chunks = size_bytes.div_ceil(chunk_bytes);
        (chunks <= TOUCHED_CHUNKS_MAX).then(|| Self {
            chunk_bytes,
            places: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
            next: AtomicU32::new(1),
        })
    }

    /// These chunks were touched before all others, in this order.
    #[must_use]
    pub fn after(self, earlier: &[ChunkIndex]) -> Self {
        for chunk in earlier {
            self.note(chunk.start(self.chunk_bytes), 1);
        }
        self
    }

    /// These bytes were asked for.
    pub fn note(&self, offset: ByteOffset, len_bytes: u64) {
        let last = offset.advanced(len_bytes.saturating_sub(1));
        let chunks = offset.chunk(self.chunk_bytes).0..=last.chunk(self.chunk_bytes).0;
        for chunk in chunks {
            let Some(place) = self.places.get(chunk as usize) else {
                return;
            };
            if place.load(Ordering::Relaxed) == 0 {
                let next = self.next.fetch_add(1, Ordering::Relaxed);
                // Who comes second leaves the first one's number, and a gap.
                let _ = place.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// A number that grows with every chunk that is touched for the first time.
    pub fn count(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// The chunks that were touched, first ones first.
    pub fn order(&self) -> Vec<ChunkIndex> {
        let mut order: Vec<(u32, ChunkIndex)> = self
            .places
            .iter()
            .enumerate()
            .filter_map(|(chunk, place)| match place.load(Ordering::Relaxed) {
                0 => None,
                place => Some((place, ChunkIndex(chunk as u64))),
            })
            .collect();
        order.sort_unstable_by_key(|(place, _)| *place);
        order.into_iter().map(|(_, chunk)| chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_in_the_order_of_their_first_touch() {
        let touched = Touched::new(1 << 20, 64 << 10).expect("few chunks");
        for (offset, len) in [
            (700 << 10, 4096),
            (0, 512),
            (700 << 10, 512),
            (127 << 10, 4096),
        ] {
            touched.note(ByteOffset(offset), len);
        }
        let order: Vec<u64> = touched.order().into_iter().map(|chunk| chunk.0).collect();
        assert_eq!(order, [10, 0, 1, 2]);
    }

    #[test]
    fn what_an_earlier_life_touched_stays_first() {
        let touched = Touched::new(1 << 20, 64 << 10).expect("few chunks");
        let touched = touched.after(&[9, 3, 1000].map(ChunkIndex));
        for chunk in [3, 2, 9, 0] {
            touched.note(ChunkIndex(chunk).start(64 << 10), 4096);
        }
        assert_eq!(touched.order(), [9, 3, 2, 0].map(ChunkIndex));
    }

    #[test]
    fn what_lies_behind_the_end_is_not_noted() {
        let touched = Touched::new(100, 4096).expect("one chunk");
        touched.note(ByteOffset(1 << 40), 4096);
        assert!(touched.order().is_empty());
    }
}
