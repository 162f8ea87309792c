//! Sets of blocks that travel: what a leecher lacks.

use std::fmt;

use roaring::RoaringTreemap;

use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange};

/// A compressed set of blocks. All blocks of a volume take next to no memory, a scattered few about
/// two bytes each.
#[derive(Clone, Default, PartialEq)]
pub struct BlockSet(RoaringTreemap);

impl BlockSet {
    /// No block.
    pub fn new() -> Self {
        Self::default()
    }

    /// The blocks of a range.
    pub fn of(blocks: BlockRange) -> Self {
        let mut set = Self::new();
        set.insert(blocks);
        set
    }

    /// Adds the blocks of a range.
    pub fn insert(&mut self, blocks: BlockRange) {
        self.0.insert_range(blocks.first.0..blocks.end.0);
    }

    /// Adds the blocks of another set.
    pub fn add(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Takes the blocks of a range out. Whether all of them were there.
    pub fn remove(&mut self, blocks: BlockRange) -> bool {
        self.0.remove_range(blocks.first.0..blocks.end.0) == blocks.len()
    }

    /// Whether the block is one of them.
    pub fn contains(&self, block: BlockIndex) -> bool {
        self.0.contains(block.0)
    }

    /// The blocks, in order.
    pub fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.0.iter().map(BlockIndex)
    }

    /// The blocks as runs, in order. It takes as long as there are runs, however long these are.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let parts = self.0.bitmaps().flat_map(|(high, part)| {
            let base = u64::from(high) << 32;
            let mut blocks = part.iter();
            std::iter::from_fn(move || blocks.next_range()).map(move |run| {
                BlockRange::new(
                    base + u64::from(*run.start()),
                    base + u64::from(*run.end()) + 1,
                )
            })
        });
        // A run goes on behind the end of a part.
        let mut parts = parts.peekable();
        std::iter::from_fn(move || {
            let mut run = parts.next()?;
            while let Some(more) = parts.next_if(|more| more.first == run.end) {
                run.end = more.end;
            }
            Some(run)
        })
    }

    /// As it travels.
    pub(in crate::migrate) fn as_treemap(&self) -> &RoaringTreemap {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// How many bytes they are.
    pub fn len_bytes(&self) -> u64 {
        self.len() * BLOCK_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<RoaringTreemap> for BlockSet {
    fn from(blocks: RoaringTreemap) -> Self {
        Self(blocks)
    }
}

impl FromIterator<BlockIndex> for BlockSet {
    fn from_iter<I: IntoIterator<Item = BlockIndex>>(blocks: I) -> Self {
        Self(blocks.into_iter().map(|block| block.0).collect())
    }
}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: u64 = 16;
        if self.len() > SHOWN_MAX {
            return write!(f, "{} blocks", self.len());
        }
        f.debug_set().entries(self.0.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_blocks_of_a_large_volume_take_next_to_no_memory() {
        let set = BlockSet::of(BlockRange::new(0, (16 << 40) / BLOCK_BYTES));
        assert_eq!(set.len_bytes(), 16 << 40);
        assert!(set.0.serialized_size() < 1 << 20);
        let runs: Vec<_> = set.runs().collect();
        assert_eq!(runs, [BlockRange::new(0, (16 << 40) / BLOCK_BYTES)]);
    }

    #[test]
    fn runs_are_the_blocks_and_never_touch_each_other() {
        let ends = [0, 1, 63, 64, 65_535, 65_536, 65_537, 1 << 20, (1 << 32) - 1];
        let mut set = BlockSet::new();
        for end in ends {
            for len in [1, 2, 70, 66_000] {
                set = if len == 2 { BlockSet::new() } else { set };
                set.insert(BlockRange::new(end, end + len));
                set.insert(BlockRange::new(end + len + 1, end + len + 2));
                let runs: Vec<_> = set.runs().collect();
                let blocks: Vec<_> = runs.iter().flat_map(|run| run.iter()).collect();
                assert_eq!(blocks, set.iter().collect::<Vec<_>>());
                assert!(runs.is_sorted_by(|one, next| one.end < next.first));
            }
        }
    }
}
