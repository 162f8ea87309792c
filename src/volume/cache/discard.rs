//! Getting rid of a cache, or of what is clean in it.

use std::io;
use std::path::Path;

use super::files::{OsDirectory, StoreFile};
use super::inspect::no_cache;
use super::live::LivePlace;
use super::map_file::MAP;
use super::meta::{META, META_NEW, Meta};
use super::open::{NO_META, Place, begins_with, give_up_all};
use super::{
    AfterFailedSync, CacheDirectory, CacheOptions, DATA, Found, OpenedCache, lock, meta, page,
};
use crate::volume::geometry::BlockRange;
use crate::volume::{StateMap, format_size};
use crate::{Context, Error, ErrorKind, Result};

/// What may be lost when a cache is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Only what the origin has as well.
    Clean,
    /// Local writes, too; and a cache that is damaged, of which nobody can say what is in it.
    EvenDirty,
}

/// Removes a cache that nobody uses. The directory stays, empty.
///
/// # Errors
/// `Busy` while a process has it, `Dirty` where local writes would be lost and may not, `NotFound`
/// where there is no cache, `Damaged` for one that cannot be read as far as needed, and what the
/// operating system reports.
pub fn discard(path: &Path, run_directory: &Path, what: Discard) -> Result<()> {
    let place = Place::at(path, run_directory)?;
    let directory = OsDirectory::at(path);
    let meta = match place.read_meta() {
        Ok(None) if !begins_with(&directory, MAP, page::MAGIC) => return Err(no_cache(path)),
        Err(error) if !begins_like_a_cache(&directory) => return Err(error),
        other => other,
    };
    let data = match what {
        Discard::Clean => place.lock_data(&directory, path)?,
        Discard::EvenDirty => lock::open_data(&directory, path, true)?,
    };
    if what == Discard::Clean {
        let no_meta = || place.refuse(ErrorKind::Damaged, NO_META.to_owned());
        let meta = meta?.ok_or_else(no_meta)?;
        if place.has_sync_failed(&meta)? {
            let what =
                "may have lost local writes, as its disk failed to sync it, and may hold others";
            return Err(place.refuse(ErrorKind::Dirty, what.to_owned()));
        }
        place.check_data(&*lock::plain(&data, path)?, &meta)?;
        let dirty_bytes = place.held(&meta)?.dirty_bytes;
        if dirty_bytes != 0 {
            let dirty = format_size(dirty_bytes);
            let what = format!("has {dirty} of local writes that the origin lacks");
            return Err(place.refuse(ErrorKind::Dirty, what));
        }
        return remove(&place, &*lock::plain(&data, path)?, Some(meta));
    }
    remove(&place, &*lock::plain(&data, path)?, meta.ok().flatten())
}

/// Gives up all that a cache holds which nobody uses, local writes included. It stays the one that its
/// origin knows.
///
/// # Errors
/// As [`CacheDirectory::open`], and `NotFound` where there is no cache.
pub fn empty(path: &Path, run_directory: &Path) -> Result<()> {
    let meta = Place::at(path, run_directory)?.read_meta()?;
    let meta = meta.ok_or_else(|| no_cache(path))?;
    if meta.making {
        // Nothing is in it yet.
        return Ok(());
    }
    let options = CacheOptions {
        size_bytes: meta.size_bytes,
        chunk_bytes: meta.chunk_bytes,
        identity: meta.identity,
        origin_name: meta.origin_name,
        persistent: meta.persistent,
        run_directory: run_directory.to_owned(),
        // Nothing is going to be under way.
        in_flight_slots: 0,
        direct_alignment_bytes: None,
        after_failed_sync: AfterFailedSync::Drop,
    };
    let cache = CacheDirectory::open(path, &options)?.rid_of(give_up_all)?;
    let close = cache.checkpointer.close();
    close.context_io(|| format!("cannot empty the cache in {}", path.display()))
}

fn begins_like_a_cache(directory: &OsDirectory) -> bool {
    begins_with(directory, META, meta::MAGIC) || begins_with(directory, MAP, page::MAGIC)
}

/// At every moment of it there is a cache that is empty or being made, or none.
pub(super) fn remove(place: &Place, data: &dyn StoreFile, meta: Option<Meta>) -> Result<()> {
    let directory = &*place.directory;
    let numbers = directory.file_numbers(DATA);
    let remove = || {
        if let Some(mut meta) = meta {
            meta.making = true;
            meta.write(directory)?;
        }
        LivePlace::remove_all_of(&place.run_directory, numbers?)?;
        data.set_len(0)?;
        data.sync_data()?;
        directory.remove(MAP)?;
        directory.sync()?;
        for name in [META, META_NEW, DATA] {
            directory.remove(name)?;
        }
        directory.sync()
    };
    remove().context_io(|| format!("cannot remove the cache in {}", place.name))
}

impl OpenedCache {
    /// Drops what the origin has as well: it may have changed since. What is dirty stays.
    ///
    /// # Errors
    /// `Busy` when somebody has the map or the checkpointer already, and what the operating system
    /// reports. The cache is closed then.
    pub fn drop_clean(self) -> Result<Self> {
        self.rid_of(StateMap::drop_clean)
    }

    /// Has blocks become absent, and gives their space back.
    fn rid_of(self, drop_blocks: impl FnOnce(&mut StateMap)) -> Result<Self> {
        let Self {
            directory,
            data,
            map,
            mut checkpointer,
            found,
        } = self;
        drop(map);
        let map = checkpointer.map_mut().ok_or_else(|| {
            Error::new(
                ErrorKind::Busy,
                format!("the cache in {} is in use", directory.path().display()),
            )
        })?;
        drop_blocks(map);
        // Only when it is durable that they are absent their bytes may go.
        checkpointer
            .checkpoint()
            .and_then(|()| checkpointer.punch_absent())
            .context_io(|| format!("cannot drop what is in {}", directory.path().display()))?;
        let map = checkpointer.map();
        let found = Found::of(found.state, &map);
        Ok(Self {
            directory,
            data,
            map,
            checkpointer,
            found,
        })
    }
}

/// Gives the space of everything that is absent back.
pub(super) fn punch_absent(map: &StateMap, data: &dyn StoreFile) -> io::Result<()> {
    let all = map.blocks();
    let mut run = BlockRange::new(0, 0);
    let mut at = all.first;
    loop {
        let next = map.next_absent(at, all.end);
        match next {
            Some(next) if next.first == run.end => run.end = next.end,
            _ => {
                punch(data, run)?;
                match next {
                    Some(next) => run = next,
                    None => return Ok(()),
                }
            }
        }
        at = run.end;
    }
}

fn punch(data: &dyn StoreFile, run: BlockRange) -> io::Result<()> {
    if run.is_empty() {
        return Ok(());
    }
    match data.punch(run.start().0, run.len_bytes()) {
        // Then it takes space; that is all.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}
