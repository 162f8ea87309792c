//! What of a volume survives the loss of power: checkpoints, intents, and what is promised of them
//! (L10, L12).

use super::listed;
use super::model::Model;
use crate::volume::geometry::{BlockRange, REGION_BLOCKS, RegionIndex};
use crate::volume::state_map::{RegionSnapshot, StateMap};

/// What happened to a block's bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    /// A write of it ended, and was not flushed yet.
    written: bool,
    /// A write of it ended, and a flush followed: it has to be there.
    flushed: bool,
    /// A write of it began since the sender last read it.
    changed: bool,
    /// What the sender read is not what the origin has yet.
    unsent: bool,
}

pub(super) struct Durable {
    regions: Vec<RegionSnapshot>,
    pub(super) intents: Vec<bool>,
    bytes: Vec<Bytes>,
    blocks: u64,
}

impl Durable {
    pub(super) fn new(blocks: u64) -> Self {
        let regions = blocks.div_ceil(REGION_BLOCKS) as usize;
        Self {
            regions: vec![RegionSnapshot::Absent; regions],
            intents: vec![false; regions],
            bytes: vec![Bytes::default(); blocks as usize],
            blocks,
        }
    }

    fn of(&mut self, range: BlockRange) -> &mut [Bytes] {
        &mut self.bytes[range.first.0 as usize..range.end.0 as usize]
    }

    fn whole(&self, region: usize) -> BlockRange {
        let first = region as u64 * REGION_BLOCKS;
        BlockRange::new(first, (first + REGION_BLOCKS).min(self.blocks))
    }

    pub(super) fn set_intent(&mut self, region: usize) {
        self.intents[region] = true;
    }

    pub(super) fn writing(&mut self, range: BlockRange) {
        for bytes in self.of(range) {
            bytes.changed = true;
        }
    }

    pub(super) fn written(&mut self, range: BlockRange, ok: bool) {
        for bytes in self.of(range) {
            bytes.written |= ok;
            bytes.changed = true;
        }
    }

    /// What a failed write left in absent blocks is gone.
    pub(super) fn filled(&mut self, blocks: &[u64], ok: bool) {
        for block in blocks.iter().filter(|_| ok) {
            self.bytes[*block as usize] = Bytes::default();
        }
    }

    pub(super) fn dropped(&mut self, blocks: &[u64]) {
        self.filled(blocks, true);
    }

    pub(super) fn flushed(&mut self) {
        for bytes in &mut self.bytes {
            bytes.flushed |= bytes.written;
            bytes.written = false;
        }
    }

    pub(super) fn read_for_send(&mut self, range: BlockRange) {
        for bytes in self.of(range) {
            bytes.unsent |= bytes.changed;
            bytes.changed = false;
        }
    }

    pub(super) fn at_origin(&mut self, range: BlockRange) {
        for bytes in self.of(range) {
            bytes.unsent = false;
        }
    }

    /// A checkpoint of what is unsaved, that becomes durable or does not.
    pub(super) fn checkpoint(&mut self, map: &StateMap, model: &Model, durable: bool) {
        let token = map.begin_snapshot();
        let unsaved: Vec<_> = map.unsaved_regions().collect();
        let taken = snapshots(map, model, &unsaved);
        if durable {
            self.commit(map, token, taken);
        }
    }

    /// A checkpoint that also has a region that is clean, after which its intent goes.
    pub(super) fn clean_checkpoint(&mut self, map: &StateMap, model: &Model, region: usize) {
        let token = map.begin_snapshot();
        let clean = RegionIndex(region as u64);
        let unsaved = map.unsaved_regions().filter(|it| *it != clean);
        let all: Vec<_> = unsaved.chain([clean]).collect();
        self.commit(map, token, snapshots(map, model, &all));
        self.intents[region] = false;
    }

    fn commit(&mut self, map: &StateMap, token: u64, taken: Vec<(RegionIndex, RegionSnapshot)>) {
        for (region, snapshot) in taken {
            self.regions[region.0 as usize] = snapshot;
        }
        map.saved(token);
    }

    pub(super) fn restore(&self, map: &mut StateMap) -> std::io::Result<()> {
        for (region, snapshot) in self.regions.iter().enumerate() {
            map.restore(RegionIndex(region as u64), snapshot, self.intents[region])?;
        }
        Ok(())
    }

    /// Checks a region that came back after power was lost, and gives its blocks.
    pub(super) fn check_restored(&self, map: &StateMap, region: usize) -> Vec<(bool, bool)> {
        let whole = self.whole(region);
        let mut blocks = listed(&self.regions[region], whole.len() as usize);
        for ((present, dirty), block) in blocks.iter_mut().zip(whole.iter()) {
            *dirty |= *present && self.intents[region];
            let bytes = self.bytes[block.0 as usize];
            assert!(
                *present || !bytes.flushed,
                "{block:?} was flushed and is lost"
            );
            let unsent = bytes.changed || bytes.unsent;
            assert!(
                !*present || *dirty || !unsent,
                "{block:?} differs and is clean"
            );
        }
        let present = blocks.iter().filter(|(present, _)| *present).count();
        assert_eq!(map.is_present(whole), present == blocks.len());
        blocks
    }

    /// From here on the blocks are what came back. What was not flushed is gone where it was not
    /// present, and what is dirty is to be sent.
    pub(super) fn restarted(&mut self, model: &Model) {
        for (bytes, block) in self.bytes.iter_mut().zip(&model.blocks) {
            *bytes = Bytes {
                flushed: bytes.flushed,
                changed: block.dirty,
                ..Bytes::default()
            };
        }
    }
}

/// Takes regions, each as the model has it.
fn snapshots(
    map: &StateMap,
    model: &Model,
    regions: &[RegionIndex],
) -> Vec<(RegionIndex, RegionSnapshot)> {
    let take = |region: &RegionIndex| {
        let snapshot = map.snapshot(*region);
        let blocks = model.of(map.region_blocks(*region));
        let expected = blocks.iter().map(|it| (it.present, it.dirty || it.sending));
        assert!(listed(&snapshot, blocks.len()).into_iter().eq(expected));
        (*region, snapshot)
    };
    regions.iter().map(take).collect()
}
