//! A cache around a file that is somewhere else, and stays there as a whole when the cache goes: what a
//! volume is leeched into. Its directory has `map` and `meta` alone.

use std::path::Path;
use std::sync::Arc;

use super::files::OsDirectory;
use super::live::LivePlace;
use super::map_file::MAP;
use super::meta::{META, META_NEW, Meta};
use super::open::Place;
use super::{CacheDirectory, CacheOptions, OpenedCache, check_sizes};
use crate::volume::file::FileStore;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
use crate::volume::state_map::StateMap;
use crate::{Context, Error, ErrorKind, Result};

impl CacheDirectory {
    /// Makes a cache around a file, in place of one that was there. All blocks are absent.
    ///
    /// # Errors
    /// `InvalidInput` for a file that is not of whole blocks, and what the operating system reports.
    pub fn make_around(
        path: &Path,
        data: Arc<FileStore>,
        options: &CacheOptions,
    ) -> Result<OpenedCache> {
        check_sizes(options)?;
        check_whole(&data, options)?;
        forget_around(path, &data, &options.run_directory)?;
        let name = path.display();
        OsDirectory::make(path).context_io(|| format!("cannot make the directory {name}"))?;
        let place = Place::around(path, &data, options)?;
        place.refuse_other_things()?;
        let begun = Meta::begun(options.persistent)?;
        let meta = place.make_files(begun, options, || Ok(()))?;
        Self::started(path, &place, data, meta, options)
    }

    /// Opens a cache that was made around this file.
    ///
    /// # Errors
    /// `Damaged` where there is none, and as [`open`](Self::open).
    pub fn open_around(
        path: &Path,
        data: Arc<FileStore>,
        options: &CacheOptions,
    ) -> Result<OpenedCache> {
        check_sizes(options)?;
        check_whole(&data, options)?;
        let place = Place::around(path, &data, options)?;
        let made = place.read_meta()?.filter(|meta| !meta.making);
        let meta = made.ok_or_else(|| {
            let what = "is gone: nobody can tell which blocks are here; put it back".to_owned();
            place.refuse(ErrorKind::Damaged, what)
        })?;
        place.check_belongs(&meta, options)?;
        let meta = place.check_syncs(meta, options)?;
        Self::started(path, &place, data, meta, options)
    }
}

impl OpenedCache {
    /// Has these blocks be present and clean, durably: the file has them already.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn has(&self, present: impl Iterator<Item = BlockRange>) -> Result<()> {
        let fill = || {
            for blocks in present {
                fill(&self.map, blocks)?;
            }
            self.checkpointer.checkpoint()
        };
        fill().context_io(|| {
            format!(
                "cannot write to the cache in {}",
                self.directory.path().display()
            )
        })
    }
}

/// Removes what was made around a file; that stays as it is. No error if there is nothing.
///
/// # Errors
/// What the operating system reports.
pub fn forget_around(path: &Path, data: &FileStore, run_directory: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let forget = || {
        let directory = std::fs::File::open(path)?;
        // Without it nothing else counts.
        for name in [META, META_NEW, MAP] {
            match std::fs::remove_file(path.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => directory.sync_all()?,
            }
        }
        LivePlace::remove_all_of(run_directory, data.numbers()?)?;
        std::fs::remove_dir(path)
    };
    forget().context_io(|| format!("cannot remove {}", path.display()))
}

impl Place {
    fn around(path: &Path, data: &FileStore, options: &CacheOptions) -> Result<Self> {
        let numbers = data.numbers();
        let numbers = numbers.context_io(|| format!("cannot examine {}", data.path().display()))?;
        Ok(Self {
            data_elsewhere: Some(numbers),
            ..Self::at(path, &options.run_directory)?
        })
    }
}

fn check_whole(data: &FileStore, options: &CacheOptions) -> Result<()> {
    let is_whole = options.size_bytes.is_multiple_of(BLOCK_BYTES);
    if is_whole && data.len_bytes() == options.size_bytes {
        return Ok(());
    }
    let (name, len_bytes) = (data.path().display(), data.len_bytes());
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{name} has {len_bytes} bytes: blocks can be left for later only where it has {} of them, and \
             is of whole blocks of {BLOCK_BYTES}",
            options.size_bytes
        ),
    ))
}

/// Has blocks be present whose bytes are in the file already.
fn fill(map: &StateMap, blocks: BlockRange) -> std::io::Result<()> {
    // Region by region, so that bits are needed for one at a time.
    for region in blocks.regions() {
        let part = map.region_blocks(region);
        let part = BlockRange::new(
            part.first.0.max(blocks.first.0),
            part.end.0.min(blocks.end.0),
        );
        map.prepare_fill(region)?;
        let claim = map.claim_fill(part);
        map.finish_fill(claim, true);
        map.collapse_all(part);
    }
    Ok(())
}

#[cfg(all(test, not(blockferry_loom)))]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::volume::cache::{AfterFailedSync, FoundState};
    use crate::volume::file::FileOptions;
    use crate::volume::geometry::BlockIndex;
    use crate::volume::state_map::{FlightSlot, WriteStart};

    const BLOCKS: u64 = 5000;

    struct Home {
        directory: tempfile::TempDir,
        data: Arc<FileStore>,
    }

    impl Home {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("disk.img");
            std::fs::write(&file, vec![7; (BLOCKS * BLOCK_BYTES) as usize]).expect("written");
            let data = FileStore::open(&file, FileOptions::default()).expect("opened");
            Self {
                directory,
                data: Arc::new(data),
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("disk.img.part")
        }

        fn options(&self, identity: u8) -> CacheOptions {
            CacheOptions {
                size_bytes: BLOCKS * BLOCK_BYTES,
                chunk_bytes: 256 << 10,
                identity: [identity; 16],
                origin_name: "seeder".to_owned(),
                persistent: true,
                run_directory: self.directory.path().join("run"),
                in_flight_slots: 8,
                direct_alignment_bytes: None,
                after_failed_sync: AfterFailedSync::Refuse,
            }
        }

        fn make(&self, identity: u8, present: [(u64, u64); 2]) -> OpenedCache {
            let present = present.map(|(first, end)| BlockRange::new(first, end));
            let options = self.options(identity);
            let data = Arc::clone(&self.data);
            let made = CacheDirectory::make_around(&self.path(), data, &options).expect("made");
            made.has(present.into_iter()).expect("filled");
            made
        }

        fn open(&self, identity: u8) -> Result<OpenedCache> {
            let options = self.options(identity);
            CacheDirectory::open_around(&self.path(), Arc::clone(&self.data), &options)
        }
    }

    fn is_clean(map: &StateMap, first: u64, end: u64) -> bool {
        map.came_from_origin(BlockRange::new(first, end))
    }

    #[test]
    fn what_is_here_is_known_after_a_crash_and_after_a_power_cut() {
        let home = Home::new();
        let made = home.make(1, [(0, 1), (700, 4999)]);
        let written = BlockRange::new(900, 902);
        made.checkpointer
            .make_write_ready(&[BlockIndex(900).region()])
            .expect("ready");
        let start = made.map.begin_write(FlightSlot(0), written);
        assert_eq!(start, WriteStart::Overwrite);
        made.map.end_write(FlightSlot(0), written, start, true);
        drop(made);
        // The process died: the live map goes on.
        let opened = home.open(1).expect("opened");
        assert_eq!(opened.found.state, FoundState::Continued);
        for (first, end, clean) in [(0, 1, true), (1, 2, false), (899, 901, false)] {
            assert_eq!(is_clean(&opened.map, first, end), clean, "{first}..{end}");
        }
        assert!(is_clean(&opened.map, 902, 4999) && !is_clean(&opened.map, 4999, 5000));
        drop(opened);
        // The machine did: what may have been written is not taken for clean.
        std::fs::remove_dir_all(home.directory.path().join("run")).expect("removed");
        let opened = home.open(1).expect("opened");
        assert!(matches!(
            opened.found.state,
            FoundState::FromCheckpoint { .. }
        ));
        assert!(opened.map.is_present(BlockRange::new(700, 4999)));
        assert!(!is_clean(&opened.map, 900, 901) && !opened.map.is_present(BlockRange::new(1, 2)));
    }

    #[test]
    fn the_file_stays_as_it_is_whatever_becomes_of_the_cache() {
        let home = Home::new();
        drop(home.make(1, [(0, 0), (0, 10)]));
        let other = home.open(2).expect_err("it is that of another attempt");
        assert_eq!(other.kind(), ErrorKind::Foreign);
        // Made anew it has nothing of the one before.
        let made = home.make(2, [(0, 0), (20, 30)]);
        assert!(!made.map.is_present(BlockRange::new(0, 1)));
        drop(made);
        let run = home.directory.path().join("run");
        for _ in 0..2 {
            forget_around(&home.path(), &home.data, &run).expect("forgotten");
        }
        assert_eq!(std::fs::read_dir(run).expect("there").count(), 0);
        let gone = home.open(2).expect_err("it is gone");
        assert_eq!(gone.kind(), ErrorKind::Damaged);
        let bytes = std::fs::read(home.data.path()).expect("read");
        assert!(bytes.len() as u64 == BLOCKS * BLOCK_BYTES && bytes.iter().all(|byte| *byte == 7));
    }
}
