//! The words of a state map in the mapping of its live map.

use std::fmt;
use std::io;
use std::slice;
use std::sync::atomic::AtomicU64;

use super::{LiveMap, PAGE_BYTES};
use crate::volume::state_map::words::{PAGE_WORDS, Pages};

/// The words of a live map, which it keeps mapped.
pub(in super::super) struct Words {
    live: LiveMap,
    // Where they lie in the mapping.
    regions: *const AtomicU64,
    flights: *const AtomicU64,
    bits: *const AtomicU64,
}

// SAFETY: the pointers lead into the mapping that `live` holds, and only to atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub(in super::super) fn over(live: LiveMap) -> Self {
        let at = |offset: u64| {
            debug_assert!(offset.is_multiple_of(PAGE_BYTES) && offset <= live.map.len() as u64);
            // SAFETY: the mapping is `Layout::end` bytes long, and this lies before that.
            unsafe { live.map.as_mut_ptr().add(offset as usize) }
        };
        Self {
            regions: at(live.layout.regions_at).cast(),
            flights: at(PAGE_BYTES).cast(),
            bits: at(live.layout.bits_at).cast(),
            live,
        }
    }

    #[inline]
    pub(in super::super) fn regions(&self) -> &[AtomicU64] {
        // SAFETY: so many words lie there by the layout, page-aligned, mapped as long as `self`
        // lives, and nobody touches them but by atomics: not this process, and no other one, since
        // the store's lock keeps those away.
        unsafe { slice::from_raw_parts(self.regions, self.live.layout.regions as usize) }
    }

    #[inline]
    pub(in super::super) fn flights(&self) -> &[AtomicU64] {
        // SAFETY: as in `regions`.
        unsafe { slice::from_raw_parts(self.flights, 2 * self.live.layout.slots as usize) }
    }

    /// # Panics
    /// If there is no such place.
    #[inline]
    pub(in super::super) fn pages(&self, place: u32) -> Pages<'_> {
        // There is one for each region.
        assert!(
            u64::from(place) < self.live.layout.regions,
            "a place of the map"
        );
        // SAFETY: as in `regions`; the place was checked.
        let words = unsafe {
            slice::from_raw_parts(
                self.bits.add(4 * PAGE_WORDS * place as usize),
                4 * PAGE_WORDS,
            )
        };
        Pages::in_row(words)
    }

    /// Takes room for the first `pages` (of four) of a place.
    pub(in super::super) fn allocate(&self, place: u32, pages: u64) -> io::Result<()> {
        self.live.allocate_bits(place, pages)
    }

    /// From now on the live map can be adopted.
    pub(in super::super) fn complete(&self) -> io::Result<()> {
        self.live.complete()
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.live.fmt(f)
    }
}
