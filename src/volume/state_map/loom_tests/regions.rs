//! Regions that turn as a whole.

use super::*;
use crate::volume::state_map::ZeroStart;

const ZEROED: u64 = 10;

/// A discard of the whole region; true if it got its claim.
fn discard(volume: &Volume) -> bool {
    match volume.map.claim_zero(volume.map.blocks()) {
        ZeroStart::Claimed(claim) => {
            volume.bytes.store(ZEROED, Ordering::Relaxed);
            volume.map.finish_zero(claim, true);
            true
        }
        ZeroStart::Busy => false,
        other => panic!("{other:?}"),
    }
}

/// A region that a discard has claimed is nobody else's, and an absent one goes to one of those who
/// want it.
#[test]
fn loom_a_discard_of_a_region_excludes_fills_and_writes() {
    check(3, || {
        let volume = Arc::new(Volume::absent(1));
        let filler = thread::spawn({
            let volume = volume.clone();
            move || volume.fill(BLOCK)
        });
        let (discarded, start) = beside(&volume, discard, |it| it.write(0, BLOCK, WRITTEN));
        let filled = filler.join().expect("no panic");
        assert!(
            discarded || filled || wrote(start),
            "one of them got through"
        );
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        if discarded || wrote(start) {
            assert_ne!(volume.read(), ORIGIN, "L6");
        }
        if discarded {
            assert!(volume.map.is_present(volume.map.blocks()));
            assert_eq!(volume.map.counts().dirty, REGION_BLOCKS);
        }
    });
}

/// While a region becomes mixed its blocks stay readable, and none of what is dirty gets lost,
/// whatever the sender does meanwhile.
#[test]
fn loom_a_region_becomes_mixed_beside_the_sender() {
    for ok in [true, false] {
        check(5, move || {
            let volume = Arc::new(Volume::uniform_dirty());
            let reader = thread::spawn({
                let volume = volume.clone();
                move || {
                    assert!(volume.map.is_present(BLOCK), "present is for good");
                    assert!(volume.map.is_present(range(0, 64)), "present is for good");
                }
            });
            let (taken, ()) = beside(
                &volume,
                move |it| {
                    let taken = it.map.take_dirty(range(0, 1).first, 64);
                    if ok {
                        taken.into_iter().for_each(|taken| it.map.flushed(taken));
                    } else {
                        taken
                            .into_iter()
                            .for_each(|taken| it.map.send_failed(taken));
                    }
                    taken
                },
                |it| it.map.prepare_write(REGION).expect("memory"),
            );
            reader.join().expect("no panic");
            assert_ne!(volume.word() & MIXED, 0);
            assert_eq!(taken, Some(range(0, 64)));
            let again = volume.map.take_dirty(range(0, 1).first, 64);
            assert_eq!(again, (!ok).then_some(range(0, 64)));
            assert_eq!(volume.map.counts().dirty, 0);
        });
    }
}

/// A write to a region that is present as a whole: it waits until the region is mixed, and then it
/// is sent or found dirty.
#[test]
fn loom_a_write_to_a_region_that_becomes_mixed() {
    check(5, || {
        let volume = Arc::new(Volume::uniform_dirty());
        let preparer = thread::spawn({
            let volume = volume.clone();
            move || volume.map.prepare_write(REGION).expect("memory")
        });
        let (sent, start) = beside(
            &volume,
            |it| {
                let taken = it.map.take_dirty(range(0, 1).first, 64)?;
                let read = it.read();
                it.map.flushed(taken);
                Some(read)
            },
            |it| it.write(0, BLOCK, WRITTEN),
        );
        preparer.join().expect("no panic");
        if start == WriteStart::Overwrite {
            if sent != Some(WRITTEN) {
                assert!(volume.map.take_dirty(range(0, 1).first, 64).is_some(), "L8");
            }
        } else {
            assert_eq!(start, WriteStart::NotReady(REGION));
            assert_eq!(volume.write(0, BLOCK, WRITTEN), WriteStart::Overwrite);
        }
    });
}

/// A discard of a region and its becoming mixed: either way it is all dirty in the end.
#[test]
fn loom_a_discard_of_a_region_that_becomes_mixed() {
    check(6, || {
        let volume = Arc::new(Volume::uniform_dirty());
        let taken = volume.map.take_dirty(range(0, 1).first, 64);
        taken
            .into_iter()
            .for_each(|taken| volume.map.flushed(taken));
        let (discarded, ()) = beside(&volume, discard, |it| {
            it.map.prepare_write(REGION).expect("memory");
        });
        assert!(discarded, "nobody else claims");
        assert!(volume.map.is_present(volume.map.blocks()));
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        assert_eq!(volume.map.counts().dirty, REGION_BLOCKS);
        assert!(volume.map.take_dirty(range(0, 1).first, 64).is_some());
    });
}

/// What is on its way is not given out again by a discard that comes in between (L8).
#[test]
fn loom_a_discard_beside_a_send_is_sent_afterwards() {
    check(6, || {
        let volume = Arc::new(Volume::uniform_dirty());
        let (sent, discarded) = beside(
            &volume,
            |it| {
                let taken = it.map.take_dirty(range(0, 1).first, 64).expect("dirty");
                let read = it.read();
                assert_eq!(it.map.take_dirty(range(0, 1).first, 64), None, "L8");
                it.map.flushed(taken);
                read
            },
            discard,
        );
        assert!(discarded);
        let next_round = volume.map.take_dirty(range(0, 1).first, 64);
        if sent != ZEROED {
            assert_eq!(next_round, Some(range(0, 64)), "L8");
        }
    });
}

/// A refused discard of a region leaves nothing claimed, and nothing dirty that was not.
#[test]
fn loom_a_refused_discard_leaves_the_region_as_it_was() {
    check(5, || {
        let volume = Arc::new(Volume::absent(2));
        let (discarded, filled) = beside(&volume, discard, |it| {
            it.fill(range(REGION_BLOCKS + 1, REGION_BLOCKS + 2))
        });
        let _ = filled;
        assert!(!volume.map.is_claimed(volume.map.blocks()));
        let dirty = volume.map.counts().dirty;
        assert_eq!(dirty, if discarded { 2 * REGION_BLOCKS } else { 0 });
    });
}
