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

/// The part of the volume, at its end, in which single reads are: a pull does not come there.
const READ_PART: u64 = 4;

/// How much of the volume is written to.
const WRITTEN_BYTES: u64 = 64 << 20;

/// How long a pull goes on before reads beside it are measured.
const PULL_BEGINS: Duration = Duration::from_millis(1500);

/// How many reads there are in a row, at most, each of another chunk.
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
            Self::Demand => demand(world, rounds, time),
            Self::Write => write(world, rounds, time),
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

/// One read at a time, each of another chunk: with nothing else under way, once more, beside a pull at
/// full speed, and by a direct mount. The rounds take turns and are taken together.
fn demand(world: &World, rounds: usize, time: Duration) -> Result<Value> {
    let (mut alone, mut again, mut beside) = (Done::default(), Done::default(), Done::default());
    let (mut directly, mut rates, mut ended) = (Done::default(), Vec::new(), false);
    for _ in 0..rounds {
        let mut idle = world.managed(quiet())?;
        let first = reads(world, &mut idle.queue, READS_MAX, time)?;
        again.add(reads(world, &mut idle.queue, first.times.len(), time)?);
        alone.add(first);
        idle.end()?;

        let mut pulling = world.managed(ManagedOptions::default())?;
        // Beyond the start, in which the rate of the link has to be found out.
        std::thread::sleep(PULL_BEGINS);
        let (since, before) = (Instant::now(), pulling.managed()?.status().local_bytes);
        beside.add(reads(world, &mut pulling.queue, READS_MAX, time)?);
        let local_bytes = pulling.managed()?.status().local_bytes;
        rates.push((local_bytes - before) as f64 / since.elapsed().as_secs_f64());
        ended |= local_bytes >= world.len_bytes / READ_PART * (READ_PART - 1);
        pulling.end()?;

        let mut direct = world.direct()?;
        directly.add(reads(world, &mut direct.queue, READS_MAX, time)?);
        direct.end()?;
    }
    let rate = world.link.down.rate_bits_per_s;
    let chunk_ms = rate.map(|rate| CHUNK_BYTES_DEFAULT as f64 * 8e3 / rate as f64);
    Ok(json!({
        "idle": times(&alone), "again": times(&again), "pulling": times(&beside), "direct": times(&directly),
        "pull_bytes_a_second": rates, "pull_came_there": ended, "chunk_ms": chunk_ms,
    }))
}

fn reads(world: &World, queue: &mut Queue, most: usize, time: Duration) -> Result<Done> {
    let chunks = world.len_bytes / CHUNK_BYTES_DEFAULT;
    let part = chunks / READ_PART;
    let mut next = Dice(7).shuffled(part).into_iter().take(most);
    let end = Instant::now() + time;
    let blocks = CHUNK_BYTES_DEFAULT / BLOCK;
    let mut dice = Dice(3);
    queue.keep_busy(1, || {
        let chunk = next.next().filter(|_| Instant::now() < end)?;
        let block = (chunks - part + chunk) * blocks + dice.below(blocks);
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

/// Blocks that are not here, at random places: of a mount that pushes them all the time, and of one
/// where they stay; and of a direct mount.
fn write(world: &World, rounds: usize, time: Duration) -> Result<Value> {
    let time = time / 3;
    let mut result = serde_json::Map::new();
    for depth in [1, DEPTH] {
        let (mut pushed, mut kept, mut directly) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (push, done) in [(true, &mut pushed), (false, &mut kept)] {
                let mut mounted = world.managed(ManagedOptions {
                    push,
                    push_interval: time / 8,
                    ..quiet()
                })?;
                done.push(written(&writes(&mut mounted.queue, depth, time)?));
                mounted.end()?;
            }
            let mut mounted = world.direct()?;
            directly.push(written(&writes(&mut mounted.queue, depth, time / 2)?));
            mounted.end()?;
        }
        let all = json!({ "pushed": pushed, "kept": kept, "direct": directly });
        result.insert(format!("depth_{depth}"), all);
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
