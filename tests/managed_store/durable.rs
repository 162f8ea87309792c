//! Flushes of the local store.

use std::fs;
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::volume::cache::{AfterFailedSync, CacheDirectory, FoundState};
use blockferry::volume::{Durability, Errno, Op, Request, Tag};

use super::engine_support::{DEPTH, Rig};
use super::managed_support::{BLOCK, Plan, Trouble, World, discard, flush, until, write};
use super::tmpfs::FailingDisk;
use super::{numbered, turn};

const BLOCKS: u64 = 1024;

#[test]
fn flushes_that_come_together_share_checkpoints() {
    const QUEUES: u64 = 4;
    let _turn = turn();
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    assert_eq!(Rig::of(&mount).put(0, BLOCK, 1), Ok(()));
    std::thread::scope(|scope| {
        for queue in 0..QUEUES {
            let mount = &mount;
            scope.spawn(move || {
                let mut rig = Rig::of(mount);
                for tag in 0..DEPTH {
                    let block = 1 + queue * u64::from(DEPTH) + u64::from(tag);
                    let request = Request {
                        fua: true,
                        ..write(block * BLOCK, BLOCK)
                    };
                    rig.buffers[usize::from(tag)].fill(2);
                    assert_eq!(rig.start(Tag(tag), request), None);
                }
                let ended = rig.finish();
                assert!(ended.values().all(Result::is_ok), "{ended:?}");
            });
        }
    });
    // As after a power cut.
    drop(mount);
    fs::remove_dir_all(world.run_path()).expect("removed");
    let cache = world.open_cache();
    let FoundState::FromCheckpoint { sequence, .. } = cache.found.state else {
        panic!("{:?}", cache.found.state);
    };
    let count = QUEUES * u64::from(DEPTH);
    assert!(
        sequence < count / 2,
        "{sequence} commits for {count} writes"
    );
    assert_eq!(cache.found.held.dirty_bytes, (1 + count) * BLOCK);
}

#[test]
fn a_disk_that_fails_a_sync_fails_every_later_flush_and_the_origin_still_gets_everything() {
    let _turn = turn();
    for rings in [true, false] {
        let Some(disk) = FailingDisk::new() else {
            return;
        };
        let mut world = World::new(numbered(8192));
        world.store = Some(disk.path.join("cache"));
        world.rings = rings;
        // Writes go to memory, and only a sync tells.
        world.direct = false;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        for block in 0..4096 {
            // Room in the file system, but none below it.
            assert_eq!(rig.put(block * BLOCK, BLOCK, 1), Ok(()));
        }
        let _ballast = disk.tmpfs.take(disk.tmpfs.free());
        assert!(rig.run(flush()).is_err());
        assert_eq!(rig.run(flush()), Err(Errno::EIO), "and for good");
        let fua = Request {
            fua: true,
            ..write(0, BLOCK)
        };
        rig.buffers[0].fill(2);
        assert_eq!(rig.run(fua), Err(Errno::EIO));
        assert!(mount.status().store_failures > 0);
        assert_eq!(mount.dirty_bytes(), 4096 * BLOCK);
        let error = world
            .run(mount.sync())
            .expect_err("a power cut would undo it");
        assert!(error.to_string().contains("cache drop"), "{error}");
        // But it is in memory yet.
        assert_eq!(world.origin.durable(0, 1), [2]);
        assert_eq!(world.origin.durable(4095 * BLOCK, 1), [1]);
        world
            .run(mount.finish())
            .expect_err("it cannot be made durable");
    }
}

#[test]
fn a_sync_of_the_store_that_failed_is_on_record_before_anybody_is_told() {
    let _turn = turn();
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let cache = world.open_cache();
        let data = cache.data.clone();
        let mount = world.mount_cache(cache, world.options.clone());
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
        assert_eq!(rig.run(flush()), Ok(()));
        assert_eq!(rig.put(0, BLOCK, 2), Ok(()));
        data.note_flush_failure(&std::io::Error::from_raw_os_error(5));
        assert_eq!(rig.run(flush()), Err(Errno::EIO));
        let names = fs::read_dir(world.run_path()).expect("listed");
        let failed = names.filter_map(|name| name.ok()?.path().extension().map(ToOwned::to_owned));
        assert_eq!(failed.filter(|extension| extension == "failed").count(), 1);
        assert_eq!(rig.run(flush()), Err(Errno::EIO), "and for good");
        drop((data, mount, rig));
        until("it asks", || {
            let opened = CacheDirectory::open(&world.cache_path(), &world.cache_options());
            match opened
                .map(|cache| cache.found)
                .map_err(|error| error.kind())
            {
                Err(ErrorKind::Busy) => false,
                other => {
                    assert_eq!(other, Err(ErrorKind::Dirty));
                    true
                }
            }
        });
        world.after_failed_sync = AfterFailedSync::GoOn;
        let cache = world.open_cache();
        assert!(matches!(
            cache.found.state,
            FoundState::FromCheckpoint { .. }
        ));
        let mount = world.mount_cache(cache, world.options.clone());
        assert_eq!(mount.dirty_bytes(), BLOCK);
        assert_eq!(Rig::of(&mount).run(flush()), Ok(()));
    }
}

#[test]
fn what_the_origin_has_flushed_is_not_undone_by_older_bytes_after_a_power_cut() {
    let _turn = turn();
    for (durability, rings) in [
        (Durability::Remote, true),
        (Durability::Remote, false),
        (Durability::None, true),
    ] {
        let Some(disk) = FailingDisk::new() else {
            return;
        };
        let mut world = World::new(numbered(BLOCKS));
        world.store = Some(disk.path.join("cache"));
        world.options.durability = durability;
        world.options.push = true;
        world.rings = rings;
        // Written bytes stay in memory until somebody syncs.
        world.direct = false;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
        world.run(mount.checkpoint()).expect("made durable");
        assert_eq!(rig.put(0, BLOCK, 2), Ok(()));
        if durability == Durability::Remote {
            assert_eq!(rig.run(flush()), Ok(()));
        } else {
            world.run(mount.sync()).expect("synced");
        }
        assert_eq!(world.origin.durable(0, 1), [2]);
        let Some(after) = disk.after_a_power_cut() else {
            return;
        };
        drop((mount, rig));
        until("its store is closed", || {
            fs::remove_dir_all(world.run_path()).is_ok()
        });
        world.store = Some(after.path.join("cache"));
        let mount = world.mount();
        assert_eq!(Rig::of(&mount).get(0, 1), [2], "{durability:?}");
        world.run(mount.sync()).expect("synced");
        assert_eq!(world.origin.durable(0, 1), [2], "{durability:?}");
        world.run(mount.finish()).expect("finished");
    }
}

#[test]
fn bytes_reach_the_origin_from_a_file_system_with_blocks_below_ours() {
    let _turn = turn();
    let Some(disk) = FailingDisk::with_blocks_of(1024) else {
        return;
    };
    let mut world = World::new(numbered(BLOCKS));
    world.store = Some(disk.path.join("cache"));
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.run(discard(0, BLOCKS * BLOCK)), Ok(()));
    // The file system has nothing of the block but this.
    assert_eq!(rig.put(8 * BLOCK + 1024, 1024, 7), Ok(()));
    assert_eq!(rig.run(flush()), Ok(()));
    // All is here and dirty, and that is all that is known.
    drop((mount, rig));
    fs::remove_dir_all(world.run_path()).expect("removed");
    let mount = world.mount();
    // Whatever goes as zeros arrives last.
    world.origin.plan(Plan::always(
        Op::WriteZeroes,
        Trouble::Delay(Duration::from_millis(200)),
    ));
    world.run(mount.sync()).expect("synced");
    assert_eq!(world.origin.durable(8 * BLOCK, 1), [0]);
    assert_eq!(world.origin.durable(8 * BLOCK + 1024, 1024), [7; 1024]);
    assert_eq!(world.origin.durable(8 * BLOCK + 2048, 1), [0]);
    world.run(mount.finish()).expect("finished");
}

#[test]
fn zeros_are_holes_of_the_store_whether_or_not_their_space_was_to_stay() {
    let _turn = turn();
    for (rings, no_unmap) in [(true, true), (true, false), (false, true)] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        for at in (0..BLOCKS).step_by(8) {
            assert_eq!(rig.put(at * BLOCK, 8 * BLOCK, 1), Ok(()));
        }
        let taken = || {
            let data = mount.cache().path().join("data");
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(data).expect("there")) * 512
        };
        assert!(taken() >= BLOCKS * BLOCK);
        let zeroes = Request {
            op: Op::WriteZeroes,
            no_unmap,
            ..discard(0, BLOCKS * BLOCK)
        };
        assert_eq!(rig.run(zeroes), Ok(()));
        assert!(taken() < BLOCKS * BLOCK / 8, "{} bytes", taken());
        assert_eq!(rig.get(0, BLOCK), [0; BLOCK as usize]);
        world.run(mount.sync()).expect("synced");
        assert_eq!(world.origin.durable(0, 1), [0]);
    }
}
