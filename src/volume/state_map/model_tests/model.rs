//! What the state map is to do, written down block by block.

use crate::volume::geometry::{BlockIndex, BlockRange, REGION_BLOCKS, RegionIndex};
use crate::volume::state_map::{Counts, WriteStart};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) present: bool,
    pub(super) claimed: bool,
    pub(super) dirty: bool,
    pub(super) sending: bool,
}

/// What holds for a region as a whole.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Region {
    pub(super) mixed: bool,
    write_pages: bool,
    pub(super) intent: bool,
    /// The sender looks into it: something landed here since it last found nothing. (It need not
    /// find what is only just being written.)
    dirtied: bool,
}

/// How a discard begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    Claimed,
    Busy,
    NotReady(RegionIndex),
}

pub(super) struct Model {
    pub(super) blocks: Vec<Block>,
    pub(super) regions: Vec<Region>,
}

impl Model {
    pub(super) fn new(blocks: u64) -> Self {
        Self {
            blocks: vec![Block::default(); blocks as usize],
            regions: vec![Region::default(); blocks.div_ceil(REGION_BLOCKS) as usize],
        }
    }

    pub(super) fn of(&self, range: BlockRange) -> &[Block] {
        &self.blocks[range.first.0 as usize..range.end.0 as usize]
    }

    fn of_mut(&mut self, range: BlockRange) -> &mut [Block] {
        &mut self.blocks[range.first.0 as usize..range.end.0 as usize]
    }

    pub(super) fn whole(&self, region: usize) -> BlockRange {
        let first = region as u64 * REGION_BLOCKS;
        BlockRange::new(first, (first + REGION_BLOCKS).min(self.blocks.len() as u64))
    }

    fn regions_of(&self, range: BlockRange) -> std::ops::Range<usize> {
        let per = REGION_BLOCKS;
        (range.first.0 / per) as usize..range.end.0.div_ceil(per) as usize
    }

    /// The state of a region that is not mixed: that of any of its blocks.
    fn uniform(&self, region: usize) -> Block {
        self.blocks[region * REGION_BLOCKS as usize]
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for block in &self.blocks {
            counts.present += u64::from(block.present);
            counts.dirty += u64::from(block.dirty);
            counts.sending += u64::from(block.sending);
        }
        counts
    }

    pub(super) fn all_present(&self, range: BlockRange) -> bool {
        self.of(range).iter().all(|block| block.present)
    }

    pub(super) fn any_claimed(&self, range: BlockRange) -> bool {
        self.of(range).iter().any(|block| block.claimed)
    }

    pub(super) fn prepare_write(&mut self, region: usize) {
        let uniform = self.uniform(region);
        let of = &mut self.regions[region];
        if !of.mixed && uniform.present {
            if uniform.claimed {
                return;
            }
            (of.mixed, of.dirtied) = (true, true);
        }
        of.write_pages = true;
    }

    /// A region of which all blocks are alike, and nobody is at work there.
    pub(super) fn collapse(&mut self, region: usize, under_way: &[BlockRange]) {
        let whole = self.whole(region);
        let blocks = self.of(whole);
        let alike = |it: &Block| it.present && !it.claimed && !it.sending;
        let same = blocks
            .iter()
            .all(|it| alike(it) && it.dirty == blocks[0].dirty);
        let of = &mut self.regions[region];
        if of.mixed && same && !under_way.iter().any(|it| it.overlaps(whole)) {
            (of.mixed, of.write_pages) = (false, false);
        }
    }

    fn landed(&mut self, range: BlockRange) {
        for region in self.regions_of(range) {
            let of = &mut self.regions[region];
            of.dirtied |= of.mixed;
        }
    }

    pub(super) fn prepare_zero(&mut self, range: BlockRange) {
        for region in self.regions_of(range) {
            let whole = self.whole(region);
            if self.regions[region].mixed || range.intersection(whole) != whole {
                self.prepare_write(region);
            }
        }
    }

    pub(super) fn begin_write(&mut self, range: BlockRange) -> WriteStart {
        for region in self.regions_of(range) {
            let (of, uniform) = (self.regions[region], self.uniform(region));
            if !of.mixed && uniform.claimed {
                return WriteStart::Busy;
            }
            if !of.write_pages || !of.intent || (!of.mixed && uniform.present) {
                return WriteStart::NotReady(RegionIndex(region as u64));
            }
            self.regions[region].mixed = true;
        }
        let start = if self.all_present(range) {
            WriteStart::Overwrite
        } else if self.any_claimed(range) {
            return WriteStart::Busy;
        } else {
            WriteStart::Claimed
        };
        for block in self.of_mut(range) {
            block.claimed |= start == WriteStart::Claimed;
            block.dirty |= block.present;
        }
        start
    }

    pub(super) fn end_write(&mut self, range: BlockRange, start: WriteStart, ok: bool) {
        let claimed = start == WriteStart::Claimed;
        for block in self.of_mut(range) {
            block.present |= ok;
            block.dirty |= block.present;
            block.claimed &= !claimed;
        }
        self.landed(range);
    }

    /// Claims the absent ones that nobody has.
    pub(super) fn claim_fill(&mut self, range: BlockRange) -> Vec<u64> {
        let mut filled = Vec::new();
        for region in self.regions_of(range) {
            let uniform = self.uniform(region);
            self.regions[region].mixed |= !uniform.present && !uniform.claimed;
        }
        for block in range.iter() {
            let of = &mut self.blocks[block.0 as usize];
            if !of.present && !of.claimed {
                of.claimed = true;
                filled.push(block.0);
            }
        }
        filled
    }

    pub(super) fn finish_fill(&mut self, filled: &[u64], ok: bool) {
        for block in filled {
            let block = &mut self.blocks[*block as usize];
            block.claimed = false;
            block.present |= ok;
        }
    }

    pub(super) fn claim_zero(&mut self, range: BlockRange) -> Zero {
        for region in self.regions_of(range) {
            let (of, uniform, whole) = (
                self.regions[region],
                self.uniform(region),
                self.whole(region),
            );
            let part = range.intersection(whole);
            if !of.mixed && uniform.claimed {
                return Zero::Busy;
            }
            if !of.mixed && part == whole && of.intent {
                continue;
            }
            if !of.write_pages || !of.intent || (!of.mixed && uniform.present) {
                return Zero::NotReady(RegionIndex(region as u64));
            }
            self.regions[region].mixed = true;
            if self.any_claimed(part) {
                return Zero::Busy;
            }
        }
        for block in self.of_mut(range) {
            block.claimed = true;
            block.dirty |= block.present;
        }
        Zero::Claimed
    }

    pub(super) fn finish_zero(&mut self, range: BlockRange, ok: bool) {
        for region in self.regions_of(range) {
            let absent = !self.uniform(region).present;
            let of = &mut self.regions[region];
            of.write_pages &= of.mixed || !(absent && ok);
        }
        for block in self.of_mut(range) {
            block.present |= ok;
            block.dirty |= block.present;
            block.claimed = false;
        }
        self.landed(range);
    }

    pub(super) fn take_dirty(&mut self, from: u64, max: u64) -> Option<BlockRange> {
        let mut at = from;
        while at < self.blocks.len() as u64 {
            let region = (at / REGION_BLOCKS) as usize;
            let whole = self.whole(region);
            let taken = if self.regions[region].mixed {
                self.first_run(
                    BlockRange {
                        first: BlockIndex(at),
                        ..whole
                    },
                    max,
                )
            } else {
                takes(&self.uniform(region)).then_some(whole)
            };
            if let Some(taken) = taken {
                for block in self.of_mut(taken) {
                    (block.dirty, block.sending) = (false, true);
                }
                return Some(taken);
            }
            at = whole.end.0;
        }
        None
    }

    fn first_run(&mut self, rest: BlockRange, max: u64) -> Option<BlockRange> {
        let region = (rest.first.0 / REGION_BLOCKS) as usize;
        if !self.regions[region].dirtied {
            return None;
        }
        let blocks = self.of(rest);
        let Some(first) = blocks.iter().position(takes) else {
            let later = blocks.iter().any(|it| it.present && it.dirty);
            self.regions[region].dirtied = later || rest != self.whole(region);
            return None;
        };
        let run = blocks[first..].iter().take_while(|it| takes(it)).count() as u64;
        let first = rest.first.0 + first as u64;
        Some(BlockRange::new(first, first + run.min(max)))
    }

    pub(super) fn sent(&mut self, range: BlockRange, ok: bool) {
        for block in self.of_mut(range) {
            block.dirty |= block.sending && !ok;
            block.sending = false;
        }
        if !ok {
            self.landed(range);
        }
    }

    pub(super) fn next_absent(&self, from: u64, to: u64) -> Option<BlockRange> {
        let first = (from..to).find(|at| !self.blocks[*at as usize].present)?;
        let whole = self.whole((first / REGION_BLOCKS) as usize);
        let limit = whole.end.0.min(to);
        let end = (first..limit).find(|at| self.blocks[*at as usize].present);
        Some(BlockRange::new(first, end.unwrap_or(limit)))
    }

    /// The process died while these ranges were being written.
    pub(super) fn crash(&mut self, under_way: &[BlockRange]) {
        for range in under_way {
            for block in self.of_mut(*range) {
                block.dirty = true;
            }
        }
        for block in &mut self.blocks {
            block.dirty = block.present && (block.dirty || block.sending);
            (block.claimed, block.sending) = (false, false);
        }
        for region in &mut self.regions {
            region.write_pages &= region.mixed;
            region.dirtied = region.write_pages;
        }
    }

    /// What the origin has is not wanted any more; which blocks that were.
    pub(super) fn drop_clean(&mut self) -> Vec<u64> {
        let clean = |block: &Block| block.present && !block.dirty;
        let dropped = (0..self.blocks.len() as u64)
            .filter(|at| clean(&self.blocks[*at as usize]))
            .collect();
        for block in &mut self.blocks {
            block.present &= block.dirty;
        }
        dropped
    }

    /// The map was made anew of these regions' checkpoints; which of them have bits is not for the
    /// model to say.
    pub(super) fn restored(
        &mut self,
        region: usize,
        blocks: &[(bool, bool)],
        mixed: bool,
        pages: bool,
    ) {
        let whole = self.whole(region);
        for (block, (present, dirty)) in self.of_mut(whole).iter_mut().zip(blocks) {
            *block = Block {
                present: *present,
                dirty: *dirty,
                ..Block::default()
            };
        }
        self.regions[region].mixed = mixed;
        self.regions[region].write_pages = pages;
        self.regions[region].dirtied = mixed && blocks.iter().any(|(_, dirty)| *dirty);
    }
}

fn takes(block: &Block) -> bool {
    block.present && block.dirty && !block.sending
}
