//! How a mount ends, and what is left of it.

use std::fs;
use std::sync::Arc;

use blockferry::ErrorKind;
use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::cache::FoundState;
use blockferry::volume::{Durability, Errno, Op, Tag};

use super::engine_support::Rig;
use super::managed_support::{
    BLOCK, CHUNK, Plan, Trouble, World, discard, flush, read, until, write,
};
use super::{number_of, numbered, turn};

const BLOCKS: u64 = 1024;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("listed").count()
}

/// Everything is under way that can be when it ends.
fn busy(world: &World) -> (blockferry::mount::managed::ManagedMount, Rig) {
    world.origin.plan(Plan {
        range: 40 * CHUNK..u64::MAX,
        ..Plan::always(Op::Read, Trouble::Hold)
    });
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        push: true,
        durability: Durability::Remote,
        read_ahead_bytes: 4 * CHUNK,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    rig.get(0, BLOCK);
    for op in [Op::Write, Op::Flush, Op::WriteZeroes] {
        world.origin.plan(Plan::always(op, Trouble::Hold));
    }
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    assert_eq!(rig.run(discard(CHUNK, 2 * CHUNK)), Ok(()));
    rig.buffers[5].fill(9);
    let started = [
        (Tag(2), read(50 * CHUNK, BLOCK)),
        (Tag(3), read(51 * CHUNK, BLOCK)),
        (Tag(4), flush()),
        (Tag(5), write(52 * CHUNK + 512, BLOCK)),
        (Tag(6), discard(53 * CHUNK + 512, CHUNK)),
    ];
    for (tag, request) in started {
        assert_eq!(rig.start(tag, request), None);
    }
    (mount, rig)
}

#[test]
fn nothing_of_a_mount_is_left_when_it_has_finished() {
    let _turn = turn();
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        // The first time what is made once is made.
        world.run(world.mount().finish()).expect("finished");
        let before = descriptors();
        let holders = Arc::strong_count(&world.origin);

        let (mount, rig) = busy(&world);
        let mut rig = rig;
        let ended = std::thread::scope(|scope| {
            let finished = scope.spawn(|| {
                world.run(world.origin.held(3));
                world.run(mount.finish())
            });
            // The queue serves until its device is gone.
            let ended = rig.finish();
            finished.join().expect("joined").expect("finished");
            ended
        });
        assert!(
            ended.values().all(|outcome| *outcome == Err(Errno::EIO)),
            "{ended:?}"
        );
        assert_eq!(world.origin.held_now(), 0, "nothing waits for the origin");
        assert_eq!(
            Arc::strong_count(&world.origin),
            holders + 1,
            "but the mount itself"
        );
        let dirty = mount.dirty_bytes();
        assert_eq!(dirty, BLOCK + 2 * CHUNK);
        drop((mount, rig));
        assert_eq!(Arc::strong_count(&world.origin), holders);
        until("its files are closed", || descriptors() == before);
        let live: Vec<_> = fs::read_dir(world.run_path()).expect("listed").collect();
        assert!(live.is_empty(), "{live:?}");

        world.origin.release();
        let cache = world.open_cache();
        assert!(matches!(
            cache.found.state,
            FoundState::FromCheckpoint { .. }
        ));
        let mount = world.mount_cache(cache, world.options.clone());
        assert_eq!(mount.dirty_bytes(), dirty, "exactly what was dirty");
        world.run(mount.sync()).expect("synced");
        assert_eq!(world.origin.durable(0, 1), [1]);
        assert_eq!(world.origin.durable(2 * CHUNK, 1), [0]);
        assert_eq!(
            world.origin.durable(52 * CHUNK + 512, 1),
            [number_of(52 * CHUNK / BLOCK)]
        );
    }
}

#[test]
fn a_mount_that_is_dropped_ends_all_the_same_and_loses_nothing() {
    let _turn = turn();
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let before = descriptors();
        let holders = Arc::strong_count(&world.origin);
        let (mount, mut rig) = busy(&world);
        let local = mount.status().local_bytes;
        drop(mount);
        let ended = rig.finish();
        assert!(
            ended.values().all(|outcome| *outcome == Err(Errno::EIO)),
            "{ended:?}"
        );
        drop(rig);
        until("it ends", || Arc::strong_count(&world.origin) == holders);
        until("its files are closed", || descriptors() == before);
        world.origin.release();
        world.origin.forget_calls();

        let cache = world.open_cache();
        assert_eq!(cache.found.state, FoundState::Continued);
        let mount = world.mount_cache(cache, world.options.clone());
        assert_eq!(mount.dirty_bytes(), BLOCK + 2 * CHUNK);
        assert!(mount.status().local_bytes >= local);
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.get(0, BLOCK), [1; BLOCK as usize]);
        assert_eq!(rig.get(BLOCK, BLOCK), [number_of(1); BLOCK as usize]);
        assert_eq!(rig.get(2 * CHUNK, BLOCK), [0; BLOCK as usize]);
        assert_eq!(
            world.origin.calls_of(Op::Read),
            [],
            "nothing is fetched twice"
        );
    }
}

#[test]
fn no_write_is_taken_once_the_mount_has_finished() {
    let _turn = turn();
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
        world.run(mount.finish()).expect("finished");
        assert_eq!(rig.put(0, BLOCK, 2), Err(Errno::EIO));
        assert_eq!(rig.put(BLOCK, BLOCK, 2), Err(Errno::EIO));
        assert_eq!(rig.run(discard(0, CHUNK)), Err(Errno::EIO));
        drop((mount, rig));
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.get(0, BLOCK), [1; BLOCK as usize]);
        assert_eq!(rig.get(BLOCK, BLOCK), [number_of(1); BLOCK as usize]);
        assert_eq!(mount.dirty_bytes(), BLOCK);
    }
}

#[test]
fn a_write_that_is_under_way_when_the_mount_finishes_is_not_lost_and_holds_nothing_up() {
    let _turn = turn();
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    world.run(mount.sync()).expect("synced");
    for (tag, block) in [(3, 0), (4, 5)] {
        rig.buffers[tag].fill(2);
        // The second one has a claim.
        let started = rig.start(Tag(tag as u16), write(block * BLOCK, BLOCK));
        assert_eq!(started, None);
    }
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| Rig::of(&mount).run(discard(4 * BLOCK, 4 * BLOCK)));
        let reads = scope.spawn(|| Rig::of(&mount).try_get(5 * BLOCK, BLOCK));
        world.run(world.origin.came(|call| call.op == Op::Read));
        let error = world.run(mount.finish()).expect_err("it is under way");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(waits.join().expect("ended"), Err(Errno::EIO));
        assert_eq!(reads.join().expect("ended"), Err(Errno::EIO));
    });
    assert!(rig.finish().values().all(Result::is_ok));
    drop((mount, rig));
    let cache = world.open_cache();
    assert_eq!(cache.found.state, FoundState::Continued);
    let mount = world.mount_cache(cache, world.options.clone());
    assert_eq!(mount.dirty_bytes(), 2 * BLOCK);
    let mut rig = Rig::of(&mount);
    for block in [0, 5] {
        assert_eq!(rig.get(block * BLOCK, BLOCK), [2; BLOCK as usize]);
    }
}
