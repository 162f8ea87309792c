//! What the application and the origin know: which bytes a sector may have after a power cut.

use std::collections::BTreeMap;

use super::disk::{SECTOR_BYTES, Sector};
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange};

pub(super) const BLOCK_SECTORS: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// What a sector holds: a number, all over it. 0 is a sector of zeros.
pub(super) type Stamp = u64;

/// The blocks that the model looks at.
const WATCHED: [(u64, u64); 4] = [
    (0, 12),
    (32_762, 32_774),
    (65_530, 65_542),
    (65_568, 65_576),
];

/// A write of the application to one sector.
#[derive(Debug, Clone, Copy)]
struct Version {
    stamp: Stamp,
    /// When it was answered.
    ended: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Model {
    /// What the origin has been sent, and what of that it has made durable.
    origin: BTreeMap<u64, Stamp>,
    flushed: BTreeMap<u64, Stamp>,
    /// Of each sector the last version that a flush covered, and all that came after.
    versions: BTreeMap<u64, Vec<Version>>,
    clock: u64,
    next_stamp: Stamp,
}

/// All blocks that the model looks at.
pub(super) fn watched() -> impl Iterator<Item = BlockIndex> {
    WATCHED
        .iter()
        .flat_map(|(first, end)| (*first..*end).map(BlockIndex))
}

/// The part of the volume that the model looks at, in pieces.
pub(super) fn clusters() -> [BlockRange; 4] {
    WATCHED.map(|(first, end)| BlockRange::new(first, end))
}

/// The sectors of a block.
pub(super) fn sectors_of(block: BlockIndex) -> std::ops::Range<u64> {
    let first = block.0 * BLOCK_SECTORS;
    first..first + BLOCK_SECTORS
}

/// A sector full of a stamp.
pub(super) fn sector_of(stamp: Stamp) -> Sector {
    let mut sector = [0; SECTOR_BYTES as usize];
    for at in sector.chunks_exact_mut(8) {
        at.copy_from_slice(&stamp.to_le_bytes());
    }
    sector
}

/// What a sector is full of; `None` if it is not one thing.
pub(super) fn stamp_of(sector: &Sector) -> Option<Stamp> {
    let (words, _) = sector.as_chunks::<8>();
    let first = words[0];
    words
        .iter()
        .all(|word| *word == first)
        .then(|| u64::from_le_bytes(first))
}

impl Model {
    pub(super) fn new() -> Self {
        let sectors = || watched().flat_map(sectors_of);
        let at_first = |sector: u64| sector + (1 << 40);
        let version = |sector| Version {
            stamp: at_first(sector),
            ended: Some(0),
        };
        let origin: BTreeMap<_, _> = sectors().map(|at| (at, at_first(at))).collect();
        Self {
            flushed: origin.clone(),
            origin,
            versions: sectors().map(|at| (at, vec![version(at)])).collect(),
            clock: 1,
            next_stamp: 1,
        }
    }

    /// What the origin has in a sector; what nobody watches is zeros.
    pub(super) fn origin(&self, sector: u64) -> Stamp {
        self.origin.get(&sector).copied().unwrap_or(0)
    }

    /// What the origin has in a sector once it has lost its power, too.
    pub(super) fn flushed(&self, sector: u64) -> Stamp {
        self.flushed.get(&sector).copied().unwrap_or(0)
    }

    /// The origin makes durable what it was sent.
    pub(super) fn flush_origin(&mut self) {
        self.flushed.clone_from(&self.origin);
    }

    /// The origin loses what it has not made durable.
    pub(super) fn cut_origin(&mut self) {
        self.origin.clone_from(&self.flushed);
    }

    /// The origin was sent this.
    pub(super) fn set_origin(&mut self, sector: u64, stamp: Stamp) {
        self.origin.insert(sector, stamp);
    }

    pub(super) fn new_stamp(&mut self) -> Stamp {
        self.next_stamp += 1;
        self.next_stamp
    }

    /// The application has asked for this sector to be written.
    pub(super) fn begin(&mut self, sector: u64, stamp: Stamp) {
        if let Some(versions) = self.versions.get_mut(&sector) {
            versions.push(Version { stamp, ended: None });
        }
    }

    /// It was told that the sectors are written.
    pub(super) fn end(&mut self, sectors: impl Iterator<Item = u64>) {
        self.clock += 1;
        for sector in sectors {
            let last = self
                .versions
                .get_mut(&sector)
                .and_then(|all| all.last_mut());
            if let Some(last) = last {
                last.ended = Some(self.clock);
            }
        }
    }

    /// A flush begins: gives the time of it.
    pub(super) fn begin_flush(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The flush that began then was answered.
    pub(super) fn end_flush(&mut self, began: u64) {
        for versions in self.versions.values_mut() {
            let covered = |version: &Version| version.ended.is_some_and(|ended| ended < began);
            if let Some(last) = versions.iter().rposition(covered) {
                versions.drain(..last);
            }
        }
    }

    /// Whether a sector may be read as this after a power cut now.
    pub(super) fn allows(&self, sector: u64, stamp: Stamp) -> bool {
        self.versions
            .get(&sector)
            .is_none_or(|versions| versions.iter().any(|version| version.stamp == stamp))
    }

    /// Whether it may be read as this while the machine runs on: what was answered is there.
    pub(super) fn allows_now(&self, sector: u64, stamp: Stamp) -> bool {
        self.versions.get(&sector).is_none_or(|versions| {
            let ended = |version: &Version| version.ended.is_some();
            let last = versions.iter().rposition(ended).unwrap_or(0);
            versions[last..]
                .iter()
                .any(|version| version.stamp == stamp)
        })
    }

    /// What would be allowed.
    pub(super) fn allowed(&self, sector: u64) -> Vec<Stamp> {
        let versions = self.versions.get(&sector).into_iter().flatten();
        versions.map(|version| version.stamp).collect()
    }

    /// Writes that were answered, and that no flush covered, may be gone, as a sync had failed: this
    /// is what the sector is read as from now on.
    pub(super) fn roll_back(&mut self, sector: u64, stamp: Stamp) {
        let ended = Some(self.clock);
        let versions = self.versions.entry(sector).or_default();
        versions.push(Version { stamp, ended });
    }

    /// There was a power cut, and this is what the sector is read as from now on.
    pub(super) fn settle(&mut self, sector: u64, stamp: Stamp) {
        let ended = Some(self.clock);
        self.versions.insert(sector, vec![Version { stamp, ended }]);
    }
}
