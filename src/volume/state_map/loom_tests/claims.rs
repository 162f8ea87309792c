//! Who writes a block that is absent (L5, L6, L7).

use super::*;

/// Whoever sees that a block is present reads bytes.
#[test]
fn loom_what_is_present_can_be_read() {
    check(2, || {
        let volume = Arc::new(Volume::absent(1));
        let reader = thread::spawn({
            let volume = volume.clone();
            move || {
                if volume.map.is_present(BLOCK) {
                    assert_ne!(volume.read(), NOTHING, "L5");
                }
            }
        });
        let (filled, start) = beside(
            &volume,
            |it| it.fill(range(4, 8)),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        assert!(filled || wrote(start), "one of them got through");
        reader.join().expect("no panic");
    });
}

/// A fetched block never overwrites one that was written here.
#[test]
fn loom_a_fill_never_overwrites_a_write() {
    check(6, || {
        let volume = Arc::new(Volume::absent(1));
        let (_, start) = beside(
            &volume,
            |it| it.fill(range(4, 8)),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        if wrote(start) {
            assert_eq!(volume.read(), WRITTEN, "L6");
        } else {
            // It lost against the fill, which is over.
            assert_eq!(start, WriteStart::Busy);
            assert_eq!(volume.write(0, BLOCK, WRITTEN), WriteStart::Overwrite);
        }
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        assert_eq!(volume.map.take_dirty(BLOCK.first, 9), Some(BLOCK));
    });
}

/// As above with a write that fails: the block is the fill's then, or absent.
#[test]
fn loom_a_failed_write_leaves_the_block_to_the_fill() {
    check(6, || {
        let volume = Arc::new(Volume::absent(1));
        let (filled, _) = beside(
            &volume,
            |it| it.fill(BLOCK),
            |it| {
                let start = it.map.begin_write(FlightSlot(0), BLOCK);
                if start == WriteStart::Claimed {
                    it.bytes.store(WRITTEN, Ordering::Relaxed);
                    assert!(it.map.end_write(FlightSlot(0), BLOCK, start, false));
                } else if start == WriteStart::Overwrite {
                    it.map.end_write(FlightSlot(0), BLOCK, start, true);
                }
            },
        );
        assert!(!volume.map.is_claimed(BLOCK));
        assert_eq!(volume.map.is_present(BLOCK), filled);
        if filled {
            // Or the write failed after the fill, and left the block to be sent as it is.
            let dirty = volume.map.take_dirty(BLOCK.first, 1) == Some(BLOCK);
            assert!(dirty || volume.read() == ORIGIN);
        } else {
            assert_eq!(volume.map.counts().dirty, 0, "nothing absent is dirty");
            assert!(volume.fill(BLOCK));
        }
    });
}

/// Two writes of absent blocks that overlap and lie in two words: one of them goes first, and no
/// claim is left behind.
#[test]
fn loom_overlapping_writes_claim_one_after_the_other() {
    check(4, || {
        let shared = Arc::new((Volume::absent(2), loom::cell::UnsafeCell::new(0)));
        let write = |shared: &(Volume, loom::cell::UnsafeCell<u64>), slot, blocks| {
            let (volume, bytes) = shared;
            let start = volume.map.begin_write(FlightSlot(slot), blocks);
            if wrote(start) {
                // The checker fails here if two do so at once, or without an order.
                // SAFETY: that is what is being checked.
                bytes.with_mut(|bytes| unsafe { *bytes += 1 });
                volume.map.end_write(FlightSlot(slot), blocks, start, true);
            }
            wrote(start)
        };
        let other = thread::spawn({
            let shared = shared.clone();
            move || write(&shared, 1, range(62, 66))
        });
        let first = write(&shared, 0, range(60, 65));
        let second = other.join().expect("no panic");
        assert!(first || second, "one of them got through");
        let volume = &shared.0;
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        assert_eq!(volume.map.is_present(range(60, 65)), first);
        assert_eq!(volume.map.is_present(range(62, 66)), second);
    });
}

/// One fill a block, however many have fetched it.
#[test]
fn loom_two_fills_share_the_blocks() {
    check(4, || {
        let volume = Arc::new(Volume::absent(1));
        let (one, other) = beside(
            &volume,
            |it| it.fill(range(3, 6)),
            |it| it.fill(range(5, 9)),
        );
        assert!(one != other, "exactly one of them filled the shared block");
        assert!(volume.map.is_present(range(3, 9)));
        assert_eq!(volume.map.counts().present, 6);
        assert!(!volume.map.is_claimed(volume.map.blocks()));
    });
}

/// A discard of a part of a region excludes fills and writes of absent blocks there.
#[test]
fn loom_a_discard_by_bits_excludes_fills_and_writes() {
    check(3, || {
        let volume = Arc::new(Volume::absent(1));
        let filler = thread::spawn({
            let volume = volume.clone();
            move || volume.fill(range(5, 7))
        });
        let (zeroed, start) = beside(
            &volume,
            |it| match it.map.claim_zero(range(2, 6)) {
                super::super::ZeroStart::Claimed(claim) => {
                    it.bytes.store(10, Ordering::Relaxed);
                    it.map.finish_zero(claim, true);
                    true
                }
                super::super::ZeroStart::Busy => false,
                other => panic!("{other:?}"),
            },
            |it| it.write(0, BLOCK, WRITTEN),
        );
        let filled = filler.join().expect("no panic");
        assert!(zeroed || filled || wrote(start), "one of them got through");
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        if zeroed || wrote(start) {
            assert_ne!(volume.read(), ORIGIN, "L6");
            assert!(volume.map.take_dirty(BLOCK.first, 1) == Some(BLOCK));
        }
    });
}
