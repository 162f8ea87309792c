//! Caches on this machine's file system.

use super::test_home::{Home, SIZE_BYTES, fill, push, read, write};
use super::*;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::{FlightSlot, WriteStart};

#[test]
fn what_was_flushed_is_there_after_a_reboot_and_the_rest_is_not() {
    let home = Home::new();
    let cache = home.open();
    assert_eq!(cache.found.state, FoundState::Fresh);
    write(&cache, 5, 1);
    fill(&cache, BlockRange::new(100, 110), 2);
    assert!(cache.map.needs_checkpoint());
    cache.checkpointer.checkpoint().expect("durable");
    assert!(!cache.map.needs_checkpoint());
    write(&cache, 6, 3);
    write(&cache, 70_000, 4);
    drop(cache);
    home.reboot();

    let cache = home.open();
    assert!(matches!(
        cache.found.state,
        FoundState::FromCheckpoint { .. }
    ));
    assert_eq!(read(&cache, 5), Some(1));
    assert_eq!(read(&cache, 105), Some(2));
    assert_eq!(read(&cache, 6), None);
    assert_eq!(read(&cache, 70_000), None);
    // The region's intent makes what was clean dirty.
    assert_eq!(cache.found.held.dirty_bytes, 11 * 4096);
}

#[test]
fn after_a_crash_of_the_process_the_live_map_goes_on() {
    let home = Home::new();
    for persistent in [true, false] {
        let home = if persistent { &home } else { &Home::new() };
        let options = CacheOptions {
            persistent,
            ..home.options()
        };
        let open = || CacheDirectory::open(&home.cache(), &options).expect("opened");
        let cache = open();
        write(&cache, 5, 1);
        write(&cache, 70_000, 4);
        fill(&cache, BlockRange::new(100, 110), 2);
        drop(cache);

        let cache = open();
        assert_eq!(cache.found.state, FoundState::Continued);
        assert_eq!(cache.found.held.dirty_bytes, 2 * 4096);
        assert_eq!(cache.found.held.present_bytes, 12 * 4096);
        assert_eq!(read(&cache, 5), Some(1));
        assert_eq!(read(&cache, 70_000), Some(4));
        assert_eq!(read(&cache, 105), Some(2));
    }
}

#[test]
fn a_clean_stop_keeps_exactly_what_is_dirty() {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 1000), 1);
    write(&cache, 5, 2);
    write(&cache, 2000, 3);
    cache.checkpointer.close().expect("closed");
    drop(cache);
    assert_eq!(
        std::fs::read_dir(home.run()).expect("listed").count(),
        0,
        "the live map is gone"
    );

    let cache = home.open();
    assert_eq!(cache.found.held.present_bytes, 1001 * 4096);
    assert_eq!(cache.found.held.dirty_bytes, 2 * 4096);
    assert_eq!(read(&cache, 5), Some(2));
    // And again: a write to what is clean needs a new intent.
    assert_eq!(
        cache.map.begin_write(FlightSlot(0), BlockRange::new(7, 8)),
        WriteStart::NotReady(RegionIndex(0))
    );
    write(&cache, 7, 9);
    drop(cache);
    home.reboot();
    assert_eq!(home.open().found.held.dirty_bytes, 1001 * 4096);
}

#[test]
fn settled_regions_are_clean_after_a_reboot() {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 10), 1);
    write(&cache, 5, 2);
    write(&cache, 40_000, 2);
    cache.checkpointer.checkpoint().expect("durable");
    push(&cache);
    write(&cache, 40_000, 3);
    cache.checkpointer.settle_intents().expect("settled");
    drop(cache);
    home.reboot();
    let cache = home.open();
    assert_eq!(cache.found.held.present_bytes, 11 * 4096);
    assert_eq!(cache.found.held.dirty_bytes, 4096);
}

#[test]
fn a_cache_of_something_else_is_refused_and_left_as_it_is() {
    let home = Home::new();
    let cache = home.open();
    write(&cache, 5, 1);
    cache.checkpointer.close().expect("closed");
    drop(cache);
    let before = (home.read("meta"), home.read("map"));
    let options = home.options();
    for (other, word) in [
        (
            CacheOptions {
                identity: [8; 16],
                ..options.clone()
            },
            "another origin",
        ),
        (
            CacheOptions {
                size_bytes: SIZE_BYTES + 1,
                ..options.clone()
            },
            "bytes",
        ),
        (
            CacheOptions {
                chunk_bytes: 128 << 10,
                ..options.clone()
            },
            "chunks",
        ),
        (
            CacheOptions {
                persistent: false,
                ..options.clone()
            },
            "on a disk",
        ),
    ] {
        let error = CacheDirectory::open(&home.cache(), &other).expect_err("foreign");
        assert_eq!(error.kind(), ErrorKind::Foreign);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(before == (home.read("meta"), home.read("map")));
    assert_eq!(read(&home.open(), 5), Some(1));
}

#[test]
fn an_opening_names_all_that_the_server_may_have_heard_of_and_no_other() {
    let home = Home::new();
    let next = || {
        let cache = home.open();
        cache.directory.next_opening().expect("noted")
    };
    let (first, second) = (next(), next());
    assert_ne!(first.token, second.token);
    assert!(second.earlier.contains(&first.token), "it may have arrived");
    home.open().directory.forget(second).expect("noted");
    let third = next();
    assert!(third.earlier.contains(&first.token));
    assert!(!third.earlier.contains(&second.token), "it has not");
    home.open().directory.welcomed(third, 5).expect("noted");
    home.reboot();
    let fourth = next();
    let earlier: Vec<_> = fourth.earlier.iter().filter(|it| **it != [0; 16]).collect();
    assert_eq!(earlier, [&third.token], "the last one that is known");
    assert_eq!(fourth.store, first.store);
}

#[test]
fn a_copy_of_a_directory_has_a_live_map_of_its_own() {
    let home = Home::new();
    let cache = home.open();
    write(&cache, 5, 1);
    cache.checkpointer.checkpoint().expect("durable");
    let copy = home.dir.path().join("copy");
    std::fs::create_dir(&copy).expect("made");
    for name in ["data", "map", "meta"] {
        std::fs::copy(home.cache().join(name), copy.join(name)).expect("copied");
    }
    write(&cache, 6, 2);
    // Beside the other one, in the same boot.
    let opened = CacheDirectory::open(&copy, &home.options()).expect("opened");
    assert!(matches!(
        opened.found.state,
        FoundState::FromCheckpoint { .. }
    ));
    assert_eq!((read(&opened, 5), read(&opened, 6)), (Some(1), None));
    fill(&opened, BlockRange::new(7, 8), 3);
    assert_eq!(read(&cache, 7), None);
    drop(opened);
    discard(&copy, &home.run(), Discard::EvenDirty).expect("discarded");
    drop(cache);
    let cache = home.open();
    assert_eq!(cache.found.state, FoundState::Continued);
    assert_eq!(read(&cache, 6), Some(2));
}

#[test]
fn what_cannot_become_a_cache_is_refused() {
    let home = Home::new();
    std::fs::create_dir(home.cache()).expect("made");
    home.write("letter.txt", b"mine");
    let open = || CacheDirectory::open(&home.cache(), &home.options());
    assert_eq!(
        open().expect_err("not empty").kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(home.read("letter.txt"), b"mine");
    std::fs::remove_file(home.cache().join("letter.txt")).expect("removed");
    // Somebody's file that happens to have this name.
    home.write("data", b"mine");
    assert_eq!(open().expect_err("data").kind(), ErrorKind::InvalidInput);
    let discarded = discard(&home.cache(), &home.run(), Discard::EvenDirty);
    assert_eq!(discarded.expect_err("no cache").kind(), ErrorKind::NotFound);
    assert_eq!(home.read("data"), b"mine");
    std::fs::remove_file(home.cache().join("data")).expect("removed");
    for size_bytes in [0, CACHE_BYTES_MAX + 1] {
        let options = CacheOptions {
            size_bytes,
            ..home.options()
        };
        let error = CacheDirectory::open(&home.cache(), &options).expect_err("size");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    // A link that leads elsewhere is not followed.
    let elsewhere = home.dir.path().join("elsewhere");
    std::fs::write(&elsewhere, b"").expect("written");
    std::os::unix::fs::symlink(&elsewhere, home.cache().join("data")).expect("linked");
    open().expect_err("a link");
    assert_eq!(std::fs::metadata(&elsewhere).expect("there").len(), 0);
}

/// Set in a process that is started to try to open a cache in this directory.
const CHILD: &str = "BLOCKFERRY_TEST_CACHE_HOME";

#[test]
fn two_processes_cannot_open_one_cache() {
    if let Some(home) = std::env::var_os(CHILD) {
        let home = PathBuf::from(home);
        let options = CacheOptions {
            run_directory: home.join("run"),
            ..Home::new().options()
        };
        let error = CacheDirectory::open(&home.join("cache"), &options).expect_err("busy");
        assert_eq!(error.kind(), ErrorKind::Busy);
        let parent = std::os::unix::process::parent_id();
        assert!(error.to_string().contains(&parent.to_string()), "{error}");
        return;
    }
    let home = Home::new();
    let cache = home.open();
    write(&cache, 5, 1);
    let name = std::thread::current().name().map(str::to_owned);
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", &name.expect("the test's"), "--nocapture"])
        .env(CHILD, home.dir.path())
        .output()
        .expect("started");
    assert!(child.status.success(), "{child:?}");
    // And nobody else either: not this process again, not to look or to discard.
    let again = CacheDirectory::open(&home.cache(), &home.options());
    assert_eq!(again.expect_err("busy").kind(), ErrorKind::Busy);
    let report = inspect(&home.cache(), &home.run()).expect("looked at");
    assert_eq!(report.contents, Contents::InUse(Some(std::process::id())));
    let discarded = discard(&home.cache(), &home.run(), Discard::EvenDirty);
    assert_eq!(discarded.expect_err("busy").kind(), ErrorKind::Busy);
    assert_eq!(read(&cache, 5), Some(1));
}

#[test]
fn looking_at_a_cache_tells_what_counts_and_changes_nothing() {
    let home = Home::new();
    let missing = inspect(&home.cache(), &home.run()).expect_err("none");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 10), 1);
    write(&cache, 5, 2);
    let opening = cache.directory.next_opening().expect("begun");
    cache.directory.welcomed(opening, 9).expect("noted");
    cache.checkpointer.checkpoint().expect("durable");
    write(&cache, 50, 2);
    drop(cache);
    let contents = |present: u64, dirty: u64| {
        Contents::Idle(Held {
            present_bytes: present * 4096,
            dirty_bytes: dirty * 4096,
        })
    };
    for _ in 0..2 {
        let report = inspect(&home.cache(), &home.run()).expect("looked at");
        assert_eq!(report.contents, contents(11, 2), "by the live map");
        assert_eq!((report.epoch, report.size_bytes), (9, SIZE_BYTES));
        assert_eq!(report.origin_name, "blockferry://host:1/volume");
    }
    home.reboot();
    let report = inspect(&home.cache(), &home.run()).expect("looked at");
    assert_eq!(report.contents, contents(10, 10), "by the checkpoint");
    let cache = home.open();
    assert_eq!(Contents::Idle(cache.found.held), contents(10, 10));
    push(&cache);
    cache.checkpointer.close().expect("closed");
    drop(cache);
    let report = inspect(&home.cache(), &home.run()).expect("looked at");
    assert_eq!(report.contents, contents(10, 0));
}

#[test]
fn a_cache_is_discarded_only_if_clean_unless_it_is_said() {
    for (dirty, what) in [
        (false, Discard::Clean),
        (true, Discard::EvenDirty),
        (false, Discard::EvenDirty),
    ] {
        let home = Home::new();
        let cache = home.open();
        fill(&cache, BlockRange::new(0, 10), 1);
        if dirty {
            write(&cache, 5, 2);
        }
        drop(cache);
        let clean = || discard(&home.cache(), &home.run(), Discard::Clean);
        if dirty {
            let error = clean().expect_err("dirty");
            assert_eq!(error.kind(), ErrorKind::Dirty);
            assert!(error.to_string().contains("4KiB"), "{error}");
        }
        discard(&home.cache(), &home.run(), what).expect("discarded");
        for left in [home.cache(), home.run()] {
            assert_eq!(std::fs::read_dir(left).expect("listed").count(), 0);
        }
        assert_eq!(clean().expect_err("gone").kind(), ErrorKind::NotFound);
        assert_eq!(home.open().found.state, FoundState::Fresh);
    }
}

#[test]
fn a_damaged_cache_can_be_discarded_by_who_says_so() {
    for (name, at) in [("meta", 0), ("meta", 100), ("map", 4096 * 4)] {
        let home = Home::new();
        let cache = home.open();
        write(&cache, 5, 2);
        cache.checkpointer.close().expect("closed");
        drop(cache);
        let mut bytes = home.read(name);
        bytes[at] ^= 1;
        home.write(name, &bytes);
        let error = discard(&home.cache(), &home.run(), Discard::Clean).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", error.chain());
        discard(&home.cache(), &home.run(), Discard::EvenDirty).expect("discarded");
        assert_eq!(home.open().found.state, FoundState::Fresh);
    }
}

#[test]
fn dropping_what_is_clean_keeps_what_is_dirty_and_gives_the_space_back() {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 1000), 1);
    fill(&cache, cache.map.region_blocks(RegionIndex(2)), 1);
    write(&cache, 5, 2);
    cache.checkpointer.checkpoint().expect("durable");
    let allocated = |cache: &OpenedCache| {
        use std::os::unix::fs::MetadataExt;
        let data = std::fs::metadata(cache.data.path()).expect("examined");
        data.blocks() * 512
    };
    assert!(allocated(&cache) > 1000 * 4096);
    let cache = cache.drop_clean().expect("dropped");
    assert_eq!(cache.found.held.present_bytes, 4096);
    assert_eq!(cache.found.held.dirty_bytes, 4096);
    assert!(allocated(&cache) < 100 * 4096);
    assert_eq!(read(&cache, 5), Some(2));
    assert_eq!(read(&cache, 6), None);
    // Somebody else has the map.
    let map = cache.map.clone();
    assert_eq!(
        cache.drop_clean().expect_err("in use").kind(),
        ErrorKind::Busy
    );
    drop(map);
    home.reboot();
    let cache = home.open();
    assert_eq!(cache.found.held.present_bytes, 4096);
    assert_eq!(read(&cache, 5), Some(2));
}

#[test]
fn a_cache_takes_directories_that_are_not_there_and_keeps_them_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let path = home.cache().join("of/many/levels");
    CacheDirectory::open(&path, &home.options()).expect("made");
    for directory in path.ancestors().take(4) {
        let mode = std::fs::metadata(directory).expect("there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o700, "{}", directory.display());
    }
}
