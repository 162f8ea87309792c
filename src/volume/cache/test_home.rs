//! A cache in a directory of its own, and what a mount does with it.

use super::*;
use crate::volume::Backend;
use crate::volume::geometry::BlockRange;
use crate::volume::state_map::{FlightSlot, WriteStart};

/// Three regions, the last one short, with a short last block.
pub(super) const SIZE_BYTES: u64 = (300 << 20) + 1000;

pub(super) struct Home {
    pub(super) dir: tempfile::TempDir,
}

impl Home {
    pub(super) fn new() -> Self {
        let in_memory = Path::new("/dev/shm");
        let dir = if in_memory.is_dir() {
            tempfile::tempdir_in(in_memory)
        } else {
            tempfile::tempdir()
        };
        Self {
            dir: dir.expect("a directory"),
        }
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(super) fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(super) fn options(&self) -> CacheOptions {
        CacheOptions {
            size_bytes: SIZE_BYTES,
            chunk_bytes: 256 << 10,
            identity: [7; 16],
            origin_name: "blockferry://host:1/volume".to_owned(),
            persistent: true,
            run_directory: self.run(),
            in_flight_slots: 8,
            direct_alignment_bytes: Some(4096),
            after_failed_sync: AfterFailedSync::Refuse,
        }
    }

    pub(super) fn open(&self) -> OpenedCache {
        CacheDirectory::open(&self.cache(), &self.options()).expect("opened")
    }

    pub(super) fn open_after_failed_sync(&self, after: AfterFailedSync) -> OpenedCache {
        let options = CacheOptions {
            after_failed_sync: after,
            ..self.options()
        };
        CacheDirectory::open(&self.cache(), &options).expect("opened")
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.cache().join(name)).expect("read")
    }

    /// Writes a file in its place.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.cache().join(name), bytes).expect("written");
    }

    pub(super) fn live_map(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.run()).expect("listed");
        entries.next().expect("one").expect("listed").path()
    }

    /// As after a reboot: the run-time directory is empty.
    pub(super) fn reboot(&self) {
        std::fs::remove_dir_all(self.run()).expect("removed");
    }
}

fn page(byte: u8) -> memmap2::MmapMut {
    let mut page = memmap2::MmapMut::map_anon(4096).expect("memory");
    page.fill(byte);
    page
}

pub(super) fn write(cache: &OpenedCache, block: u64, byte: u8) {
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

pub(super) fn fill(cache: &OpenedCache, blocks: BlockRange, byte: u8) {
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

pub(super) fn read(cache: &OpenedCache, block: u64) -> Option<u8> {
    if !cache.map.is_present(BlockRange::new(block, block + 1)) {
        return None;
    }
    let mut page = page(0);
    cache.data.read_at(&mut page, block * 4096).expect("read");
    assert!(page.iter().all(|byte| *byte == page[0]));
    Some(page[0])
}

pub(super) fn push(cache: &OpenedCache) {
    let mut at = cache.map.blocks().first;
    while let Some(run) = cache.map.take_dirty(at, 1024) {
        cache.map.flushed(run);
        at = run.end;
    }
}
