//! A device in miniature: one queue, and the requests that keep it busy.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry::volume::{
    ByteOffset, EngineQueue, Op, Outcome, Owner, QueueRing, Request, RequestBuffer, RequestMemory,
    Tag, Volume,
};

use super::Result;

pub(crate) const DEPTH: u16 = 32;
const BUFFER_BYTES: usize = 128 << 10;

/// A queue with its ring and its buffers, used by one thread.
pub(crate) struct Queue {
    ring: QueueRing,
    queue: EngineQueue,
    /// Page-aligned, as a device's are.
    buffers: Vec<memmap2::MmapMut>,
}

/// What a load did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) times: Vec<Duration>,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

impl Done {
    /// In microseconds.
    pub(crate) fn percentile_us(&self, part: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = (times.len().saturating_sub(1) as f64 * part) as usize;
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// Takes another load's requests as its own.
    pub(crate) fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
    }

    pub(crate) fn bytes_a_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn requests_a_second(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }
}

impl Queue {
    pub(crate) fn new(volume: &Arc<Volume>) -> Result<Self> {
        let mut ring = QueueRing::new(DEPTH)?;
        let queue = EngineQueue::new(Arc::clone(volume), DEPTH)?;
        if volume.needs_bell() {
            ring.arm_bell(&queue.post().bell)?;
        }
        let noise = |number: u8| -> io::Result<_> {
            let mut buffer = memmap2::MmapMut::map_anon(BUFFER_BYTES)?;
            buffer.fill(number | 1);
            Ok(buffer)
        };
        Ok(Self {
            ring,
            queue,
            buffers: (0..DEPTH as u8).map(noise).collect::<io::Result<_>>()?,
        })
    }

    /// Reads once; how long that took.
    pub(crate) fn read(&mut self, offset: u64, len_bytes: u64) -> Result<Duration> {
        let mut once = Some(Request::new(Op::Read, ByteOffset(offset), len_bytes));
        let done = self.keep_busy(1, || once.take())?;
        Ok(done.times[0])
    }

    /// Keeps `depth` requests under way until `next` has none, and waits for the last.
    pub(crate) fn keep_busy(
        &mut self,
        depth: u16,
        mut next: impl FnMut() -> Option<Request>,
    ) -> Result<Done> {
        let mut done = Done::default();
        let mut free: VecDeque<u16> = (0..depth.min(DEPTH)).collect();
        let mut began = [(Instant::now(), 0); DEPTH as usize];
        let (begun, mut under_way, mut last) = (Instant::now(), 0, false);
        loop {
            while let Some(tag) = free.front().copied()
                && !last
            {
                let Some(request) = next() else {
                    last = true;
                    break;
                };
                free.pop_front();
                began[usize::from(tag)] = (Instant::now(), request.len_bytes);
                match self.start(Tag(tag), request) {
                    None => under_way += 1,
                    Some(outcome) => {
                        done.note(outcome, began[usize::from(tag)])?;
                        free.push_back(tag);
                    }
                }
            }
            if under_way == 0 {
                done.elapsed = begun.elapsed();
                return Ok(done);
            }
            self.wait(|tag, outcome| {
                under_way -= 1;
                free.push_back(tag.0);
                done.note(outcome, began[tag.index()])
            })?;
        }
    }

    fn start(&mut self, tag: Tag, request: Request) -> Option<Outcome> {
        let buffer = &mut self.buffers[tag.index()];
        let address = NonNull::from(&mut buffer[0]);
        // SAFETY: the buffer is not touched before the request has ended, and is as long.
        let memory = unsafe { RequestMemory::new(address, request.len_bytes as usize) };
        let buffer = RequestBuffer::Memory(memory);
        self.queue.start(&mut self.ring, tag, request, buffer)
    }

    fn wait(&mut self, mut ended: impl FnMut(Tag, Outcome) -> Result<()>) -> Result<()> {
        self.queue.wait(&mut self.ring)?;
        let batch = self.ring.completions();
        let mut result = Ok(());
        for completion in &batch {
            match completion.owner {
                Owner::Engine => {
                    let (tag, code) = (completion.tag, completion.result);
                    if let Some(outcome) = self.queue.completed(&mut self.ring, tag, code) {
                        result = result.and(ended(tag, outcome));
                    }
                }
                Owner::Bell => self.ring.arm_bell(&self.queue.post().bell)?,
                Owner::Device => {}
            }
        }
        self.ring.recycle(batch);
        self.queue.collect(&mut self.ring, |_, tag, outcome| {
            let ended = ended(tag, outcome);
            if result.is_ok() {
                result = ended;
            }
        });
        result
    }
}

impl Done {
    fn note(&mut self, outcome: Outcome, (began, bytes): (Instant, u64)) -> Result<()> {
        outcome.map_err(io::Error::from)?;
        self.times.push(began.elapsed());
        self.bytes += bytes;
        Ok(())
    }
}

/// Numbers in a disorder that is the same each time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }

    /// All numbers from 0, each once.
    pub(crate) fn shuffled(&mut self, count: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..count).collect();
        for last in (1..numbers.len()).rev() {
            numbers.swap(last, self.below(last as u64 + 1) as usize);
        }
        numbers
    }
}
