//! What each sector may hold: stamps, of which there are several where a write failed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::engine_support::SECTOR;
use super::managed_support::bytes::Bytes;

/// What a sector is full of; 0 is zeros.
pub(crate) type Stamp = u64;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Sectors that may hold something other than zeros.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    sectors: BTreeMap<u64, Vec<Stamp>>,
}

impl Model {
    pub(crate) fn allowed(&self, sector: u64) -> &[Stamp] {
        self.sectors.get(&sector).map_or(&[0], Vec::as_slice)
    }

    /// From now on it is that.
    pub(crate) fn set(&mut self, sectors: Range<u64>, stamp: Stamp) {
        if stamp == 0 {
            let there: Vec<u64> = self.sectors.range(sectors).map(|(at, _)| *at).collect();
            for sector in there {
                self.sectors.remove(&sector);
            }
            return;
        }
        for sector in sectors {
            self.sectors.insert(sector, vec![stamp]);
        }
    }

    /// From now on it may be that, too.
    pub(crate) fn add(&mut self, sectors: Range<u64>, stamp: Stamp) {
        if stamp == 0 {
            for allowed in self.sectors.range_mut(sectors) {
                allowed.1.push(0);
            }
            return;
        }
        for sector in sectors {
            self.sectors
                .entry(sector)
                .or_insert_with(|| vec![0])
                .push(stamp);
        }
    }

    /// What was read or is at the origin: one of what it may be.
    pub(crate) fn check(&self, sector: u64, bytes: &[u8]) -> Result<Stamp, String> {
        let allowed = self.allowed(sector);
        let is_there = |stamp: &&Stamp| sector_of(sector, **stamp)[..bytes.len()] == *bytes;
        allowed.iter().find(is_there).copied().ok_or_else(|| {
            let found = stamp_of(sector, bytes);
            format!("sector {sector} has {found:x?}, not one of {allowed:x?}")
        })
    }

    /// The sectors that may be other than zeros.
    pub(crate) fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    pub(crate) fn touched_in(&self, sectors: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        self.sectors.range(sectors).map(|(at, _)| *at)
    }

    /// Adds what is certain to `bytes`, of a resource that ends at `end`.
    pub(crate) fn write_to(&self, bytes: &mut Bytes, end: u64) {
        for (sector, allowed) in &self.sectors {
            assert_eq!(allowed.len(), 1, "sector {sector} was not looked at");
            let at = sector * SECTOR;
            let inside = (end - at).min(SECTOR) as usize;
            bytes.write(at, &sector_of(*sector, allowed[0])[..inside]);
        }
    }
}

/// A sector's bytes.
pub(crate) fn sector_of(sector: u64, stamp: Stamp) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if stamp != 0 {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&(stamp ^ (sector + 1).wrapping_mul(MIX)).to_le_bytes());
        }
    }
    bytes
}

/// The bytes of some sectors of a resource that ends at `end`: zeros follow.
pub(crate) fn sectors_of(sectors: Range<u64>, stamp: Stamp, end: u64, to: &mut [u8]) {
    for (sector, to) in sectors.zip(to.chunks_exact_mut(SECTOR as usize)) {
        let inside = end.saturating_sub(sector * SECTOR).min(SECTOR) as usize;
        to.fill(0);
        to[..inside].copy_from_slice(&sector_of(sector, stamp)[..inside]);
    }
}

/// What a sector, or what there is of it, is full of; `None` if it is a mixture.
fn stamp_of(sector: u64, bytes: &[u8]) -> Option<Stamp> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let first = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let stamp = first ^ (sector + 1).wrapping_mul(MIX);
    (sector_of(sector, stamp)[..bytes.len()] == *bytes).then_some(stamp)
}
