//! One leecher's view of what changes.

use std::fmt;
use std::sync::Arc;

use super::Watch;
use crate::volume::geometry::BlockRange;

/// Notes which blocks change, until it is dropped.
pub struct Tracker {
    watch: Arc<Watch>,
    number: usize,
}

impl Tracker {
    pub(super) fn new(watch: Arc<Watch>, number: usize) -> Self {
        Self { watch, number }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Takes what is noted, and forgets it: runs of blocks, ascending, with a gap between any two.
    ///
    /// All changes that were acknowledged before this call are in its runs or in those of an earlier
    /// one. Bytes that are read after the call are at least as new as what made it a run.
    pub fn collect(&self) -> Vec<BlockRange> {
        let mut runs = Vec::new();
        self.collect_each(|run| runs.push(run));
        runs
    }

    /// The same, run by run: a set of them may be more compact than a vector.
    pub fn collect_each(&self, each: impl FnMut(BlockRange)) {
        if let Some(bitmap) = self.watch.bitmaps[self.number].get() {
            bitmap.collect(each);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.watch.give_back(self.number);
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
