//! A disk that is full: ENOSPC, and everything that was acknowledged stays.

use std::process::Command;

use super::test_home::{Home, read};
use super::*;
use crate::volume::Backend;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::{FlightSlot, WriteStart};

/// Set in the process that has the small disk.
const CHILD: &str = "BLOCKFERRY_TEST_SMALL_DISK";

const NAME: &str =
    "volume::cache::full_disk_tests::a_full_disk_is_enospc_and_loses_nothing_that_was_acknowledged";

#[test]
fn a_full_disk_is_enospc_and_loses_nothing_that_was_acknowledged() {
    if std::env::var_os(CHILD).is_some() {
        return on_a_small_disk();
    }
    let place = tempfile::tempdir().expect("a directory");
    // In a mount namespace of its own; as root of a user namespace where we are not root.
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let script = "mount -t tmpfs -o size=4m none \"$1\" || exit 77; shift; exec \"$@\"";
    let child = unshare
        .args(["sh", "-c", script, "sh"])
        .arg(place.path())
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", NAME, "--nocapture"])
        .env(CHILD, place.path())
        .output();
    match child {
        Ok(child) if child.status.success() => {
            let out = String::from_utf8_lossy(&child.stdout);
            assert!(out.contains("1 passed"), "{out}");
        }
        Ok(child) if child.status.code() != Some(77) && !child.stdout.is_empty() => {
            panic!("{child:?}")
        }
        // Containers may not mount anything.
        other => eprintln!("skipped: no small disk can be made here: {other:?}"),
    }
}

fn on_a_small_disk() {
    let disk = PathBuf::from(std::env::var_os(CHILD).expect("set"));
    let home = Home::new();
    let options = home.options();
    let open = || CacheDirectory::open(&disk.join("cache"), &options).expect("opened");
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; 1 << 20]).expect("room");
    let cache = open();
    let bytes = memmap2::MmapMut::map_anon(4096).expect("memory");
    let write = |cache: &OpenedCache, block: u64| {
        let (slot, blocks) = (FlightSlot(0), BlockRange::new(block, block + 1));
        let start = cache.map.begin_write(slot, blocks);
        assert!(matches!(start, WriteStart::Claimed), "{start:?}");
        let written = cache.data.write_at(&bytes, block * 4096);
        cache.map.end_write(slot, blocks, start, written.is_ok());
        written
    };
    cache
        .checkpointer
        .make_write_ready(&[RegionIndex(0)])
        .expect("ready");
    write(&cache, 0).expect("room");
    cache.checkpointer.checkpoint().expect("room");

    let mut acknowledged = 1;
    let error = loop {
        match write(&cache, acknowledged) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(acknowledged > 100, "{acknowledged}");
    assert_eq!(read(&cache, acknowledged), None, "not there");
    // The other slot of the record has no room either.
    let error = cache.checkpointer.checkpoint().expect_err("full");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(cache.map.needs_checkpoint(), "it still has to be done");

    std::fs::remove_file(&ballast).expect("removed");
    cache.checkpointer.checkpoint().expect("room again");
    assert!(!cache.map.needs_checkpoint());
    write(&cache, acknowledged).expect("room again");
    drop(cache);
    home.reboot();
    let cache = open();
    assert_eq!(cache.found.held.dirty_bytes, acknowledged * 4096);
}
