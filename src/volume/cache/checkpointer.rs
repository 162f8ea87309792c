//! What makes the state of a cache durable, in the order that L12 needs.
//!
//! A checkpoint: the bits of the regions that changed are read from the state map and their records
//! written into free slots; the bytes are made durable; then the table pages and the header are
//! written and made durable. Records that no header speaks of do not count, so nothing counts
//! before its bytes are on the disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::discard;
use super::files::StoreFile;
use super::live::LivePlace;
use super::map_file::{Batch, CommitError, MapFile};
use super::meta::MetaFile;
use crate::volume::StateMap;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::RegionSnapshot;

/// Makes write intents and checkpoints durable. All calls block; they take turns.
///
/// After a sync that failed every call fails with `EIO` until the cache is opened again by somebody
/// who knows of it, and what counts then is the last checkpoint: the kernel has dropped the error
/// together with the bytes.
#[derive(Debug, Clone)]
pub struct Checkpointer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    map: Arc<StateMap>,
    data: Arc<dyn StoreFile>,
    live: LivePlace,
    meta: Arc<MetaFile>,
    /// `None`: nothing is durable here, the live map alone counts.
    durable: Option<Mutex<Durable>>,
    /// Intents that are waited for: the next to have his turn makes all of them durable.
    wanted: Mutex<BTreeSet<RegionIndex>>,
}

#[derive(Debug)]
struct Durable {
    file: MapFile,
    failed: bool,
}

impl Checkpointer {
    pub(super) fn new(
        map: Arc<StateMap>,
        data: Arc<dyn StoreFile>,
        live: LivePlace,
        meta: Arc<MetaFile>,
        file: Option<MapFile>,
    ) -> Self {
        let durable = file.map(|file| {
            Mutex::new(Durable {
                file,
                failed: false,
            })
        });
        Self {
            inner: Arc::new(Inner {
                map,
                data,
                live,
                meta,
                durable,
                wanted: Mutex::default(),
            }),
        }
    }

    /// Makes regions ready for writes: memory for their bits, and write intents that are durable.
    /// Regions that are ready already cost nothing.
    ///
    /// # Errors
    /// `ENOSPC` when the run-time directory or the cache's disk is full. No region is less ready
    /// than it was.
    pub fn make_write_ready(&self, regions: &[RegionIndex]) -> io::Result<()> {
        for region in regions {
            self.inner.map.prepare_write(*region)?;
        }
        self.inner.hold_intents(regions)
    }

    /// The same for a discard of these blocks, or for writing zeros there: regions that it covers
    /// as a whole take no memory.
    ///
    /// # Errors
    /// As [`make_write_ready`](Self::make_write_ready).
    pub fn make_zero_ready(&self, blocks: BlockRange) -> io::Result<()> {
        self.inner.map.prepare_zero(blocks)?;
        let regions: Vec<_> = regions_of(blocks).collect();
        self.inner.hold_intents(&regions)
    }

    /// Makes everything durable that was written before: the bytes, and which blocks are present.
    /// What a flush needs, and what is to be done now and then so that a power cut costs little.
    ///
    /// # Errors
    /// `ENOSPC` when the cache's disk is full: it may succeed another time. Whatever else the disk
    /// says is for good.
    pub fn checkpoint(&self) -> io::Result<()> {
        if self.inner.durable.is_none() {
            self.inner.map.saved(self.inner.map.begin_snapshot());
        }
        self.inner.with_durable(|inner, durable| {
            inner.commit(durable, BTreeSet::new(), |entry, _, _| entry)
        })
    }

    /// A checkpoint that nobody waits for. Most of the bytes are made durable before it takes its
    /// turn, so that write intents need not wait for them.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn checkpoint_in_background(&self) -> io::Result<()> {
        self.sync_data()?;
        self.checkpoint()
    }

    /// Makes the bytes durable that were written before, but not which blocks are present. For bytes
    /// that the origin has made durable, too: a block that the last checkpoint has as present comes
    /// back after a power cut, as dirty, and must not come back with older bytes.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn sync_data(&self) -> io::Result<()> {
        if self.inner.durable.is_none() {
            return Ok(());
        }
        self.inner.data.sync_data().or_else(|error| {
            self.inner
                .with_durable(|_, _| Err(CommitError::Sync(error)))
        })
    }

    /// Withdraws the write intents of regions in which everything reached the origin, so that a
    /// power cut does not make them dirty again. Writes there have to make them ready once more.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint), which it is as well.
    pub fn settle_intents(&self) -> io::Result<()> {
        self.inner.with_durable(|inner, durable| {
            let clean: BTreeSet<_> = durable
                .unsettled()
                .filter(|region| inner.map.withdraw_write_ready(*region))
                .collect();
            if clean.is_empty() {
                return Ok(());
            }
            let withdrawn = clean.clone();
            inner.commit(durable, clean, move |before, region, snapshot| {
                before && !(withdrawn.contains(&region) && is_clean(snapshot))
            })
        })
    }

    /// The last checkpoint, after which the live map is no longer needed: exactly what is dirty
    /// comes back as dirty. The caller has made sure that no request is under way and that none
    /// comes after this. Without durable state here the live map stays: it is all there is.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint); the live map stays then.
    pub fn close(&self) -> io::Result<()> {
        if self.inner.durable.is_none() {
            return Ok(());
        }
        self.inner.with_durable(|inner, durable| {
            let unsettled = durable.unsettled().collect();
            inner.commit(durable, unsettled, |_, _, _| false)?;
            durable.file.sync_seal().map_err(CommitError::Sync)
        })?;
        self.inner.live.remove()
    }

    /// Makes the intents durable that the live map of a dead process relies on and the checkpoint
    /// does not have: it died after its last checkpoint and before it had let go of the live map.
    pub(super) fn hold_missing_intents(&self) -> io::Result<()> {
        self.inner.with_durable(|inner, durable| {
            let file = &mut durable.file;
            let mut batch = file.begin();
            for region in inner.map.regions() {
                if inner.map.write_ready(region) && !file.entry(region).intent {
                    file.put_intent(&mut batch, region);
                }
            }
            commit_batch(file, batch)
        })
    }

    /// Whoever opened the cache after a failed sync has said what is to be done, and it is done.
    pub(super) fn forget_failure(&self) -> io::Result<()> {
        self.inner.meta.change(|meta| meta.sync_failed = false)?;
        self.inner.live.clear_failure()
    }

    /// The state map.
    pub(super) fn map(&self) -> Arc<StateMap> {
        self.inner.map.clone()
    }

    /// Gives the space of everything that is absent back. No fill may be under way.
    pub(super) fn punch_absent(&self) -> io::Result<()> {
        discard::punch_absent(&self.inner.map, &*self.inner.data)
    }

    /// The state map again, where nobody else has this checkpointer or the map.
    pub(super) fn map_mut(&mut self) -> Option<&mut StateMap> {
        Arc::get_mut(&mut self.inner).and_then(|inner| Arc::get_mut(&mut inner.map))
    }
}

impl Durable {
    /// The regions that the last commit has otherwise than it would have them clean.
    fn unsettled(&self) -> impl Iterator<Item = RegionIndex> {
        self.file
            .touched()
            .filter(|(_, entry)| entry.intent || entry.saved.is_dirty())
            .map(|(region, _)| region)
    }
}

impl Inner {
    /// Makes the intents of regions durable, and says so in the state map. Those who wait for their
    /// turn at the same time share one sync.
    fn hold_intents(&self, regions: &[RegionIndex]) -> io::Result<()> {
        // The map is told in the same turn: nobody may clear an intent in between.
        if self.durable.is_none() {
            self.set_ready(regions);
            return Ok(());
        }
        lock(&self.wanted).extend(regions);
        self.with_durable(|inner, durable| {
            let mut wanted = std::mem::take(&mut *lock(&inner.wanted));
            // They may be durable by now; or not, if another one took them and failed.
            wanted.extend(regions);
            let file = &mut durable.file;
            let mut batch = file.begin();
            for region in &wanted {
                if !file.entry(*region).intent {
                    file.put_intent(&mut batch, *region);
                }
            }
            commit_batch(file, batch)?;
            inner.set_ready(&wanted);
            Ok(())
        })
    }

    fn set_ready<'a>(&self, regions: impl IntoIterator<Item = &'a RegionIndex>) {
        for region in regions {
            self.map.set_write_ready(*region);
        }
    }

    /// Commits what changed since the last commit, and the regions in `also`. `intent` says what
    /// becomes of a region's intent.
    fn commit(
        &self,
        durable: &mut Durable,
        also: BTreeSet<RegionIndex>,
        intent: impl Fn(bool, RegionIndex, &RegionSnapshot) -> bool,
    ) -> Result<(), CommitError> {
        let file = &mut durable.file;
        let token = self.map.begin_snapshot();
        let mut regions = also;
        regions.extend(self.map.unsaved_regions());
        let mut batch = file.begin();
        for region in regions {
            let snapshot = self.map.snapshot(region);
            let intent = intent(file.entry(region).intent, region, &snapshot);
            file.put(&mut batch, region, &snapshot, intent)
                .map_err(CommitError::Write)?;
        }
        self.data.sync_data().map_err(CommitError::Sync)?;
        commit_batch(file, batch)?;
        self.map.saved(token);
        Ok(())
    }

    /// Does something with the durable state; nothing where there is none.
    fn with_durable(
        &self,
        act: impl FnOnce(&Self, &mut Durable) -> Result<(), CommitError>,
    ) -> io::Result<()> {
        let Some(durable) = &self.durable else {
            return Ok(());
        };
        let mut durable = lock(durable);
        if !durable.failed && self.data.has_sync_failed() {
            // On the ring of a queue.
            self.fail(&mut durable);
        }
        if durable.failed {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        match act(self, &mut durable) {
            Ok(()) => Ok(()),
            Err(CommitError::Write(error)) => Err(error),
            Err(CommitError::Sync(error)) => {
                tracing::error!(
                    %error,
                    "a sync of the cache failed: what was written since the last one may be lost; \
                     every further one fails until the cache is opened again"
                );
                self.fail(&mut durable);
                Err(error)
            }
        }
    }

    fn fail(&self, durable: &mut Durable) {
        durable.failed = true;
        self.live.note_failure();
        // A reboot takes that note, and nothing that was lost comes back by it.
        if let Err(error) = self.meta.change(|meta| meta.sync_failed = true) {
            tracing::error!(
                %error,
                "cannot note in the cache that a sync of it failed: after a restart of the machine \
                 nothing tells of it"
            );
        }
    }
}

/// Commits a batch, unless there is nothing in it.
fn commit_batch(file: &mut MapFile, batch: Batch) -> Result<(), CommitError> {
    if batch.is_empty() && !file.uncertain {
        return Ok(());
    }
    file.commit(batch)
}

fn is_clean(snapshot: &RegionSnapshot) -> bool {
    match snapshot {
        RegionSnapshot::Absent | RegionSnapshot::PresentClean => true,
        RegionSnapshot::PresentDirty => false,
        RegionSnapshot::Mixed(bits) => bits.dirty.iter().all(|word| *word == 0),
    }
}

fn regions_of(blocks: BlockRange) -> impl Iterator<Item = RegionIndex> {
    let last = blocks.iter().next_back().map(|block| block.region().0);
    let first = blocks.first.region().0;
    (first..last.map_or(first, |last| last + 1)).map(RegionIndex)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(blockferry_loom)))]
mod tests {
    use super::super::test_home::Home;
    use super::*;

    /// The two headers, of which each commit writes the older one.
    fn headers(home: &Home) -> [Vec<u8>; 2] {
        let map = home.read("map");
        [map[..4096].to_vec(), map[4096..8192].to_vec()]
    }

    /// Each of those who were ready is so after a reboot, and one commit did for all.
    #[test]
    fn intents_that_wait_for_a_turn_are_made_durable_by_one_commit() {
        let home = Home::new();
        let cache = home.open();
        let inner = &cache.checkpointer.inner;
        let before = headers(&home);
        let turn = lock(inner.durable.as_ref().expect("it is persistent"));
        std::thread::scope(|scope| {
            for region in inner.map.regions() {
                let checkpointer = cache.checkpointer.clone();
                scope.spawn(move || checkpointer.make_write_ready(&[region]).expect("ready"));
            }
            while lock(&inner.wanted).len() < inner.map.regions().count() {
                std::thread::yield_now();
            }
            drop(turn);
        });
        let after = headers(&home);
        let written = (0..2).filter(|at| before[*at] != after[*at]).count();
        assert_eq!(written, 1, "one commit");
        assert!(lock(&inner.wanted).is_empty());
        drop(cache);
        home.reboot();
        let cache = home.open();
        for region in cache.map.regions() {
            assert!(cache.map.write_ready(region), "{region:?}");
        }
    }
}
