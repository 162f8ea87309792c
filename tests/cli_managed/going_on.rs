//! Going on after a crash, and ending before there was a device.

use std::fs;

use nix::sys::signal::Signal;

use super::support::{CHUNK, Host, KEEP_DIRTY, SIZE, pattern, until};

/// Half of it is local, one chunk of that dirty, when it is killed; the same command goes on.
fn goes_on_after_a_kill(args: &[&str]) {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let half = SIZE / 2;
    let same = [&["--device", "fuse"], args, &KEEP_DIRTY[..]].concat();
    let on_demand = ["--pull-order", "none", "--read-ahead", "0"];
    let mut mount = host.begin(&[&same[..], &on_demand].concat());
    mount.wait_for_device();
    for chunk in 0..half / CHUNK {
        mount.read(chunk * CHUNK, 4096);
    }
    let written = pattern(CHUNK, CHUNK as usize, 1);
    mount.write(CHUNK, &written);
    mount.crash();
    let listed = host.succeeds(&["list"]);
    assert!(
        listed.contains("disk") && listed.contains("dead"),
        "{listed}"
    );

    let mut again = host.begin(&same);
    again.wait_for_device();
    assert_eq!(again.read(CHUNK, CHUNK as usize), written);
    assert_eq!(host.number("dirty_bytes"), CHUNK);
    host.until_local();
    assert_eq!(host.number("fetched_bytes"), SIZE - half, "nothing twice");
    host.succeeds(&["sync", "disk"]);
    assert_eq!(host.at_origin(CHUNK, CHUNK as usize), written);
    host.stop_cleanly(&mut again);
    assert_eq!(host.succeeds(&["list"]), "");
}

#[test]
fn a_store_of_its_own_is_picked_up_after_a_kill() {
    goes_on_after_a_kill(&[]);
}

#[test]
fn a_cache_goes_on_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache").display().to_string();
    goes_on_after_a_kill(&["--cache", &cache]);
}

#[test]
fn a_dead_device_makes_way_for_the_same_mount_alone_and_only_when_nobody_has_it_open() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mut mount = host.mount(&["--pull-order", "none"]);
    let holder = fs::File::open(&mount.device).unwrap();
    mount.crash();
    let ticket = host.ticket();
    let named = ["mount", &ticket, "--device", "fuse", "--name", "disk"];
    let in_the_way = ["died and left it behind", "`blockferry stop disk`"];
    host.fails(&named, &in_the_way);
    let other = ["mount", "mem:1MiB", "--device", "fuse", "--name", "disk"];
    drop(holder);
    host.fails(&other, &in_the_way);
    let mut mount = host.mount(&[]);
    assert_eq!(mount.read(0, 4096), pattern(0, 4096, 0));
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
}

/// The live maps are in memory, so they are gone after a power cut.
#[test]
fn without_its_live_map_a_cache_has_what_was_flushed() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [
        &["--cache", cache.as_str(), "--pull-order", "none"],
        &KEEP_DIRTY[..],
    ]
    .concat();
    let mut mount = host.mount(&args);
    let written = pattern(CHUNK, CHUNK as usize, 1);
    mount.write(CHUNK, &written);
    mount.read(4 * CHUNK, 4096);
    host.until_whole_chunks();
    mount.flush().unwrap();
    let local = host.number("local_bytes");
    assert_eq!(host.number("dirty_bytes"), CHUNK);
    mount.crash();
    host.succeeds(&["stop", "disk", "--force"]);
    fs::remove_dir_all(host.path("run").join(".stores")).unwrap();
    // Of what lies near nobody knows whether it was being written.
    assert_eq!(host.cache(&cache)["dirty_bytes"], local);
    let mount = host.mount(&args);
    assert_eq!(mount.read(CHUNK, CHUNK as usize), written);
    assert_eq!(mount.read(4 * CHUNK, 4096), pattern(4 * CHUNK, 4096, 0));
    assert_eq!(host.number("fetched_bytes"), 0);
    host.succeeds(&["sync", "disk"]);
    assert_eq!(host.at_origin(CHUNK, CHUNK as usize), written);
}

#[test]
fn pulling_first_can_be_interrupted_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let args = ["--pull-first", "--pull-rate", "1MiB"];
    let by_signal = |mount: &super::support::Mount| mount.signal(Signal::SIGINT);
    let by_order = |_: &super::support::Mount| drop(host.succeeds(&["stop", "disk"]));
    let ways: [&dyn Fn(&super::support::Mount); 2] = [&by_signal, &by_order];
    for end in ways {
        let mut mount = host.begin_mount(&args);
        until("it pulls", || {
            host.run(&["status", "disk", "--json"]).status.success()
        });
        until("something is local", || {
            let managed = host.managed();
            managed["local_bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0)
        });
        assert_eq!(host.status()["state"], "starting");
        host.fails(&["sync", "disk"], &["no device yet"]);
        end(&mount);
        assert_eq!(mount.ended(), Some(1));
        assert!(
            mount
                .stderr()
                .contains("told to end before everything was local")
        );
        assert!(mount.said_nothing());
        assert!(host.stores().is_empty(), "{:?}", host.stores());
        assert_eq!(host.succeeds(&["list"]), "");
        // Nor the lease.
        let mut next = host.mount(&["--direct"]);
        host.succeeds(&["stop", "disk"]);
        assert_eq!(next.ended(), Some(0));
    }
}

#[test]
fn what_was_pulled_first_stays_in_a_cache_with_what_was_not_sent() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [&["--cache", cache.as_str()], &KEEP_DIRTY[..]].concat();
    let mount = host.mount(&[&args[..], &["--push", "off", "--pull-order", "none"]].concat());
    let written = pattern(SIZE - CHUNK, CHUNK as usize, 1);
    mount.write(SIZE - CHUNK, &written);
    host.succeeds(&["stop", "disk"]);
    let mut mount =
        host.begin_mount(&[&args[..], &["--pull-first", "--pull-rate", "1MiB"]].concat());
    until("something is local", || {
        let output = host.run(&["status", "disk", "--json"]);
        output.status.success() && host.managed()["local_bytes"].as_u64() > Some(2 * CHUNK)
    });
    mount.signal(Signal::SIGTERM);
    assert_eq!(mount.ended(), Some(1));
    let left = host.cache(&cache);
    assert_eq!(left["dirty_bytes"], CHUNK);
    let local = left["local_bytes"].as_u64().unwrap();
    // Nobody else gets in between.
    host.fails(
        &["mount", &host.ticket(), "--device", "fuse"],
        &["--takeover"],
    );
    let mount = host.mount(&[&args[..], &["--pull-first"]].concat());
    assert_eq!(host.number("fetched_bytes"), SIZE - local);
    assert_eq!(mount.read(SIZE - CHUNK, CHUNK as usize), written);
}
