//! Random sequences of all calls against a plain model, with crashes of the process and losses of
//! power in between.

use proptest::prelude::*;

use super::words::{CLAIMED, DIRTY, MIXED, Ordering, PRESENT, SENDING, WRITE_PAGES, place_of};
use super::{
    FillClaim, FlightSlot, LiveMap, LiveMapKey, RegionSnapshot, StateMap, WriteStart, ZeroClaim,
    ZeroStart,
};
use crate::volume::geometry::{
    BLOCK_BYTES, BlockIndex, BlockRange, REGION_BLOCKS, REGION_BYTES, RegionIndex,
};
use model::{Block, Model, Zero};

mod durable;
mod model;

use durable::Durable;

/// Three regions, a short one, and in it a short block.
const KEY: LiveMapKey = LiveMapKey {
    boot_id: [1; 16],
    store_uuid: [2; 16],
    open_counter: 3,
    size_bytes: 3 * REGION_BYTES + 700 * BLOCK_BYTES + 100,
    queue_slots: 8,
};
const BLOCKS: u64 = 3 * REGION_BLOCKS + 701;
const SLOTS: u32 = KEY.queue_slots;

#[derive(Debug, Clone)]
enum Step {
    Write(BlockRange),
    EndWrite(usize, bool),
    Fill(BlockRange),
    EndFill(usize, bool),
    Zero(BlockRange),
    EndZero(usize, bool),
    Take { from: u64, max: u64 },
    Sent(usize, bool),
    Withdraw(u64),
    Collapse(u64),
    Checkpoint { durable: bool },
    Flush,
    NextAbsent(u64, u64),
    Crash { other_origin: bool },
    PowerLoss,
}

/// Blocks near the places where words and regions meet, and some anywhere.
fn block() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..4, 0u64..140).prop_map(|(region, at)| {
            (region * REGION_BLOCKS + at).saturating_sub(70).min(BLOCKS - 1)
        }),
        1 => 0..BLOCKS,
    ]
}

fn short_range() -> impl Strategy<Value = BlockRange> {
    (block(), 1u64..140).prop_map(|(at, len)| BlockRange::new(at, (at + len).min(BLOCKS)))
}

fn whole_regions() -> impl Strategy<Value = BlockRange> {
    (0u64..4, 1u64..4).prop_map(|(first, count)| {
        let end = (first + count) * REGION_BLOCKS;
        BlockRange::new(first * REGION_BLOCKS, end.min(BLOCKS))
    })
}

/// One side of a region that is cut in two, as a long discard that begins anywhere cuts it.
fn cut_region() -> impl Strategy<Value = BlockRange> {
    let cut = prop_oneof![Just(70), Just(REGION_BLOCKS / 2)];
    (0u64..4, cut, any::<bool>()).prop_map(|(region, cut, before)| {
        let first = region * REGION_BLOCKS;
        let (cut, end) = (first + cut, (first + REGION_BLOCKS).min(BLOCKS));
        match before {
            true => BlockRange::new(first, cut.min(end)),
            false => BlockRange::new(cut.min(end - 1), end),
        }
    })
}

fn any_range() -> impl Strategy<Value = BlockRange> {
    let long = (block(), block()).prop_map(|(a, b)| BlockRange::new(a.min(b), a.max(b) + 1));
    prop_oneof![2 => short_range(), 1 => whole_regions(), 1 => long]
}

fn step() -> impl Strategy<Value = Step> {
    let some = || (0usize..8, prop::bool::weighted(0.8));
    prop_oneof![
        6 => short_range().prop_map(Step::Write),
        5 => some().prop_map(|(at, ok)| Step::EndWrite(at, ok)),
        3 => any_range().prop_map(Step::Fill),
        1 => cut_region().prop_map(Step::Fill),
        3 => some().prop_map(|(at, ok)| Step::EndFill(at, ok)),
        1 => any_range().prop_map(Step::Zero),
        2 => whole_regions().prop_map(Step::Zero),
        2 => cut_region().prop_map(Step::Zero),
        3 => some().prop_map(|(at, ok)| Step::EndZero(at, ok)),
        5 => (prop_oneof![Just(0), block()], prop_oneof![Just(u64::MAX), 1u64..100])
            .prop_map(|(from, max)| Step::Take { from, max }),
        4 => some().prop_map(|(at, ok)| Step::Sent(at, ok)),
        3 => (0u64..4).prop_map(Step::Withdraw),
        4 => (0u64..4).prop_map(Step::Collapse),
        2 => any::<bool>().prop_map(|durable| Step::Checkpoint { durable }),
        2 => Just(Step::Flush),
        1 => (block(), block()).prop_map(|(a, b)| Step::NextAbsent(a.min(b), a.max(b))),
        1 => prop::bool::weighted(0.2).prop_map(|other_origin| Step::Crash { other_origin }),
        1 => Just(Step::PowerLoss),
    ]
}

struct Rig {
    dir: tempfile::TempDir,
    map: StateMap,
    model: Model,
    durable: Durable,
    writes: Vec<(FlightSlot, BlockRange, WriteStart)>,
    fills: Vec<(FillClaim, Vec<u64>)>,
    zeros: Vec<ZeroClaim>,
    sends: Vec<BlockRange>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let live = LiveMap::create(&dir.path().join("live"), &KEY).expect("created");
        Self {
            dir,
            map: StateMap::new(live).expect("a map"),
            model: Model::new(BLOCKS),
            durable: Durable::new(BLOCKS),
            writes: Vec::new(),
            fills: Vec::new(),
            zeros: Vec::new(),
            sends: Vec::new(),
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Write(blocks) => self.write(blocks),
            Step::EndWrite(at, ok) => self.end_write(at, ok),
            Step::Fill(blocks) => self.fill(blocks),
            Step::EndFill(at, ok) => {
                if let Some((claim, filled)) = take(&mut self.fills, at) {
                    self.map.finish_fill(claim, ok);
                    self.model.finish_fill(&filled, ok);
                    self.durable.filled(&filled, ok);
                }
            }
            Step::Zero(blocks) => self.zero(blocks),
            Step::EndZero(at, ok) => {
                if let Some(claim) = take(&mut self.zeros, at) {
                    let blocks = claim.blocks();
                    self.map.finish_zero(claim, ok);
                    self.model.finish_zero(blocks, ok);
                    self.durable.written(blocks, ok);
                }
            }
            Step::Take { from, max } => {
                let taken = self.map.take_dirty(BlockIndex(from), max);
                assert_eq!(taken, self.model.take_dirty(from, max));
                self.sends.extend(taken);
                if let Some(taken) = taken {
                    self.durable.read_for_send(taken);
                }
            }
            Step::Sent(at, ok) => {
                if let Some(blocks) = take(&mut self.sends, at) {
                    if ok {
                        self.map.flushed(blocks);
                        self.durable.at_origin(blocks);
                    } else {
                        self.map.send_failed(blocks);
                    }
                    self.model.sent(blocks, ok);
                }
            }
            Step::Withdraw(region) => self.withdraw(RegionIndex(region)),
            Step::Collapse(region) => {
                self.map.collapse(RegionIndex(region));
                self.model.collapse(region as usize, &self.under_way());
                let word = self.map.region(RegionIndex(region));
                let mixed = word.load(Ordering::Relaxed) & MIXED != 0;
                assert_eq!(mixed, self.model.regions[region as usize].mixed);
            }
            Step::Checkpoint { durable } => {
                self.durable.checkpoint(&self.map, &self.model, durable)
            }
            Step::Flush => {
                if self.map.needs_checkpoint() {
                    self.durable.checkpoint(&self.map, &self.model, true);
                    assert!(!self.map.needs_checkpoint());
                }
                self.durable.flushed();
            }
            Step::NextAbsent(from, to) => assert_eq!(
                self.map.next_absent(BlockIndex(from), BlockIndex(to)),
                self.model.next_absent(from, to)
            ),
            Step::Crash { other_origin } => self.crash(other_origin),
            Step::PowerLoss => self.power_loss(),
        }
    }

    fn free_slot(&self) -> Option<FlightSlot> {
        (0..SLOTS)
            .map(FlightSlot)
            .find(|slot| !self.writes.iter().any(|(taken, ..)| taken == slot))
    }

    fn write(&mut self, blocks: BlockRange) {
        let Some(slot) = self.free_slot() else { return };
        assert_eq!(self.map.is_present(blocks), self.model.all_present(blocks));
        assert_eq!(self.map.is_claimed(blocks), self.model.any_claimed(blocks));
        // At most once a region is it not ready.
        for _ in 0..3 {
            let start = self.map.begin_write(slot, blocks);
            assert_eq!(start, self.model.begin_write(blocks));
            match start {
                WriteStart::NotReady(region) => {
                    self.map.prepare_write(region).expect("room");
                    self.model.prepare_write(region.0 as usize);
                    self.set_intent(region);
                }
                WriteStart::Busy => return,
                WriteStart::Overwrite | WriteStart::Claimed => {
                    self.durable.writing(blocks);
                    self.writes.push((slot, blocks, start));
                    return;
                }
            }
        }
        panic!("never ready");
    }

    fn end_write(&mut self, at: usize, ok: bool) {
        let Some((slot, blocks, start)) = take(&mut self.writes, at) else {
            return;
        };
        let released = self.map.end_write(slot, blocks, start, ok);
        assert_eq!(released, start == WriteStart::Claimed);
        self.model.end_write(blocks, start, ok);
        self.durable.written(blocks, ok);
    }

    fn fill(&mut self, blocks: BlockRange) {
        for region in regions_of(blocks) {
            self.map.prepare_fill(region).expect("room");
        }
        let claim = self.map.claim_fill(blocks);
        let filled = self.model.claim_fill(blocks);
        let runs = claim.runs().iter().flat_map(|run| run.iter());
        assert!(runs.map(|block| block.0).eq(filled.iter().copied()));
        self.fills.push((claim, filled));
    }

    fn zero(&mut self, blocks: BlockRange) {
        for region in regions_of(blocks) {
            if !self.map.write_ready(region) {
                self.set_intent(region);
            }
        }
        for attempt in 0..2 {
            let expected = self.model.claim_zero(blocks);
            match self.map.claim_zero(blocks) {
                ZeroStart::Claimed(claim) => {
                    assert_eq!(expected, Zero::Claimed);
                    self.durable.writing(blocks);
                    self.zeros.push(claim);
                    return;
                }
                ZeroStart::Busy => {
                    assert_eq!(expected, Zero::Busy);
                    return;
                }
                ZeroStart::NotReady(region) => {
                    assert_eq!(expected, Zero::NotReady(region));
                    assert_eq!(attempt, 0, "prepared");
                    self.map.prepare_zero(blocks).expect("room");
                    self.model.prepare_zero(blocks);
                }
                ZeroStart::Full => {
                    assert_eq!(self.zeros.len(), super::ZERO_SLOTS as usize);
                    return;
                }
            }
        }
    }

    fn set_intent(&mut self, region: RegionIndex) {
        self.durable.set_intent(region.0 as usize);
        self.map.set_write_ready(region);
        self.model.regions[region.0 as usize].intent = true;
    }

    fn under_way(&self) -> Vec<BlockRange> {
        let writes = self.writes.iter().map(|(_, blocks, _)| *blocks);
        writes
            .chain(self.zeros.iter().map(ZeroClaim::blocks))
            .collect()
    }

    fn withdraw(&mut self, region: RegionIndex) {
        let whole = self.map.region_blocks(region);
        let busy = self.under_way().iter().any(|it| it.overlaps(whole));
        let unsent = self.model.of(whole).iter().any(|it| it.dirty || it.sending);
        let withdrawn = self.map.withdraw_write_ready(region);
        assert_eq!(withdrawn, !busy && !unsent);
        if withdrawn {
            self.model.regions[region.0 as usize].intent = false;
            self.durable
                .clean_checkpoint(&self.map, &self.model, region.0 as usize);
        }
    }

    /// The process is gone, and what it held with it; another one takes the live map over.
    fn crash(&mut self, other_origin: bool) {
        self.model.crash(&self.under_way());
        self.forget_held();
        let live = LiveMap::adopt(&self.dir.path().join("live"), &KEY).expect("adopted");
        self.map = StateMap::new(live).expect("a map");
        self.compare();
        // It may happen again at once.
        self.map.recover();
        self.compare();
        if other_origin {
            self.map.drop_clean();
            let dropped = self.model.drop_clean();
            self.durable.dropped(&dropped);
            self.compare();
        }
    }

    fn forget_held(&mut self) {
        self.writes.clear();
        self.fills.clear();
        self.zeros.clear();
        self.sends.clear();
    }

    fn power_loss(&mut self) {
        self.forget_held();
        let path = self.dir.path().join("live");
        let live = LiveMap::create(&path, &KEY).expect("created");
        self.map = StateMap::restored(live, |map| self.durable.restore(map)).expect("a map");
        for region in 0..self.model.regions.len() {
            let blocks = self.durable.check_restored(&self.map, region);
            let word = self.map.region(RegionIndex(region as u64));
            let word = word.load(Ordering::Relaxed);
            let (mixed, pages) = (word & MIXED != 0, word & WRITE_PAGES != 0);
            self.model.restored(region, &blocks, mixed, pages);
            self.model.regions[region].intent = self.durable.intents[region];
        }
        self.compare();
        self.durable.restarted(&self.model);
    }

    /// Every block of the map is as the model has it.
    fn compare(&self) {
        assert_eq!(self.map.counts(), self.model.counts());
        let mut places = std::collections::BTreeSet::new();
        for region in self.map.regions() {
            let word = self.map.region(region).load(Ordering::Relaxed);
            if let Some(place) = place_of(word) {
                assert!(places.insert(place), "{region:?} shares its place");
                assert!(place < self.model.regions.len() as u32);
                assert_eq!(word & PRESENT, 0, "{region:?} needs no place");
            }
            let whole = self.map.region_blocks(region);
            assert!(
                observed(&self.map, region) == self.model.of(whole),
                "{region:?}"
            );
        }
        let heat = self.map.heat(7);
        let model = self.model.counts();
        assert_eq!(heat.iter().map(|it| it.blocks).sum::<u64>(), BLOCKS);
        assert_eq!(heat.iter().map(|it| it.present).sum::<u64>(), model.present);
        let unsent = self.model.blocks.iter().filter(|it| it.dirty || it.sending);
        assert_eq!(
            heat.iter().map(|it| it.dirty).sum::<u64>(),
            unsent.count() as u64
        );
    }
}

fn take<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(at % from.len()))
}

fn regions_of(blocks: BlockRange) -> impl Iterator<Item = RegionIndex> {
    (blocks.first.0 / REGION_BLOCKS..blocks.end.0.div_ceil(REGION_BLOCKS)).map(RegionIndex)
}

/// What the map has of each block of a region.
fn observed(map: &StateMap, region: RegionIndex) -> Vec<Block> {
    let word = map.region(region).load(Ordering::Relaxed);
    let len = map.region_blocks(region).len() as usize;
    if word & MIXED == 0 {
        let block = Block {
            present: word & PRESENT != 0,
            claimed: word & CLAIMED != 0,
            dirty: word & DIRTY != 0,
            sending: word & SENDING != 0,
        };
        return vec![block; len];
    }
    let pages = map.pages(word);
    let bit = |page: &[super::words::AtomicU64], at: usize| {
        page[at / 64].load(Ordering::Relaxed) >> (at % 64) & 1 == 1
    };
    let unsent = |page, at| word & WRITE_PAGES != 0 && bit(page, at);
    (0..len)
        .map(|at| Block {
            present: bit(pages.present, at),
            claimed: bit(pages.claimed, at),
            dirty: unsent(pages.dirty, at),
            sending: unsent(pages.sending, at),
        })
        .collect()
}

/// The blocks of a region as a checkpoint has them: present, dirty.
fn listed(snapshot: &RegionSnapshot, len: usize) -> Vec<(bool, bool)> {
    match snapshot {
        RegionSnapshot::Absent => vec![(false, false); len],
        RegionSnapshot::PresentClean => vec![(true, false); len],
        RegionSnapshot::PresentDirty => vec![(true, true); len],
        RegionSnapshot::Mixed(bits) => {
            let bit = |page: &[u64], at: usize| page[at / 64] >> (at % 64) & 1 == 1;
            (0..len)
                .map(|at| (bit(&bits.present, at), bit(&bits.dirty, at)))
                .collect()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_map_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        let mut rig = Rig::new();
        for (at, step) in steps.into_iter().enumerate() {
            rig.run(step);
            if at % 4 == 3 {
                prop_assert_eq!(rig.map.counts(), rig.model.counts());
            }
            if at % 20 == 19 {
                rig.compare();
            }
        }
        rig.compare();
    }
}
