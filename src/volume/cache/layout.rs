//! Where what is in `map`. Everything has two slots; one holds what counts, the other takes what
//! comes next.
//!
//! | bytes | |
//! |---|---|
//! | 0, 4096 | header, slot 0 and 1 |
//! | 8192 | seal, one sector |
//! | 12288 + (2 *table* + *slot*) × 4096 | table page |
//! | *records* + (2 *region* + *slot*) × 12288 | bits record: a page for its head, present, dirty |
//!
//! *records* comes right after the last table page. Slots begin at pages, so that no write of one
//! touches a page of another. The file is sparse.

use super::page::PAGE_BYTES;
use super::table::REGIONS_PER_TABLE;
use crate::volume::geometry::{BLOCK_BYTES, REGION_BLOCKS, RegionIndex};

/// The largest volume that can have a cache, in bytes.
pub const CACHE_BYTES_MAX: u64 = 512 << 40;

/// A bits record, in bytes.
pub(super) const RECORD_BYTES: usize = 3 * PAGE_BYTES;

/// The seal, in bytes: one sector.
pub(super) const SEAL_BYTES: usize = 512;

const TABLES_AT: u64 = 3 * PAGE_BYTES as u64;

/// One of the two places of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    A,
    B,
}

impl Slot {
    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn index(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// The places in the map of a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    blocks: u64,
}

impl Layout {
    /// For a resource of so many bytes.
    pub(super) fn new(size_bytes: u64) -> Self {
        Self {
            blocks: size_bytes.div_ceil(BLOCK_BYTES),
        }
    }

    /// How many regions the volume has.
    pub(super) fn regions(self) -> u64 {
        self.blocks.div_ceil(REGION_BLOCKS)
    }

    /// How many blocks a region has; the last one may have fewer than the others.
    pub(super) fn blocks_of(self, region: RegionIndex) -> u64 {
        let before = region.first_block().0;
        self.blocks.saturating_sub(before).min(REGION_BLOCKS)
    }

    /// How many table pages it takes.
    pub(super) fn tables(self) -> u64 {
        self.regions().div_ceil(REGIONS_PER_TABLE)
    }

    /// How long the file is.
    pub(super) fn file_bytes(self) -> u64 {
        self.record_at(RegionIndex(self.regions()), Slot::A)
    }

    pub(super) fn header_at(slot: Slot) -> u64 {
        slot.index() * PAGE_BYTES as u64
    }

    pub(super) fn seal_at() -> u64 {
        2 * PAGE_BYTES as u64
    }

    pub(super) fn table_at(table: u64, slot: Slot) -> u64 {
        TABLES_AT + (2 * table + slot.index()) * PAGE_BYTES as u64
    }

    pub(super) fn record_at(self, region: RegionIndex, slot: Slot) -> u64 {
        Self::table_at(self.tables(), Slot::A) + (2 * region.0 + slot.index()) * RECORD_BYTES as u64
    }
}
