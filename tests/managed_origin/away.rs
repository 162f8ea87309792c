//! The origin is away for a while.

use std::time::{Duration, Instant};

use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::{Durability, Errno, Op, Tag};

use super::engine_support::{Rig, SECTOR};
use super::managed_support::{BLOCK, CHUNK, Plan, Trouble, World, discard, flush, read, until};
use super::{number_of, numbered};

const BLOCKS: u64 = 256;
const LIMIT: Duration = Duration::from_millis(300);

/// Nothing is answered until the origin is told to release.
fn cut(world: &World) {
    for op in [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes] {
        world.origin.plan(Plan::always(op, Trouble::Hold));
    }
}

fn options(world: &World) -> ManagedOptions {
    ManagedOptions {
        push: true,
        io_timeout: Some(LIMIT),
        ..world.options.clone()
    }
}

#[test]
fn misses_fail_when_their_time_is_over_and_only_then_and_all_else_goes_on() {
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let mount = world.mount_as(options(&world));
        let mut rig = Rig::of(&mount);
        rig.get(0, BLOCK);
        cut(&world);
        let since = Instant::now();
        assert_eq!(rig.try_get(5 * CHUNK, BLOCK), Err(Errno::EIO));
        assert!(since.elapsed() >= LIMIT, "{:?}", since.elapsed());
        let since = Instant::now();
        assert_eq!(rig.put(6 * CHUNK + SECTOR, SECTOR, 1), Err(Errno::EIO));
        assert!(since.elapsed() >= LIMIT, "{:?}", since.elapsed());
        assert_eq!(mount.status().timeouts, 2);

        assert_eq!(rig.get(BLOCK, BLOCK)[0], number_of(1));
        assert_eq!(rig.put(0, BLOCK, 2), Ok(()));
        assert_eq!(rig.put(7 * CHUNK, CHUNK, 3), Ok(()));
        assert_eq!(rig.run(discard(8 * CHUNK, CHUNK)), Ok(()));
        assert_eq!(rig.run(flush()), Ok(()), "this machine's disk is not away");
        assert_eq!(rig.get(7 * CHUNK, BLOCK)[0], 3);
        assert_eq!(mount.status().timeouts, 2);
        assert_eq!(
            world.origin.durable(7 * CHUNK, 1),
            [number_of(7 * CHUNK / BLOCK)]
        );

        world.origin.release();
        assert_eq!(rig.get(5 * CHUNK, BLOCK)[0], number_of(5 * CHUNK / BLOCK));
        assert_eq!(rig.put(6 * CHUNK + SECTOR, SECTOR, 4), Ok(()));
        until("everything is pushed", || mount.dirty_bytes() == 0);
        assert_eq!(world.origin.durable(0, 1), [2]);
        assert_eq!(
            world.origin.durable(6 * CHUNK, 1),
            [number_of(6 * CHUNK / BLOCK)]
        );
        assert_eq!(world.origin.durable(6 * CHUNK + SECTOR, 1), [4]);
        assert_eq!(world.origin.durable(7 * CHUNK, 1), [3]);
        assert_eq!(world.origin.durable(8 * CHUNK, 1), [0]);
    }
}

#[test]
fn a_write_that_failed_for_its_edges_has_changed_nothing() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount_as(options(&world));
    let mut rig = Rig::of(&mount);
    cut(&world);
    assert_eq!(rig.put(SECTOR, 2 * CHUNK / 4, 9), Err(Errno::EIO));
    let edge = discard(3 * CHUNK + SECTOR, CHUNK);
    assert_eq!(rig.run(edge), Err(Errno::EIO));
    world.origin.release();
    for block in 0..16 {
        assert_eq!(
            rig.get(block * BLOCK, BLOCK),
            [number_of(block); BLOCK as usize]
        );
    }
    for at in [3 * CHUNK, 3 * CHUNK + BLOCK, 4 * CHUNK] {
        assert_eq!(rig.get(at, BLOCK), [number_of(at / BLOCK); BLOCK as usize]);
    }
    assert_eq!(mount.dirty_bytes(), 0);
}

#[test]
fn a_flush_that_promises_the_origin_fails_in_time_and_the_next_one_keeps_it() {
    let mut world = World::new(numbered(BLOCKS));
    world.options.durability = Durability::Remote;
    let mount = world.mount_as(options(&world));
    let mut rig = Rig::of(&mount);
    cut(&world);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    let since = Instant::now();
    assert_eq!(rig.run(flush()), Err(Errno::EIO));
    assert!(since.elapsed() >= LIMIT, "{:?}", since.elapsed());
    world.origin.release();
    assert_eq!(rig.run(flush()), Ok(()));
    assert_eq!(world.origin.durable(0, 1), [1]);
}

#[test]
fn the_pull_goes_on_when_the_origin_is_back_and_after_it_failed() {
    let world = World::new(numbered(BLOCKS));
    world.origin.plan(Plan {
        times: 3,
        ..Plan::always(Op::Read, Trouble::Error(Errno::EIO))
    });
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..options(&world)
    });
    let mut rig = Rig::of(&mount);
    until("some is pulled", || mount.status().local_bytes > 0);
    cut(&world);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    world.origin.release();
    world.run(mount.pulled());
    assert_eq!(mount.status().local_bytes, BLOCKS * BLOCK);
    assert_eq!(rig.get(0, BLOCK)[0], 1);
    assert_eq!(rig.get(BLOCK, BLOCK)[0], number_of(1));
}

#[test]
fn what_was_on_its_way_when_the_process_died_goes_again() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount_as(options(&world));
    let mut rig = Rig::of(&mount);
    cut(&world);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    world.run(world.origin.held(1));
    assert_eq!(rig.put(BLOCK, BLOCK, 2), Ok(()));
    drop((mount, rig));
    let mount = world.mount();
    assert_eq!(mount.dirty_bytes(), 2 * BLOCK);
    assert_eq!(mount.status().local_bytes, 2 * BLOCK);
    world.origin.release();
    world.run(mount.sync()).expect("synced");
    assert_eq!(world.origin.durable(0, 1), [1]);
    assert_eq!(world.origin.durable(BLOCK, 1), [2]);
    assert_eq!(
        world.origin.calls_of(Op::Read),
        [],
        "what was written was never asked for"
    );
}

#[test]
fn what_is_here_goes_on_when_misses_have_all_the_memory() {
    const LARGE: u64 = 1 << 20;
    for rings in [true, false] {
        let mut world = World::new(numbered(24 * LARGE / BLOCK));
        world.rings = rings;
        world.options.chunk_bytes = LARGE;
        world.options.memory_limit_bytes = 8 * LARGE;
        // Misses wait for as long as it takes.
        let mount = world.mount_as(ManagedOptions {
            io_timeout: None,
            ..options(&world)
        });
        let mut rig = Rig::of(&mount);
        rig.get(0, BLOCK);
        cut(&world);
        std::thread::scope(|scope| {
            let missed = scope.spawn(|| {
                let mut rig = Rig::of(&mount);
                for tag in 0..16 {
                    let chunk = 1 + u64::from(tag);
                    assert_eq!(rig.start(Tag(tag), read(chunk * LARGE, BLOCK)), None);
                }
                rig.finish()
            });
            world.run(world.origin.held(6));
            assert_eq!(rig.get(BLOCK, BLOCK)[0], number_of(1));
            assert_eq!(rig.put(0, BLOCK, 2), Ok(()));
            world.origin.release();
            let missed = missed.join().expect("joined");
            assert!(missed.values().all(Result::is_ok), "{missed:?}");
        });
    }
}
