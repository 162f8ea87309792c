//! What a map of a large volume takes of memory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FlightSlot, LiveMap, LiveMapKey, RegionSnapshot, StateMap, ZeroStart};
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange};

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

fn key(size_bytes: u64) -> LiveMapKey {
    LiveMapKey {
        boot_id: [1; 16],
        store_uuid: [2; 16],
        open_counter: 1,
        size_bytes,
        queue_slots: 4 * 128,
    }
}

/// In memory where there is such a directory: there a page that is only read takes room as well.
fn live_map_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory");
    let path = dir.path().join("live");
    (dir, path)
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("there").blocks() * 512
}

fn discard_all(map: &StateMap) {
    for region in map.regions() {
        map.set_write_ready(region);
    }
    map.prepare_zero(map.blocks()).expect("nothing to take");
    let ZeroStart::Claimed(claim) = map.claim_zero(map.blocks()) else {
        panic!("nobody else is there");
    };
    map.finish_zero(claim, true);
}

/// Sends everything that is dirty; how many blocks that were.
fn send_all(map: &StateMap) -> u64 {
    let (mut from, mut sent) = (BlockIndex(0), 0);
    while let Some(taken) = map.take_dirty(from, u64::MAX) {
        map.flushed(taken);
        sent += taken.len();
        from = taken.end;
    }
    sent
}

#[test]
fn a_large_volume_of_which_nothing_is_here_takes_a_few_mib() {
    let (_dir, path) = live_map_path();
    let key = key(16 * TIB);
    let map = StateMap::new(LiveMap::create(&path, &key).expect("created")).expect("a map");
    assert!(
        allocated_bytes(&path) <= 2 * MIB,
        "{}",
        allocated_bytes(&path)
    );
    assert_eq!(
        map.next_absent(BlockIndex(0), map.blocks().end),
        Some(map.region_blocks(super::RegionIndex(0)))
    );

    // What mkfs does first.
    discard_all(&map);
    assert!(map.needs_checkpoint());
    assert_eq!(map.counts().dirty, map.blocks().len());
    drop(map);
    let map = StateMap::new(LiveMap::adopt(&path, &key).expect("adopted")).expect("a map");
    assert_eq!(send_all(&map), map.blocks().len());
    assert_eq!(map.counts().dirty + map.counts().sending, 0);
    let token = map.begin_snapshot();
    for region in map.unsaved_regions() {
        assert_eq!(map.snapshot(region), RegionSnapshot::PresentClean);
        assert!(map.withdraw_write_ready(region));
    }
    map.saved(token);
    assert!(!map.needs_checkpoint() && map.is_present(map.blocks()));
    assert!(
        allocated_bytes(&path) <= 2 * MIB,
        "{}",
        allocated_bytes(&path)
    );
}

/// Discards a range in pieces, of which some are under way at once and end in another order.
fn discard_in_pieces(map: &StateMap, all: BlockRange, piece: u64) {
    let mut under_way = Vec::new();
    let mut rest = all;
    while !rest.is_empty() || !under_way.is_empty() {
        if !rest.is_empty() && under_way.len() < super::ZERO_SLOTS as usize {
            let blocks = rest.take(piece);
            map.prepare_zero(blocks).expect("room");
            let ZeroStart::Claimed(claim) = map.claim_zero(blocks) else {
                panic!("nobody else is there");
            };
            under_way.push(claim);
            continue;
        }
        let claim = under_way.swap_remove(under_way.len() / 2);
        let blocks = claim.blocks();
        map.finish_zero(claim, true);
        map.collapse_all(blocks);
    }
}

/// As kernels cut a long discard: at lengths that are no multiple of a region's, so that each piece
/// begins somewhere else in one.
#[test]
fn a_large_volume_that_is_discarded_in_uneven_pieces_takes_a_few_mib() {
    let (_dir, path) = live_map_path();
    let key = key(16 * TIB);
    let map = StateMap::new(LiveMap::create(&path, &key).expect("created")).expect("a map");
    for region in map.regions() {
        map.set_write_ready(region);
    }
    discard_in_pieces(&map, map.blocks(), (1 << 18) - 1);
    assert_eq!(map.counts().dirty, map.blocks().len());
    assert!(
        allocated_bytes(&path) <= 4 * MIB,
        "{}",
        allocated_bytes(&path)
    );
    // And once more, over what is there, by the next process.
    drop(map);
    let map = StateMap::new(LiveMap::adopt(&path, &key).expect("adopted")).expect("a map");
    assert_eq!(send_all(&map), map.blocks().len());
    discard_in_pieces(&map, map.blocks(), (1 << 18) + 7);
    assert_eq!(send_all(&map), map.blocks().len());
    assert!(
        allocated_bytes(&path) <= 4 * MIB,
        "{}",
        allocated_bytes(&path)
    );
}

/// As a file system is made on it: a block here and there, everywhere, and what was written is sent
/// meanwhile.
#[test]
fn a_large_volume_with_a_few_blocks_written_everywhere_takes_as_much_as_is_not_sent() {
    let (_dir, path) = live_map_path();
    let map = LiveMap::create(&path, &key(2 * TIB)).expect("created");
    let map = StateMap::new(map).expect("a map");
    discard_all(&map);
    send_all(&map);
    for region in map.regions() {
        map.prepare_write(region).expect("room");
        let first = map.region_blocks(region).first.0;
        let blocks = BlockRange::new(first + 9, first + 10);
        let start = map.begin_write(FlightSlot(0), blocks);
        map.end_write(FlightSlot(0), blocks, start, true);
        if region.0 % 200 == 199 {
            let mut sent = Vec::new();
            while let Some(taken) = map.take_dirty(BlockIndex(0), u64::MAX) {
                sent.push(taken);
            }
            assert_eq!(sent.len(), 200);
            sent.iter().for_each(|taken| map.flushed(*taken));
            map.collapse_if_crowded(&sent);
        }
    }
    assert!(
        allocated_bytes(&path) <= 24 * MIB,
        "{}",
        allocated_bytes(&path)
    );
}

fn fetch_all(map: &StateMap, after: impl Fn(BlockRange)) {
    let chunk = 4 * MIB / BLOCK_BYTES;
    for first in (0..map.blocks().len()).step_by(chunk as usize) {
        let blocks = BlockRange::new(first, first + chunk);
        map.prepare_fill(blocks.first.region()).expect("room");
        let claim = map.claim_fill(blocks);
        assert_eq!(claim.runs(), [blocks]);
        map.finish_fill(claim, true);
        after(blocks);
    }
    assert!(map.is_present(map.blocks()));
}

#[test]
fn a_large_volume_that_was_fetched_takes_a_few_mib() {
    let (_dir, path) = live_map_path();
    let map = LiveMap::create(&path, &key(4 * TIB)).expect("created");
    let map = StateMap::new(map).expect("a map");
    fetch_all(&map, |blocks| map.collapse_all(blocks));
    assert_eq!(map.counts().present, map.blocks().len());
    assert!(allocated_bytes(&path) <= MIB, "{}", allocated_bytes(&path));
}

/// Where no region gives its bits up.
#[test]
fn a_tebibyte_that_was_fetched_takes_a_hundred_mib() {
    let (_dir, path) = live_map_path();
    let key = key(TIB);
    let map = StateMap::new(LiveMap::create(&path, &key).expect("created")).expect("a map");
    fetch_all(&map, |_| ());
    assert_eq!(map.counts().present, map.blocks().len());
    assert!(allocated_bytes(&path) <= 100 * MIB);

    // Nor does a look at it take more, or its way through another process.
    assert_eq!(send_all(&map), 0);
    assert_eq!(map.heat(10).iter().map(|it| it.dirty).sum::<u64>(), 0);
    drop(map);
    let map = StateMap::new(LiveMap::adopt(&path, &key).expect("adopted")).expect("a map");
    assert_eq!(send_all(&map), 0);
    for region in map.regions() {
        assert_eq!(map.snapshot(region), RegionSnapshot::PresentClean);
    }
    assert!(allocated_bytes(&path) <= 100 * MIB);
}
