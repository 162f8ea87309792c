//! Where the bits of mixed regions are.
//!
//! There is a place for each region, but a region has one only while it needs it, and what a region
//! gives up the next one takes. A place is never given back to the file system while the map is in
//! use: a thread that has just found a region mixed may look at its bits when the region has given
//! them up already. That look must not fault, nor take memory; see [`collapse`](super::collapse)
//! for why it does no harm.

use std::io;

use super::StateMap;
use super::words::{AtomicU64, MIXED, Ordering, Pages, WRITE_PAGES, place_of};

/// How many regions may have bits before the map is crowded: 16 MiB of them.
pub const PLACES_AT_EASE: u32 = 1024;

/// Which places are free. Whoever holds it has the turn.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Those that were given up: at most one for each region.
    free: Vec<u32>,
    /// The first of those that were never taken.
    fresh: u32,
}

/// How much of a place is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The pages of present and claimed.
    Fill,
    /// All four.
    Write,
}

impl Places {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    pub(super) fn taken(&self) -> u32 {
        self.fresh - self.free.len() as u32
    }

    /// Takes the place of a region with this word back, if it has one. Nobody but those who only
    /// look uses its bits any more.
    pub(super) fn give_up(&mut self, word: u64) {
        self.free.extend(place_of(word));
    }
}

impl StateMap {
    /// A place with memory for its bits, all of them clear.
    ///
    /// # Errors
    /// When there is no memory left in the run-time directory.
    pub(super) fn take_place(&self, places: &mut Places, room: Room) -> io::Result<u32> {
        let place = places.take();
        let pages = if room == Room::Fill { 2 } else { 4 };
        if let Err(error) = self.words.allocate(place, pages) {
            places.free.push(place);
            return Err(error);
        }
        let pages = self.words.pages(place);
        clear_pages([pages.present, pages.claimed]);
        if room == Room::Write {
            clear_pages([pages.dirty, pages.sending]);
        }
        Ok(place)
    }

    /// Takes memory for the other half of a place that has [`Room::Fill`].
    ///
    /// # Errors
    /// As [`take_place`](Self::take_place).
    pub(super) fn widen_place(&self, place: u32) -> io::Result<()> {
        self.words.allocate(place, 4)?;
        let pages = self.words.pages(place);
        clear_pages([pages.dirty, pages.sending]);
        Ok(())
    }

    /// The bits of a region with this word, which has a place.
    #[inline]
    pub(super) fn pages(&self, word: u64) -> Pages<'_> {
        self.words.pages(place_of(word).unwrap_or(u32::MAX))
    }

    /// Finds out which places the regions have, in a map that a dead process left.
    ///
    /// # Errors
    /// When that cannot be: the live map is damaged.
    pub(super) fn find_places(&mut self) -> io::Result<()> {
        let regions = self.words.regions();
        let mut taken = vec![false; regions.len()];
        for (region, word) in regions.iter().enumerate() {
            let word = word.load(Ordering::Relaxed);
            let place = place_of(word);
            match place.and_then(|place| taken.get_mut(place as usize)) {
                Some(taken) if !*taken => *taken = true,
                None if place.is_none() && word & (MIXED | WRITE_PAGES) == 0 => {}
                _ => return Err(damaged(region, word)),
            }
        }
        let fresh = taken
            .iter()
            .rposition(|taken| *taken)
            .map_or(0, |it| it + 1) as u32;
        let free = (0..fresh).filter(|place| !taken[*place as usize]).collect();
        *self.turn() = Places { free, fresh };
        Ok(())
    }
}

/// Release: who finds here what a region has put in sees what was done before, also when it looks
/// for the bits of the region before.
fn clear_pages(pages: [&[AtomicU64]; 2]) {
    for word in pages.into_iter().flatten() {
        word.store(0, Ordering::Release);
    }
}

fn damaged(region: usize, word: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the live map is damaged: region {region} has the word {word:#x}"),
    )
}
