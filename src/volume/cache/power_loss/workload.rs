//! What the queues and the asynchronous side of a mount do, cut into steps of one change each and
//! mixed at random.

use std::sync::Arc;

use super::disk::{Fault, SECTOR_BYTES, SimFile};
use super::model::{Model, Stamp, clusters, sector_of, sectors_of, stamp_of, watched};
use super::{SIZE_BYTES, SLOTS};
use crate::seeded_random::Rng;
use crate::volume::StateMap;
use crate::volume::cache::files::StoreFile;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, REGION_BLOCKS, RegionIndex};
use crate::volume::state_map::{FillClaim, FlightSlot, WriteStart, ZeroClaim, ZeroStart};

/// Something that is under way.
#[derive(Debug)]
enum Task {
    Write(Write),
    Fill(Fill),
    Zero(ZeroClaim),
    Send(Send),
}

#[derive(Debug)]
struct Write {
    slot: FlightSlot,
    blocks: BlockRange,
    start: WriteStart,
    /// What is left to be written: sector and stamp.
    left: Vec<(u64, Stamp)>,
    sectors: Vec<u64>,
}

/// Fetched bytes.
#[derive(Debug)]
struct Fill {
    blocks: BlockRange,
    fetched: Vec<(u64, Stamp)>,
    claim: Option<FillClaim>,
}

/// Blocks on their way to the origin.
#[derive(Debug)]
struct Send {
    blocks: BlockRange,
    state: SendState,
}

#[derive(Debug)]
enum SendState {
    Taken,
    Read(Vec<(u64, Stamp)>),
    /// At the origin, which has not flushed it.
    Arrived,
    Flushed,
}

/// What has to be made ready before it can go on.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) writes: Vec<RegionIndex>,
    pub(super) zeros: Option<BlockRange>,
}

/// The mount.
#[derive(Debug)]
pub(super) struct Workload {
    map: Arc<StateMap>,
    data: SimFile,
    tasks: Vec<Task>,
    fault: Option<Fault>,
    pub(super) wanted: Wanted,
}

impl Workload {
    pub(super) fn new(map: Arc<StateMap>, data: SimFile, fault: Option<Fault>) -> Self {
        Self {
            map,
            data,
            tasks: Vec::new(),
            fault,
            wanted: Wanted::default(),
        }
    }

    /// Nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Begins something, or goes on with it.
    pub(super) fn step(&mut self, model: &mut Model, rng: &mut Rng) {
        if self.tasks.len() < 4 && rng.percent(45) {
            self.begin(model, rng);
        } else {
            self.advance(model, rng);
        }
    }

    fn begin(&mut self, model: &mut Model, rng: &mut Rng) {
        let task = match rng.below(10) {
            0..=4 => self.begin_write(model, rng),
            5 | 6 => Some(self.begin_fill(model, rng)),
            7 => self.begin_zero(model, rng),
            _ => self.begin_send(rng),
        };
        self.tasks.extend(task);
    }

    /// Goes on with one thing that is under way.
    pub(super) fn advance(&mut self, model: &mut Model, rng: &mut Rng) {
        if self.tasks.is_empty() {
            return;
        }
        let at = rng.below(self.tasks.len() as u64) as usize;
        let next = match self.tasks.swap_remove(at) {
            Task::Write(write) => self.advance_write(write, model, rng),
            Task::Fill(fill) => self.advance_fill(fill, rng),
            Task::Zero(claim) => self.advance_zero(claim, model, rng),
            Task::Send(send) => self.advance_send(send, model, rng),
        };
        self.tasks.extend(next);
    }

    fn free_slot(&self) -> Option<FlightSlot> {
        let is_taken = |slot: &FlightSlot| {
            let mut tasks = self.tasks.iter();
            tasks.any(|task| matches!(task, Task::Write(write) if write.slot == *slot))
        };
        (0..SLOTS).map(FlightSlot).find(|slot| !is_taken(slot))
    }

    /// Whether the application has a change of these blocks under way.
    fn is_changing(&self, blocks: BlockRange) -> bool {
        self.tasks.iter().any(|task| match task {
            Task::Write(write) => write.blocks.overlaps(blocks),
            Task::Zero(claim) => claim.blocks().overlaps(blocks),
            Task::Fill(_) | Task::Send(_) => false,
        })
    }

    fn begin_write(&mut self, model: &mut Model, rng: &mut Rng) -> Option<Task> {
        let blocks = some_blocks(rng);
        let slot = self.free_slot()?;
        if self.is_changing(blocks) {
            return None;
        }
        let start = match self.map.begin_write(slot, blocks) {
            WriteStart::NotReady(region) => {
                self.wanted.writes.push(region);
                return None;
            }
            WriteStart::Busy => return None,
            start => start,
        };
        let mut sectors: Vec<u64> = blocks.iter().flat_map(sectors_of).collect();
        if start == WriteStart::Overwrite {
            let first = rng.below(sectors.len() as u64) as usize;
            let len = 1 + rng.below((sectors.len() - first) as u64) as usize;
            sectors = sectors[first..first + len].to_vec();
        }
        let stamp = model.new_stamp();
        for sector in &sectors {
            model.begin(*sector, stamp);
        }
        Some(Task::Write(Write {
            slot,
            blocks,
            start,
            left: sectors.iter().map(|at| (*at, stamp)).collect(),
            sectors,
        }))
    }

    fn advance_write(
        &mut self,
        mut write: Write,
        model: &mut Model,
        rng: &mut Rng,
    ) -> Option<Task> {
        if !write.left.is_empty() {
            self.put(&mut write.left, rng);
            return Some(Task::Write(write));
        }
        let Write { slot, blocks, .. } = write;
        self.map.end_write(slot, blocks, write.start, true);
        model.end(write.sectors.into_iter());
        None
    }

    /// Writes some of what is left.
    fn put(&self, left: &mut Vec<(u64, Stamp)>, rng: &mut Rng) {
        let count = 1 + rng.below(left.len() as u64) as usize;
        let now: Vec<_> = left.drain(..count).collect();
        let bytes: Vec<u8> = now
            .iter()
            .flat_map(|(_, stamp)| sector_of(*stamp))
            .collect();
        let offset = now[0].0 * SECTOR_BYTES;
        self.data.write_at(&bytes, offset).expect("written");
    }

    fn begin_fill(&mut self, model: &Model, rng: &mut Rng) -> Task {
        // The last region is short enough to be fetched whole.
        let blocks = if rng.percent(20) {
            BlockRange::new(2 * REGION_BLOCKS, SIZE_BYTES.div_ceil(BLOCK_BYTES))
        } else {
            some_blocks(rng)
        };
        let sectors = blocks.iter().flat_map(sectors_of);
        Task::Fill(Fill {
            blocks,
            fetched: sectors.map(|at| (at, model.origin(at))).collect(),
            claim: None,
        })
    }

    fn advance_fill(&mut self, mut fill: Fill, rng: &mut Rng) -> Option<Task> {
        let Some(claim) = fill.claim else {
            for region in [fill.blocks.first, last_of(fill.blocks)].map(|at| at.region()) {
                self.map.prepare_fill(region).expect("memory");
            }
            let claim = self.map.claim_fill(fill.blocks);
            fill.fetched.retain(|(sector, _)| {
                let mut runs = claim.runs().iter().flat_map(|run| run.iter());
                runs.any(|block| sectors_of(block).contains(sector))
            });
            fill.claim = Some(claim);
            return Some(Task::Fill(fill));
        };
        if let Some((first, _)) = fill.fetched.first() {
            // One run of sectors at a time.
            let run = (*first..).zip(&fill.fetched);
            let len = run.take_while(|(at, (sector, _))| at == sector).count();
            let mut now: Vec<_> = fill.fetched.drain(..len).collect();
            self.put(&mut now, rng);
            now.append(&mut fill.fetched);
            fill.fetched = now;
            fill.claim = Some(claim);
            return Some(Task::Fill(fill));
        }
        self.map.finish_fill(claim, true);
        None
    }

    fn begin_zero(&mut self, model: &mut Model, rng: &mut Rng) -> Option<Task> {
        let blocks = match rng.below(6) {
            0 => BlockRange::new(REGION_BLOCKS, 2 * REGION_BLOCKS),
            1 => BlockRange::new(2 * REGION_BLOCKS, SIZE_BYTES.div_ceil(BLOCK_BYTES)),
            2 => BlockRange::new(32_766, 65_538),
            _ => some_blocks(rng),
        };
        if self.is_changing(blocks) {
            return None;
        }
        match self.map.claim_zero(blocks) {
            ZeroStart::Claimed(claim) => {
                for sector in watched_sectors(blocks) {
                    model.begin(sector, 0);
                }
                Some(Task::Zero(claim))
            }
            ZeroStart::NotReady(_) => {
                self.wanted.zeros = Some(blocks);
                None
            }
            ZeroStart::Busy | ZeroStart::Full => None,
        }
    }

    fn advance_zero(&mut self, claim: ZeroClaim, model: &mut Model, rng: &mut Rng) -> Option<Task> {
        let blocks = claim.blocks();
        let offset = blocks.start().0;
        self.data
            .punch(offset, blocks.len_bytes())
            .expect("punched");
        if rng.percent(30) {
            return Some(Task::Zero(claim));
        }
        self.map.finish_zero(claim, true);
        model.end(watched_sectors(blocks));
        None
    }

    fn begin_send(&mut self, rng: &mut Rng) -> Option<Task> {
        let from = some_blocks(rng).first;
        let blocks = self.map.take_dirty(from, 1 + rng.below(6))?;
        Some(Task::Send(Send {
            blocks,
            state: SendState::Taken,
        }))
    }

    /// Takes all that is dirty, to be sent. Nothing is on its way.
    pub(super) fn take_all(&mut self) {
        let mut from = self.map.blocks().first;
        while let Some(blocks) = self.map.take_dirty(from, u64::MAX) {
            from = blocks.end;
            self.tasks.push(Task::Send(Send {
                blocks,
                state: SendState::Taken,
            }));
        }
    }

    /// Goes on with one of the sends; false if there is none. Some fail.
    pub(super) fn send_on(&mut self, model: &mut Model, rng: &mut Rng) -> bool {
        let is_send = |task: &Task| matches!(task, Task::Send(_));
        let Some(at) = self.tasks.iter().position(is_send) else {
            return false;
        };
        if let Task::Send(send) = self.tasks.remove(at) {
            let next = self.advance_send(send, model, rng);
            self.tasks.extend(next);
        }
        true
    }

    /// The origin has lost its power: what it had not flushed goes once more.
    pub(super) fn origin_cut(&mut self) {
        let map = &self.map;
        self.tasks.retain(|task| match task {
            Task::Send(Send {
                blocks,
                state: SendState::Arrived,
            }) => {
                map.send_failed(*blocks);
                false
            }
            _ => true,
        });
    }

    fn advance_send(&mut self, mut send: Send, model: &mut Model, rng: &mut Rng) -> Option<Task> {
        send.state = match send.state {
            SendState::Taken => {
                let read = |at| (at, stamp_of(&self.data.sector(at)).expect("whole sectors"));
                SendState::Read(watched_sectors(send.blocks).map(read).collect())
            }
            SendState::Read(_) if rng.percent(20) => {
                self.map.send_failed(send.blocks);
                return None;
            }
            SendState::Read(read) => {
                for (sector, stamp) in read {
                    model.set_origin(sector, stamp);
                }
                SendState::Arrived
            }
            SendState::Arrived if self.fault != Some(Fault::CleanTooEarly) => {
                model.flush_origin();
                SendState::Flushed
            }
            SendState::Arrived | SendState::Flushed => {
                self.map.flushed(send.blocks);
                return None;
            }
        };
        Some(Task::Send(send))
    }
}

/// A few blocks that the model looks at.
fn some_blocks(rng: &mut Rng) -> BlockRange {
    let clusters = clusters();
    let cluster = clusters[rng.below(clusters.len() as u64) as usize];
    let first = cluster.first.0 + rng.below(cluster.len());
    let len = 1 + rng.below(4);
    BlockRange::new(first, (first + len).min(cluster.end.0))
}

fn last_of(blocks: BlockRange) -> crate::volume::geometry::BlockIndex {
    blocks.iter().next_back().expect("not empty")
}

fn watched_sectors(blocks: BlockRange) -> impl Iterator<Item = u64> {
    watched()
        .filter(move |block| (blocks.first..blocks.end).contains(block))
        .flat_map(sectors_of)
}
