//! The bytes of one file: those that are durable, those that a program sees, and what is between.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::seeded_random::Rng;

pub(super) const SECTOR_BYTES: u64 = 512;

pub(super) type Sector = [u8; SECTOR_BYTES as usize];

/// What is on the disk of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pub(super) len_bytes: u64,
    pub(super) sectors: BTreeMap<u64, Arc<Sector>>,
}

/// A change of a file that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// From the first sector on; `None` reads as zeros.
    Sectors(u64, Vec<Option<Arc<Sector>>>),
    Len(u64),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) durable: Image,
    pub(super) pending: Vec<Change>,
    pub(super) now: Image,
    /// How much of `pending` there was at the last sync; for [`Fault::SyncTooEarly`].
    pub(super) before_last_sync: usize,
}

/// How a power cut treats what is not durable.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    /// All of it is there.
    All,
    /// Nothing of it is there.
    Nothing,
    /// Each change is there with this probability in percent.
    Changes(u64),
    /// All but one change.
    AllButOne,
    /// One change alone.
    OneAlone,
    /// Each sector for itself.
    Sectors,
    /// All, but the last changes of each file are torn at a sector.
    Torn,
}

impl Cut {
    pub(super) fn random(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 => Self::Changes(15),
            1 => Self::Changes(50),
            2 => Self::Changes(85),
            3 => Self::AllButOne,
            4 => Self::OneAlone,
            5 | 6 => Self::Sectors,
            _ => Self::Torn,
        }
    }
}

impl Image {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Sectors(first, sectors) => {
                for (at, sector) in (*first..).zip(sectors) {
                    self.set(at, sector.clone());
                }
            }
            Change::Len(len_bytes) => {
                self.len_bytes = *len_bytes;
                let _cut_off = self.sectors.split_off(&len_bytes.div_ceil(SECTOR_BYTES));
            }
        }
    }

    pub(super) fn set(&mut self, at: u64, sector: Option<Arc<Sector>>) {
        match sector {
            Some(sector) => {
                self.sectors.insert(at, sector);
                self.len_bytes = self.len_bytes.max((at + 1) * SECTOR_BYTES);
            }
            None => {
                self.sectors.remove(&at);
            }
        }
    }

    pub(super) fn sector(&self, at: u64) -> Sector {
        self.sectors
            .get(&at)
            .map_or([0; SECTOR_BYTES as usize], |sector| **sector)
    }
}

impl Inode {
    pub(super) fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self, upto: usize) {
        for change in self.pending.drain(..upto) {
            self.durable.apply(&change);
        }
    }

    /// Some of what was pending reaches the disk; the rest never will.
    pub(super) fn fail_sync(&mut self) {
        let mut rng = Rng::new(self.pending.len() as u64);
        self.durable = self.cut(Cut::Sectors, &mut rng).durable;
        self.pending.clear();
    }

    pub(super) fn cut(&self, cut: Cut, rng: &mut Rng) -> Self {
        let mut image = self.durable.clone();
        let count = self.pending.len() as u64;
        let chosen = rng.below(count.max(1));
        for (at, change) in (0..).zip(&self.pending) {
            let whole = match cut {
                Cut::All => true,
                Cut::Nothing => false,
                Cut::Changes(percent) => rng.percent(percent),
                Cut::AllButOne => at != chosen,
                Cut::OneAlone => at == chosen,
                Cut::Torn if at + 2 < count => true,
                // As many sectors of it as come first, or all but these.
                Cut::Torn => {
                    let torn = change.torn(rng);
                    image.apply(&torn);
                    continue;
                }
                Cut::Sectors => {
                    change.each_sector(&mut image, rng);
                    continue;
                }
            };
            if whole {
                image.apply(change);
            }
        }
        Self {
            now: image.clone(),
            durable: image,
            pending: Vec::new(),
            before_last_sync: 0,
        }
    }
}

impl Change {
    pub(super) fn torn(&self, rng: &mut Rng) -> Self {
        match self {
            Self::Sectors(first, sectors) => {
                let at = rng.below(sectors.len() as u64 + 1);
                let (front, back) = sectors.split_at(at as usize);
                if rng.percent(50) {
                    Self::Sectors(*first, front.to_vec())
                } else {
                    Self::Sectors(first + at, back.to_vec())
                }
            }
            other => other.clone(),
        }
    }

    pub(super) fn each_sector(&self, image: &mut Image, rng: &mut Rng) {
        match self {
            Self::Sectors(first, sectors) => {
                for (at, sector) in (*first..).zip(sectors) {
                    if rng.percent(50) {
                        image.set(at, sector.clone());
                    }
                }
            }
            other => image.apply(other),
        }
    }
}
