//! Opening a cache: what its files say, which of its states counts, and making one where there is
//! none.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::Flock;

use super::checkpointer::Checkpointer;
use super::files::{OsDirectory, StoreDirectory, StoreFile};
use super::live::LivePlace;
use super::map_file::{MAP, MapFile, MapKind};
use super::meta::{META, META_NEW, Meta, MetaFile};
use super::{AfterFailedSync, CacheOptions, DATA, Found, FoundState, lock, page};
use crate::volume::StateMap;
use crate::volume::format_size;
use crate::volume::geometry::BLOCK_BYTES;
use crate::volume::state_map::{AdoptError, LiveMap, LiveMapKey};
use crate::{Context, Error, ErrorKind, Result};

/// What is wrong where there is a map alone.
pub(super) const NO_META: &str = "is damaged: there is no `meta`, which says what it belongs to";

/// Where a cache is and in which boot.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: Arc<dyn StoreDirectory>,
    pub(super) run_directory: PathBuf,
    pub(super) boot_id: [u8; 16],
    /// What messages call it.
    pub(super) name: String,
    /// What tells `data` from other files, where it is not in the directory.
    pub(super) data_elsewhere: Option<[u64; 2]>,
}

/// What opening gives.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) map: Arc<StateMap>,
    pub(super) checkpointer: Checkpointer,
    pub(super) meta: Arc<MetaFile>,
    pub(super) found: Found,
}

/// How long `data` is for a resource of so many bytes.
pub(super) fn data_bytes(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BLOCK_BYTES)
}

impl Place {
    /// Looks at the files and makes those that are missing, in a directory that is empty or where
    /// somebody died while making them. `data` is locked.
    ///
    /// # Errors
    /// `Foreign` for a cache of something else, `Dirty` after a failed sync unless the options say
    /// what to do, `Damaged`, `InvalidInput` for a directory with other things in it, and what the operating system reports.
    pub(super) fn prepare(&self, data: &dyn StoreFile, options: &CacheOptions) -> Result<Meta> {
        match self.read_meta()? {
            Some(meta) if !meta.making => {
                self.check_belongs(&meta, options)?;
                self.check_data(data, &meta)?;
                self.check_syncs(meta, options)
            }
            Some(begun) => self.make(data, begun, options),
            None => {
                self.refuse_unless_empty(data)?;
                self.make(data, Meta::begun(options.persistent)?, options)
            }
        }
    }

    pub(super) fn read_meta(&self) -> Result<Option<Meta>> {
        Meta::read(&*self.directory).map_err(|error| self.about(error))
    }

    pub(super) fn about(&self, error: Error) -> Error {
        let kind = error.kind();
        Error::new(kind, format!("cannot use the cache in {}", self.name)).because(error)
    }

    pub(super) fn refuse(&self, kind: ErrorKind, what: String) -> Error {
        Error::new(kind, format!("the cache in {} {what}", self.name))
    }

    pub(super) fn check_belongs(&self, meta: &Meta, options: &CacheOptions) -> Result<()> {
        let foreign = |what| Err(self.refuse(ErrorKind::Foreign, what));
        if meta.identity != options.identity {
            return foreign(format!("belongs to another origin ({})", meta.origin_name));
        }
        if meta.size_bytes != options.size_bytes {
            return foreign(format!(
                "is for {} bytes, and the origin has {}",
                meta.size_bytes, options.size_bytes
            ));
        }
        if meta.chunk_bytes != options.chunk_bytes {
            return foreign(format!(
                "has chunks of {}, not of {}",
                format_size(meta.chunk_bytes),
                format_size(options.chunk_bytes)
            ));
        }
        if meta.persistent != options.persistent {
            return foreign(if meta.persistent {
                "is one on a disk, and not in memory".to_owned()
            } else {
                "is one in memory, and not on a disk".to_owned()
            });
        }
        Ok(())
    }

    /// Locks `data`, and makes it where there is no cache yet.
    pub(super) fn lock_data(&self, directory: &OsDirectory, path: &Path) -> Result<Flock<File>> {
        loop {
            if !self.is_made()? {
                return lock::open_data(directory, path, true);
            }
            match self.lock_known(directory, path) {
                // Somebody removes all of it at this moment.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => return other,
            }
        }
    }

    /// The same where there is one.
    pub(super) fn lock_known(&self, directory: &OsDirectory, path: &Path) -> Result<Flock<File>> {
        match lock::open_data(directory, path, false) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_made()? => {
                let what = format!("is damaged: there is no `{DATA}`");
                Err(self.refuse(ErrorKind::Damaged, what))
            }
            other => other,
        }
    }

    fn is_made(&self) -> Result<bool> {
        Ok(self.read_meta()?.is_some_and(|meta| !meta.making))
    }

    /// Whether `data` is as long as it has to be.
    pub(super) fn check_data(&self, data: &dyn StoreFile, meta: &Meta) -> Result<()> {
        if meta.making {
            return Ok(());
        }
        let len_bytes = data
            .len_bytes()
            .context_io(|| format!("cannot examine `{DATA}` in {}", self.name))?;
        let expected = data_bytes(meta.size_bytes);
        if len_bytes == expected {
            return Ok(());
        }
        let what = format!("is damaged: `{DATA}` has {len_bytes} bytes, not {expected}");
        Err(self.refuse(ErrorKind::Damaged, what))
    }

    /// Says so if a sync has failed and nobody has said yet what is to be done.
    pub(super) fn check_syncs(&self, mut meta: Meta, options: &CacheOptions) -> Result<Meta> {
        if !self.has_sync_failed(&meta)? {
            return Ok(meta);
        }
        if !meta.sync_failed {
            meta.sync_failed = true;
            // The disk did not take it before. The note in memory stands as well.
            if let Err(error) = meta.write(&*self.directory) {
                tracing::warn!(%error, "cannot note in the cache in {} that a sync has failed", self.name);
            }
        }
        if options.after_failed_sync == AfterFailedSync::Refuse {
            let what = "is uncertain: its disk failed to sync it, so what was written since the last flush that \
                        succeeded may be lost, or there in part";
            return Err(self.refuse(ErrorKind::Dirty, what.to_owned()));
        }
        Ok(meta)
    }

    /// Whether a sync has failed since the store was opened last. In memory nothing can.
    pub(super) fn has_sync_failed(&self, meta: &Meta) -> Result<bool> {
        let may_have = meta.persistent && !meta.making;
        Ok(may_have && (meta.sync_failed || self.live(meta)?.is_failed()))
    }

    /// Where the live map of the store is. There is `data`.
    pub(super) fn live(&self, meta: &Meta) -> Result<LivePlace> {
        let numbers = match self.data_elsewhere {
            Some(numbers) => Ok(numbers),
            None => self.directory.file_numbers(DATA),
        };
        let numbers = numbers.context_io(|| format!("cannot examine `{DATA}` in {}", self.name))?;
        Ok(LivePlace::new(&self.run_directory, meta.store, numbers))
    }

    /// Where there is no cache, and what is there instead would be in its way.
    pub(super) fn refuse_other_things(&self) -> Result<()> {
        if self.read_meta()?.is_some() {
            return Ok(());
        }
        let cannot = || format!("cannot look at {}", self.name);
        let names = self.directory.names().context_io(cannot)?;
        let ours = [DATA, META_NEW, "lost+found"];
        if names.iter().any(|name| name == META) {
            // Another process has just begun one.
            return Ok(());
        }
        if begins_with(&*self.directory, MAP, page::MAGIC) {
            return Err(self.refuse(ErrorKind::Damaged, NO_META.to_owned()));
        }
        if let Some(other) = names.iter().find(|name| !ours.contains(&name.as_str())) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is no cache, and has other things in it (`{other}`); name an empty directory",
                    self.name
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn refuse_unless_empty(&self, data: &dyn StoreFile) -> Result<()> {
        self.refuse_other_things()?;
        let cannot = || format!("cannot look at {}", self.name);
        if data.len_bytes().context_io(cannot)? != 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is no cache: it has a file `{DATA}`, but no `{META}`; name an empty directory, or \
                     move `{DATA}` away",
                    self.name
                ),
            ));
        }
        Ok(())
    }

    /// Makes an empty cache. Until it is opened `meta` says that there is nothing in it.
    fn make(&self, data: &dyn StoreFile, begun: Meta, options: &CacheOptions) -> Result<Meta> {
        let len_bytes = data_bytes(options.size_bytes);
        self.make_files(begun, options, || {
            data.set_len(0)?;
            data.set_len(len_bytes)?;
            data.sync_data()
        })
    }

    /// The same, with whatever is to be done about `data`.
    pub(super) fn make_files(
        &self,
        begun: Meta,
        options: &CacheOptions,
        make_data: impl FnOnce() -> io::Result<()>,
    ) -> Result<Meta> {
        let meta = Meta {
            persistent: options.persistent,
            identity: options.identity,
            size_bytes: options.size_bytes,
            chunk_bytes: options.chunk_bytes,
            origin_name: options.origin_name.clone(),
            ..begun
        };
        let make = || {
            meta.write(&*self.directory)?;
            if meta.persistent {
                MapFile::create(&*self.directory.create(MAP)?, map_kind(&meta))?;
            } else {
                self.directory.remove(MAP)?;
            }
            make_data()?;
            self.directory.sync()
        };
        make().context_io(|| format!("cannot make the cache in {}", self.name))?;
        Ok(meta)
    }

    /// Finds the state that counts, and puts it into a state map.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub(super) fn start(
        &self,
        data: Arc<dyn StoreFile>,
        meta: Meta,
        options: &CacheOptions,
    ) -> Result<Started> {
        LivePlace::make_directory(&self.run_directory)?;
        let live = self.live(&meta)?;
        let file = meta
            .persistent
            .then(|| self.load_map(&*data, &meta))
            .transpose()?;
        let meta = Arc::new(MetaFile::new(self.directory.clone(), meta));
        let (mut map, state) = match self.adopt(&meta, &live, options)? {
            Ok(map) => (map, FoundState::Continued),
            Err(_) if meta.get().making => {
                let map = self.restore(&meta, &live, None, options)?;
                (map, FoundState::Fresh)
            }
            Err(because) => {
                let file = file.as_ref().ok_or_else(|| {
                    self.refuse(
                        ErrorKind::Damaged,
                        format!("is in memory, and its live map cannot be used: {because}"),
                    )
                })?;
                let map = self.restore(&meta, &live, Some(file), options)?;
                let sequence = file.committed.header.sequence;
                (map, FoundState::FromCheckpoint { sequence, because })
            }
        };
        let durable = || format!("cannot write to the cache in {}", self.name);
        let had_failed = self.has_sync_failed(&meta.get())?;
        let gives_up = had_failed && options.after_failed_sync == AfterFailedSync::Drop;
        if gives_up {
            give_up_all(&mut map);
        }
        let found = Found::of(state, &map);
        let map = Arc::new(map);
        let checkpointer = Checkpointer::new(map.clone(), data, live, meta.clone(), file);
        checkpointer.hold_missing_intents().context_io(durable)?;
        if gives_up {
            let dropped = checkpointer.checkpoint();
            dropped
                .and_then(|()| checkpointer.punch_absent())
                .context_io(durable)?;
        }
        if had_failed {
            // Only now: who opens it after this process goes on with the live map.
            checkpointer.forget_failure().context_io(durable)?;
        }
        Ok(Started {
            map,
            checkpointer,
            meta,
            found,
        })
    }

    pub(super) fn open_map(&self) -> Result<Arc<dyn StoreFile>> {
        match self.directory.open(MAP) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!("is damaged: there is no `{MAP}`");
                Err(self.refuse(ErrorKind::Damaged, what))
            }
            other => other.context_io(|| format!("cannot open `{MAP}` in {}", self.name)),
        }
    }

    fn load_map(&self, data: &dyn StoreFile, meta: &Meta) -> Result<MapFile> {
        let file = self.open_map()?;
        if self.has_sync_failed(meta)? {
            // What memory has of the files may never have reached the disk.
            let forget = data.forget_cached().and_then(|()| file.forget_cached());
            forget.context_io(|| format!("cannot read the cache in {} anew", self.name))?;
        }
        MapFile::load(file, map_kind(meta)).map_err(|error| self.about(error))
    }

    /// The live map that a dead process left; the text says why there is none that counts.
    fn adopt(
        &self,
        meta: &MetaFile,
        live: &LivePlace,
        options: &CacheOptions,
    ) -> Result<Result<StateMap, String>> {
        let known = meta.get();
        if known.making {
            return Ok(Err("nobody has opened it".to_owned()));
        }
        if self.has_sync_failed(&known)? {
            return Ok(Err("a sync of the cache had failed".to_owned()));
        }
        let key = live_key(&known, self.boot_id, options.in_flight_slots);
        match LiveMap::adopt(live.map(), &key) {
            Ok(adopted) => {
                let cannot = || format!("cannot use the live map of the cache in {}", self.name);
                Ok(Ok(StateMap::new(adopted).context_io(cannot)?))
            }
            Err(AdoptError::Slots { found, expected }) => Err(self.refuse(
                ErrorKind::InvalidInput,
                format!(
                    "was in use with at most {found} requests at once when its process died, and \
                     {expected} are wanted now; use the same --queues and --depth as before, and stop \
                     it once"
                ),
            )),
            Err(AdoptError::Io(error)) => Err(Error::io(
                format!("cannot open the live map of the cache in {}", self.name),
                error,
            )),
            Err(mismatch) => Ok(Err(mismatch.to_string())),
        }
    }

    /// A new live map with what the checkpoint has, or an empty one.
    fn restore(
        &self,
        meta: &MetaFile,
        live: &LivePlace,
        file: Option<&MapFile>,
        options: &CacheOptions,
    ) -> Result<StateMap> {
        let durable = || format!("cannot write to the cache in {}", self.name);
        let made = || format!("cannot make a live map for the cache in {}", self.name);
        // From here on no older live map counts.
        let known = meta
            .change(|meta| meta.open_counter += 1)
            .context_io(durable)?;
        let new = LiveMap::create(
            live.map(),
            &live_key(&known, self.boot_id, options.in_flight_slots),
        );
        let map = StateMap::restored(new.context_io(made)?, |map| restore_all(map, file))
            .map_err(|RestoreError(error)| self.about(error))?;
        if known.making {
            // That of a store which was given up.
            live.clear_failure().context_io(made)?;
            meta.change(|meta| meta.making = false)
                .context_io(durable)?;
        }
        Ok(map)
    }
}

/// Whether a file is there that begins so.
pub(super) fn begins_with(directory: &dyn StoreDirectory, name: &str, magic: &[u8; 8]) -> bool {
    let mut found = [0; 8];
    let file = directory.open(name);
    file.and_then(|file| file.read_exact_at(&mut found, 0))
        .is_ok()
        && found == *magic
}

/// The origin has what it has, and nothing is here.
pub(super) fn give_up_all(map: &mut StateMap) {
    let blocks = map.blocks();
    let mut at = blocks.first;
    while let Some(run) = map.take_dirty(at, blocks.len()) {
        map.flushed(run);
        at = run.end;
    }
    map.drop_clean();
}

struct RestoreError(Error);

impl From<io::Error> for RestoreError {
    fn from(error: io::Error) -> Self {
        Self(Error::io("cannot make its live map", error))
    }
}

fn restore_all(map: &mut StateMap, file: Option<&MapFile>) -> Result<(), RestoreError> {
    let Some(file) = file else { return Ok(()) };
    for (region, entry) in file.touched() {
        let snapshot = file.snapshot(region).map_err(RestoreError)?;
        map.restore(region, &snapshot, entry.intent)?;
    }
    Ok(())
}

pub(super) fn map_kind(meta: &Meta) -> MapKind {
    MapKind {
        store: meta.store,
        size_bytes: meta.size_bytes,
        chunk_bytes: meta.chunk_bytes,
    }
}

/// What a live map has to say of itself to belong to a cache.
pub(super) fn live_key(meta: &Meta, boot_id: [u8; 16], queue_slots: u32) -> LiveMapKey {
    LiveMapKey {
        boot_id,
        store_uuid: meta.store,
        open_counter: meta.open_counter,
        size_bytes: meta.size_bytes,
        queue_slots,
    }
}
