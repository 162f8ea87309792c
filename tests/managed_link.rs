//! A pull fills a link with delay and rate, and a demand read hardly notices.
//!
//! The link is simulated: it has a queue without end, in which nobody overtakes. So bytes that are in
//! it delay whoever comes later, and only a window keeps them few.

mod engine_support;
mod managed_support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blockferry::mount::managed::{ManagedOptions, PullOrder};

use engine_support::Rig;
use managed_support::link::Link;
use managed_support::{BLOCK, Origin, World};

const CHUNK: u64 = 256 << 10;

/// Slow enough for a busy machine in a debug build.
const RATE: f64 = 40e6;

/// Times are measured, so one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn world(size: u64, round_trip: Duration) -> World {
    world_with_zeros(0, size, round_trip)
}

/// Zeros, which take no room on the link, before everything else.
fn world_with_zeros(zeros: u64, size: u64, round_trip: Duration) -> World {
    let mut origin = Origin::new(size);
    origin.link = Some(Link::new(RATE, round_trip));
    let page = [1; BLOCK as usize];
    (zeros / BLOCK..size / BLOCK).for_each(|block| origin.fill(block * BLOCK, &page));
    let mut world = World::in_memory(origin);
    world.options.chunk_bytes = CHUNK;
    world
}

fn link(world: &World) -> &Link {
    world.origin.link.as_ref().expect("a link")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Reads chunks that nobody has asked for, from the end of the volume on, one after the other.
fn demand_times(world: &World, rig: &mut Rig, from: u64, count: u64) -> Vec<Duration> {
    let chunks = world.resource.geometry.resource_bytes() / CHUNK;
    let times = (from..from + count).map(|number| {
        // Not in a run, which would be read ahead.
        let since = Instant::now();
        rig.get((chunks - 1 - 2 * number) * CHUNK, BLOCK);
        since.elapsed()
    });
    times.collect()
}

#[test]
fn a_demand_read_under_a_pull_at_full_speed_takes_a_chunk_longer() {
    let _turn = turn();
    for round_trip_ms in [10, 50] {
        let world = world(96 << 20, Duration::from_millis(round_trip_ms));
        let idle = {
            let mount = world.mount();
            median(demand_times(&world, &mut Rig::of(&mount), 0, 9))
        };
        std::fs::remove_dir_all(world.cache_path()).expect("removed");
        let mount = world.mount_as(ManagedOptions {
            pull: PullOrder::Sequential,
            ..world.options.clone()
        });
        let mut rig = Rig::of(&mount);
        // Beyond the start, in which the window has to find out.
        managed_support::until("a third is pulled", || {
            mount.status().local_bytes > 32 << 20
        });
        let pulling = median(demand_times(&world, &mut rig, 20, 15));
        assert!(
            mount.status().local_bytes < 96 << 20,
            "the pull went on meanwhile"
        );
        // Its own place behind the chunk that is on the link, and what timers and threads cost here.
        let allowed = idle + link(&world).time_of(CHUNK).mul_f64(1.5) + Duration::from_millis(5);
        assert!(
            pulling <= allowed,
            "{round_trip_ms} ms: {idle:?} idle, {pulling:?} under the pull, {allowed:?} allowed"
        );
    }
}

/// What a pull costs this machine now, in this build.
fn pull_time_without_a_link(size: u64) -> Duration {
    let origin = Origin::new(size);
    let page = [1; BLOCK as usize];
    (0..size / BLOCK).for_each(|block| origin.fill(block * BLOCK, &page));
    let mut world = World::in_memory(origin);
    world.options.chunk_bytes = CHUNK;
    let since = Instant::now();
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..world.options.clone()
    });
    world.run(mount.pulled());
    since.elapsed()
}

#[test]
fn a_pull_uses_the_link() {
    let _turn = turn();
    let size = 128 << 20;
    let own_s = pull_time_without_a_link(size).as_secs_f64();
    for round_trip_ms in [0, 25, 50] {
        let world = world(size, Duration::from_millis(round_trip_ms));
        let since = Instant::now();
        let mount = world.mount_as(ManagedOptions {
            pull: PullOrder::Sequential,
            ..world.options.clone()
        });
        world.run(mount.pulled());
        let (link_s, took_s) = (
            link(&world).time_of(size).as_secs_f64(),
            since.elapsed().as_secs_f64(),
        );
        let share = (link_s + own_s) / took_s;
        assert!(
            share >= 0.85,
            "{round_trip_ms} ms: {took_s:.2} s, {link_s:.2} s on the link, {own_s:.2} s without one"
        );
        assert_eq!(mount.status().local_bytes, size);
    }
}

#[test]
fn zeros_come_faster_than_the_link_and_do_not_flood_it_when_they_end() {
    let _turn = turn();
    let (zeros, size) = (96 << 20, 160 << 20);
    let world = world_with_zeros(zeros, size, Duration::from_millis(25));
    let idle = {
        let mount = world.mount();
        median(demand_times(&world, &mut Rig::of(&mount), 0, 9))
    };
    std::fs::remove_dir_all(world.cache_path()).expect("removed");
    let since = Instant::now();
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    managed_support::until("the zeros are pulled", || {
        mount.status().local_bytes >= zeros
    });
    let as_bytes = link(&world).time_of(zeros);
    assert!(
        since.elapsed() < as_bytes * 3 / 4,
        "{:?} for {as_bytes:?}",
        since.elapsed()
    );
    let pulling = median(demand_times(&world, &mut rig, 20, 15));
    assert!(
        mount.status().local_bytes < size,
        "the pull went on meanwhile"
    );
    let allowed = idle + link(&world).time_of(CHUNK).mul_f64(1.5) + Duration::from_millis(5);
    assert!(
        pulling <= allowed,
        "{idle:?} idle, {pulling:?} after the zeros, {allowed:?} allowed"
    );
}

#[test]
fn writes_are_as_fast_as_the_store_however_far_the_origin_is() {
    let _turn = turn();
    let round_trip = Duration::from_millis(100);
    let world = world(16 << 20, round_trip);
    let mount = world.mount_as(ManagedOptions {
        push: true,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    let times = (0..512).map(|block| {
        let since = Instant::now();
        assert_eq!(rig.put(block * 2 * BLOCK, BLOCK, 2), Ok(()));
        since.elapsed()
    });
    let typical = median(times.collect());
    assert!(typical < round_trip / 10, "{typical:?}");
    world.run(mount.sync()).expect("synced");
}
