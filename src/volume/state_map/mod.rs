//! What is known of every block of a volume: present, claimed, dirty, sending.
//!
//! | bit | says | set | cleared |
//! |---|---|---|---|
//! | present | the bytes are in the local store | after they are there | never, while the map is in use |
//! | claimed | somebody is writing them there | before | after present was set |
//! | dirty | they must still reach the origin | before and after a write | by the sender, before it reads |
//! | sending | they are on their way there | before dirty is cleared | when a flush of the origin covered it |
//!
//! A *region* has a word above its bits. As long as all its blocks are alike the four bits of that
//! word stand for all of them, and its bits take no memory; a region that is *mixed* has them in
//! four pages of the live map, its *place*. It gives that up when its blocks have become alike
//! again.
//!
//! | from | to | by |
//! |---|---|---|
//! | absent | mixed | a fill, or a write of a queue: one exchange of the word |
//! | absent, present | the same, claimed | a discard of the whole region |
//! | ... claimed | present and dirty; or as before, if it failed | the end of that discard |
//! | present and dirty | present and sending | the sender, which takes the region as a whole |
//! | present and sending | present; or present and dirty | a flush of the origin; or a failed send |
//! | present ... | mixed, with the same in every bit | [`prepare_write`](StateMap::prepare_write) |
//! | mixed | present; or present and dirty | [`collapse`](StateMap::collapse) |
//!
//! Queue threads take the first of these alone; the others belong to the asynchronous side, which
//! makes them one at a time, under a lock that no queue thread ever takes (the *turn*).
//!
//! Pages are allocated before they are used, and by the asynchronous side only: a queue thread that
//! finds a region without them hands its request over.

use std::fmt;
use std::io;
use std::sync::PoisonError;

use crate::volume::geometry::{BLOCK_BYTES, BlockRange, REGION_BLOCKS, RegionIndex};

mod checkpoint;
mod collapse;
mod counts;
mod fill;
mod flights;
mod hot;
pub mod live_map;
#[cfg(all(test, blockferry_loom))]
mod loom_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod model_tests;
mod places;
mod ready;
mod recovery;
mod send;
#[cfg(all(test, not(blockferry_loom)))]
mod size_tests;
mod span;
#[cfg(all(test, not(blockferry_loom)))]
mod tests;
mod words;
mod zero;

pub use checkpoint::{RegionBits, RegionSnapshot};
pub use counts::{Counts, Heat};
pub use fill::FillClaim;
pub use flights::FlightSlot;
pub use hot::WriteStart;
pub use live_map::{AdoptError, LiveMap, LiveMapKey};
pub use places::PLACES_AT_EASE;
pub use zero::{ZeroClaim, ZeroStart};

use places::Places;
use span::{Piece, pieces};
use words::{AtomicU64, CLAIMED, MIXED, Mutex, Ordering, PRESENT, Pages, Words};

/// How many discards and writes of zeros can be claimed at once.
pub const ZERO_SLOTS: u32 = if cfg!(blockferry_loom) { 1 } else { 16 };

/// The state of every block of a volume.
///
/// Calls for queue threads take no lock, no memory and no system call: [`is_present`], [`begin_write`],
/// [`end_write`], [`needs_checkpoint`]. All others are for the asynchronous side.
///
/// Ranges lie within the volume; a call panics where one does not.
///
/// [`is_present`]: Self::is_present
/// [`begin_write`]: Self::begin_write
/// [`end_write`]: Self::end_write
/// [`needs_checkpoint`]: Self::needs_checkpoint
pub struct StateMap {
    words: Words,
    blocks: u64,
    counts: counts::Counters,
    /// Held by whoever of the asynchronous side changes what a region is, or its dirty and
    /// sending bits other than by a write, or takes claims for a fill.
    turn: Mutex<Places>,
    zero_slots: Mutex<Vec<FlightSlot>>,
    /// How many writes ended that no checkpoint covered at that time, and how many of these the
    /// last durable checkpoint covers.
    unsaved: AtomicU64,
    saved: AtomicU64,
}

impl StateMap {
    /// The map in a live map: an empty one, or, where the live map was adopted, what the dead
    /// process left, brought in order by [`recover`](Self::recover).
    ///
    /// # Errors
    /// When the live map cannot be written, or is damaged.
    pub fn new(live: LiveMap) -> io::Result<Self> {
        if !live.is_adopted() {
            return Self::restored(live, |_| Ok(()));
        }
        let mut map = Self::unfinished(live);
        map.find_places()?;
        map.recover();
        Ok(map)
    }

    /// A map that `restore` fills from a checkpoint, region by region with
    /// [`restore`](Self::restore). Only when it has succeeded can a successor adopt the live map.
    ///
    /// # Errors
    /// Those of `restore`, and when the live map cannot be written.
    ///
    /// # Panics
    /// If the live map was adopted: its own state counts.
    pub fn restored<E: From<io::Error>>(
        live: LiveMap,
        restore: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(!live.is_adopted(), "a new live map");
        let mut map = Self::unfinished(live);
        restore(&mut map)?;
        map.words.complete()?;
        Ok(map)
    }

    fn unfinished(live: LiveMap) -> Self {
        let blocks = live.size_bytes().div_ceil(BLOCK_BYTES);
        Self::over(Words::over(live), blocks)
    }

    fn over(words: Words, blocks: u64) -> Self {
        let slots = (words.flights().len() / 2) as u32;
        Self {
            words,
            blocks,
            counts: counts::Counters::default(),
            turn: Mutex::new(Places::default()),
            zero_slots: Mutex::new((slots - ZERO_SLOTS..slots).map(FlightSlot).collect()),
            unsaved: AtomicU64::new(0),
            saved: AtomicU64::new(0),
        }
    }

    /// All blocks of the volume. A short last block counts as a whole one.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::new(0, self.blocks)
    }

    /// How many writes can be under way, each with a slot of its own.
    pub fn queue_slots(&self) -> u32 {
        (self.words.flights().len() / 2) as u32 - ZERO_SLOTS
    }

    /// All regions of the volume.
    pub fn regions(&self) -> impl Iterator<Item = RegionIndex> + use<> {
        (0..self.blocks.div_ceil(REGION_BLOCKS)).map(RegionIndex)
    }

    /// The blocks of a region. The last region may be short.
    pub fn region_blocks(&self, region: RegionIndex) -> BlockRange {
        let first = region.first_block().0;
        BlockRange::new(first, (first + REGION_BLOCKS).min(self.blocks))
    }

    /// Whether a block of the range is absent and claimed, or its region is. Whoever has to wait
    /// for a claim asks this once more *after* it is registered as waiting: a claim that is gone by
    /// then is not announced to it.
    ///
    /// A region that gives its bits up meanwhile may make it say so of a claim on another region's block,
    /// whose release is the one that is announced then. So whoever waits has to be told of the release
    /// of any claim, wherever its blocks are.
    pub fn is_claimed(&self, blocks: BlockRange) -> bool {
        pieces(blocks).any(|piece| {
            let word = self.region(piece.region).load(Ordering::Acquire);
            if word & MIXED == 0 {
                return word & CLAIMED != 0;
            }
            let pages = self.pages(word);
            piece
                .words()
                .any(|(word, mask)| pages.claimed[word].load(Ordering::Acquire) & mask != 0)
        })
    }

    fn region(&self, region: RegionIndex) -> &AtomicU64 {
        &self.words.regions()[region.0 as usize]
    }

    /// The bits of a region that is mixed.
    fn bits(&self, region: RegionIndex) -> Pages<'_> {
        self.pages(self.region(region).load(Ordering::Acquire))
    }

    /// The whole of a region.
    fn whole(&self, region: RegionIndex) -> Piece {
        Piece {
            region,
            first: 0,
            end: self.region_blocks(region).len() as u32,
        }
    }

    fn covers_region(&self, piece: Piece) -> bool {
        piece == self.whole(piece.region)
    }

    /// Sets a flag of a region and gives back its word as it was before. A flag that is set already
    /// costs a load alone; whoever relies on that has a fence before it.
    fn flag(&self, region: RegionIndex, flag: u64) -> u64 {
        let word = self.region(region).load(Ordering::Acquire);
        if word & flag == flag {
            return word;
        }
        self.region(region).fetch_or(flag, Ordering::AcqRel)
    }

    /// Changes a region's word in one exchange; flags that others set meanwhile are kept. Gives
    /// back the word as it was before, as `Err` if `change` refused it.
    fn exchange(
        &self,
        region: RegionIndex,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        self.region(region)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
    }

    /// Makes an absent region that has a place mixed, with clear bits. True if it is mixed now.
    fn open_absent(&self, region: RegionIndex) -> bool {
        self.exchange(region, |word| {
            (word & words::STATE == 0).then_some(word | MIXED)
        })
        .map_or_else(|word| word & MIXED != 0, |_| true)
    }

    /// The turn of one caller of the asynchronous side.
    #[cfg(not(blockferry_loom))]
    fn turn(&self) -> std::sync::MutexGuard<'_, Places> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(blockferry_loom)]
    fn turn(&self) -> loom::sync::MutexGuard<'_, Places> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for StateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMap")
            .field("blocks", &self.blocks)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// Whether the blocks of an unmixed region are all present.
fn all_present(word: u64) -> bool {
    word & PRESENT != 0
}
