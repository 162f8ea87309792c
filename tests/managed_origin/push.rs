//! How local writes reach the origin.

use std::sync::Arc;
use std::time::Duration;

use blockferry::Backend;
use blockferry::backend::{OpenOptions, Resource, faults};
use blockferry::mount::managed::{ManagedMount, ManagedOptions, PullOrder};
use blockferry::volume::{Durability, Errno, MemoryMap, Op, Priority, Request, Tag};

use super::engine_support::{DEPTH, Rig, SECTOR};
use super::managed_support::bytes::Bytes;
use super::managed_support::{
    BLOCK, CHUNK, Origin, Plan, Trouble, World, discard, flush, until, write,
};
use super::numbered;

const BLOCKS: u64 = 256;

/// The region of the state map, in bytes.
const REGION: u64 = 128 << 20;

fn world() -> World {
    World::new(numbered(BLOCKS))
}

/// A flush promises the origin, and nothing is pushed by itself.
fn remote(world: &World) -> ManagedOptions {
    ManagedOptions {
        push: true,
        push_interval: Duration::from_secs(3600),
        durability: Durability::Remote,
        ..world.options.clone()
    }
}

fn dirty_blocks(mount: &ManagedMount) -> u64 {
    mount.dirty_bytes() / BLOCK
}

#[test]
fn a_block_that_is_written_again_goes_once_and_neighbours_go_together() {
    let world = world();
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    for round in 1..=3 {
        for block in (0..16).rev() {
            assert_eq!(rig.put(block * BLOCK, BLOCK, round), Ok(()));
        }
    }
    assert_eq!(rig.put(20 * BLOCK, BLOCK, 9), Ok(()));
    assert_eq!(dirty_blocks(&mount), 17);
    world.run(mount.sync()).expect("synced");
    let mut written = world.origin.calls_of(Op::Write);
    written.sort_by_key(|range| range.start);
    assert_eq!(written, [0..16 * BLOCK, 20 * BLOCK..21 * BLOCK]);
    assert_eq!(
        world.origin.durable(0, 16 * BLOCK as usize),
        vec![3; 16 * BLOCK as usize]
    );
    assert_eq!(dirty_blocks(&mount), 0);
    world.run(mount.sync()).expect("synced");
    assert_eq!(
        world.origin.calls_of(Op::Write).len(),
        2,
        "nothing is left to send"
    );
}

#[test]
fn what_is_written_while_it_is_sent_goes_again() {
    let world = world();
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, 4 * BLOCK, 1), Ok(()));
    world.origin.plan(Plan::once(Op::Write, Trouble::Hold));
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| world.run(mount.sync()));
        world.run(world.origin.held(1));
        // Its bytes were read before; twice, as it goes once all the same.
        assert_eq!(rig.put(BLOCK, BLOCK, 2), Ok(()));
        assert_eq!(rig.put(BLOCK, BLOCK, 3), Ok(()));
        world.origin.release();
        synced.join().expect("joined").expect("synced");
    });
    assert_eq!(dirty_blocks(&mount), 1);
    world.run(mount.sync()).expect("synced");
    let written = world.origin.calls_of(Op::Write);
    assert_eq!(written, [0..4 * BLOCK, BLOCK..2 * BLOCK]);
    assert_eq!(world.origin.durable(BLOCK, 1), [3]);
}

#[test]
fn zeros_go_as_zeros_whether_they_were_written_discarded_or_asked_for() {
    let world = world();
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, CHUNK, 0), Ok(()));
    assert_eq!(rig.run(discard(2 * CHUNK, CHUNK)), Ok(()));
    let zeroes = Request {
        op: Op::WriteZeroes,
        no_unmap: true,
        ..discard(4 * CHUNK, CHUNK)
    };
    assert_eq!(rig.run(zeroes), Ok(()));
    assert_eq!(rig.run(discard(6 * CHUNK, BLOCK)), Ok(()));
    world.run(mount.sync()).expect("synced");
    let mut zeroed = world.origin.calls_of(Op::WriteZeroes);
    zeroed.sort_by_key(|range| range.start);
    let end = 6 * CHUNK + BLOCK;
    let all = [
        0..CHUNK,
        2 * CHUNK..3 * CHUNK,
        4 * CHUNK..5 * CHUNK,
        6 * CHUNK..end,
    ];
    assert_eq!(zeroed, all);
    assert_eq!(world.origin.calls_of(Op::Write), []);
    assert_eq!(
        world.origin.calls_of(Op::Read),
        [],
        "nothing had to be known"
    );
    for range in all {
        let len = (range.end - range.start) as usize;
        assert!(
            world
                .origin
                .durable(range.start, len)
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn a_discard_of_the_whole_device_is_a_few_requests_and_takes_no_space() {
    let size = 17 * REGION + 5 * BLOCK + 100;
    let origin = Origin::new(size);
    for at in [0, REGION - BLOCK, 3 * REGION, 17 * REGION + 5 * BLOCK] {
        origin.fill(at, &[1; 100]);
    }
    let world = World::new(origin);
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    // One region has bits of its own, and something in it.
    assert_eq!(rig.put(9 * REGION + BLOCK, CHUNK, 7), Ok(()));
    let device = mount.volume().geometry().device_bytes();
    assert_eq!(rig.run(discard(0, device)), Ok(()));
    assert_eq!(dirty_blocks(&mount), size.div_ceil(BLOCK));
    assert_eq!(rig.put(5 * REGION, BLOCK, 8), Ok(()));
    world.run(mount.sync()).expect("synced");
    assert_eq!(dirty_blocks(&mount), 0);
    let told = mount.status();
    assert_eq!(told.pushed_bytes, BLOCK, "a discard takes no bytes there");
    assert_eq!(told.pushed_zeroes_bytes, size - BLOCK);
    assert_eq!(world.origin.calls_of(Op::Read), []);
    assert_eq!(
        world.origin.calls_of(Op::Write),
        vec![5 * REGION..5 * REGION + BLOCK]
    );
    let zeroed = world.origin.calls_of(Op::WriteZeroes);
    // A gigabyte at most, a few less until it is known how fast that goes, and pieces of a megabyte
    // where a region has bits of its own.
    assert!(
        zeroed
            .iter()
            .all(|range| range.end - range.start <= (1 << 30) + REGION),
        "{zeroed:?}"
    );
    assert!(zeroed.len() < 200 + 3 * 130, "{} requests", zeroed.len());
    let durable = world.origin.all_durable();
    let mut expected = Bytes::default();
    expected.write(5 * REGION, &[8; BLOCK as usize]);
    assert_eq!(durable.first_difference(&expected, size), None);
    let stored = std::fs::metadata(world.cache_path().join("data")).expect("there");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&stored);
    assert!(blocks * 512 <= 4 * BLOCK, "{blocks} blocks of 512");
}

#[test]
fn zeros_go_in_small_requests_to_an_origin_that_takes_its_time_for_them() {
    let mut world = World::new(Origin::new(4 * REGION));
    // A request may take an eighth of it.
    world.options.io_timeout = Some(Duration::from_secs(2));
    world.options.push_workers = 2;
    world.origin.plan(Plan::always(
        Op::WriteZeroes,
        Trouble::Delay(Duration::from_millis(300)),
    ));
    let mount = world.mount();
    let device = mount.volume().geometry().device_bytes();
    assert_eq!(Rig::of(&mount).run(discard(0, device)), Ok(()));
    let sweep = async {
        let _unfinished = tokio::time::timeout(Duration::from_secs(4), mount.sync()).await;
    };
    world.run(sweep);
    let zeroed = world.origin.calls_of(Op::WriteZeroes);
    let lens: Vec<_> = zeroed.iter().map(|it| it.end - it.start).collect();
    assert!(lens.len() >= 6, "{lens:?}");
    assert!(lens.iter().all(|len| *len <= 4 << 20), "{lens:?}");
    assert_eq!(lens.last(), Some(&(1 << 20)), "{lens:?}");
}

#[test]
fn a_large_discard_ends_while_the_same_blocks_are_filled_all_the_time() {
    let world = World::new(Origin::new(3 * REGION));
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.run(discard(0, 3 * REGION)), Ok(()));
    world.run(mount.pulled());
    assert_eq!(mount.status().dirty_bytes, 3 * REGION);
}

#[test]
fn a_flush_of_the_origin_that_fails_makes_everything_of_its_batch_dirty_again() {
    let world = world();
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    world.run(mount.sync()).expect("synced");
    for chunk in 1..4 {
        assert_eq!(rig.put(chunk * CHUNK, BLOCK, 2), Ok(()));
    }
    assert_eq!(rig.run(discard(5 * CHUNK, CHUNK)), Ok(()));
    let dirty = dirty_blocks(&mount);
    // The origin loses what it was sent.
    world
        .origin
        .plan(Plan::once(Op::Flush, Trouble::Error(Errno::EIO)));
    world.run(mount.sync()).expect_err("it failed");
    assert_eq!(
        world.origin.content(CHUNK, 1),
        world.origin.durable(CHUNK, 1)
    );
    assert_eq!(dirty_blocks(&mount), dirty);
    world.origin.forget_calls();
    world.run(mount.sync()).expect("synced");
    assert_eq!(
        world.origin.calls_of(Op::Write).len(),
        3,
        "what was flushed before is not sent again"
    );
    for chunk in 1..4 {
        assert_eq!(world.origin.durable(chunk * CHUNK, 1), [2]);
    }
    assert_eq!(world.origin.durable(5 * CHUNK, 1), [0]);
}

#[test]
fn what_could_not_be_sent_is_sent_again_by_itself() {
    let world = world();
    let mount = world.mount_as(ManagedOptions {
        push: true,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    for trouble in [Op::Write, Op::Flush] {
        world
            .origin
            .plan(Plan::once(trouble, Trouble::Error(Errno::EIO)));
        let byte = trouble as u8 + 1;
        for chunk in 0..4 {
            assert_eq!(rig.put(chunk * CHUNK, BLOCK, byte), Ok(()));
        }
        until("everything is clean", || dirty_blocks(&mount) == 0);
        for chunk in 0..4 {
            assert_eq!(world.origin.durable(chunk * CHUNK, 1), [byte]);
        }
    }
    assert!(mount.status().origin_failures >= 2);
}

#[test]
fn a_flush_promises_the_origin_where_that_is_asked_for() {
    for rings in [true, false] {
        let mut world = world();
        world.rings = rings;
        let mount = world.mount_as(remote(&world));
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
        world.origin.plan(Plan::once(Op::Flush, Trouble::Hold));
        std::thread::scope(|scope| {
            let flushed = scope.spawn(|| Rig::of(&mount).run(flush()));
            world.run(world.origin.held(1));
            // What is written meanwhile is not covered, but by the next one.
            assert_eq!(rig.put(BLOCK, BLOCK, 2), Ok(()));
            assert!(!flushed.is_finished(), "rings: {rings}");
            world.origin.release();
            assert_eq!(flushed.join().expect("joined"), Ok(()));
            assert_eq!(world.origin.durable(0, 1), [1]);
        });
        assert_eq!(rig.run(flush()), Ok(()));
        assert_eq!(world.origin.durable(BLOCK, 1), [2]);
        rig.buffers[0].fill(3);
        let fua = Request {
            fua: true,
            ..write(2 * BLOCK, SECTOR)
        };
        assert_eq!(rig.run(fua), Ok(()));
        assert_eq!(world.origin.durable(2 * BLOCK, 1), [3]);
        world
            .origin
            .plan(Plan::once(Op::Write, Trouble::Error(Errno::EIO)));
        assert_eq!(rig.put(0, BLOCK, 4), Ok(()));
        assert_eq!(rig.run(flush()), Err(Errno::EIO));
        assert_eq!(rig.run(flush()), Ok(()));
        assert_eq!(world.origin.durable(0, 1), [4]);
    }
}

/// Every flush that is answered covers what was answered before it was asked, whoever wrote it, while
/// others write and flush on.
#[test]
fn flushes_that_race_with_writes_and_with_each_other_keep_their_promise() {
    const ROUNDS: u64 = 60;
    let mut world = World::in_memory(Origin::new(BLOCKS * BLOCK));
    world.options.durability = Durability::Remote;
    world.options.push = true;
    world.options.push_interval = Duration::from_millis(1);
    let mount = world.mount();
    std::thread::scope(|scope| {
        for queue in 0..3 {
            let (world, mount) = (&world, &mount);
            scope.spawn(move || {
                let mut rig = Rig::of(mount);
                for round in 1..=ROUNDS {
                    let byte = round as u8;
                    for tag in 0..DEPTH - 1 {
                        // Sectors of three queues share each block.
                        let at = u64::from(tag) * BLOCK + queue * SECTOR;
                        rig.buffers[usize::from(tag)].fill(byte);
                        rig.start(Tag(tag), write(at, SECTOR));
                    }
                    let ended = rig.finish();
                    assert!(ended.values().all(Result::is_ok), "{ended:?}");
                    assert_eq!(rig.run(flush()), Ok(()));
                    for tag in 0..u64::from(DEPTH - 1) {
                        let at = tag * BLOCK + queue * SECTOR;
                        let durable = world.origin.durable(at, SECTOR as usize);
                        assert_eq!(durable, [byte; SECTOR as usize], "round {round}, tag {tag}");
                    }
                }
            });
        }
    });
}

#[test]
fn a_sync_ends_with_the_mount_and_where_nothing_can_be_written() {
    let world = world();
    let mount = world.mount();
    assert_eq!(Rig::of(&mount).put(0, BLOCK, 1), Ok(()));
    world.origin.plan(Plan::always(Op::Write, Trouble::Hold));
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| world.run(mount.sync()));
        world.run(world.origin.held(1));
        mount.give_up();
        synced.join().expect("joined").expect_err("given up");
    });
    world
        .run(mount.sync())
        .expect_err("there is nobody to do it");
    assert_eq!(dirty_blocks(&mount), 1);
    drop(mount);

    let mut world = World::new(numbered(BLOCKS));
    world.resource.read_only = true;
    let mount = world.mount();
    world.run(mount.sync()).expect("there is nothing to do");
    assert_eq!(Rig::of(&mount).put(0, BLOCK, 1), Err(Errno::EPERM));
}

#[test]
fn what_is_waited_for_is_sent_however_much_is_pulled() {
    // As many calls as a backend allows, all of them held by the pull.
    let backend = Arc::new(faults::Faulty::new(
        MemoryMap::new(BLOCKS * CHUNK).expect("memory"),
    ));
    backend.plan(faults::Rule::always(Op::Read, faults::Fault::Hold));
    let mut world = World::new(Origin::new(BLOCKS * CHUNK));
    let resource = Resource::custom("faulty", backend.clone(), OpenOptions::default());
    world.resource = resource.expect("a resource");
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..remote(&world)
    });
    let mut rig = Rig::of(&mount);
    until("the pull is held", || backend.held() > 1);
    assert_eq!(rig.put(9 * CHUNK, BLOCK, 5), Ok(()));
    assert_eq!(rig.run(flush()), Ok(()));
    let mut byte = [0];
    backend.inner().read_at(&mut byte, 9 * CHUNK).expect("read");
    assert_eq!(byte, [5]);
    backend.release();
}

#[test]
fn a_mount_has_not_ended_while_a_write_that_it_began_goes_on_at_the_origin() {
    let backend = Arc::new(faults::Faulty::new(
        MemoryMap::new(BLOCKS * CHUNK).expect("memory"),
    ));
    backend.plan(faults::Rule::always(Op::Write, faults::Fault::Hold));
    let mut world = World::new(Origin::new(BLOCKS * CHUNK));
    let resource = Resource::custom("faulty", backend.clone(), OpenOptions::default());
    world.resource = resource.expect("a resource");
    let mount = world.mount_as(ManagedOptions {
        push: true,
        ..world.options.clone()
    });
    assert_eq!(Rig::of(&mount).put(0, BLOCK, 1), Ok(()));
    until("the push is held", || backend.held() > 0);
    let waited = Duration::from_millis(200);
    world
        .run(async { tokio::time::timeout(waited, mount.finish()).await })
        .expect_err("the write goes on");
    backend.release();
    world.run(mount.finish()).expect("finished");
    let mut byte = [0];
    backend.inner().read_at(&mut byte, 0).expect("read");
    assert_eq!(byte, [1], "it was over when the mount had ended");
}

#[test]
fn only_what_is_waited_for_overtakes_the_pull() {
    let world = world();
    let mount = world.mount_as(ManagedOptions {
        push: true,
        ..world.options.clone()
    });
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    until("it is pushed", || dirty_blocks(&mount) == 0);
    let of = |call: &super::managed_support::Call| (call.op == Op::Write).then_some(call.priority);
    let calls = world.origin.calls();
    let writes: Vec<_> = calls.iter().filter_map(of).collect();
    assert_eq!(writes, [Some(Priority::Push)]);
    drop((mount, rig));

    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    world.origin.forget_calls();
    assert_eq!(rig.put(0, BLOCK, 2), Ok(()));
    world.run(mount.sync()).expect("synced");
    let calls = world.origin.calls();
    let writes: Vec<_> = calls.iter().filter_map(of).collect();
    assert_eq!(writes, [Some(Priority::ReadAhead)]);
}
