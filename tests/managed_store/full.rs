//! No room, and errors: the request fails, nothing is taken for local or clean that is not, and all
//! goes on when there is room again.

use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::{Errno, Op};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::engine_support::Rig;
use super::managed_support::{BLOCK, CHUNK, Origin, World, discard, flush, until};
use super::tmpfs::Tmpfs;
use super::{number_of, numbered, turn};

const CHUNK_BLOCKS: u64 = CHUNK / BLOCK;
const CHUNKS: u64 = 64;
const REGION: u64 = 128 << 20;

fn world_on(tmpfs: &Tmpfs) -> World {
    let mut world = World::new(numbered(CHUNKS * CHUNK_BLOCKS));
    world.store = Some(tmpfs.path.join("cache"));
    world
}

fn has(rig: &mut Rig, chunk: u64) -> bool {
    let at = chunk * CHUNK;
    rig.get(at, BLOCK) == [number_of(at / BLOCK); BLOCK as usize]
}

#[test]
fn a_full_disk_fails_what_needs_room_and_nothing_else() {
    let _turn = turn();
    for rings in [true, false] {
        let Some(tmpfs) = Tmpfs::new(2 << 20) else {
            return;
        };
        let mut world = world_on(&tmpfs);
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        rig.get(0, CHUNK);
        // The region is ready for writes, which takes room too.
        assert_eq!(rig.put(0, BLOCK, 0xaa), Ok(()));
        let ballast = tmpfs.take(1 << 20);
        let filled = (0..CHUNKS).take_while(|chunk| rig.try_get(chunk * CHUNK, CHUNK).is_ok());
        let filled = filled.count() as u64;
        assert!((4..CHUNKS).contains(&filled), "{filled} chunks had room");
        let failed = rig.try_get(filled * CHUNK, CHUNK);
        assert_eq!(failed, Err(Errno::ENOSPC), "it fails again");
        assert_eq!(mount.status().local_bytes, filled * CHUNK);
        assert!(mount.status().store_failures > 0);

        // What is there can be read, and written over.
        assert!(has(&mut rig, filled - 1));
        assert_eq!(rig.put(0, CHUNK, 0xaa), Ok(()));
        assert_eq!(mount.dirty_bytes(), CHUNK);
        let absent = (CHUNKS - 1) * CHUNK;
        assert_eq!(rig.put(absent, CHUNK, 0xbb), Err(Errno::ENOSPC));
        assert_eq!(mount.dirty_bytes(), CHUNK, "what failed is not dirty");
        assert_eq!(mount.status().local_bytes, filled * CHUNK, "nor local");
        world.run(mount.sync()).expect("that needs no room");
        assert_eq!(world.origin.durable(0, 1), [0xaa]);
        assert_eq!(world.origin.durable(absent, 1), [number_of(absent / BLOCK)]);

        drop(ballast);
        assert!(has(&mut rig, filled), "there is room again");
        assert!(has(&mut rig, CHUNKS - 1), "and this was never changed");
        assert_eq!(rig.put(absent, CHUNK, 0xcc), Ok(()));
        assert_eq!(rig.run(flush()), Ok(()));
        drop((mount, rig));

        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        assert_eq!(mount.dirty_bytes(), CHUNK);
        assert_eq!(rig.get(absent, BLOCK), [0xcc; BLOCK as usize]);
        assert!(has(&mut rig, filled));
        world.run(mount.sync()).expect("synced");
        assert_eq!(world.origin.durable(absent, 1), [0xcc]);
    }
}

#[test]
fn a_write_that_finds_no_room_is_told_of_until_one_has_found_some() {
    let _turn = turn();
    for rings in [true, false] {
        let Some(tmpfs) = Tmpfs::new(2 << 20) else {
            return;
        };
        let mut world = world_on(&tmpfs);
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
        let ballast = tmpfs.take(tmpfs.free());
        assert_eq!(mount.status().store_full_since, None);
        assert_eq!(rig.put(CHUNK, CHUNK, 2), Err(Errno::ENOSPC));
        assert!(mount.status().store_full_since.is_some(), "rings: {rings}");
        assert_eq!(rig.put(0, BLOCK, 3), Ok(()), "that has its room");
        assert!(mount.status().store_full_since.is_some(), "rings: {rings}");
        drop(ballast);
        assert_eq!(rig.put(CHUNK, CHUNK, 2), Ok(()));
        assert_eq!(mount.status().store_full_since, None, "rings: {rings}");
    }
}

#[test]
fn the_pull_waits_for_room_and_goes_on() {
    let _turn = turn();
    let Some(tmpfs) = Tmpfs::new(6 << 20) else {
        return;
    };
    let world = world_on(&tmpfs);
    let cache = world.open_cache();
    let ballast = tmpfs.take(4 << 20);
    let mount = world.mount_cache(
        cache,
        ManagedOptions {
            pull: PullOrder::Sequential,
            ..world.options.clone()
        },
    );
    until("the disk is full", || mount.status().store_failures > 40);
    let fetched = mount.status().fetched_bytes;
    assert!(mount.status().local_bytes < CHUNKS * CHUNK);
    let told = mount.status();
    assert!(told.store_full_since.is_some(), "{told:?}");
    assert_eq!(told.seconds_left, None, "nobody knows");
    until("what came and did not fit is no rate", || {
        mount.status().pull_rate == 0
    });
    assert!(
        fetched < 4 * CHUNKS * CHUNK,
        "{fetched} bytes were fetched for nothing"
    );
    drop(ballast);
    world.run(mount.pulled());
    assert_eq!(mount.status().store_full_since, None, "there is room again");
    let mut rig = Rig::of(&mount);
    assert!((0..CHUNKS).all(|chunk| has(&mut rig, chunk)));
}

#[test]
fn a_checkpoint_that_has_no_room_fails_the_flush_and_the_next_one_makes_up_for_it() {
    let _turn = turn();
    let Some(tmpfs) = Tmpfs::new(2 << 20) else {
        return;
    };
    let mut world = World::new(Origin::new(4 * REGION));
    world.store = Some(tmpfs.path.join("cache"));
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.put(0, BLOCK, 1), Ok(()));
    assert_eq!(rig.run(flush()), Ok(()));
    // Two regions become ready for writes, and have blocks of their own.
    for region in 1..3 {
        assert_eq!(rig.put(region * REGION, BLOCK, 2), Ok(()));
    }
    let ballast = tmpfs.take(tmpfs.free());
    assert_eq!(rig.run(flush()), Err(Errno::ENOSPC));
    assert_eq!(rig.run(flush()), Err(Errno::ENOSPC), "not by itself");
    drop(ballast);
    assert_eq!(rig.run(flush()), Ok(()), "a full disk is not for ever");
    // As after a power cut: the live map is gone.
    drop((mount, rig));
    std::fs::remove_dir_all(world.run_path()).expect("removed");
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    for (region, byte) in [(0, 1), (1, 2), (2, 2)] {
        assert_eq!(rig.get(region * REGION, BLOCK), [byte; BLOCK as usize]);
    }
    assert_eq!(world.origin.calls_of(Op::Read), []);
    assert_eq!(mount.dirty_bytes(), 3 * BLOCK);
}

#[test]
fn a_full_run_time_directory_is_an_error_and_never_a_signal() {
    let _turn = turn();
    for rings in [true, false] {
        let Some(tmpfs) = Tmpfs::new(256 << 10) else {
            return;
        };
        let origin = Origin::new(12 * REGION);
        for region in 0..12 {
            origin.fill(region * REGION, &[region as u8 + 1; BLOCK as usize]);
        }
        let mut world = World::new(origin);
        world.run_directory = Some(tmpfs.path.clone());
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        for region in 0..2 {
            assert_eq!(rig.put(region * REGION + BLOCK, BLOCK, 0xaa), Ok(()));
        }
        let ballast = tmpfs.take(tmpfs.free());
        assert_eq!(rig.try_get(11 * REGION, BLOCK), Err(Errno::ENOSPC));
        assert_eq!(rig.put(11 * REGION, BLOCK, 1), Err(Errno::ENOSPC));
        assert_eq!(rig.run(discard(11 * REGION, BLOCK)), Err(Errno::ENOSPC));
        // A whole region takes no bits.
        assert_eq!(rig.run(discard(10 * REGION, REGION)), Ok(()));
        assert_eq!(rig.put(BLOCK, BLOCK, 0xbb), Ok(()), "what has room goes on");
        drop(ballast);
        for region in [9, 11] {
            let byte = region as u8 + 1;
            assert_eq!(rig.get(region * REGION, BLOCK), [byte; BLOCK as usize]);
        }
        assert_eq!(rig.get(10 * REGION, BLOCK), [0; BLOCK as usize]);
        assert_eq!(rig.put(11 * REGION, BLOCK, 7), Ok(()));
        world.run(mount.sync()).expect("synced");
        assert_eq!(world.origin.durable(11 * REGION, 1), [7]);
        assert_eq!(world.origin.durable(BLOCK, 1), [0xbb]);
        assert_eq!(world.origin.durable(10 * REGION, 1), [0]);
    }
}

/// No file of this process grows beyond, or is written behind, as many bytes.
struct FileLimit(u64);

impl FileLimit {
    fn new(bytes: u64) -> Self {
        // SAFETY: it is ignored from now on; no handler runs.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.expect("ignored");
        let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).expect("known");
        setrlimit(Resource::RLIMIT_FSIZE, bytes, most).expect("limited");
        Self(most)
    }
}

impl Drop for FileLimit {
    fn drop(&mut self) {
        setrlimit(Resource::RLIMIT_FSIZE, self.0, self.0).expect("as before");
    }
}

#[test]
fn an_error_of_the_store_fails_the_request_and_leaves_what_it_concerns_dirty_or_absent() {
    let _turn = turn();
    for rings in [true, false] {
        let mut world = World::new(numbered(CHUNKS * CHUNK_BLOCKS));
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        // Behind the limit, and in a region that is ready for writes.
        let (present, absent, missed) = (40, 50, 60);
        assert!(has(&mut rig, present));
        assert_eq!(rig.put(present * CHUNK + BLOCK, BLOCK, 1), Ok(()));
        world.run(mount.sync()).expect("synced");
        let local = mount.status().local_bytes;
        {
            let _limit = FileLimit::new(1 << 20);
            assert!(rig.put(present * CHUNK, BLOCK, 2).is_err());
            assert!(rig.put(absent * CHUNK, CHUNK, 3).is_err());
            assert!(rig.try_get(missed * CHUNK, BLOCK).is_err());
            assert!(has(&mut rig, present), "what is there can be read");
            assert!(has(&mut rig, 3), "and elsewhere all is well");
            assert_eq!(rig.put(0, BLOCK, 4), Ok(()));
        }
        assert_eq!(mount.status().local_bytes, local + CHUNK + BLOCK);
        // Nobody knows what became of the block that was written over, so it goes to the origin.
        assert_eq!(mount.dirty_bytes(), 2 * BLOCK);
        assert!(has(&mut rig, absent), "nothing of it was taken for written");
        assert!(has(&mut rig, missed));
        world.run(mount.sync()).expect("synced");
        let here = rig.get(present * CHUNK, BLOCK);
        assert_eq!(world.origin.durable(present * CHUNK, BLOCK as usize), here);
        assert_eq!(world.origin.durable(0, 1), [4]);
    }
}
