//! A bit a block, and a bit for each word of these.
//!
//! A writer sets the block's bit and then the bit of its word; a collector takes the latter first.
//! Both do the block's word by an exchange that acquires and releases. So a writer whose exchange
//! comes later has seen that the collector took the word's bit, and sets it again for the next one;
//! and what a writer did before its exchange is seen by a collector whose exchange comes later.

use std::io;

use self::words::{Ordering, Words};
use crate::volume::geometry::BlockRange;

const WORD_BITS: u64 = 64;

/// Which blocks have changed.
pub(super) struct Bitmap {
    blocks: u64,
    bits: Words,
    /// Which words of `bits` are not clear.
    used: Words,
}

impl Bitmap {
    /// For so many blocks, none of them changed. It takes memory where bits are set.
    pub(super) fn new(blocks: u64) -> io::Result<Self> {
        let words = blocks.div_ceil(WORD_BITS);
        Ok(Self {
            blocks,
            bits: Words::new(words)?,
            used: Words::new(words.div_ceil(WORD_BITS))?,
        })
    }

    /// Notes that the blocks change. Always an exchange, also of a bit that is set: whoever collects
    /// it at the same time reads the bytes after that.
    pub(super) fn note(&self, blocks: BlockRange) {
        let end = blocks.end.0.min(self.blocks);
        let mut first = blocks.first.0;
        while first < end {
            let word = first / WORD_BITS;
            let next = ((word + 1) * WORD_BITS).min(end);
            let mask = (u64::MAX >> (WORD_BITS - (next - first))) << (first % WORD_BITS);
            self.bits.get()[word as usize].fetch_or(mask, Ordering::AcqRel);
            let used = &self.used.get()[(word / WORD_BITS) as usize];
            let bit = 1 << (word % WORD_BITS);
            if used.load(Ordering::Relaxed) & bit == 0 {
                used.fetch_or(bit, Ordering::AcqRel);
            }
            first = next;
        }
    }

    /// Takes what is noted, in runs, ascending.
    pub(super) fn collect(&self, mut each: impl FnMut(BlockRange)) {
        let mut run = BlockRange::new(0, 0);
        let mut add = |first: u64, end: u64| {
            if run.end.0 != first {
                if !run.is_empty() {
                    each(run);
                }
                run = BlockRange::new(first, first);
            }
            run.end.0 = end;
        };
        for (index, used) in (0..).zip(self.used.get()) {
            // What was answered is seen by a mere look.
            if used.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for word in ones(used.swap(0, Ordering::AcqRel)) {
                let word = index * WORD_BITS + word;
                // An exchange, whatever is there: a look might miss a bit whose writer has seen that
                // of the word before it was taken.
                let mut bits = self.bits.get()[word as usize].swap(0, Ordering::AcqRel);
                while bits != 0 {
                    let first = u64::from(bits.trailing_zeros());
                    let len = u64::from((bits >> first).trailing_ones());
                    add(word * WORD_BITS + first, word * WORD_BITS + first + len);
                    bits &= !((u64::MAX >> (WORD_BITS - len)) << first);
                }
            }
        }
        if !run.is_empty() {
            each(run);
        }
    }

    /// Forgets what is noted, and gives the memory back. Nobody counts on what is noted meanwhile.
    pub(super) fn clear(&self) {
        self.bits.clear();
        self.used.clear();
    }
}

/// The numbers of the bits that are set.
fn ones(mut bits: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| u64::from(bits.trailing_zeros()))?;
        bits &= bits - 1;
        Some(bit)
    })
}

#[cfg(not(blockferry_loom))]
mod words {
    use std::io;
    use std::slice;
    use std::sync::atomic::AtomicU64;
    pub(super) use std::sync::atomic::Ordering;

    use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

    /// Words that are 0 until they are changed, and take no memory until then.
    pub(super) struct Words {
        map: MmapRaw,
        count: usize,
    }

    impl Words {
        pub(super) fn new(count: u64) -> io::Result<Self> {
            // A mapping is never empty.
            let count = usize::try_from(count.max(1)).map_err(io::Error::other)?;
            let len = count
                .checked_mul(size_of::<u64>())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
            Ok(Self {
                map: map.into(),
                count,
            })
        }

        #[inline]
        pub(super) fn get(&self) -> &[AtomicU64] {
            // SAFETY: the mapping is as long, page-aligned, lives as long as `self`, and is touched
            // by these atomics alone.
            unsafe { slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
        }

        pub(super) fn clear(&self) {
            // SAFETY: pages of a private anonymous mapping, which read as zeros afterwards; that is
            // a value that an atomic may have at any time.
            if unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) }.is_err() {
                // Locked in memory.
                for word in self.get() {
                    word.store(0, Ordering::Release);
                }
            }
        }
    }
}

#[cfg(blockferry_loom)]
mod words {
    use loom::sync::atomic::AtomicU64;
    pub(super) use loom::sync::atomic::Ordering;
    use std::io;

    /// Words that the model checker watches.
    pub(super) struct Words(Vec<AtomicU64>);

    impl Words {
        pub(super) fn new(count: u64) -> io::Result<Self> {
            Ok(Self((0..count).map(|_| AtomicU64::new(0)).collect()))
        }

        pub(super) fn get(&self) -> &[AtomicU64] {
            &self.0
        }

        pub(super) fn clear(&self) {
            for word in &self.0 {
                word.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(all(test, not(blockferry_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn collected(bitmap: &Bitmap) -> Vec<BlockRange> {
        let mut runs = Vec::new();
        bitmap.collect(|run| runs.push(run));
        runs
    }

    proptest! {
        #[test]
        fn what_is_collected_is_what_was_noted_since(
            blocks in 1u64..20_000,
            rounds in proptest::collection::vec(
                proptest::collection::vec((0u64..21_000, 0u64..9000), 0..8), 1..5),
        ) {
            let bitmap = Bitmap::new(blocks).expect("memory");
            for notes in rounds {
                let mut model = BTreeSet::new();
                for (first, len) in notes {
                    bitmap.note(BlockRange::new(first, first + len));
                    model.extend(first..(first + len).min(blocks).max(first));
                }
                let runs = collected(&bitmap);
                prop_assert!(runs.iter().all(|run| !run.is_empty()));
                prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].first));
                let blocks: BTreeSet<_> =
                    runs.iter().flat_map(|run| run.iter()).map(|it| it.0).collect();
                prop_assert_eq!(blocks, model);
            }
        }
    }

    #[test]
    fn what_was_cleared_is_not_collected_and_notes_after_it_are() {
        let bitmap = Bitmap::new(1 << 28).expect("memory");
        bitmap.note(BlockRange::new(0, 1 << 28));
        bitmap.clear();
        assert_eq!(collected(&bitmap), []);
        bitmap.note(BlockRange::new(70, 71));
        assert_eq!(collected(&bitmap), [BlockRange::new(70, 71)]);
    }

    #[test]
    fn a_volume_that_no_bitmap_can_cover_is_an_error() {
        assert!(Bitmap::new(u64::MAX / 4096).is_err());
    }
}
