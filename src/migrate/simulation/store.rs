//! A store as a disk is: what was written may be lost in a power cut until it was synced.

use crate::seeded_random::Rng;

/// Blocks of the volume.
pub(super) const BLOCKS: usize = 5;

/// What a block holds: the number of the write that put it there, 0 for zeros.
pub(super) type Stamp = u32;

/// A whole volume.
pub(super) type Content = [Stamp; BLOCKS];

/// One host's store: bytes, and which blocks are here (the others are still at the seeder).
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) now: Content,
    pub(super) present: [bool; BLOCKS],
    pub(super) synced: Content,
    pub(super) present_synced: [bool; BLOCKS],
    /// Writes since, in order: when, where, what.
    unsynced: Vec<(u64, usize, Stamp)>,
    writes: u64,
    synced_at: u64,
}

/// What a sync covers: what was there when it began.
#[derive(Debug, Clone)]
pub(super) struct Covered {
    bytes: Content,
    present: [bool; BLOCKS],
    at: u64,
}

impl Store {
    /// With nothing in it, or zeros.
    pub(super) fn new(present: bool) -> Self {
        Self {
            now: [0; BLOCKS],
            present: [present; BLOCKS],
            synced: [0; BLOCKS],
            present_synced: [present; BLOCKS],
            unsynced: Vec::new(),
            writes: 0,
            synced_at: 0,
        }
    }

    pub(super) fn write(&mut self, block: usize, stamp: Stamp) {
        self.writes += 1;
        self.unsynced.push((self.writes, block, stamp));
        self.now[block] = stamp;
        self.present[block] = true;
    }

    /// Leaves blocks at the seeder.
    pub(super) fn set_absent(&mut self, is_absent: impl Fn(usize) -> bool) {
        self.writes += 1;
        self.present = std::array::from_fn(|block| !is_absent(block));
    }

    pub(super) fn begin_sync(&self) -> Covered {
        Covered {
            bytes: self.now,
            present: self.present,
            at: self.writes,
        }
    }

    pub(super) fn end_sync(&mut self, covered: &Covered) {
        if covered.at < self.synced_at {
            return;
        }
        self.synced_at = covered.at;
        self.synced = covered.bytes;
        self.present_synced = covered.present;
        self.unsynced.retain(|(at, ..)| *at > covered.at);
    }

    /// Each block has one of the values that it had since the last sync. The map is as it was then.
    pub(super) fn cut_power(&mut self, rng: &mut Rng) {
        for block in 0..BLOCKS {
            let writes = self.unsynced.iter().filter(|write| write.1 == block);
            let pick = rng.below(writes.clone().count() as u64 + 1) as usize;
            let kept = writes.map(|write| write.2).nth(pick);
            self.now[block] = kept.unwrap_or(self.synced[block]);
        }
        self.synced = self.now;
        self.present = self.present_synced;
        self.unsynced.clear();
    }
}
