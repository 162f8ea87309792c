//! An opened cache, and what it says.

use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, SECTOR_BYTES, SimFile};
use super::model::{Model, Stamp, sectors_of, stamp_of, watched};
use super::{SIZE_BYTES, SLOTS};
use crate::volume::cache::open::{Place, Started};
use crate::volume::cache::{AfterFailedSync, CacheDirectory, CacheOptions};
use crate::volume::geometry::BlockIndex;
use crate::volume::state_map::RegionSnapshot;
use crate::volume::{Backend, StateMap};

/// Opens the same cache in the files of this machine, and finds the same in it.
pub(super) fn compare_with_files(disk: &Disk, seen: &Seen, data: &SimFile) -> Result<(), String> {
    let home = home();
    let (cache, run) = (home.path().join("cache"), home.path().join("run"));
    std::fs::create_dir(&cache).expect("made");
    disk.write_to(&cache).expect("written");
    let opened = CacheDirectory::open(&cache, &options(&run))
        .map_err(|error| format!("cannot open in a directory: {}", error.chain()))?;
    if Seen::of(&opened.map) != *seen {
        return Err("another state in a directory".to_owned());
    }
    for sector in watched().flat_map(sectors_of) {
        let mut bytes = [0; SECTOR_BYTES as usize];
        opened
            .data
            .read_at(&mut bytes, sector * SECTOR_BYTES)
            .expect("read");
        if bytes != data.sector(sector) {
            return Err(format!("sector {sector} is another one in a directory"));
        }
    }
    Ok(())
}

/// A directory in memory.
pub(super) fn home() -> tempfile::TempDir {
    let in_memory = Some("/dev/shm").filter(|path| Path::new(path).is_dir());
    let home = match in_memory {
        Some(path) => tempfile::tempdir_in(path),
        None => tempfile::tempdir(),
    };
    home.expect("a directory")
}

pub(super) fn options(run_directory: &Path) -> CacheOptions {
    CacheOptions {
        size_bytes: SIZE_BYTES,
        chunk_bytes: 64 << 10,
        identity: [3; 16],
        origin_name: "origin".to_owned(),
        persistent: true,
        run_directory: run_directory.to_owned(),
        in_flight_slots: SLOTS,
        direct_alignment_bytes: None,
        after_failed_sync: AfterFailedSync::GoOn,
    }
}

/// Opens the cache of a disk, whatever has failed before.
pub(super) fn open(
    disk: &Disk,
    run_directory: &Path,
    boot_id: [u8; 16],
) -> Result<(Started, SimFile), crate::Error> {
    open_with(disk, boot_id, &options(run_directory))
}

/// Opens it as somebody does who knows nothing of a failure.
pub(super) fn open_unaware(
    disk: &Disk,
    run_directory: &Path,
    boot_id: [u8; 16],
) -> Result<(Started, SimFile), crate::Error> {
    let options = CacheOptions {
        after_failed_sync: AfterFailedSync::Refuse,
        ..options(run_directory)
    };
    open_with(disk, boot_id, &options)
}

fn open_with(
    disk: &Disk,
    boot_id: [u8; 16],
    options: &CacheOptions,
) -> Result<(Started, SimFile), crate::Error> {
    let run_directory = &options.run_directory;
    let place = Place {
        directory: Arc::new(disk.clone()),
        run_directory: run_directory.clone(),
        boot_id,
        name: "disk".to_owned(),
        data_elsewhere: None,
    };
    let meta = place.prepare(&disk.file("data"), options)?;
    let started = place.start(Arc::new(disk.file("data")), meta, options)?;
    Ok((started, disk.file("data")))
}

/// What an opened map says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    regions: Vec<RegionSnapshot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    Absent,
    Clean,
    Dirty,
}

impl Seen {
    pub(super) fn of(map: &StateMap) -> Self {
        // It never becomes durable, so it is void.
        map.begin_snapshot();
        Self {
            regions: map.regions().map(|region| map.snapshot(region)).collect(),
        }
    }

    pub(super) fn block(&self, block: BlockIndex) -> Block {
        let region = block.region();
        match &self.regions[region.0 as usize] {
            RegionSnapshot::Absent => Block::Absent,
            RegionSnapshot::PresentClean => Block::Clean,
            RegionSnapshot::PresentDirty => Block::Dirty,
            RegionSnapshot::Mixed(bits) => {
                let at = block.0 - region.first_block().0;
                let is_set = |words: &[u64]| words[at as usize / 64] >> (at % 64) & 1 == 1;
                match (is_set(&bits.present), is_set(&bits.dirty)) {
                    (false, _) => Block::Absent,
                    (true, false) => Block::Clean,
                    (true, true) => Block::Dirty,
                }
            }
        }
    }

    /// What each sector is read as. An error if one is clean and not what the origin has
    /// durably.
    pub(super) fn stamps(
        &self,
        data: &SimFile,
        model: &Model,
    ) -> Result<Vec<(u64, Stamp)>, String> {
        watched()
            .flat_map(|block| sectors_of(block).map(move |sector| (block, sector)))
            .map(|(block, sector)| Ok((sector, self.stamp(block, sector, data, model)?)))
            .collect()
    }

    /// What a sector is read as. An error if it is clean and not what the origin has.
    pub(super) fn stamp(
        &self,
        block: BlockIndex,
        sector: u64,
        data: &SimFile,
        model: &Model,
    ) -> Result<Stamp, String> {
        let (origin, flushed) = (model.origin(sector), model.flushed(sector));
        let state = self.block(block);
        if state == Block::Absent {
            if !model.allows(sector, flushed) {
                return Err(format!(
                    "L10: block {} is absent, and of sector {sector} the origin may lose {origin:#x} for \
                     {flushed:#x}",
                    block.0
                ));
            }
            return Ok(origin);
        }
        let stamp = stamp_of(&data.sector(sector)).ok_or("a sector is not one thing")?;
        if state == Block::Clean && (stamp != origin || stamp != flushed) {
            return Err(format!(
                "L12: block {} is clean, and sector {sector} has {stamp:#x}, but the origin {origin:#x}, and \
                 {flushed:#x} after a power cut",
                block.0
            ));
        }
        Ok(stamp)
    }
}
