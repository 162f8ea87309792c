//! The local store of a managed mount: `data`, `map` and `meta` in a directory of its own.
//!
//! `data` has the blocks, `map` says which of them count after a crash of the machine (the
//! checkpoint), and `meta` says what they belong to. As long as the machine runs the live map
//! counts instead, which is in the run-time directory: see [`state_map`](super::state_map).

mod around;
mod begin;
mod checkpointer;
mod discard;
mod fields;
mod files;
mod header;
mod inspect;
mod layout;
mod live;
mod load;
mod lock;
mod map_file;
mod meta;
mod open;
mod page;
mod record;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use around::forget_around;
pub use begin::{Begun, EARLIER_OPENINGS, Opening};
pub use checkpointer::Checkpointer;
pub use discard::{Discard, discard, empty};
pub use inspect::{CacheReport, Contents, Held, inspect};
pub use layout::CACHE_BYTES_MAX;
pub use meta::ORIGIN_NAME_BYTES_MAX;

use self::files::{DataFile, OsDirectory};
use self::meta::{Meta, MetaFile};
use self::open::{Place, Started};
use super::file::{FileOptions, FileStore};
use super::state_map::StateMap;
use crate::{Context, Error, ErrorKind, Result};

/// The name of the file with the blocks.
const DATA: &str = "data";

/// What a cache is to be.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// How long the resource is; at most [`CACHE_BYTES_MAX`].
    pub size_bytes: u64,
    /// The chunk that is fetched at once.
    pub chunk_bytes: u64,
    /// What the origin says that it is.
    pub identity: [u8; 16],
    /// What people call the origin, without secrets. What is above [`ORIGIN_NAME_BYTES_MAX`] is
    /// cut off.
    pub origin_name: String,
    /// On a disk. Otherwise the cache lives in memory, and the live map alone says what it holds.
    pub persistent: bool,
    /// Where the live map is: in memory, and only for this user.
    pub run_directory: PathBuf,
    /// How many requests the queues have under way at most (queues × depth).
    pub in_flight_slots: u32,
    /// See [`FileOptions::direct_alignment_bytes`].
    pub direct_alignment_bytes: Option<u32>,
    /// What becomes of a store of which a sync has failed.
    pub after_failed_sync: AfterFailedSync,
}

/// What becomes of a store on a disk that failed to sync it: what was written since the last flush
/// that succeeded may be lost, or there in part, and the origin may have it already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AfterFailedSync {
    /// It is not opened.
    #[default]
    Refuse,
    /// It is what it was at its last checkpoint; what was dirty then, or may have been written since,
    /// is dirty.
    GoOn,
    /// It is empty.
    Drop,
}

/// What a cache held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where that is known from.
    pub state: FoundState,
    /// How much.
    pub held: Held,
}

impl Found {
    fn of(state: FoundState, map: &StateMap) -> Self {
        Self {
            state,
            held: Held::of(map),
        }
    }
}

/// Where it is known from what a cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundState {
    /// It was made just now.
    Fresh,
    /// A process died, and its live map goes on.
    Continued,
    /// The checkpoint counts.
    FromCheckpoint {
        /// The number of the commit.
        sequence: u64,
        /// Why no live map does. After a clean stop there is none.
        because: String,
    },
}

/// The directory of an open cache. It is locked as long as `data` of [`OpenedCache`] lives.
#[derive(Debug)]
pub struct CacheDirectory {
    path: PathBuf,
    meta: Arc<MetaFile>,
}

/// An open cache.
#[derive(Debug)]
pub struct OpenedCache {
    /// What the directory says of itself.
    pub directory: CacheDirectory,
    /// The blocks.
    pub data: Arc<FileStore>,
    /// Which of them count.
    pub map: Arc<StateMap>,
    /// What makes that durable.
    pub checkpointer: Checkpointer,
    /// What was found.
    pub found: Found,
}

impl CacheDirectory {
    /// Opens the cache in a directory, or makes one where the directory is missing or empty.
    ///
    /// # Errors
    /// `Busy` when another process has it, `Foreign` when it belongs to something else (nothing of
    /// it was used or changed), `Dirty` after a failed sync unless the options say what to do,
    /// `Damaged` when files are missing or not as they were written,
    /// `InvalidInput` for what cannot become a cache, and what the operating system reports.
    pub fn open(path: &Path, options: &CacheOptions) -> Result<OpenedCache> {
        check_sizes(options)?;
        let name = path.display();
        let directory =
            OsDirectory::make(path).context_io(|| format!("cannot make the directory {name}"))?;
        let place = Place::at(path, &options.run_directory)?;
        place.refuse_other_things()?;
        let data = place.lock_data(&directory, path)?;
        let meta = place.prepare(&*lock::plain(&data, path)?, options)?;
        let file_options = FileOptions {
            read_only: false,
            direct_alignment_bytes: options.direct_alignment_bytes,
            ..FileOptions::default()
        };
        let data = Arc::new(FileStore::from_locked(
            data,
            &path.join(DATA),
            file_options,
        )?);
        Self::started(path, &place, data, meta, options)
    }

    fn started(
        path: &Path,
        place: &Place,
        data: Arc<FileStore>,
        meta: Meta,
        options: &CacheOptions,
    ) -> Result<OpenedCache> {
        let note = place.live(&meta)?;
        let started = place.start(Arc::new(DataFile(data.clone())), meta, options)?;
        data.leave_note_of_failure(note.failed().to_owned());
        let Started {
            map,
            checkpointer,
            meta,
            found,
        } = started;
        Ok(OpenedCache {
            directory: Self {
                path: path.to_owned(),
                meta,
            },
            data,
            map,
            checkpointer,
            found,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The epoch of the lease under which it was written last; 0 before the first one.
    pub fn epoch(&self) -> u64 {
        self.meta.get().epoch
    }
}

fn check_sizes(options: &CacheOptions) -> Result<()> {
    if (1..=CACHE_BYTES_MAX).contains(&options.size_bytes) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "a cache can be for 1 to {CACHE_BYTES_MAX} bytes, not for {}",
            options.size_bytes
        ),
    ))
}

#[cfg(all(test, not(blockferry_loom)))]
mod damage_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod failed_sync_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod format_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod full_disk_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod power_loss;
#[cfg(all(test, not(blockferry_loom)))]
mod test_home;
#[cfg(all(test, not(blockferry_loom)))]
mod tests;
