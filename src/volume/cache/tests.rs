//! Caches on this machine's file system.

use super::*;
use crate::volume::Backend;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::{FlightSlot, WriteStart};

const SIZE_BYTES: u64 = (300 << 20) + 1000;

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn options(&self) -> CacheOptions {
        CacheOptions {
            size_bytes: SIZE_BYTES,
            chunk_bytes: 256 << 10,
            identity: [7; 16],
            origin_name: "blockferry://host:1/volume".to_owned(),
            persistent: true,
            run_directory: self.run(),
            in_flight_slots: 8,
            direct_alignment_bytes: Some(4096),
        }
    }

    fn open(&self) -> OpenedCache {
        CacheDirectory::open(&self.cache(), &self.options()).expect("opened")
    }

    /// As after a reboot: the run-time directory is empty.
    fn reboot(&self) {
        std::fs::remove_dir_all(self.run()).expect("removed");
    }
}

fn page(byte: u8) -> memmap2::MmapMut {
    let mut page = memmap2::MmapMut::map_anon(4096).expect("memory");
    page.fill(byte);
    page
}

fn write(cache: &OpenedCache, block: u64, byte: u8) {
    let blocks = BlockRange::new(block, block + 1);
    let slot = FlightSlot(0);
    let start = match cache.map.begin_write(slot, blocks) {
        WriteStart::NotReady(region) => {
            cache
                .checkpointer
                .make_write_ready(&[region])
                .expect("ready");
            cache.map.begin_write(slot, blocks)
        }
        other => other,
    };
    assert!(matches!(start, WriteStart::Claimed | WriteStart::Overwrite));
    cache
        .data
        .write_at(&page(byte), block * 4096)
        .expect("written");
    cache.map.end_write(slot, blocks, start, true);
}

fn fill(cache: &OpenedCache, blocks: BlockRange, byte: u8) {
    cache
        .map
        .prepare_fill(blocks.first.region())
        .expect("ready");
    let claim = cache.map.claim_fill(blocks);
    for block in claim.runs().iter().flat_map(|run| run.iter()) {
        cache
            .data
            .write_at(&page(byte), block.start().0)
            .expect("written");
    }
    cache.map.finish_fill(claim, true);
}

fn read(cache: &OpenedCache, block: u64) -> Option<u8> {
    if !cache.map.is_present(BlockRange::new(block, block + 1)) {
        return None;
    }
    let mut page = page(0);
    cache.data.read_at(&mut page, block * 4096).expect("read");
    assert!(page.iter().all(|byte| *byte == page[0]));
    Some(page[0])
}

fn push(cache: &OpenedCache) {
    let mut at = cache.map.blocks().first;
    while let Some(run) = cache.map.take_dirty(at, 1024) {
        cache.map.flushed(run);
        at = run.end;
    }
}

#[test]
fn what_was_flushed_is_there_after_a_reboot_and_the_rest_is_not() {
    let home = Home::new();
    let cache = home.open();
    assert_eq!(cache.found.state, FoundState::Fresh);
    write(&cache, 5, 1);
    fill(&cache, BlockRange::new(100, 110), 2);
    assert!(cache.map.needs_checkpoint());
    cache.checkpointer.checkpoint().expect("durable");
    assert!(!cache.map.needs_checkpoint());
    write(&cache, 6, 3);
    write(&cache, 70_000, 4);
    drop(cache);
    home.reboot();

    let cache = home.open();
    assert!(matches!(
        cache.found.state,
        FoundState::FromCheckpoint { .. }
    ));
    assert_eq!(read(&cache, 5), Some(1));
    assert_eq!(read(&cache, 105), Some(2));
    assert_eq!(read(&cache, 6), None);
    assert_eq!(read(&cache, 70_000), None);
    // The region's intent makes what was clean dirty.
    assert_eq!(cache.found.held.dirty_bytes, 11 * 4096);
}

#[test]
fn after_a_crash_of_the_process_the_live_map_goes_on() {
    let home = Home::new();
    for persistent in [true, false] {
        let home = if persistent { &home } else { &Home::new() };
        let options = CacheOptions {
            persistent,
            ..home.options()
        };
        let open = || CacheDirectory::open(&home.cache(), &options).expect("opened");
        let cache = open();
        write(&cache, 5, 1);
        write(&cache, 70_000, 4);
        fill(&cache, BlockRange::new(100, 110), 2);
        drop(cache);

        let cache = open();
        assert_eq!(cache.found.state, FoundState::Continued);
        assert_eq!(cache.found.held.dirty_bytes, 2 * 4096);
        assert_eq!(cache.found.held.present_bytes, 12 * 4096);
        assert_eq!(read(&cache, 5), Some(1));
        assert_eq!(read(&cache, 70_000), Some(4));
        assert_eq!(read(&cache, 105), Some(2));
    }
}

#[test]
fn a_clean_stop_keeps_exactly_what_is_dirty() {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 1000), 1);
    write(&cache, 5, 2);
    write(&cache, 2000, 3);
    cache.checkpointer.close().expect("closed");
    drop(cache);
    assert_eq!(
        std::fs::read_dir(home.run()).expect("listed").count(),
        0,
        "the live map is gone"
    );

    let cache = home.open();
    assert_eq!(cache.found.held.present_bytes, 1001 * 4096);
    assert_eq!(cache.found.held.dirty_bytes, 2 * 4096);
    assert_eq!(read(&cache, 5), Some(2));
    // And again: a write to what is clean needs a new intent.
    assert_eq!(
        cache.map.begin_write(FlightSlot(0), BlockRange::new(7, 8)),
        WriteStart::NotReady(RegionIndex(0))
    );
    write(&cache, 7, 9);
    drop(cache);
    home.reboot();
    assert_eq!(home.open().found.held.dirty_bytes, 1001 * 4096);
}

#[test]
fn settled_regions_are_clean_after_a_reboot() {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 10), 1);
    write(&cache, 5, 2);
    write(&cache, 40_000, 2);
    cache.checkpointer.checkpoint().expect("durable");
    push(&cache);
    write(&cache, 40_000, 3);
    cache.checkpointer.settle_intents().expect("settled");
    drop(cache);
    home.reboot();
    let cache = home.open();
    assert_eq!(cache.found.held.present_bytes, 11 * 4096);
    assert_eq!(cache.found.held.dirty_bytes, 4096);
}
