//! Every transition that two threads can make at once, under the model checker: who claims what,
//! what the sender sees, what a checkpoint has.
//!
//! A region has one word of blocks here. A block's bytes are an atomic without any order of its
//! own: what is read of it is what the map's orders make sure of.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::words::{MIXED, Words};
use super::{FlightSlot, StateMap, WriteStart, ZERO_SLOTS};
use crate::volume::geometry::{BlockRange, REGION_BLOCKS, RegionIndex};

mod claims;
mod collapse;
mod regions;
mod saving;
mod sending;

/// What a block's bytes are.
const NOTHING: u64 = 0;
const ORIGIN: u64 = 1;
const WRITTEN: u64 = 2;

const BLOCK: BlockRange = range(5, 6);
const REGION: RegionIndex = RegionIndex(0);

const fn range(first: u64, end: u64) -> BlockRange {
    BlockRange {
        first: crate::volume::geometry::BlockIndex(first),
        end: crate::volume::geometry::BlockIndex(end),
    }
}

/// A map with the bytes of [`BLOCK`].
struct Volume {
    map: StateMap,
    bytes: AtomicU64,
}

impl Volume {
    /// Two queue slots, everything absent, and ready for writes.
    fn absent(regions: u64) -> Self {
        Self::prepared(regions, regions)
    }

    /// The same, of which only the first regions have bits.
    fn prepared(regions: u64, with_bits: u64) -> Self {
        let words = Words::new(regions as usize, 2 + ZERO_SLOTS as usize);
        let map = StateMap::over(words, regions * REGION_BLOCKS);
        for region in map.regions() {
            if region.0 < with_bits {
                map.prepare_write(region).expect("memory");
            }
            map.set_write_ready(region);
        }
        Self {
            map,
            bytes: AtomicU64::new(NOTHING),
        }
    }

    /// The block is here, as the origin has it, and that is saved.
    fn present() -> Self {
        let volume = Self::absent(1);
        volume.fill(BLOCK);
        let token = volume.map.begin_snapshot();
        let _saved = volume.map.snapshot(REGION);
        volume.map.saved(token);
        volume
    }

    /// The whole region is dirty, and has no bits.
    fn uniform_dirty() -> Self {
        let volume = Self::absent(1);
        let claim = claimed(volume.map.claim_zero(volume.map.blocks()));
        volume.map.finish_zero(claim, true);
        assert_eq!(volume.word() & MIXED, 0);
        volume
    }

    fn word(&self) -> u64 {
        self.map.region(REGION).load(Ordering::Acquire)
    }

    /// Puts the origin's bytes into what is absent of the range; true if that was the block.
    fn fill(&self, blocks: BlockRange) -> bool {
        let claim = self.map.claim_fill(blocks);
        let ours = claim.runs().iter().any(|run| run.overlaps(BLOCK));
        if ours {
            self.bytes.store(ORIGIN, Ordering::Relaxed);
        }
        self.map.finish_fill(claim, true);
        ours
    }

    /// Writes the range, which has the block; what came of it.
    fn write(&self, slot: u32, blocks: BlockRange, bytes: u64) -> WriteStart {
        let start = self.map.begin_write(FlightSlot(slot), blocks);
        if matches!(start, WriteStart::Overwrite | WriteStart::Claimed) {
            self.bytes.store(bytes, Ordering::Relaxed);
            self.map.end_write(FlightSlot(slot), blocks, start, true);
        }
        start
    }

    fn read(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn claimed(start: super::ZeroStart) -> super::ZeroClaim {
    match start {
        super::ZeroStart::Claimed(claim) => claim,
        refused => panic!("{refused:?}"),
    }
}

fn wrote(start: WriteStart) -> bool {
    matches!(start, WriteStart::Overwrite | WriteStart::Claimed)
}

/// All executions with up to `preemptions` involuntary switches between threads.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Runs `one` on another thread, beside `other` on this one.
fn beside<A: 'static, B>(
    volume: &Arc<Volume>,
    one: impl FnOnce(&Volume) -> A + 'static,
    other: impl FnOnce(&Volume) -> B,
) -> (A, B) {
    let there = thread::spawn({
        let volume = volume.clone();
        move || one(&volume)
    });
    let here = other(volume);
    (there.join().expect("no panic"), here)
}
