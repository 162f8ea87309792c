//! One writer at a time: refused, taken over, fenced.

use super::support::{CHUNK, Host, KEEP_DIRTY, Mount, pattern, said, until};

/// Another mount of the same volume on this host, as `other`.
fn other<'a>(ticket: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [
        &["mount", ticket, "--device", "fuse", "--name", "other"],
        args,
    ]
    .concat()
}

fn take_over(host: &Host) -> Mount {
    let mut mount = host.begin(&["--device", "fuse", "--name", "other", "--takeover"]);
    mount.wait_for_device();
    mount
}

#[test]
fn a_second_writer_is_refused_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mount = host.mount(&["--pull-order", "none"]);
    let stores = host.stores();
    assert_eq!(stores.len(), 1);
    let ticket = host.ticket();
    host.fails(
        &other(&ticket, &[]),
        &["refuses", "--takeover", "--read-only"],
    );
    assert_eq!(host.stores(), stores);
    let mut reader = host.begin(&["--device", "fuse", "--name", "other", "--read-only"]);
    reader.wait_for_device();
    assert_eq!(reader.read(0, 4096), pattern(0, 4096, 0));
    assert!(reader.try_write(0, &[1; 4096]).is_err());
    assert_eq!(host.stores().len(), 2, "a store each");
    host.succeeds(&["stop", "other"]);
    assert_eq!(host.stores(), stores);
    mount.write(0, &pattern(0, 4096, 1));
    host.succeeds(&["stop", "disk"]);
    assert!(host.stores().is_empty());
    assert_eq!(host.at_origin(0, 4096), pattern(0, 4096, 1));
}

#[test]
fn a_fenced_writer_says_so_and_its_writes_never_reach_the_volume() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [&["--cache", cache.as_str()], &KEEP_DIRTY[..]].concat();
    let mut mount = host.mount(&args);
    host.until_local();
    mount.write(CHUNK, &pattern(CHUNK, CHUNK as usize, 1));
    let winner = take_over(&host);
    winner.write(0, &pattern(0, 4096, 2));
    winner.flush().unwrap();
    until("the first one knows", || {
        host.status()["status"]["lost"] == true
    });
    assert!(host.succeeds(&["list"]).contains("lost, 256KiB dirty"));
    let lost = host.managed()["lost"].as_str().unwrap().to_owned();
    assert!(lost.contains("taken the volume over"), "{lost}");
    host.fails(
        &["sync", "disk"],
        &[
            "cannot make local writes durable at the origin",
            "taken the volume over",
        ],
    );
    let stopped = said(&host.run(&["stop", "disk"]));
    assert_eq!(mount.ended(), Some(0));
    for part in [
        "256KiB of local writes stay",
        "cannot be sent any more",
        "taken the volume over",
        "--discard-dirty",
    ] {
        assert!(stopped.contains(part), "no `{part}` in {stopped}");
    }

    // It does not come back by itself, and not with force either.
    let ticket = host.ticket();
    for more in [&[][..], &["--takeover"]] {
        let again = [&["mount", &ticket, "--device", "fuse"], &args[..], more].concat();
        let show = format!("blockferry cache show {cache}");
        host.fails(
            &again,
            &["256KiB that were not sent", &show, "--discard-dirty"],
        );
    }
    assert_eq!(host.cache(&cache)["dirty_bytes"], CHUNK);
    host.succeeds(&["stop", "other"]);
    let mount = host.mount(&[&args[..], &["--discard-dirty"]].concat());
    assert_eq!(
        mount.read(0, 4096),
        pattern(0, 4096, 2),
        "as the other one left it"
    );
    assert_eq!(mount.read(CHUNK, 4096), pattern(CHUNK, 4096, 0));
    drop(winner);
}

#[test]
fn a_clean_cache_of_a_fenced_writer_is_filled_anew_and_never_shows_what_was() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let mut mount = host.mount(&["--cache", &cache]);
    host.until_local();
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    // In between somebody else writes.
    let between = host.mount(&[]);
    between.write(0, &pattern(0, 4096, 2));
    host.succeeds(&["stop", "disk"]);
    let mount = host.mount(&["--cache", &cache]);
    assert_eq!(mount.read(0, 4096), pattern(0, 4096, 2));
    drop(between);
}

#[test]
fn without_a_cache_a_fenced_writer_stops_when_it_is_told_to_give_up() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mut mount = host.mount(&["--push-interval", "3600"]);
    mount.write(CHUNK, &pattern(CHUNK, 4096, 1));
    let winner = take_over(&host);
    until("the first one knows", || {
        host.status()["status"]["lost"] == true
    });
    let why = "taken the volume over";
    host.fails(&["stop", "disk"], &[why, "--discard-dirty"]);
    host.succeeds(&["stop", "disk", "--discard-dirty"]);
    assert_eq!(mount.ended(), Some(0));
    assert_eq!(winner.read(CHUNK, 4096), pattern(CHUNK, 4096, 0));
    host.succeeds(&["stop", "other"]);
    assert!(host.stores().is_empty(), "{:?}", host.stores());
}

#[test]
fn a_copy_that_was_tried_while_the_server_was_down_is_still_a_copy() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let (cache, copy) = (host.text("cache"), host.text("copy"));
    drop(host.mount(&["--cache", &cache]).read(0, 4096));
    host.succeeds(&["stop", "disk"]);
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always", &cache, &copy])
        .status();
    assert!(copied.unwrap().success());
    let listen = server.end();
    let ticket = host.ticket();
    let of_copy = ["mount", &ticket, "--device", "fuse", "--cache", &copy];
    host.fails(&of_copy, &["no answer"]);
    let _server = host.serve_at(&listen);
    let mount = host.mount(&["--cache", &cache]);
    mount.write(0, &pattern(0, 4096, 2));
    host.succeeds(&["stop", "disk"]);
    // Nothing in it counts any more: it begins anew.
    let mount = host.mount(&["--cache", &copy]);
    assert_eq!(mount.read(0, 4096), pattern(0, 4096, 2));
}

#[test]
fn a_copy_of_a_store_stays_refused_however_often_it_is_tried() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let (cache, copy) = (host.text("cache"), host.text("copy"));
    let mut mount = host.mount(&["--cache", &cache, "--push", "off"]);
    mount.write(0, &pattern(0, 4096, 1));
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let copied = std::process::Command::new("cp")
        .args(["-a", &cache, &copy])
        .status();
    assert!(copied.unwrap().success());
    // The store itself goes on.
    let mount = host.mount(&["--cache", &cache]);
    mount.write(0, &pattern(0, 4096, 2));
    host.succeeds(&["stop", "disk"]);
    assert_eq!(host.at_origin(0, 4096), pattern(0, 4096, 2));
    let ticket = host.ticket();
    for why in ["copied or restored", "refused it before"] {
        let again = ["mount", &ticket, "--device", "fuse", "--cache", &copy];
        host.fails(&again, &["were not sent", why, "--discard-dirty"]);
    }
    assert_eq!(host.at_origin(0, 4096), pattern(0, 4096, 2));
    let mount = host.mount(&["--cache", &copy, "--discard-dirty"]);
    assert_eq!(mount.read(0, 4096), pattern(0, 4096, 2));
}
