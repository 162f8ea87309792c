//! A disk that failed to sync a store: nothing of it is used unasked.

use super::test_home::{Home, read, write};
use super::*;
use crate::volume::geometry::{BlockRange, RegionIndex};

#[test]
fn a_failed_sync_is_for_good_and_the_live_map_does_not_go_on() {
    for dies_at_once in [false, true] {
        let home = Home::new();
        let cache = home.open();
        write(&cache, 5, 1);
        cache.checkpointer.checkpoint().expect("durable");
        write(&cache, 6, 2);
        // As the ring of a queue says it.
        let error = std::io::Error::from_raw_os_error(libc::EIO);
        cache.data.note_flush_failure(&error);
        if !dies_at_once {
            every_call_fails(&cache.checkpointer);
            every_call_fails(&cache.checkpointer);
        }
        drop(cache);

        let cache = home.open_after_failed_sync(AfterFailedSync::GoOn);
        let FoundState::FromCheckpoint { because, .. } = &cache.found.state else {
            panic!("{:?}", cache.found);
        };
        assert!(because.contains("sync"), "{because}");
        assert_eq!((read(&cache, 5), read(&cache, 6)), (Some(1), None));
        cache.checkpointer.checkpoint().expect("durable again");
        write(&cache, 6, 3);
        drop(cache);
        let cache = home.open();
        assert_eq!(cache.found.state, FoundState::Continued);
        assert_eq!(read(&cache, 6), Some(3));
    }
}

/// Written, flushed, written again, and then the disk failed: as the store is found afterwards.
fn failed_store() -> Home {
    let home = Home::new();
    let cache = home.open();
    write(&cache, 5, 1);
    cache.checkpointer.checkpoint().expect("durable");
    write(&cache, 5, 2);
    write(&cache, 70_000, 3);
    let error = std::io::Error::from_raw_os_error(libc::EIO);
    cache.data.note_flush_failure(&error);
    every_call_fails(&cache.checkpointer);
    home
}

#[test]
fn after_a_failed_sync_a_store_is_not_used_before_somebody_says_how() {
    for reboots in [false, true] {
        let home = failed_store();
        if reboots {
            home.reboot();
        }
        for _ in 0..2 {
            let error = CacheDirectory::open(&home.cache(), &home.options()).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Dirty);
            assert!(
                error.chain().contains("failed to sync"),
                "{}",
                error.chain()
            );
            let report = inspect(&home.cache(), &home.run()).expect("there");
            assert!(report.sync_failed);
            let error = discard(&home.cache(), &home.run(), Discard::Clean).expect_err("dirty");
            assert_eq!(error.kind(), ErrorKind::Dirty);
        }
        let cache = home.open_after_failed_sync(AfterFailedSync::GoOn);
        assert_eq!(cache.found.held.dirty_bytes, 4096);
        assert_eq!(read(&cache, 70_000), None);
        write(&cache, 6, 4);
        drop(cache);
        // It was asked once, and goes on like any other.
        assert!(
            !inspect(&home.cache(), &home.run())
                .expect("there")
                .sync_failed
        );
        let cache = home.open();
        assert_eq!(cache.found.state, FoundState::Continued);
        assert_eq!(read(&cache, 6), Some(4));
    }
}

#[test]
fn after_a_failed_sync_a_store_can_begin_anew_and_stays_the_same_to_its_origin() {
    let home = failed_store();
    let before = home.read("meta");
    let cache = home.open_after_failed_sync(AfterFailedSync::Drop);
    assert_eq!(cache.found.held, Held::default());
    assert_eq!((read(&cache, 5), read(&cache, 70_000)), (None, None));
    assert_eq!(home.read("meta")[16..32], before[16..32], "its UUID");
    drop(cache);
    home.reboot();
    let cache = home.open();
    assert_eq!(cache.found.held, Held::default(), "durably");
}

#[test]
fn a_note_of_a_failed_sync_that_the_disk_did_not_take_is_made_at_the_next_opening() {
    let home = failed_store();
    let mut meta = meta::Meta::decode(&home.read("meta")).expect("read");
    meta.sync_failed = false;
    home.write("meta", &meta.encode());
    for reboots in [false, true] {
        if reboots {
            home.reboot();
        }
        let error = CacheDirectory::open(&home.cache(), &home.options()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Dirty, "{}", error.chain());
    }
}

fn every_call_fails(checkpointer: &Checkpointer) {
    for result in [
        checkpointer.checkpoint(),
        checkpointer.checkpoint_in_background(),
        checkpointer.settle_intents(),
        checkpointer.make_write_ready(&[RegionIndex(1)]),
        checkpointer.make_zero_ready(BlockRange::new(0, 1)),
        checkpointer.close(),
    ] {
        let error = result.expect_err("failed for good");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}
