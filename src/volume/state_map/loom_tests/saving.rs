//! What a checkpoint has of the writes that ended before a flush (L10, L12).

use super::*;
use crate::volume::state_map::RegionSnapshot;

/// A volume with the newest durable checkpoint of the region: whether it has the block. Another
/// block was filled already, so that the region is unsaved from the start.
struct Saved {
    volume: Volume,
    has_block: AtomicU64,
    fills: bool,
}

impl Saved {
    fn new(fills: bool) -> Self {
        let volume = Volume::absent(1);
        let other = volume.map.claim_fill(range(9, 10));
        volume.map.finish_fill(other, true);
        Self {
            volume,
            has_block: AtomicU64::new(0),
            fills,
        }
    }

    fn checkpoint(&self) {
        let map = &self.volume.map;
        let token = map.begin_snapshot();
        let unsaved: Vec<_> = map.unsaved_regions().collect();
        for region in unsaved {
            let has = match map.snapshot(region) {
                RegionSnapshot::Absent => false,
                RegionSnapshot::PresentClean | RegionSnapshot::PresentDirty => true,
                RegionSnapshot::Mixed(bits) => {
                    let [present, dirty] =
                        [bits.present, bits.dirty].map(|page| page[0] >> BLOCK.first.0 & 1 == 1);
                    // Where nothing is fetched and nothing sent.
                    assert!(dirty || !present || self.fills, "it is nowhere but here");
                    present
                }
            };
            self.has_block.store(u64::from(has), Ordering::Relaxed);
        }
        map.saved(token);
    }

    /// What a flush does after a write that ended: it may leave the checkpoint out only if a
    /// durable one has the block.
    fn flush(&self) {
        if !self.volume.map.needs_checkpoint() {
            assert_eq!(
                self.has_block.load(Ordering::Relaxed),
                1,
                "a flushed write is lost"
            );
        }
    }
}

fn beside_checkpoints(
    preemptions: usize,
    checkpoints: usize,
    fill: bool,
    write: impl Fn(&Volume) -> bool + Sync + Send + Copy + 'static,
) {
    check(preemptions, move || {
        let saved = Arc::new(Saved::new(fill));
        let checkpointer = thread::spawn({
            let saved = saved.clone();
            move || (0..checkpoints).for_each(|_| saved.checkpoint())
        });
        let filler = fill.then(|| {
            let saved = saved.clone();
            thread::spawn(move || saved.volume.fill(BLOCK))
        });
        let written = write(&saved.volume);
        if written {
            saved.flush();
        }
        checkpointer.join().expect("no panic");
        if let Some(filler) = filler {
            filler.join().expect("no panic");
        }
        if written {
            saved.flush();
        }
        // The next checkpoint has all of it.
        saved.checkpoint();
        assert!(!saved.volume.map.needs_checkpoint());
        let present = saved.volume.map.is_present(BLOCK);
        assert_eq!(saved.has_block.load(Ordering::Relaxed) == 1, present);
    });
}

/// A block that a fill has just made present is overwritten while a checkpoint is taken.
#[test]
fn loom_an_overwrite_of_an_unsaved_block_needs_a_checkpoint() {
    beside_checkpoints(2, 1, true, |it| wrote(it.write(0, BLOCK, WRITTEN)));
}

#[test]
fn loom_a_write_of_an_absent_block_needs_a_checkpoint() {
    beside_checkpoints(3, 2, false, |it| wrote(it.write(0, BLOCK, WRITTEN)));
}

/// A discard of an absent region as a whole.
#[test]
fn loom_a_discard_of_a_region_needs_a_checkpoint() {
    check(4, || {
        let saved = Arc::new(Saved {
            volume: Volume::absent(1),
            has_block: AtomicU64::new(0),
            fills: false,
        });
        let checkpointer = thread::spawn({
            let saved = saved.clone();
            move || saved.checkpoint()
        });
        let map = &saved.volume.map;
        map.finish_zero(claimed(map.claim_zero(map.blocks())), true);
        assert_eq!(saved.volume.word() & MIXED, 0);
        saved.flush();
        checkpointer.join().expect("no panic");
        saved.flush();
        saved.checkpoint();
        assert!(!map.needs_checkpoint());
    });
}

#[test]
fn loom_a_discard_by_bits_needs_a_checkpoint() {
    beside_checkpoints(3, 2, false, |it| {
        let claim = claimed(it.map.claim_zero(range(4, 8)));
        it.map.finish_zero(claim, true);
        true
    });
}

/// A checkpoint that was given up counts for nothing.
#[test]
fn loom_a_void_checkpoint_leaves_its_regions_unsaved() {
    check(5, || {
        let saved = Arc::new(Saved::new(true));
        saved.volume.fill(BLOCK);
        let checkpointer = thread::spawn({
            let saved = saved.clone();
            move || {
                let map = &saved.volume.map;
                map.begin_snapshot();
                let _void = map.snapshot(REGION);
                saved.checkpoint();
            }
        });
        assert_eq!(saved.volume.write(0, BLOCK, WRITTEN), WriteStart::Overwrite);
        saved.flush();
        checkpointer.join().expect("no panic");
        saved.flush();
    });
}
