//! Table pages: what each region was at its last commit.
//!
//! After the head, 2000 entries of 2 bytes, then zeros.
//!
//! | bits of an entry | |
//! |---|---|
//! | 0–2 | 0 absent, 1 present and clean, 2 present and dirty, 3 mixed, nothing dirty, 4 mixed, some dirty |
//! | 3 | a write intent: what is present may have been overwritten since |
//! | 4 | the slot of its bits record; 0 unless mixed |
//! | 5–15 | 0 |

use super::layout::Slot;
use super::page::{Checksum, HEAD_BYTES, PAGE_BYTES, PageFault, PageKind, Place};

/// How many regions a table page describes.
pub(super) const REGIONS_PER_TABLE: u64 = 2000;

/// The state of a region in a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    Absent,
    PresentClean,
    PresentDirty,
    /// Look at its bits record.
    Mixed {
        /// Where the record is.
        slot: Slot,
        /// Whether any block is dirty.
        dirty: bool,
    },
}

impl Saved {
    pub(super) fn is_dirty(self) -> bool {
        matches!(self, Self::PresentDirty | Self::Mixed { dirty: true, .. })
    }
}

/// A region in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) saved: Saved,
    /// Whatever is present may have been overwritten since.
    pub(super) intent: bool,
}

impl Entry {
    pub(super) const ABSENT: Self = Self {
        saved: Saved::Absent,
        intent: false,
    };

    fn encode(self) -> u16 {
        let state = match self.saved {
            Saved::Absent => 0,
            Saved::PresentClean => 1,
            Saved::PresentDirty => 2,
            Saved::Mixed { dirty: false, .. } => 3,
            Saved::Mixed { dirty: true, .. } => 4,
        };
        let slot = u16::from(matches!(self.saved, Saved::Mixed { slot: Slot::B, .. }));
        state | u16::from(self.intent) << 3 | slot << 4
    }

    fn decode(bits: u16) -> Option<Self> {
        let slot = if bits & 1 << 4 == 0 { Slot::A } else { Slot::B };
        let saved = match (bits & 7, slot) {
            (0, Slot::A) => Saved::Absent,
            (1, Slot::A) => Saved::PresentClean,
            (2, Slot::A) => Saved::PresentDirty,
            (state @ (3 | 4), slot) => Saved::Mixed {
                slot,
                dirty: state == 4,
            },
            _ => return None,
        };
        (bits >> 5 == 0).then_some(Self {
            saved,
            intent: bits & 1 << 3 != 0,
        })
    }
}

/// Makes a table page of at most [`REGIONS_PER_TABLE`] entries.
pub(super) fn encode(
    store: [u8; 16],
    table: u64,
    sequence: u64,
    entries: &[Entry],
) -> ([u8; PAGE_BYTES], Checksum) {
    let mut page = [0; PAGE_BYTES];
    for (at, entry) in page[HEAD_BYTES..].chunks_exact_mut(2).zip(entries) {
        at.copy_from_slice(&entry.encode().to_le_bytes());
    }
    let sum = place(store, table).finish(&mut page, sequence);
    (page, sum)
}

/// Reads a table page into as many entries as it describes.
pub(super) fn decode(
    store: [u8; 16],
    table: u64,
    page: &[u8; PAGE_BYTES],
    entries: &mut [Entry],
) -> Result<(u64, Checksum), PageFault> {
    let checked = place(store, table).check(page)?;
    for (bytes, entry) in page[HEAD_BYTES..].chunks_exact(2).zip(entries) {
        let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
        *entry = Entry::decode(bits).ok_or(PageFault::Field)?;
    }
    Ok(checked)
}

fn place(store: [u8; 16], table: u64) -> Place {
    Place {
        store,
        kind: PageKind::Table,
        index: table,
    }
}
