//! Telling a program what of the volume has come.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::migrate::proof::LEAF_BYTES;
use crate::mount::announcer::Announcer;
use crate::volume::ChunkIndex;
use crate::volume::geometry::BlockRange;

/// Is told of each part of the volume, in bytes, when it has come for the first time. May block: it is called
/// on a thread of its own.
pub type PartCall = Arc<dyn Fn(Range<u64>) + Send + Sync>;

/// Leaves that were told of, and the thread that tells.
pub(super) struct Announced {
    announcer: Announcer,
    told: Vec<AtomicU64>,
}

impl Announced {
    pub(super) fn new(call: PartCall, volume_bytes: u64) -> io::Result<Self> {
        let leaves = volume_bytes.div_ceil(LEAF_BYTES);
        let words = leaves.div_ceil(u64::BITS.into()) as usize;
        Ok(Self {
            announcer: Announcer::new(Arc::new(move |leaf: ChunkIndex| {
                let start = leaf.start(LEAF_BYTES).0;
                call(start..volume_bytes.min(start + LEAF_BYTES));
            }))?,
            told: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        })
    }

    /// All of the leaves that these runs are in is here. The first pull has whole ones, later ones what was
    /// written meanwhile.
    pub(super) fn came(&self, runs: &[BlockRange]) {
        let leaves = runs.iter().flat_map(|run| run.by_chunk(LEAF_BYTES));
        for (leaf, _) in leaves {
            let (word, bit) = (leaf.0 / 64, 1 << (leaf.0 % 64));
            let is_new = self
                .told
                .get(word as usize)
                .is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0);
            if is_new {
                self.announcer.tell(leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn each_part_is_told_of_once_and_the_last_one_is_short() {
        let (tell, told) = mpsc::channel();
        let volume_bytes = 3 * LEAF_BYTES + 4096;
        let call: PartCall = Arc::new(move |part| tell.send(part).expect("heard"));
        let announced = Announced::new(call, volume_bytes).expect("a thread");
        announced.came(&[BlockRange::new(0, 16), BlockRange::new(32, 33)]);
        announced.came(&[BlockRange::new(2, 3), BlockRange::new(16, 49)]);
        drop(announced);
        let parts: Vec<Range<u64>> = told.iter().collect();
        let leaf = |number: u64| number * LEAF_BYTES..volume_bytes.min((number + 1) * LEAF_BYTES);
        assert_eq!(parts, [leaf(0), leaf(2), leaf(1), leaf(3)]);
    }
}
