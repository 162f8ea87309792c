//! One queue: its own sectors, many requests at once, and what it knows of its sectors.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockferry::volume::{ByteOffset, Durability, Errno, Op, Outcome, Request, Tag, Volume};

use super::engine_support::{BUFFER_BYTES, DEPTH, Rig, SECTOR};
use super::managed_support::{Origin, flush};
use super::model::{Model, Stamp, sectors_of};

/// The most sectors of a request that carries bytes.
const SECTORS_MAX: u64 = BUFFER_BYTES as u64 / SECTOR;

/// How often something is tried again that failed as planned.
const TRIES: u32 = 200;

/// Numbers that repeat themselves for a seed (splitmix64).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What all queues of a case have in common.
pub(crate) struct Case {
    pub(crate) origin: Arc<Origin>,
    pub(crate) durability: Durability,
    /// Where the resource ends.
    pub(crate) end: u64,
    /// The mount was dropped, or the origin fails: requests may fail.
    pub(crate) killed: AtomicBool,
}

/// A queue's sectors; they outlive its thread.
pub(crate) struct Worker {
    pub(crate) segments: Vec<Range<u64>>,
    pub(crate) model: Model,
    pub(crate) rng: Rng,
    next_stamp: Stamp,
    /// What was written since the last flush that promised the origin.
    unflushed: Vec<Range<u64>>,
}

#[derive(Debug, Clone)]
struct Asked {
    request: Request,
    sectors: Range<u64>,
    /// `None`: it only reads.
    stamp: Option<Stamp>,
}

impl Worker {
    pub(crate) fn new(number: u64, segments: Vec<Range<u64>>, seed: u64) -> Self {
        Self {
            segments,
            model: Model::default(),
            rng: Rng::new(seed ^ number.wrapping_mul(0x1234_5678_9abc_def1)),
            next_stamp: (number + 1) << 48,
            unflushed: Vec::new(),
        }
    }

    /// Runs some batches of requests.
    pub(crate) fn run(
        &mut self,
        case: &Case,
        volume: Arc<Volume>,
        batches: u64,
    ) -> Result<(), String> {
        let mut rig = Rig::new(volume);
        for _ in 0..batches {
            self.batch(case, &mut rig)?;
            if case.killed.load(Ordering::Relaxed) && self.rng.one_in(3) {
                break;
            }
            if self.rng.one_in(4) {
                self.flush(case, &mut rig)?;
            }
        }
        Ok(())
    }

    /// Requests that do not overlap, all at once.
    fn batch(&mut self, case: &Case, rig: &mut Rig) -> Result<(), String> {
        let count = 1 + self.rng.below(u64::from(DEPTH) - 1);
        let mut asked: HashMap<Tag, Asked> = HashMap::new();
        let mut ended: HashMap<Tag, Outcome> = HashMap::new();
        for tag in (0..count).map(|tag| Tag(tag as u16)) {
            let next = self.ask();
            let overlaps = |other: &Asked| {
                other.sectors.start < next.sectors.end && next.sectors.start < other.sectors.end
            };
            if asked.values().any(overlaps) {
                continue;
            }
            self.fill(case, rig, tag, &next);
            if let Some(outcome) = rig.start(tag, next.request) {
                ended.insert(tag, outcome);
            }
            asked.insert(tag, next);
        }
        ended.extend(rig.finish());
        let mut again = Vec::new();
        for (tag, asked) in asked {
            if !self.ended(case, rig, tag, &asked, ended[&tag])? {
                again.push(asked);
            }
        }
        again
            .into_iter()
            .try_for_each(|asked| self.repeat(case, rig, &asked))
    }

    fn ask(&mut self) -> Asked {
        let segment = self.segments[self.rng.below(self.segments.len() as u64) as usize].clone();
        let kind = self.rng.below(10);
        let len = segment.end - segment.start;
        let most = match kind {
            // Only these may be long.
            0 | 1 => len,
            _ => len.min(SECTORS_MAX),
        };
        let (from, count) = match self.rng.below(8) {
            0 if kind < 2 => (0, len),
            // Whole blocks, as a file system writes them.
            1..5 if len > 16 => {
                let skipped = segment.start.next_multiple_of(8) - segment.start;
                let blocks = (len - skipped) / 8;
                let from = self.rng.below(blocks);
                (skipped + from * 8, (1 + self.rng.below(blocks - from)) * 8)
            }
            _ => {
                let from = self.rng.below(len);
                (from, 1 + self.rng.below(len - from))
            }
        };
        let count = count.min(most);
        let sectors = segment.start + from..segment.start + from + count;
        let (op, stamp) = match kind {
            0 => (Op::Discard, Some(0)),
            1 => (Op::WriteZeroes, Some(0)),
            2..6 => (Op::Read, None),
            _ => {
                self.next_stamp += 1;
                // Zeros are written, too.
                let stamp = if self.rng.one_in(12) {
                    0
                } else {
                    self.next_stamp
                };
                (Op::Write, Some(stamp))
            }
        };
        let mut request = Request::new(op, ByteOffset(sectors.start * SECTOR), count * SECTOR);
        request.fua = stamp.is_some() && op != Op::Discard && self.rng.one_in(8);
        request.no_unmap = op == Op::WriteZeroes && self.rng.one_in(2);
        Asked {
            request,
            sectors,
            stamp,
        }
    }

    fn fill(&self, case: &Case, rig: &mut Rig, tag: Tag, asked: &Asked) {
        let buffer = &mut rig.buffers[tag.index()];
        match (asked.request.op, asked.stamp) {
            (Op::Read, _) => buffer.fill(0xee),
            (Op::Write, Some(stamp)) => {
                sectors_of(asked.sectors.clone(), stamp, case.end, buffer);
            }
            _ => {}
        }
    }

    /// False: it failed, and has to be tried again.
    fn ended(
        &mut self,
        case: &Case,
        rig: &Rig,
        tag: Tag,
        asked: &Asked,
        outcome: Outcome,
    ) -> Result<bool, String> {
        let sectors = asked.sectors.clone();
        match (outcome, asked.stamp) {
            (Ok(()), None) => self.check_read(case, sectors, &rig.buffers[tag.index()])?,
            (Ok(()), Some(stamp)) => {
                self.model.set(sectors.clone(), stamp);
                match (asked.request.fua, case.durability) {
                    (true, Durability::Remote) => self.check_durable(case, sectors)?,
                    _ => self.unflushed.push(sectors),
                }
            }
            (Err(Errno::EIO), None) => {}
            (Err(Errno::EIO), Some(stamp)) => {
                self.model.add(sectors.clone(), stamp);
                self.unflushed.push(sectors);
            }
            (Err(errno), _) => return Err(format!("{asked:?} failed with {errno:?}")),
        }
        Ok(outcome.is_ok() || case.killed.load(Ordering::Relaxed))
    }

    fn repeat(&mut self, case: &Case, rig: &mut Rig, asked: &Asked) -> Result<(), String> {
        for _ in 0..TRIES {
            self.fill(case, rig, Tag(0), asked);
            let outcome = rig.run(asked.request);
            if self.ended(case, rig, Tag(0), asked, outcome)? {
                return Ok(());
            }
        }
        Err(format!("{asked:?} fails for ever"))
    }

    fn check_read(&mut self, case: &Case, sectors: Range<u64>, bytes: &[u8]) -> Result<(), String> {
        for (sector, bytes) in sectors.zip(bytes.chunks_exact(SECTOR as usize)) {
            let inside = case.end.saturating_sub(sector * SECTOR).min(SECTOR) as usize;
            if bytes[inside..].iter().any(|byte| *byte != 0) {
                return Err(format!("sector {sector} has something behind the end"));
            }
            let stamp = self.model.check(sector, &bytes[..inside])?;
            // From now on it stays that.
            self.model.set(sector..sector + 1, stamp);
        }
        Ok(())
    }

    fn check_durable(&self, case: &Case, sectors: Range<u64>) -> Result<(), String> {
        let check = |sector: u64| {
            let inside = case.end.saturating_sub(sector * SECTOR).min(SECTOR);
            let bytes = case.origin.durable(sector * SECTOR, inside as usize);
            let checked = self.model.check(sector, &bytes);
            checked
                .map(drop)
                .map_err(|what| format!("flushed, but at the origin {what}"))
        };
        if sectors.end - sectors.start > 4096 {
            // Of a large hole what is not zeros, and its ends.
            let ends = [sectors.start, sectors.end - 1];
            return self
                .model
                .touched_in(sectors)
                .chain(ends)
                .try_for_each(check);
        }
        sectors.into_iter().try_for_each(check)
    }

    fn flush(&mut self, case: &Case, rig: &mut Rig) -> Result<(), String> {
        match rig.run(flush()) {
            Ok(()) if case.durability == Durability::Remote => {
                let written = std::mem::take(&mut self.unflushed);
                written
                    .into_iter()
                    .try_for_each(|sectors| self.check_durable(case, sectors))
            }
            Ok(()) => {
                self.unflushed.clear();
                Ok(())
            }
            Err(Errno::EIO) => Ok(()),
            Err(errno) => Err(format!("a flush failed with {errno:?}")),
        }
    }

    /// Reads everything that is not zeros, so that it is certain.
    pub(crate) fn look_at_all(&mut self, case: &Case, rig: &mut Rig) -> Result<(), String> {
        let sectors: Vec<u64> = self.model.touched().collect();
        for run in sectors.chunk_by(|one, next| one + 1 == *next) {
            for part in run.chunks(SECTORS_MAX as usize) {
                let sectors = part[0]..part[0] + part.len() as u64;
                let at = ByteOffset(sectors.start * SECTOR);
                let request = Request::new(Op::Read, at, part.len() as u64 * SECTOR);
                let mut tries = (0..TRIES).map(|_| {
                    rig.buffers[0].fill(0xee);
                    rig.run(request)
                });
                if !tries.any(|outcome| outcome.is_ok()) {
                    return Err(format!("{sectors:?} cannot be read"));
                }
                self.check_read(case, sectors, &rig.buffers[0])?;
            }
        }
        Ok(())
    }
}
