//! How a mount ends, and what becomes of what the origin does not have.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::{CHUNK, Host, KEEP_DIRTY, Mount, SIZE, pattern, said, until};

/// Waits for nobody: less than any deadline of a request.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Writes a chunk of its own, which stays dirty.
fn write_dirty(mount: &Mount, round: u64) -> Vec<u8> {
    let bytes = pattern(CHUNK, CHUNK as usize, round);
    mount.write(CHUNK, &bytes);
    bytes
}

fn original() -> Vec<u8> {
    pattern(CHUNK, CHUNK as usize, 0)
}

fn at_origin(host: &Host) -> Vec<u8> {
    host.at_origin(CHUNK, CHUNK as usize)
}

#[test]
fn with_a_cache_it_stops_at_once_while_the_origin_is_away_and_sends_the_rest_next_time() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let cache = host.text("cache");
    let mut mount = host.mount(&[&["--cache", &cache], &KEEP_DIRTY[..]].concat());
    host.until_local();
    let written = write_dirty(&mount, 1);
    let listen = server.end();
    host.until_away();
    let begun = Instant::now();
    host.succeeds(&["stop", "disk"]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(mount.ended(), Some(0));
    assert!(
        mount.stderr().contains("256KiB of local writes stay"),
        "{}",
        mount.stderr()
    );
    assert_eq!(host.cache(&cache)["dirty_bytes"], CHUNK);
    assert_eq!(at_origin(&host), original());

    let _server = host.serve_at(&listen);
    let mount = host.mount(&["--cache", &cache]);
    host.until_clean();
    assert_eq!(at_origin(&host), written);
    assert_eq!(host.number("fetched_bytes"), 0, "all of it was here");
    drop(mount);
}

/// As it is mounted without any option: a flush is for the origin, which is away.
#[test]
fn without_a_cache_it_refuses_to_lose_writes_and_goes_on() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let mut mount = host.mount(&["--push-interval", "3600", "--io-timeout", "0"]);
    host.until_local();
    let written = write_dirty(&mount, 1);
    let listen = server.end();
    host.until_away();
    let begun = Instant::now();
    host.fails(
        &["stop", "disk"],
        &[
            "256KiB of local writes are not at the origin",
            "cannot be reached",
            "--discard-dirty",
        ],
    );
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(mount.read(CHUNK, CHUNK as usize), written, "it goes on");

    let begun = Instant::now();
    host.succeeds(&["stop", "disk", "--discard-dirty"]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(mount.ended(), Some(0));
    assert!(host.stores().is_empty(), "{:?}", host.stores());

    // The server could not be told.
    let _server = host.serve_at(&listen);
    host.fails(
        &["mount", &host.ticket(), "--device", "fuse"],
        &["--takeover"],
    );
    let mount = host.mount(&["--takeover"]);
    assert_eq!(mount.read(CHUNK, CHUNK as usize), original(), "given up");
}

#[test]
fn what_is_given_up_does_not_come_back_from_the_cache() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [&["--cache", cache.as_str()], &KEEP_DIRTY[..]].concat();
    let mount = host.mount(&args);
    write_dirty(&mount, 1);
    host.succeeds(&["stop", "disk", "--discard-dirty"]);
    let mount = host.mount(&args);
    assert_eq!(mount.read(CHUNK, CHUNK as usize), original());
    host.succeeds(&["stop", "disk"]);
    assert_eq!(at_origin(&host), original());
}

#[test]
fn a_clean_mount_that_ends_while_the_origin_is_away_goes_on_without_a_takeover() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let mut mount = host.mount(&[]);
    host.until_local();
    let listen = server.crash();
    host.until_away();
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let _server = host.serve_at(&listen);
    let mut mount = host.mount(&[]);
    host.until_local();
    assert_eq!(host.number("fetched_bytes"), 0);
    host.stop_cleanly(&mut mount);
}

#[test]
fn the_first_signal_says_what_would_be_lost_and_the_second_leaves_it_in_the_store() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let mut mount = host.mount(&["--push-interval", "3600"]);
    let written = write_dirty(&mount, 1);
    let listen = server.end();
    host.until_away();
    // A terminal and what runs in it may both pass the same Ctrl-C on.
    mount.signal(Signal::SIGINT);
    mount.signal(Signal::SIGTERM);
    until("it says so", || mount.stderr().contains("--discard-dirty"));
    assert_eq!(mount.read(CHUNK, CHUNK as usize), written, "it goes on");
    until("another signal counts", || {
        mount.signal(Signal::SIGTERM);
        mount.child.try_wait().unwrap().is_some()
    });
    assert_eq!(mount.ended(), Some(0));
    assert_eq!(host.stores().len(), 1);

    let _server = host.serve_at(&listen);
    let _mount = host.mount(&[]);
    host.until_clean();
    assert_eq!(at_origin(&host), written);
}

#[test]
fn a_forced_stop_leaves_what_was_not_sent_to_the_next_mount() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mut mount = host.mount(&KEEP_DIRTY);
    let written = write_dirty(&mount, 1);
    let holder = std::fs::File::open(&mount.device).unwrap();
    host.fails(&["stop", "disk"], &["in use"]);
    host.succeeds(&["stop", "disk", "--force"]);
    assert_eq!(mount.ended(), Some(0));
    drop(holder);
    assert_eq!(at_origin(&host), original());
    let mount = host.mount(&[]);
    assert_eq!(mount.read(CHUNK, CHUNK as usize), written);
    host.until_clean();
    assert_eq!(at_origin(&host), written);
}

#[test]
fn a_stop_that_sends_the_rest_can_be_told_to_give_it_up() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let args = [
        &["--push-rate", "4KiB", "--pull-order", "none"],
        &KEEP_DIRTY[..],
    ]
    .concat();
    let mut mount = host.mount(&args);
    mount.write(0, &pattern(0, SIZE as usize / 2, 1));
    let mut patient = host
        .command(&["stop", "disk", "--timeout", "600"])
        .spawn()
        .unwrap();
    until("it is sending", || host.number("push_rate") > 0);
    host.succeeds(&["stop", "disk", "--discard-dirty"]);
    assert_eq!(mount.ended(), Some(0));
    assert!(patient.wait().unwrap().success());
    assert!(host.stores().is_empty(), "{:?}", host.stores());
}

#[test]
fn with_push_off_only_a_sync_sends() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let mut mount = host.mount(&["--push", "off", "--push-interval", "0.01"]);
    let written = write_dirty(&mount, 1);
    mount.flush().unwrap();
    host.fails(
        &["stop", "disk"],
        &["--push is off", "blockferry sync", "--discard-dirty"],
    );
    assert_eq!(at_origin(&host), original());
    host.succeeds(&["sync", "disk"]);
    assert_eq!(at_origin(&host), written);
    assert_eq!(host.number("dirty_bytes"), 0);
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));

    // With a cache it may stay.
    let args = ["--push", "off", "--cache", &cache];
    let mut mount = host.mount(&args);
    let again = write_dirty(&mount, 2);
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let _mount = host.mount(&args);
    assert_eq!(host.number("dirty_bytes"), CHUNK);
    assert_eq!(at_origin(&host), written);
    host.succeeds(&["sync", "disk"]);
    assert_eq!(at_origin(&host), again);
}

#[test]
fn a_flush_promises_what_was_asked_for() {
    let Some(host) = Host::new() else { return };
    let mut server = host.serve();
    let cache = host.text("cache");
    for (args, goes_to_the_origin) in [
        (&[][..], true),
        (&["--durability", "remote", "--cache", &cache], true),
        (&["--cache", &cache], false),
        (&["--durability", "local"], false),
        (&["--durability", "none"], false),
        (&["--durability", "none", "--cache", &cache], false),
    ] {
        let args = [args, &["--push-interval", "3600", "--io-timeout", "1"]].concat();
        let before = at_origin(&host);
        let mount = host.mount(&args);
        let round = before[0].wrapping_add(2).into();
        let written = write_dirty(&mount, round);
        mount.flush().unwrap();
        let expected = if goes_to_the_origin {
            &written
        } else {
            &before
        };
        assert!(at_origin(&host) == *expected, "{args:?}");

        write_dirty(&mount, round + 1);
        let listen = server.end();
        host.until_away();
        assert_eq!(mount.flush().is_err(), goes_to_the_origin, "{args:?}");
        server = host.serve_at(&listen);
        until("the origin is back", || {
            host.managed()["away_since"].is_null()
        });
        host.succeeds(&["stop", "disk"]);
    }
}

/// Ends a mount whose process is dead, with what it says.
fn stop_dead(host: &Host, args: &[&str]) -> String {
    let output = host.run(&[&["stop", "disk"], args].concat());
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_dead_mount_is_stopped_with_a_word_on_its_unsent_writes_and_gives_them_up_when_told_to() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    for place in [&["--cache", cache.as_str()][..], &[]] {
        let args = [place, &KEEP_DIRTY[..]].concat();
        let mut mount = host.mount(&args);
        let written = write_dirty(&mount, 1);
        mount.crash();
        let stays = stop_dead(&host, &[]);
        let store = match place {
            [] => host.stores().pop().unwrap().display().to_string(),
            _ => cache.clone(),
        };
        for part in ["256KiB of local writes stay", &store, "sends them"] {
            assert!(stays.contains(part), "no `{part}` in {stays}");
        }
        // It is as it was said.
        let mut mount = host.mount(&args);
        assert_eq!(host.number("dirty_bytes"), CHUNK);
        assert_eq!(mount.read(CHUNK, CHUNK as usize), written);
        mount.crash();
        let gone = stop_dead(&host, &["--discard-dirty"]);
        for part in ["256KiB of local writes were given up", &store] {
            assert!(gone.contains(part), "no `{part}` in {gone}");
        }
        assert_eq!(host.cache(&store)["dirty_bytes"], 0);
        // No takeover, and nothing comes back.
        let mount = host.mount(&args);
        assert_eq!(host.number("dirty_bytes"), 0);
        assert_eq!(mount.read(CHUNK, CHUNK as usize), original());
        host.succeeds(&["sync", "disk"]);
        assert_eq!(at_origin(&host), original());
        host.succeeds(&["stop", "disk"]);
    }
}

#[test]
fn a_dead_mount_that_pushed_nothing_says_that_only_a_sync_sends_what_stays() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mut mount = host.mount(&["--push", "off"]);
    write_dirty(&mount, 1);
    mount.crash();
    let stays = stop_dead(&host, &[]);
    assert!(stays.contains("`blockferry sync` sends them"), "{stays}");
}

#[test]
fn a_stop_that_takes_its_time_says_what_it_does_and_goes_on() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    // The second chunk waits some 8 seconds for its turn.
    let args = [&["--push-rate", "32KiB"], &KEEP_DIRTY[..]].concat();
    let mut mount = host.mount(&args);
    let written = write_dirty(&mount, 1);
    mount.write(8 * CHUNK, &pattern(8 * CHUNK, CHUNK as usize, 1));
    let said = host.fails(
        &["stop", "disk", "--timeout", "1"],
        &[
            "`disk` has not ended within 1 s",
            "are not at",
            "It goes on",
        ],
    );
    assert!(said.contains("/s.") && said.contains("--force"), "{said}");
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    assert_eq!(at_origin(&host), written);
}

#[test]
fn a_sync_says_at_once_that_the_origin_is_away_and_waits_for_it() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let mount = host.mount(&KEEP_DIRTY);
    let written = write_dirty(&mount, 1);
    let listen = server.end();
    host.until_away();
    let told = host.path("told");
    let mut waiting = host
        .command(&["sync", "disk"])
        .stderr(std::fs::File::create(&told).unwrap())
        .spawn()
        .unwrap();
    until("it says so", || {
        let told = std::fs::read_to_string(&told).unwrap();
        told.contains("is away for") && told.contains("waiting until it is back")
    });
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    let _server = host.serve_at(&listen);
    assert!(waiting.wait().unwrap().success());
    assert_eq!(at_origin(&host), written);
    host.succeeds(&["stop", "disk"]);
}
