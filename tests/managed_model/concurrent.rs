//! Several queues at once, each with many requests on sectors of its own, which share blocks, chunks
//! and regions with those of the others; beside them pulls, pushes, syncs, checkpoints, an origin that
//! fails and is slow, restarts and kills.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use blockferry::mount::managed::{ManagedMount, ManagedOptions, PullOrder};
use blockferry::volume::{Durability, Errno, Op};
use proptest::prelude::*;

use super::engine_support::{Rig, SECTOR};
use super::managed_support::bytes::Bytes;
use super::managed_support::{Origin, Plan, Trouble, World};
use super::model::sectors_of;
use super::worker::{Case, Rng, Worker};

const REGION_SECTORS: u64 = (128 << 20) / SECTOR;

/// How a round ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Nothing,
    Sync,
    Restart,
    /// In the middle of it.
    Kill,
}

#[derive(Debug, Clone)]
struct Setup {
    seed: u64,
    /// Three regions and a bit, of which little is touched.
    large: bool,
    /// How much the last sector is short.
    short_bytes: u64,
    chunk_bytes: u64,
    queues: u64,
    rings: bool,
    durability: Durability,
    pull: PullOrder,
    push: bool,
    sparse_map: bool,
    on_disk: bool,
    io_timeout_ms: Option<u64>,
    read_ahead: bool,
    rounds: Vec<End>,
}

fn setups() -> impl Strategy<Value = Setup> {
    let place = (
        any::<u64>(),
        prop::bool::weighted(0.3),
        prop_oneof![Just(0u64), 1..512u64],
        12u32..=18,
        1u64..=4,
        prop::bool::weighted(0.7),
    );
    let promise = prop_oneof![
        3 => Just(Durability::Local),
        3 => Just(Durability::Remote),
        1 => Just(Durability::None),
    ];
    let pull = prop_oneof![
        3 => Just(PullOrder::Sequential),
        2 => Just(PullOrder::Nothing),
        1 => Just(PullOrder::Priority(Arc::new(|chunk| -(chunk.0 as i64)))),
    ];
    let how = (
        promise,
        pull,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop_oneof![3 => Just(None), 1 => (5u64..50).prop_map(Some)],
        any::<bool>(),
    );
    let end = prop_oneof![
        1 => Just(End::Nothing),
        2 => Just(End::Sync),
        2 => Just(End::Restart),
        3 => Just(End::Kill),
    ];
    (place, how, prop::collection::vec(end, 1..5)).prop_map(|(place, how, rounds)| {
        let (seed, large, short_bytes, chunk_bits, queues, rings) = place;
        let (durability, pull, push, sparse_map, on_disk, io_timeout_ms, read_ahead) = how;
        Setup {
            seed,
            large,
            short_bytes,
            chunk_bytes: 1 << chunk_bits,
            queues,
            rings,
            durability,
            // All of three regions, chunk by chunk, would be all that there is time for.
            pull: if large && !sparse_map {
                PullOrder::Nothing
            } else {
                pull
            },
            push: push || durability == Durability::Remote,
            sparse_map,
            on_disk,
            io_timeout_ms,
            read_ahead,
            rounds,
        }
    })
}

impl Setup {
    fn sectors(&self) -> u64 {
        match self.large {
            true => 3 * REGION_SECTORS + 1001,
            false => 2003,
        }
    }

    fn end(&self) -> u64 {
        self.sectors() * SECTOR - self.short_bytes
    }

    /// Where something happens, and is something at the beginning.
    fn busy(&self) -> Vec<Range<u64>> {
        match self.large {
            true => vec![
                0..900,
                REGION_SECTORS - 500..REGION_SECTORS + 500,
                3 * REGION_SECTORS - 400..self.sectors(),
            ],
            false => std::iter::once(0..self.sectors()).collect(),
        }
    }

    /// The sectors of each queue: neighbours belong to different ones.
    fn segments(&self, rng: &mut Rng) -> Vec<Vec<Range<u64>>> {
        let mut segments = vec![Vec::new(); self.queues as usize];
        for busy in self.busy() {
            let mut at = busy.start;
            while at < busy.end {
                let longest = if rng.one_in(3) { 400 } else { 20 };
                let end = (at + 1 + rng.below(longest)).min(busy.end);
                segments[rng.below(self.queues) as usize].push(at..end);
                at = end;
            }
        }
        if self.large {
            // A whole region, and more, for one of them.
            segments[0].push(REGION_SECTORS + 500..3 * REGION_SECTORS - 400);
        }
        for (number, segments) in segments.iter_mut().enumerate() {
            if segments.is_empty() {
                // It reads and writes nothing but what nobody else does.
                let at = self.sectors() + 64 * number as u64;
                segments.push(at..at);
            }
        }
        segments
    }

    fn origin(&self, workers: &mut [Worker]) -> Origin {
        let end = self.end();
        let mut origin = Origin::new(end);
        origin.capabilities.sparse_map = self.sparse_map;
        for (number, worker) in (0u64..).zip(workers) {
            for segment in worker.segments.clone() {
                // Every third piece is a hole.
                let pieces = segment.clone().step_by(64).filter(|at| at / 64 % 3 != 0);
                for from in pieces.filter(|_| segment.end - segment.start < 4096) {
                    let sectors = from..(from + 64).min(segment.end);
                    let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR) as usize];
                    let stamp = (0xfff0 + number) << 48;
                    sectors_of(sectors.clone(), stamp, end, &mut bytes);
                    bytes.truncate((end - sectors.start * SECTOR) as usize);
                    origin.fill(sectors.start * SECTOR, &bytes);
                    worker.model.set(sectors, stamp);
                }
            }
        }
        origin
    }

    fn options(&self, usual: ManagedOptions) -> ManagedOptions {
        ManagedOptions {
            chunk_bytes: self.chunk_bytes,
            pull: self.pull.clone(),
            push: self.push,
            push_interval: Duration::from_millis(3),
            durability: self.durability,
            io_timeout: self.io_timeout_ms.map(Duration::from_millis),
            read_ahead_bytes: if self.read_ahead { 1 << 20 } else { 0 },
            memory_limit_bytes: 8 << 20,
            ..usual
        }
    }
}

/// What happens beside the requests, now and then.
fn disturb(world: &World, mount: &ManagedMount, rng: &mut Rng) -> Result<(), String> {
    let op = [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes][rng.below(4) as usize];
    match rng.below(8) {
        0 => {
            // It may fail, as planned.
            let _ = world.run(mount.sync());
        }
        1 => world
            .run(mount.checkpoint())
            .map_err(|error| error.to_string())?,
        2..4 => world.origin.plan(Plan {
            times: 1 + rng.below(3) as u32,
            ..Plan::always(op, Trouble::Error(Errno::EIO))
        }),
        4 => {
            for op in [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes] {
                world.origin.plan(Plan::always(op, Trouble::Hold));
            }
            world
                .run(mount.checkpoint())
                .map_err(|error| error.to_string())?;
            world.origin.release();
        }
        _ => world.origin.plan(Plan {
            times: 1 + rng.below(20) as u32,
            ..Plan::always(op, Trouble::Delay(Duration::from_millis(rng.below(4))))
        }),
    }
    Ok(())
}

/// One round; gives the mount back, unless it was killed.
fn round(
    world: &World,
    case: &Case,
    mount: ManagedMount,
    workers: &mut [Worker],
    end: End,
    rng: &mut Rng,
) -> Result<Option<ManagedMount>, String> {
    let mut mount = Some(mount);
    let kill_after = matches!(end, End::Kill).then(|| rng.below(4));
    let result = std::thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let threads: Vec<_> = workers
            .iter_mut()
            .filter(|worker| !worker.segments[0].is_empty())
            .map(|worker| {
                let volume = mount.as_ref().expect("mounted").volume().clone();
                let running = running.clone();
                scope.spawn(move || {
                    let batches = 2 + worker.rng.below(6);
                    let result = worker.run(case, volume, batches);
                    drop(running);
                    result
                })
            })
            .collect();
        drop(running);
        let mut disturbed = Ok(());
        let mut count = 0;
        while ended.recv_timeout(Duration::from_millis(1 + rng.below(8)))
            == Err(RecvTimeoutError::Timeout)
        {
            if kill_after == Some(count) {
                case.killed.store(true, Ordering::Relaxed);
                mount = None;
            }
            if let Some(mount) = &mount {
                disturbed = disturbed.and(disturb(world, mount, rng));
            }
            count += 1;
        }
        world.origin.release();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        results.fold(disturbed, Result::and)
    });
    if matches!(end, End::Kill) {
        mount = None;
    }
    case.killed.store(false, Ordering::Relaxed);
    result.map(|()| mount)
}

fn behaves(setup: &Setup) -> Result<(), String> {
    let mut rng = Rng::new(setup.seed);
    let segments = setup.segments(&mut rng);
    let numbered = (0u64..).zip(segments);
    let mut workers: Vec<_> = numbered
        .map(|(number, segments)| Worker::new(number, segments, setup.seed))
        .collect();
    let origin = setup.origin(&mut workers);
    let mut world = match setup.on_disk {
        true => World::new(origin),
        false => World::in_memory(origin),
    };
    world.rings = setup.rings;
    world.options = setup.options(world.options.clone());
    let case = Case {
        origin: world.origin.clone(),
        durability: setup.durability,
        end: setup.end(),
        killed: AtomicBool::new(false),
    };
    let mut mount = world.mount();
    for end in &setup.rounds {
        let left = round(&world, &case, mount, &mut workers, *end, &mut rng)?;
        mount = match (end, left) {
            (End::Restart, Some(mount)) => {
                world
                    .run(mount.finish())
                    .map_err(|error| error.to_string())?;
                drop(mount);
                world.mount()
            }
            (End::Sync, Some(mount)) => {
                world.run(mount.sync()).map_err(|error| error.to_string())?;
                mount
            }
            (_, Some(mount)) => mount,
            (_, None) => world.mount(),
        };
    }
    finish(setup, &world, &case, &mount, &mut workers)
}

/// All of it is what it should be, here and at the origin.
fn finish(
    setup: &Setup,
    world: &World,
    case: &Case,
    mount: &ManagedMount,
    workers: &mut [Worker],
) -> Result<(), String> {
    let mut rig = Rig::of(mount);
    for worker in workers.iter_mut() {
        worker.look_at_all(case, &mut rig)?;
    }
    world.run(mount.sync()).map_err(|error| error.to_string())?;
    if mount.dirty_bytes() != 0 {
        return Err(format!(
            "{} bytes are dirty after a sync",
            mount.dirty_bytes()
        ));
    }
    let mut expected = Bytes::default();
    for worker in workers {
        worker.model.write_to(&mut expected, setup.end());
    }
    match world
        .origin
        .all_durable()
        .first_difference(&expected, setup.end())
    {
        None => Ok(()),
        Some(at) => {
            let sector = at / SECTOR;
            Err(format!(
                "sector {sector} is {:x?} at the origin, not {:x?}, and {:x?} here",
                &world.origin.durable(sector * SECTOR, 8),
                &expected.get(sector * SECTOR, 8),
                &rig.get(sector * SECTOR, SECTOR)[..8],
            ))
        }
    }
}

proptest! {
    #![proptest_config(super::cases(640))]

    #[test]
    fn many_queues_see_their_own_writes_and_so_does_the_origin(setup in setups()) {
        behaves(&setup).map_err(TestCaseError::fail)?;
    }
}
