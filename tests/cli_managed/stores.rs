//! Stores that cannot be used, or not so: each message says what to do.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::support::{CHUNK, Host, KEEP_DIRTY, SIZE, pattern};

/// A cache in which a chunk is local and `dirty` or not, of a mount that was stopped.
fn left_cache(host: &Host, dirty: bool) -> String {
    let cache = host.text("cache");
    let args = [
        &["--cache", cache.as_str(), "--pull-order", "none"],
        &KEEP_DIRTY[..],
    ]
    .concat();
    let mount = host.mount(&[&args[..], &["--push", "off"]].concat());
    mount.read(0, 4096);
    if dirty {
        mount.write(CHUNK, &pattern(CHUNK, CHUNK as usize, 1));
    }
    host.succeeds(&["stop", "disk"]);
    cache
}

fn mount_args<'a>(ticket: &'a str, cache: &'a str) -> [&'a str; 6] {
    ["mount", ticket, "--device", "fuse", "--cache", cache]
}

#[test]
fn show_and_drop_tell_what_is_in_a_cache_and_lose_nothing_unasked() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = left_cache(&host, true);
    let shown = host.cache(&cache);
    assert_eq!(shown["dirty_bytes"], CHUNK);
    assert_eq!(shown["local_bytes"], 2 * CHUNK);
    assert_eq!(shown["size_bytes"], SIZE);
    assert_eq!(shown["in_use"], false);
    let text = host.succeeds(&["cache", "show", &cache]);
    for part in ["/disk", "16MiB", "dirty      256KiB"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    host.fails(
        &["cache", "drop", &cache],
        &["local writes", "--discard-dirty"],
    );
    assert_eq!(host.cache(&cache), shown, "nothing was touched");
    host.succeeds(&["cache", "drop", &cache, "--discard-dirty"]);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    host.fails(
        &["cache", "show", &cache],
        &["there is no cache in", &cache],
    );
    host.fails(
        &["cache", "drop", &cache],
        &["there is no cache in", &cache],
    );
}

#[test]
fn a_cache_that_is_in_use_is_left_alone_and_says_by_whom() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let mount = host.mount(&["--cache", &cache]);
    let by = format!("in use by process {}; stop that first", mount.child.id());
    host.fails(&mount_args(&host.ticket(), &cache), &[&cache, &by]);
    host.fails(
        &["cache", "drop", &cache, "--discard-dirty"],
        &[&cache, &by],
    );
    let shown = host.cache(&cache);
    assert_eq!(
        (&shown["in_use"], &shown["process"]),
        (&true.into(), &mount.child.id().into())
    );
}

#[test]
fn a_cache_of_another_content_is_dropped_if_it_is_clean_and_asked_about_if_not() {
    let Some(host) = Host::new() else { return };
    for dirty in [false, true] {
        host.make_volume(SIZE);
        let server = host.serve();
        let cache = left_cache(&host, dirty);
        let listen = server.end();
        // Longer, and other bytes.
        host.make_volume(SIZE + 4096);
        let disk = File::options()
            .write(true)
            .open(host.path("disk.img"))
            .unwrap();
        disk.write_all_at(&pattern(0, 4096, 7), 0).unwrap();
        drop(disk);
        let _server = host.serve_at(&listen);
        let args = ["--cache", cache.as_str()];
        if dirty {
            let said = host.fails(&mount_args(&host.ticket(), &cache), &["256KiB", "not sent"]);
            for part in [&format!("blockferry cache show {cache}"), "--discard-dirty"] {
                assert!(said.contains(part), "no `{part}` in {said}");
            }
            assert_eq!(
                host.cache(&cache)["dirty_bytes"],
                CHUNK,
                "nothing was touched"
            );
        }
        let discard = ["--discard-dirty"];
        let mount = host.mount(&[&args[..], if dirty { &discard } else { &[] }].concat());
        assert_eq!(mount.read(0, 4096), pattern(0, 4096, 7));
        assert_eq!(mount.read(CHUNK, 4096), pattern(CHUNK, 4096, 0));
        host.until_local();
        assert_eq!(host.number("size_bytes"), SIZE + 4096);
        assert_eq!(host.number("fetched_bytes"), SIZE + 4096);
        host.succeeds(&["stop", "disk"]);
        host.succeeds(&["cache", "drop", &cache]);
    }
}

#[test]
fn a_cache_that_its_disk_failed_to_sync_is_asked_about() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    for option in ["--accept-loss", "--discard-dirty"] {
        let cache = left_cache(&host, true);
        // As the mount would have noted it.
        let meta = fs::read(host.path("cache").join("meta")).unwrap();
        let store = data_encoding::HEXLOWER.encode(&meta[16..32]);
        let data = fs::metadata(host.path("cache").join("data")).unwrap();
        let note = format!("{store}-{:x}-{:x}.failed", data.dev(), data.ino());
        let note = host.path("run/.stores").join(note);
        File::create(note).unwrap();
        let said = host.fails(&mount_args(&host.ticket(), &cache), &["failed to sync"]);
        for part in [
            &format!("blockferry cache show {cache}"),
            "--accept-loss",
            "--discard-dirty",
        ] {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
        host.fails(
            &["cache", "drop", &cache],
            &["failed to sync", "--discard-dirty"],
        );
        assert_eq!(host.cache(&cache)["sync_failed"], true);
        let text = host.succeeds(&["cache", "show", &cache]);
        assert!(text.contains("--accept-loss"), "{text}");
        let mount = host.mount(&["--cache", &cache, "--push", "off", option]);
        let round = u64::from(option == "--accept-loss");
        assert_eq!(mount.read(CHUNK, 4096), pattern(CHUNK, 4096, round));
        assert_eq!(host.number("dirty_bytes"), CHUNK * round);
        host.succeeds(&["stop", "disk", "--discard-dirty"]);
    }
}

#[test]
fn a_cache_with_another_chunk_says_how_to_go_on_with_it() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = left_cache(&host, false);
    let ticket = host.ticket();
    let args = [&mount_args(&ticket, &cache)[..], &["--chunk-size", "64KiB"]].concat();
    let drop = format!("blockferry cache drop {cache}");
    host.fails(&args, &["--chunk-size 256KiB", &drop]);
    let _mount = host.mount(&["--cache", &cache, "--chunk-size", "256KiB"]);
}

#[test]
fn a_damaged_cache_and_one_of_another_version_are_not_used() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let write = |name: &str, bytes: &[u8], at: u64| {
        let file = File::options()
            .write(true)
            .open(host.path("cache").join(name))
            .unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    let truncate = |name: &str, len| {
        let file = File::options()
            .write(true)
            .open(host.path("cache").join(name))
            .unwrap();
        file.set_len(len).unwrap();
    };
    left_cache(&host, true);
    fs::rename(host.path("cache").join("map"), host.path("other-map")).unwrap();
    host.succeeds(&["cache", "drop", &host.text("cache"), "--discard-dirty"]);
    host.forget_lease();
    let damages: [(&str, &dyn Fn()); 8] = [
        ("`map` belongs to another store", &|| {
            fs::copy(host.path("other-map"), host.path("cache").join("map")).unwrap();
        }),
        ("there is no `meta`", &|| {
            fs::remove_file(host.path("cache").join("meta")).unwrap()
        }),
        ("version 999", &|| write("meta", &999u16.to_le_bytes(), 8)),
        ("checksum", &|| write("meta", &[0xff], 40)),
        ("`meta` has 100 bytes", &|| truncate("meta", 100)),
        ("`data` has 4096 bytes", &|| truncate("data", 4096)),
        ("map", &|| truncate("map", 4096)),
        ("`map`", &|| {
            fs::remove_file(host.path("cache").join("map")).unwrap()
        }),
    ];
    for (what, damage) in damages {
        let cache = left_cache(&host, true);
        damage();
        let drop = format!("blockferry cache drop {cache} --discard-dirty");
        host.fails(
            &mount_args(&host.ticket(), &cache),
            &[what, &drop, "another directory"],
        );
        let said = host.fails(&["cache", "drop", &cache], &["--discard-dirty"]);
        assert!(said.contains(&cache), "{said}");
        host.succeeds(&["cache", "drop", &cache, "--discard-dirty"]);
        host.forget_lease();
    }
}

#[test]
fn what_is_no_plain_file_is_named_and_holds_nobody_up() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = left_cache(&host, true);
    let args = mount_args(&host.ticket(), &cache).map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for name in ["map", "data", "meta"] {
        let (file, aside) = (host.path("cache").join(name), host.path("aside"));
        fs::rename(&file, &aside).unwrap();
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        let named = format!("`{name}`");
        host.fails(
            &args,
            &[&cache, &named, "it is a FIFO", "another directory"],
        );
        host.fails(&["cache", "show", &cache], &[&named, "it is a FIFO"]);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        host.fails(&args, &[&cache, &named, "it is a directory"]);
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    }
    assert_eq!(host.cache(&cache)["dirty_bytes"], CHUNK);
}

#[test]
fn a_mount_that_never_reached_its_server_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    host.serve().end();
    let ticket = host.ticket();
    let mount = ["mount", ticket.as_str(), "--device", "fuse"];
    host.fails(&mount, &["no answer from"]);
    assert!(host.stores().is_empty(), "{:?}", host.stores());
    let cache = host.text("cache");
    host.fails(&mount_args(&ticket, &cache), &["no answer from"]);
    assert!(!fs::exists(&cache).unwrap(), "it was made for nothing");
    fs::create_dir(&cache).unwrap();
    host.fails(&mount_args(&ticket, &cache), &["no answer from"]);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "it is the user's");
}

#[test]
fn what_cannot_be_recorded_is_said_before_anything_is_made() {
    let Some(host) = Host::new() else { return };
    // Nobody has to be asked for that.
    host.serve().end();
    let (ticket, cache) = (host.ticket(), host.text("cache"));
    let heat = host.text("missing/heat");
    let args = [&mount_args(&ticket, &cache)[..], &["--record-heat", &heat]].concat();
    host.fails(&args, &["cannot record what is touched", &heat]);
    assert!(!fs::exists(&cache).unwrap());
}

#[test]
fn a_store_without_its_data_is_damaged_for_everybody_and_nothing_is_made_there() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = left_cache(&host, false);
    let damages: [(&str, &dyn Fn()); 2] = [
        ("`data` has 4096 bytes", &|| {
            let data = File::options().write(true).open(host.path("cache/data"));
            data.unwrap().set_len(4096).unwrap();
        }),
        ("there is no `data`", &|| {
            fs::remove_file(host.path("cache/data")).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let there = fs::read_dir(&cache).unwrap().count();
        host.fails(&mount_args(&host.ticket(), &cache), &[what]);
        host.fails(&["cache", "show", &cache], &[what]);
        host.fails(&["cache", "drop", &cache], &[what, "--discard-dirty"]);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), there, "{what}");
    }
    host.succeeds(&["cache", "drop", &cache, "--discard-dirty"]);
}

#[test]
fn a_store_without_its_meta_is_damaged_for_everybody_and_leaves_nothing_when_dropped() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let mut mount = host.mount(&[&["--cache", cache.as_str()], &KEEP_DIRTY[..]].concat());
    mount.write(0, &pattern(0, 4096, 1));
    mount.crash();
    host.succeeds(&["stop", "disk"]);
    fs::remove_file(host.path("cache/meta")).unwrap();
    let what = "there is no `meta`";
    host.fails(&mount_args(&host.ticket(), &cache), &[what]);
    host.fails(&["cache", "show", &cache], &[what]);
    host.fails(&["cache", "drop", &cache], &[what, "--discard-dirty"]);
    let live_maps = || fs::read_dir(host.path("run/.stores")).unwrap().count();
    assert_eq!(live_maps(), 1);
    host.succeeds(&["cache", "drop", &cache, "--discard-dirty"]);
    assert_eq!(live_maps(), 0);
}

#[test]
fn a_directory_with_other_things_in_it_does_not_become_a_cache() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    fs::create_dir(&cache).unwrap();
    fs::write(host.path("cache").join("thesis.tex"), "…").unwrap();
    host.fails(
        &mount_args(&host.ticket(), &cache),
        &["thesis.tex", "name an empty directory"],
    );
    host.fails(
        &["cache", "drop", &cache, "--discard-dirty"],
        &["there is no cache in"],
    );
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
}

#[test]
fn a_store_in_memory_is_refused_where_it_does_not_fit_and_where_its_map_is_gone() {
    let Some(host) = Host::new() else { return };
    let disk = File::options()
        .write(true)
        .open(host.path("disk.img"))
        .unwrap();
    disk.set_len(8 << 40).unwrap();
    let server = host.serve();
    host.fails(
        &[
            "mount",
            &host.ticket(),
            "--device",
            "fuse",
            "--store",
            "mem",
        ],
        &["8TiB", "half of what is available", "leave out --store mem"],
    );
    let listen = server.end();
    host.make_volume(SIZE);
    let _server = host.serve_at(&listen);

    // It outlives its process.
    let args = [&["--store", "mem"], &KEEP_DIRTY[..]].concat();
    let mut mount = host.mount(&args);
    let store = host.managed()["store"].as_str().unwrap().to_owned();
    assert!(store.starts_with("/dev/shm/"), "{store}");
    host.until_local();
    let written = pattern(0, 4096, 1);
    mount.write(0, &written);
    mount.crash();
    host.succeeds(&["stop", "disk", "--force"]);
    let mut mount = host.mount(&args);
    assert_eq!(mount.read(0, 4096), written);
    assert_eq!(host.number("fetched_bytes"), 0);
    mount.crash();
    host.succeeds(&["stop", "disk", "--force"]);

    fs::remove_dir_all(host.path("run").join(".stores")).unwrap();
    let drop = format!("blockferry cache drop {store} --discard-dirty");
    let ticket = host.ticket();
    let mount = [&["mount", &ticket, "--device", "fuse"], &args[..]].concat();
    host.fails(&mount, &["in memory", "live map", &drop]);
    host.succeeds(&["cache", "drop", &store, "--discard-dirty"]);
    let mut mount = host.mount(&[&args[..], &["--takeover"]].concat());
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    assert!(!fs::exists(&store).unwrap(), "{store}");
}
