//! A range of blocks, cut into regions and into words of 64 blocks.

use crate::volume::geometry::{BlockIndex, BlockRange, REGION_BLOCKS, RegionIndex};

/// The part of a range that lies in one region: blocks from `first` up to, and without, `end`,
/// counted from the region's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) region: RegionIndex,
    pub(super) first: u32,
    pub(super) end: u32,
}

/// The pieces of a range, in order.
pub(super) fn pieces(range: BlockRange) -> impl Iterator<Item = Piece> {
    let mut at = range.first.0;
    std::iter::from_fn(move || {
        if at >= range.end.0 {
            return None;
        }
        let region = BlockIndex(at).region();
        let start = region.first_block().0;
        let piece = Piece {
            region,
            first: (at - start) as u32,
            end: (range.end.0 - start).min(REGION_BLOCKS) as u32,
        };
        at = start + u64::from(piece.end);
        Some(piece)
    })
}

impl Piece {
    pub(super) fn len(self) -> u64 {
        u64::from(self.end - self.first)
    }

    pub(super) fn blocks(self) -> BlockRange {
        let start = self.region.first_block().0;
        BlockRange::new(start + u64::from(self.first), start + u64::from(self.end))
    }

    /// The words it touches, each with the mask of its blocks.
    pub(super) fn words(self) -> impl Iterator<Item = (usize, u64)> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            if at >= self.end {
                return None;
            }
            let word = at / 64;
            let upto = self.end.min((word + 1) * 64);
            // At most 64 ones, so the shift is at most 63.
            let mask = (u64::MAX >> (64 - (upto - at))) << (at % 64);
            at = upto;
            Some((word as usize, mask))
        })
    }

    /// The first run of blocks, at most `max_blocks` long, for which `bits` has ones; it is asked
    /// for word after word.
    pub(super) fn first_run(
        self,
        max_blocks: u64,
        mut bits: impl FnMut(usize) -> u64,
    ) -> Option<Self> {
        let mut run: Option<Self> = None;
        for (word, mask) in self.words() {
            let (base, set) = (word as u32 * 64, bits(word) & mask);
            let (skipped, first) = match run {
                // A run goes on only from the last block of the word before.
                Some(run) => (0, run.first),
                None if set == 0 => continue,
                None => (set.trailing_zeros(), base + set.trailing_zeros()),
            };
            let end = base + skipped + (set >> skipped).trailing_ones();
            run = Some(Self { first, end, ..self });
            if end < base + 64 || u64::from(end - first) >= max_blocks {
                break;
            }
        }
        run.map(|run| Self {
            end: run
                .end
                .min(run.first + max_blocks.min(REGION_BLOCKS) as u32),
            ..run
        })
    }
}

/// Adds the blocks of one word to the runs found so far.
pub(super) fn push_runs(runs: &mut Vec<BlockRange>, word_start: BlockIndex, mut bits: u64) {
    while bits != 0 {
        let skipped = bits.trailing_zeros();
        let len = (bits >> skipped).trailing_ones();
        let first = word_start.0 + u64::from(skipped);
        let end = first + u64::from(len);
        match runs.last_mut() {
            Some(last) if last.end.0 == first => last.end = BlockIndex(end),
            _ => runs.push(BlockRange::new(first, end)),
        }
        bits &= !((u64::MAX >> (64 - len)) << skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ones of `piece`, block after block.
    fn listed(piece: Piece) -> Vec<u32> {
        piece
            .words()
            .flat_map(|(word, mask)| {
                (0..64)
                    .filter(move |bit| mask >> bit & 1 == 1)
                    .map(move |bit| word as u32 * 64 + bit)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn words_and_pieces_cover_each_block_once(
            first in 0u64..3 * REGION_BLOCKS,
            len in 0u64..2 * REGION_BLOCKS,
        ) {
            let range = BlockRange::new(first, first + len);
            let mut at = first;
            for piece in pieces(range) {
                prop_assert_eq!(piece.blocks().first.0, at);
                prop_assert_eq!(listed(piece), (piece.first..piece.end).collect::<Vec<_>>());
                at += piece.len();
            }
            prop_assert_eq!(at, first + len);
        }

        #[test]
        fn the_first_run_is_found_across_words(
            bits in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 4),
            first in 0u32..200, len in 0u32..57, max in 1u64..200,
        ) {
            let piece = Piece { region: RegionIndex(0), first, end: first + len };
            let is_set = |at: u32| bits[at as usize / 64] >> (at % 64) & 1 == 1;
            let expected = (piece.first..piece.end).find(|at| is_set(*at)).map(|from| {
                let end = (from..piece.end).find(|at| !is_set(*at)).unwrap_or(piece.end);
                (from, end.min(from + max as u32))
            });
            let run = piece.first_run(max, |word| bits[word]);
            prop_assert_eq!(run.map(|run| (run.first, run.end)), expected);
        }

        #[test]
        fn runs_of_words_join(bits in prop::collection::vec(
            prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 3)
        ) {
            let mut runs = Vec::new();
            for (word, bits) in bits.iter().enumerate() {
                push_runs(&mut runs, BlockIndex(word as u64 * 64), *bits);
            }
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end < pair[1].first, "{pair:?}");
            }
            let listed: Vec<_> = runs.iter().flat_map(|run| run.iter()).collect();
            let expected: Vec<_> = (0..192u64)
                .filter(|at| bits[*at as usize / 64] >> (at % 64) & 1 == 1)
                .map(BlockIndex)
                .collect();
            prop_assert_eq!(listed, expected);
        }
    }
}
