//! Cases that random sequences hit too seldom.

use std::path::{Path, PathBuf};

use super::words::{INTENT, MIXED, Ordering, at_place, place_of};
use super::{
    Counts, FlightSlot, LiveMap, LiveMapKey, RegionSnapshot, StateMap, WriteStart, ZERO_SLOTS,
    ZeroClaim, ZeroStart,
};
use crate::volume::geometry::{BlockRange, REGION_BLOCKS, REGION_BYTES, RegionIndex};

const KEY: LiveMapKey = LiveMapKey {
    boot_id: [1; 16],
    store_uuid: [2; 16],
    open_counter: 3,
    size_bytes: 3 * REGION_BYTES,
    queue_slots: 4,
};
const FIRST: RegionIndex = RegionIndex(0);
const BLOCK: BlockRange = BlockRange {
    first: super::super::BlockIndex(7),
    end: super::super::BlockIndex(8),
};

fn directory() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    (dir, path)
}

/// A map in which writes and discards may begin anywhere.
fn ready_map(path: &Path) -> StateMap {
    let map = StateMap::new(LiveMap::create(path, &KEY).expect("created")).expect("a map");
    for region in map.regions() {
        map.set_write_ready(region);
    }
    map
}

fn claimed(start: ZeroStart) -> ZeroClaim {
    match start {
        ZeroStart::Claimed(claim) => claim,
        refused => panic!("{refused:?}"),
    }
}

/// Discards a range and brings that to the origin, so that it is present and clean.
fn present_and_clean(map: &StateMap, blocks: BlockRange) {
    map.finish_zero(claimed(map.claim_zero(blocks)), true);
    while let Some(taken) = map.take_dirty(blocks.first, u64::MAX) {
        map.flushed(taken);
    }
    assert_eq!(map.counts().dirty, 0);
}

#[test]
fn a_refused_discard_leaves_clean_regions_clean() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    let two = BlockRange::new(0, 2 * REGION_BLOCKS);
    present_and_clean(&map, two);
    // Somebody fills a block of the third region.
    map.prepare_fill(RegionIndex(2)).expect("room");
    let fill = map.claim_fill(BlockRange::new(
        2 * REGION_BLOCKS + 9,
        2 * REGION_BLOCKS + 10,
    ));
    let refused = map.claim_zero(map.blocks());
    assert!(
        matches!(refused, ZeroStart::NotReady(RegionIndex(2))),
        "it is mixed and has no pages"
    );
    assert_eq!(map.counts().dirty, 0, "it was refused");
    map.prepare_zero(map.blocks()).expect("room");
    assert!(matches!(map.claim_zero(map.blocks()), ZeroStart::Busy));
    assert_eq!(map.counts().dirty, 0, "it was refused");
    assert!(!map.is_claimed(two));
    map.finish_fill(fill, true);
    let claim = claimed(map.claim_zero(map.blocks()));
    assert_eq!(map.counts().dirty, two.len() + 1);
    map.finish_zero(claim, true);
    assert_eq!(map.counts().dirty, 3 * REGION_BLOCKS);
}

#[test]
fn a_failed_discard_of_a_region_leaves_it_dirty_or_absent_as_it_was() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    let first = map.region_blocks(FIRST);
    present_and_clean(&map, first);
    let claim = claimed(map.claim_zero(BlockRange::new(0, 2 * REGION_BLOCKS)));
    // The sender takes what the discard has marked, before the store fails.
    assert_eq!(map.take_dirty(first.first, 1), Some(first));
    map.flushed(first);
    map.finish_zero(claim, false);
    let counts = map.counts();
    assert_eq!(
        (counts.present, counts.dirty),
        (REGION_BLOCKS, REGION_BLOCKS)
    );
    assert!(map.is_present(first) && !map.is_claimed(map.blocks()));
}

#[test]
fn more_discards_than_slots_are_told_so() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    map.prepare_zero(BLOCK).expect("room");
    let block = |at| BlockRange::new(at, at + 1);
    let claims: Vec<_> = (0..u64::from(ZERO_SLOTS))
        .map(|at| claimed(map.claim_zero(block(at))))
        .collect();
    assert!(matches!(map.claim_zero(block(100)), ZeroStart::Full));
    for claim in claims {
        map.finish_zero(claim, true);
    }
    map.finish_zero(claimed(map.claim_zero(block(100))), true);
}

/// A refused write is in the table for a moment. A crash just then must not make dirty what has no
/// durable intent: that would be forgotten after a loss of power.
#[test]
fn a_write_that_was_refused_when_the_process_died_wrote_nothing() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    present_and_clean(&map, map.region_blocks(FIRST));
    map.prepare_write(FIRST).expect("room");
    while let Some(taken) = map.take_dirty(BLOCK.first, u64::MAX) {
        map.flushed(taken);
    }
    assert!(map.withdraw_write_ready(FIRST));
    map.publish(FlightSlot(1), BLOCK);
    drop(map);
    let map = StateMap::new(LiveMap::adopt(&path, &KEY).expect("adopted")).expect("a map");
    assert_eq!(map.counts().dirty, 0);
    assert!(!map.write_ready(FIRST));
    // The slot is free again.
    map.prepare_write(FIRST).expect("room");
    map.set_write_ready(FIRST);
    let start = map.begin_write(FlightSlot(1), BLOCK);
    assert_eq!(start, WriteStart::Overwrite);
    assert!(!map.end_write(FlightSlot(1), BLOCK, start, true));
}

/// As a crash would leave it while somebody looks whether the intent can go.
#[test]
fn a_write_under_way_counts_while_its_intent_is_being_withdrawn() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    present_and_clean(&map, map.region_blocks(FIRST));
    map.prepare_write(FIRST).expect("room");
    assert_eq!(map.begin_write(FlightSlot(1), BLOCK), WriteStart::Overwrite);
    while let Some(taken) = map.take_dirty(BLOCK.first, u64::MAX) {
        map.flushed(taken);
    }
    assert!(!map.withdraw_write_ready(FIRST));
    map.flag(FIRST, super::words::WITHDRAWING);
    drop(map);
    let map = StateMap::new(LiveMap::adopt(&path, &KEY).expect("adopted")).expect("a map");
    assert_eq!(map.counts().dirty, 1);
    assert_ne!(map.region(FIRST).load(Ordering::Relaxed) & INTENT, 0);
    assert_eq!(map.take_dirty(BLOCK.first, 9), Some(BLOCK));
    assert_eq!(map.begin_write(FlightSlot(1), BLOCK), WriteStart::Overwrite);
}

#[test]
fn an_overwrite_of_a_saved_block_needs_no_checkpoint() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    map.prepare_write(FIRST).expect("room");
    let write = || {
        let start = map.begin_write(FlightSlot(0), BLOCK);
        map.end_write(FlightSlot(0), BLOCK, start, true);
    };
    write();
    assert!(map.needs_checkpoint(), "a new block");
    let token = map.begin_snapshot();
    assert_eq!(map.unsaved_regions().collect::<Vec<_>>(), [FIRST]);
    assert!(matches!(map.snapshot(FIRST), RegionSnapshot::Mixed(_)));
    map.saved(token);
    write();
    assert!(!map.needs_checkpoint());
    map.begin_snapshot();
    assert_eq!(map.unsaved_regions().count(), 0);
    // A fill alone needs none; but an overwrite of what it brought does.
    let other = BlockRange::new(20, 21);
    let claim = map.claim_fill(other);
    map.finish_fill(claim, true);
    assert!(!map.needs_checkpoint());
    let start = map.begin_write(FlightSlot(0), other);
    assert_eq!(start, WriteStart::Overwrite);
    map.end_write(FlightSlot(0), other, start, true);
    assert!(map.needs_checkpoint());
}

/// A region that is written as a whole while a sweep is in the middle of it, and gives its bits up:
/// what the sweep has not come to yet was written before it began.
#[test]
fn a_sweep_misses_nothing_in_a_region_that_gave_its_bits_up() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    map.prepare_write(FIRST).expect("room");
    let first = map.region_blocks(FIRST);
    let write = |blocks| {
        let start = map.begin_write(FlightSlot(0), blocks);
        map.end_write(FlightSlot(0), blocks, start, true);
    };
    write(first);
    let taken = map.take_dirty(first.first, 10).expect("dirty");
    write(taken);
    map.collapse(FIRST);
    let next = map.take_dirty(first.first, 10).map(|it| it.first);
    assert_eq!(next, Some(taken.end), "not again before it was answered");
    map.send_failed(BlockRange::new(taken.end.0, taken.end.0 + 10));
    map.flushed(taken);
    assert_eq!(map.take_dirty(first.first, 10), Some(taken));
    map.flushed(taken);
    assert_eq!(
        map.take_dirty(taken.end, 1).map(|it| it.first),
        Some(taken.end)
    );
    map.send_failed(BlockRange::new(taken.end.0, taken.end.0 + 1));
    write(taken);
    map.collapse(FIRST);
    assert_eq!(map.region(FIRST).load(Ordering::Relaxed) & MIXED, 0);
    assert_eq!(map.take_dirty(taken.end, 1), Some(first));
    assert_eq!(map.take_dirty(taken.end, 1), None);
}

/// What a region left in its place is nothing to the next one there.
#[test]
fn bits_that_were_given_up_are_clear_for_the_next_region() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    let [first, second] = [FIRST, RegionIndex(1)].map(|it| map.region_blocks(it));
    map.prepare_write(FIRST).expect("room");
    let place = |region| place_of(map.region(region).load(Ordering::Relaxed));
    let start = map.begin_write(FlightSlot(0), first);
    map.end_write(FlightSlot(0), first, start, true);
    let given_up = place(FIRST);
    map.collapse(FIRST);
    assert_eq!(place(FIRST), None);
    // First what a fill needs, then the rest.
    map.prepare_fill(RegionIndex(1)).expect("room");
    assert_eq!(place(RegionIndex(1)), given_up);
    let claim = map.claim_fill(BlockRange::new(second.first.0 + 3, second.first.0 + 4));
    assert_eq!(claim.runs().len(), 1);
    map.finish_fill(claim, true);
    map.prepare_write(RegionIndex(1)).expect("room");
    assert_eq!(
        map.counts(),
        Counts {
            present: first.len() + 1,
            dirty: first.len(),
            sending: 0
        }
    );
    assert_eq!(map.take_dirty(second.first, u64::MAX), None);
    assert!(!map.is_claimed(second));
}

/// Two regions with the same bits, or bits that are nowhere.
#[test]
fn a_live_map_whose_places_cannot_be_is_refused() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    map.prepare_write(FIRST).expect("room");
    let word = map.region(FIRST).load(Ordering::Relaxed);
    let second = map.region(RegionIndex(1));
    let whole = second.load(Ordering::Relaxed);
    let adopted = || StateMap::new(LiveMap::adopt(&path, &KEY).expect("adopted"));
    for damaged in [word, whole | MIXED, whole | at_place(3) | MIXED] {
        second.store(damaged, Ordering::Relaxed);
        let error = adopted().expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    }
    second.store(whole, Ordering::Relaxed);
    adopted().expect("as it was");
}

/// What is answered of a part of a region that was sent as a whole must not clean the rest.
#[test]
fn a_region_without_bits_is_flushed_as_a_whole_or_not() {
    let (_dir, path) = directory();
    let map = ready_map(&path);
    let first = map.region_blocks(FIRST);
    map.finish_zero(claimed(map.claim_zero(first)), true);
    assert_eq!(map.take_dirty(first.first, 1), Some(first));
    for part in [BLOCK, BlockRange::new(1, REGION_BLOCKS + 5)] {
        map.flushed(part);
        map.send_failed(part);
        assert_eq!(map.counts().sending, REGION_BLOCKS);
    }
    map.flushed(BlockRange::new(0, REGION_BLOCKS + 5));
    assert_eq!(map.counts().sending, 0);
}

#[test]
fn after_a_change_of_origin_the_checkpoint_is_made_anew() {
    let (_dir, path) = directory();
    let mut map = ready_map(&path);
    present_and_clean(&map, map.region_blocks(FIRST));
    map.prepare_write(FIRST).expect("room");
    let start = map.begin_write(FlightSlot(0), BLOCK);
    map.end_write(FlightSlot(0), BLOCK, start, true);
    map.prepare_fill(RegionIndex(1)).expect("room");
    let far = BlockRange::new(REGION_BLOCKS, REGION_BLOCKS + 3);
    let fill = map.claim_fill(far);
    map.finish_fill(fill, true);
    let token = map.begin_snapshot();
    for region in map.regions() {
        map.snapshot(region);
    }
    map.saved(token);
    map.drop_clean();
    assert!(map.needs_checkpoint());
    assert_eq!(
        map.unsaved_regions().collect::<Vec<_>>(),
        [FIRST, RegionIndex(1)]
    );
    assert!(map.is_present(BLOCK) && !map.is_present(far));
    assert_eq!(map.counts().present, 1);
}
