//! What is measured.

use std::time::{Duration, Instant};

use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::geometry::CHUNK_BYTES_DEFAULT;
use blockferry::volume::{ByteOffset, Op, Request};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::Result;
use super::load::{DEPTH, Dice, Done, Queue};
use super::world::World;

const BLOCK: u64 = 4096;
const SEQUENTIAL: u64 = 128 << 10;

/// How much of the volume is written to.
const WRITTEN_BYTES: u64 = 64 << 20;

/// How many reads of a chunk each, at most, and how long they may take.
const READS_MAX: usize = 300;

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// From nothing to a device, and to the first byte that was read
    Open,
    /// The background pull and a bare stream
    Pull,
    /// Reads of what is not here, with and without a pull
    Demand,
    /// Writes
    Write,
    /// One reader from the start of the volume on
    Sequential,
}

impl Case {
    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(crate) fn run(self, world: &World, rounds: usize, time: Duration) -> Result<Value> {
        match self {
            Self::Open => open(world, rounds),
            Self::Pull => pull(world, rounds, time),
            Self::Demand => demand(world, time),
            Self::Write => write(world, time),
            Self::Sequential => sequential(world, time),
        }
    }
}

/// Nothing is fetched unless it is asked for.
fn quiet() -> ManagedOptions {
    ManagedOptions {
        pull: PullOrder::Nothing,
        ..ManagedOptions::default()
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Each with a connection and a store that are new, and with the usual options: the pull has begun
/// when the read comes.
fn open(world: &World, rounds: usize) -> Result<Value> {
    let middle = world.len_bytes / 2;
    let (mut open_ms, mut read_ms, mut later_ms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut direct_open_ms, mut direct_read_ms) = (Vec::new(), Vec::new());
    for round in 0..4 * rounds as u64 {
        let begun = Instant::now();
        let mut mounted = world.managed(ManagedOptions::default())?;
        open_ms.push(ms(begun.elapsed()));
        // As long as a device takes to come up, or not at all.
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let took = ms(mounted.queue.read(middle + round * BLOCK, BLOCK)?);
        match round % 2 {
            0 => read_ms.push(took),
            _ => later_ms.push(took),
        }
        mounted.end()?;
        let begun = Instant::now();
        let mut mounted = world.direct()?;
        direct_open_ms.push(ms(begun.elapsed()));
        direct_read_ms.push(ms(mounted.queue.read(middle + round * BLOCK, BLOCK)?));
        mounted.end()?;
    }
    Ok(json!({
        "open_ms": open_ms, "first_read_ms": read_ms, "first_read_10_ms_later_ms": later_ms,
        "direct_open_ms": direct_open_ms, "direct_first_read_ms": direct_read_ms,
    }))
}

/// Connections are new, and their start counts. Who goes first alternates.
fn pull(world: &World, rounds: usize, time: Duration) -> Result<Value> {
    let (mut pulled, mut bare) = (Vec::new(), Vec::new());
    let pull = || -> Result<f64> {
        let mounted = world.managed(ManagedOptions::default())?;
        let begun = Instant::now();
        while begun.elapsed() < time && !is_local(mounted.managed()?) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let bytes = mounted.managed()?.status().local_bytes;
        let rate = bytes as f64 / begun.elapsed().as_secs_f64();
        mounted.end()?;
        Ok(rate)
    };
    for round in 0..rounds {
        if round % 2 == 0 {
            bare.push(world.bare_rate(time)?);
            pulled.push(pull()?);
        } else {
            pulled.push(pull()?);
            bare.push(world.bare_rate(time)?);
        }
    }
    Ok(json!({ "pull_bytes_a_second": pulled, "bare_bytes_a_second": bare }))
}

fn is_local(mount: &blockferry::mount::managed::ManagedMount) -> bool {
    let status = mount.status();
    status.local_bytes == status.size_bytes
}

/// One read at a time, each of another chunk, in the second half of the volume.
fn demand(world: &World, time: Duration) -> Result<Value> {
    let mut idle = world.managed(quiet())?;
    let alone = reads(world, &mut idle.queue, time)?;
    idle.end()?;
    let mut pulling = world.managed(ManagedOptions::default())?;
    std::thread::sleep(time / 2);
    let before = (Instant::now(), pulling.managed()?.status().local_bytes);
    let beside = reads(world, &mut pulling.queue, time)?;
    let local_bytes = pulling.managed()?.status().local_bytes;
    let rate = (local_bytes - before.1) as f64 / before.0.elapsed().as_secs_f64();
    let finished = is_local(pulling.managed()?);
    pulling.end()?;
    let mut direct = world.direct()?;
    let directly = reads(world, &mut direct.queue, time)?;
    direct.end()?;
    let chunk_ms = world
        .link
        .down
        .rate_bits_per_s
        .map(|rate| CHUNK_BYTES_DEFAULT as f64 * 8e3 / rate as f64);
    Ok(json!({
        "idle": times(&alone), "pulling": times(&beside), "direct": times(&directly),
        "rate_meanwhile": rate, "pull_ended": finished, "chunk_ms": chunk_ms,
    }))
}

fn reads(world: &World, queue: &mut Queue, time: Duration) -> Result<Done> {
    let chunks = world.len_bytes / CHUNK_BYTES_DEFAULT / 2;
    let order = Dice(7).shuffled(chunks);
    let mut next = order.into_iter().take(READS_MAX);
    let end = Instant::now() + time;
    let blocks = CHUNK_BYTES_DEFAULT / BLOCK;
    let mut dice = Dice(3);
    queue.keep_busy(1, || {
        let chunk = next.next().filter(|_| Instant::now() < end)?;
        let block = (chunks + chunk) * blocks + dice.below(blocks);
        Some(Request::new(Op::Read, ByteOffset(block * BLOCK), BLOCK))
    })
}

fn times(done: &Done) -> Value {
    json!({
        "count": done.times.len(), "p50_ms": done.percentile_us(0.5) / 1e3,
        "p90_ms": done.percentile_us(0.9) / 1e3, "p99_ms": done.percentile_us(0.99) / 1e3,
        "max_ms": done.percentile_us(1.0) / 1e3,
    })
}

/// Blocks that are not here, at random places, pushed as usual; the same blocks of a direct mount.
fn write(world: &World, time: Duration) -> Result<Value> {
    let mut result = serde_json::Map::new();
    for depth in [1, DEPTH] {
        let mut mounted = world.managed(quiet())?;
        let done = writes(&mut mounted.queue, depth, time)?;
        mounted.end()?;
        result.insert(format!("managed_{depth}"), written(&done));
        let mut mounted = world.direct()?;
        let done = writes(&mut mounted.queue, depth, time / 2)?;
        mounted.end()?;
        result.insert(format!("direct_{depth}"), written(&done));
    }
    Ok(result.into())
}

fn writes(queue: &mut Queue, depth: u16, time: Duration) -> Result<Done> {
    let end = Instant::now() + time;
    let mut dice = Dice(5);
    queue.keep_busy(depth, || {
        let block = dice.below(WRITTEN_BYTES / BLOCK);
        let request = Request::new(Op::Write, ByteOffset(block * BLOCK), BLOCK);
        (Instant::now() < end).then_some(request)
    })
}

fn written(done: &Done) -> Value {
    json!({
        "iops": done.requests_a_second(), "p50_us": done.percentile_us(0.5),
        "p99_us": done.percentile_us(0.99), "max_us": done.percentile_us(1.0),
    })
}

/// 128 KiB at a time, one after the other: cold, again, and by a direct mount.
fn sequential(world: &World, time: Duration) -> Result<Value> {
    let mut mounted = world.managed(ManagedOptions::default())?;
    let cold = run_through(world, &mut mounted.queue, time, world.len_bytes)?;
    let again = run_through(world, &mut mounted.queue, time, cold.bytes)?;
    mounted.end()?;
    let mut mounted = world.managed(quiet())?;
    let without_pull = run_through(world, &mut mounted.queue, time, world.len_bytes)?;
    mounted.end()?;
    let mut mounted = world.direct()?;
    let direct = run_through(world, &mut mounted.queue, time, world.len_bytes)?;
    mounted.end()?;
    Ok(json!({
        "cold": cold.bytes_a_second(), "again": again.bytes_a_second(),
        "without_pull": without_pull.bytes_a_second(), "direct": direct.bytes_a_second(),
    }))
}

fn run_through(world: &World, queue: &mut Queue, time: Duration, len: u64) -> Result<Done> {
    let end = Instant::now() + time;
    let mut at = 0;
    queue.keep_busy(1, || {
        let begin = at;
        at += SEQUENTIAL;
        let more = at <= len.min(world.len_bytes) && Instant::now() < end;
        more.then(|| Request::new(Op::Read, ByteOffset(begin), SEQUENTIAL))
    })
}
