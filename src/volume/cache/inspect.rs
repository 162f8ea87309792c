//! What is in a cache that nobody is about to use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::OsDirectory;
use super::layout::Layout;
use super::map_file::{MAP, MapFile, MapKind};
use super::meta::Meta;
use super::open::{NO_META, Place, begins_with, live_key, map_kind};
use super::{lock, page};
use crate::volume::StateMap;
use crate::volume::geometry::{BLOCK_BYTES, RegionIndex};
use crate::volume::instance;
use crate::volume::state_map::{LiveMap, RegionSnapshot};
use crate::{Context, Error, ErrorKind, Result};

/// What a cache is, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheReport {
    /// Its directory.
    pub path: PathBuf,
    /// What the origin said that it is.
    pub identity: [u8; 16],
    /// What people call the origin.
    pub origin_name: String,
    /// How long the resource is.
    pub size_bytes: u64,
    /// The chunk that is fetched at once.
    pub chunk_bytes: u64,
    /// The epoch of the lease under which it was written last; 0 before the first one.
    pub epoch: u64,
    /// Whether it is on a disk.
    pub persistent: bool,
    /// Whether the disk failed to sync it: it is not opened before somebody says what is to be done.
    pub sync_failed: bool,
    /// What is in it, or who knows.
    pub contents: Contents,
}

/// What is in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// A process has it; what is in it changes. (Its number, where it can be seen.)
    InUse(Option<u32>),
    /// Nobody has it.
    Idle(Held),
}

/// How much is in a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes that need not be fetched.
    pub present_bytes: u64,
    /// Bytes that the origin may not have.
    pub dirty_bytes: u64,
}

/// Looks at a cache and leaves it as it is.
///
/// # Errors
/// `NotFound` where there is none, `Damaged` and `Foreign` (another version) for one that cannot be
/// read, and what the operating system reports.
pub fn inspect(path: &Path, run_directory: &Path) -> Result<CacheReport> {
    let place = Place::at(path, run_directory)?;
    let directory = OsDirectory::at(path);
    let meta =
        place
            .read_meta()?
            .ok_or_else(|| match begins_with(&directory, MAP, page::MAGIC) {
                true => place.refuse(ErrorKind::Damaged, NO_META.to_owned()),
                false => no_cache(path),
            })?;
    let contents = match place.lock_known(&directory, path) {
        Ok(locked) => {
            place.check_data(&*lock::plain(&locked, path)?, &meta)?;
            Contents::Idle(place.held(&meta)?)
        }
        Err(error) if error.kind() == ErrorKind::Busy => {
            Contents::InUse(lock::holder_of(&OsDirectory::at(path)))
        }
        Err(error) => return Err(error),
    };
    let sync_failed = place.has_sync_failed(&meta)?;
    Ok(CacheReport {
        path: path.to_owned(),
        identity: meta.identity,
        origin_name: meta.origin_name,
        size_bytes: meta.size_bytes,
        chunk_bytes: meta.chunk_bytes,
        epoch: meta.epoch,
        persistent: meta.persistent,
        sync_failed,
        contents,
    })
}

pub(super) fn no_cache(path: &Path) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no cache in {}", path.display()),
    )
}

impl Place {
    /// The cache in a directory of this machine.
    pub(super) fn at(path: &Path, run_directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: Arc::new(OsDirectory::at(path)),
            run_directory: run_directory.to_owned(),
            boot_id: instance::of_boot()?,
            name: path.display().to_string(),
            data_elsewhere: None,
        })
    }

    /// What is in a cache that is locked by us, by whatever counts.
    pub(super) fn held(&self, meta: &Meta) -> Result<Held> {
        if meta.making {
            return Ok(Held::default());
        }
        let live = self.live(meta)?;
        let key = live_key(meta, self.boot_id, 0);
        if !self.has_sync_failed(meta)?
            && let Ok(adopted) = LiveMap::adopt(live.map(), &key)
        {
            let map = StateMap::new(adopted)
                .context_io(|| format!("cannot use the live map of the cache in {}", self.name))?;
            return Ok(Held::of(&map));
        }
        if !meta.persistent {
            let what = "is in memory, and its live map is gone".to_owned();
            return Err(self.refuse(ErrorKind::Damaged, what));
        }
        MapFile::load(self.open_map()?, map_kind(meta))
            .and_then(|file| Held::saved(&file))
            .map_err(|error| self.about(error))
    }
}

impl Held {
    pub(super) fn of(map: &StateMap) -> Self {
        let counts = map.counts();
        Self {
            present_bytes: counts.present * BLOCK_BYTES,
            dirty_bytes: (counts.dirty + counts.sending) * BLOCK_BYTES,
        }
    }

    /// What a checkpoint has.
    fn saved(file: &MapFile) -> Result<Self> {
        let mut held = Self::default();
        for (region, entry) in file.touched() {
            let (present, dirty) = blocks(file.kind, region, &file.snapshot(region)?);
            held.present_bytes += present * BLOCK_BYTES;
            held.dirty_bytes += if entry.intent { present } else { dirty } * BLOCK_BYTES;
        }
        Ok(held)
    }
}

/// How many blocks are present, and how many of them dirty.
fn blocks(kind: MapKind, region: RegionIndex, snapshot: &RegionSnapshot) -> (u64, u64) {
    let all = Layout::new(kind.size_bytes).blocks_of(region);
    let ones = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum();
    match snapshot {
        RegionSnapshot::Absent => (0, 0),
        RegionSnapshot::PresentClean => (all, 0),
        RegionSnapshot::PresentDirty => (all, all),
        RegionSnapshot::Mixed(bits) => (ones(&bits.present), ones(&bits.dirty)),
    }
}
