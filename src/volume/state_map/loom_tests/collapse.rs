//! Regions that give their bits up beside those who use them.

use super::*;
use crate::volume::state_map::ZeroStart;
use crate::volume::state_map::words::place_of;

const WHOLE: BlockRange = range(0, REGION_BLOCKS);
const OTHER_REGION: RegionIndex = RegionIndex(1);

/// All blocks are present and clean, and the region has bits.
fn mixed_full() -> Volume {
    let volume = Volume::absent(1);
    volume.fill(WHOLE);
    assert_ne!(volume.word() & MIXED, 0);
    volume
}

/// A write gets through before or after, and what it wrote is sent.
#[test]
fn loom_a_write_to_a_region_that_gives_its_bits_up() {
    check(5, || {
        let volume = Arc::new(mixed_full());
        let ((), start) = beside(
            &volume,
            |it| it.map.collapse(REGION),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        if !wrote(start) {
            assert_eq!(start, WriteStart::NotReady(REGION));
            volume.map.prepare_write(REGION).expect("memory");
            assert_eq!(volume.write(0, BLOCK, WRITTEN), WriteStart::Overwrite);
        }
        assert!(volume.map.is_present(WHOLE));
        assert_eq!(volume.map.take_dirty(WHOLE.first, 64), Some(BLOCK), "L8");
        volume.map.flushed(BLOCK);
        volume.map.collapse(REGION);
        assert_eq!(volume.word() & MIXED, 0, "nobody is in the way");
    });
}

/// As above while the sender is at work: no write is lost between the three.
#[test]
fn loom_a_write_and_a_send_beside_a_region_that_gives_its_bits_up() {
    check(2, || {
        let volume = Arc::new(mixed_full());
        assert!(wrote(volume.write(0, WHOLE, NOTHING)));
        let sender = thread::spawn({
            let volume = volume.clone();
            move || {
                let taken = volume.map.take_dirty(WHOLE.first, 64)?;
                let read = volume.read();
                volume.map.flushed(taken);
                Some(read)
            }
        });
        let ((), start) = beside(
            &volume,
            |it| it.map.collapse(REGION),
            |it| it.write(1, BLOCK, WRITTEN),
        );
        let sent = sender.join().expect("no panic");
        if wrote(start) && sent != Some(WRITTEN) {
            let taken = volume.map.take_dirty(WHOLE.first, 64).expect("L8");
            assert!(taken.overlaps(BLOCK), "L8");
        }
    });
}

/// Of two fills that make a region full, the last one finds it so; neither changes bits that are
/// another region's by then.
#[test]
fn loom_the_last_fill_of_a_region_has_it_give_its_bits_up() {
    check(3, || {
        let volume = Arc::new(Volume::absent(2));
        let fill = |volume: &Volume, blocks| {
            volume.fill(blocks);
            volume.map.collapse(REGION);
        };
        beside(
            &volume,
            move |it| fill(it, range(0, 8)),
            |it| fill(it, range(6, REGION_BLOCKS)),
        );
        assert_eq!(volume.word() & MIXED, 0);
        assert!(volume.map.is_present(WHOLE));
        assert_eq!(volume.map.counts().present, REGION_BLOCKS);
    });
}

/// A fill that has made its blocks present and is about to release its claims does not release those
/// of another region.
#[test]
fn loom_a_fill_that_is_nearly_over_keeps_the_bits() {
    check(4, || {
        let volume = Arc::new(Volume::prepared(2, 1));
        volume.fill(range(0, 5));
        let (other, ours) = beside(
            &volume,
            |it| {
                it.map.collapse(REGION);
                it.map.prepare_fill(OTHER_REGION).expect("memory");
                it.map.claim_fill(it.map.region_blocks(OTHER_REGION))
            },
            |it| it.fill(range(5, REGION_BLOCKS)),
        );
        assert!(ours && volume.map.is_present(WHOLE));
        let blocks = other.asked();
        assert_eq!(other.runs(), [blocks]);
        assert!(
            blocks
                .iter()
                .all(|it| volume.map.is_claimed(BlockRange::of(it)))
        );
        volume.map.finish_fill(other, true);
        assert!(!volume.map.is_claimed(volume.map.blocks()));
    });
}

/// What was sent and did not arrive is dirty, whatever the region became meanwhile.
#[test]
fn loom_a_failed_send_beside_a_region_that_gives_its_bits_up() {
    check(4, || {
        let volume = Arc::new(mixed_full());
        assert!(wrote(volume.write(0, WHOLE, WRITTEN)));
        beside(
            &volume,
            |it| {
                let taken = it.map.take_dirty(WHOLE.first, 64).expect("dirty");
                it.map.send_failed(taken);
            },
            |it| it.map.collapse(REGION),
        );
        assert_eq!(volume.map.counts().dirty, REGION_BLOCKS);
        assert_eq!(volume.map.take_dirty(WHOLE.first, 64), Some(WHOLE), "L8");
    });
}

/// Whoever looks at the bits when they are another region's already reads no bytes too early, and
/// does not take for absent for good what is present.
#[test]
fn loom_a_look_at_bits_that_are_another_regions_by_now() {
    check(3, || {
        let volume = Arc::new(Volume::prepared(2, 1));
        let other = claimed(
            volume
                .map
                .claim_zero(volume.map.region_blocks(OTHER_REGION)),
        );
        volume.map.finish_zero(other, true);
        volume.fill(range(0, 5));
        volume.fill(range(6, REGION_BLOCKS));
        let place = place_of(volume.word());
        let reader = thread::spawn({
            let volume = volume.clone();
            move || {
                let always = volume.map.is_present(range(6, 7));
                assert!(always || volume.map.is_present(range(6, 7)), "it is here");
                if volume.map.is_present(BLOCK) {
                    assert_ne!(volume.read(), NOTHING, "L5");
                }
            }
        });
        volume.fill(BLOCK);
        volume.map.collapse(REGION);
        // It is dirty as a whole, and gets its bits there where those of the first were.
        volume.map.prepare_write(OTHER_REGION).expect("memory");
        let other = volume.map.region(OTHER_REGION).load(Ordering::Acquire);
        assert_eq!(place_of(other), place);
        assert_eq!(volume.word() & MIXED, 0);
        reader.join().expect("no panic");
    });
}

/// A fill of a region that has just given its bits up changes no other region's.
#[test]
fn loom_a_late_fill_leaves_the_bits_of_others_alone() {
    check(4, || {
        let volume = Arc::new(Volume::prepared(2, 1));
        volume.fill(WHOLE);
        let (ours, ()) = beside(
            &volume,
            |it| it.fill(BLOCK),
            |it| {
                it.map.collapse(REGION);
                it.map.prepare_fill(OTHER_REGION).expect("memory");
            },
        );
        assert!(!ours, "it was present");
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        let other = volume.map.region_blocks(OTHER_REGION);
        assert_eq!(
            volume.map.next_absent(other.first, other.end),
            Some(other),
            "nothing is there"
        );
    });
}

/// Discards of a region's two parts: it is dirty as a whole in the end, and has no bits.
#[test]
fn loom_a_discard_in_two_parts_leaves_no_bits() {
    check(4, || {
        let volume = Arc::new(Volume::absent(1));
        let discard = |volume: &Volume, blocks| {
            let start = volume.map.claim_zero(blocks);
            let claimed = matches!(start, ZeroStart::Claimed(_));
            if let ZeroStart::Claimed(claim) = start {
                volume.map.finish_zero(claim, true);
                volume.map.collapse(REGION);
            }
            claimed
        };
        let (one, other) = beside(
            &volume,
            move |it| discard(it, range(0, 5)),
            |it| {
                assert!(
                    wrote(it.write(0, range(5, 9), WRITTEN)),
                    "nobody else is there"
                );
                discard(it, range(9, REGION_BLOCKS))
            },
        );
        for (done, blocks) in [(one, range(0, 5)), (other, range(9, REGION_BLOCKS))] {
            assert!(done || discard(&volume, blocks), "one at a time");
        }
        assert_eq!(volume.word() & MIXED, 0);
        assert_eq!(volume.map.counts().dirty, REGION_BLOCKS);
        assert_eq!(volume.map.take_dirty(WHOLE.first, 1), Some(WHOLE));
    });
}

/// Where writes have ended for good no region opens for them again.
#[test]
fn loom_the_end_of_writes_beside_a_region_that_gives_its_bits_up() {
    check(4, || {
        let volume = Arc::new(mixed_full());
        let ((), idle) = beside(
            &volume,
            |it| it.map.collapse(REGION),
            |it| it.map.end_writes(),
        );
        assert!(idle, "nobody writes");
        volume.map.prepare_write(REGION).expect("memory");
        assert_eq!(
            volume.write(0, BLOCK, WRITTEN),
            WriteStart::NotReady(REGION)
        );
    });
}
