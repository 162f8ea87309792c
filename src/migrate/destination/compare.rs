//! What the store has from before, and the seeder as well: that need not be fetched.
//!
//! Leaves are equal if their digests are, the seeder's and those of what is read back here. The seeder reads
//! after it has collected the round that they are of, so an equal leaf is as good as one that was fetched.

use std::io;

use super::pull::{Puller, in_batches};
use crate::volume::Priority;
use crate::volume::geometry::{BlockRange, in_chunks};
use crate::wire::digest::LEAF_BYTES;
use crate::wire::limits::DIGESTS_MAX;

/// How much one question is about, in bytes.
const SPAN_BYTES: u64 = DIGESTS_MAX * LEAF_BYTES;

/// The runs by span.
pub(super) fn in_spans(
    runs: impl Iterator<Item = BlockRange>,
) -> impl Iterator<Item = Vec<BlockRange>> {
    in_chunks(runs, SPAN_BYTES)
}

impl Puller {
    /// What of the runs of one span has to be fetched, in batches.
    pub(super) async fn differing(
        &self,
        runs: Vec<BlockRange>,
        priority: Priority,
    ) -> io::Result<Vec<Vec<BlockRange>>> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
            return Ok(Vec::new());
        };
        let first = first.start().0 / LEAF_BYTES;
        let last = (last.end.start().0 - 1) / LEAF_BYTES;
        let range = first * LEAF_BYTES..((last + 1) * LEAF_BYTES).min(self.store.size());
        if self.is_hole(range.clone()).await? {
            return Ok(in_batches(runs.into_iter()).collect());
        }
        let Some(theirs) = self.remote.digests(range, priority).await? else {
            return Ok(in_batches(runs.into_iter()).collect());
        };
        let mut different = Vec::new();
        let mut known = None;
        for (leaf, part) in runs.iter().flat_map(|run| run.by_chunk(LEAF_BYTES)) {
            let is_equal = match known {
                Some((of, is_equal)) if of == leaf.0 => is_equal,
                _ => self.prover.digest_of(leaf.0).await? == theirs[(leaf.0 - first) as usize],
            };
            known = Some((leaf.0, is_equal));
            match is_equal {
                true => {
                    self.count(part);
                    self.announce(&[part]);
                }
                false => different.push(part),
            }
        }
        Ok(in_batches(different.into_iter()).collect())
    }

    /// A store without bytes of its own, as a new one, is not compared.
    async fn is_hole(&self, range: std::ops::Range<u64>) -> io::Result<bool> {
        let extents = self.store.allocated(range).await?;
        Ok(extents.iter().all(|extent| !extent.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_question_is_about_more_than_may_be_asked_and_no_block_is_left_out() {
        let runs = [(0, 1), (4000, 8200), (20000, 20001)];
        let runs = runs.map(|(first, end)| BlockRange::new(first, end));
        let spans: Vec<_> = in_spans(runs.into_iter())
            .map(|runs| {
                runs.iter()
                    .map(|run| (run.first.0, run.end.0))
                    .collect::<Vec<_>>()
            })
            .collect();
        let expected: [Vec<(u64, u64)>; 4] = [
            vec![(0, 1), (4000, 4096)],
            vec![(4096, 8192)],
            vec![(8192, 8200)],
            vec![(20000, 20001)],
        ];
        assert_eq!(spans, expected);
    }
}
