//! Commands that are run when something happens.

use std::collections::BTreeSet;
use std::fs;

use std::process::Stdio;

use super::support::{CHUNK, Host, KEEP_DIRTY, SIZE, pattern, said, until};

#[test]
fn a_hook_that_fails_keeps_a_sync_from_happening() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let (forbidden, pushed) = (host.text("forbidden"), host.text("pushed"));
    let before = format!("test ! -e {forbidden}");
    let after = format!("echo $BLOCKFERRY_PUSHED_BYTES >{pushed}");
    // A flush of this mount is for the origin: the hook comes before that, too.
    let args = [
        "--push-interval",
        "3600",
        "--on-before-sync",
        &before,
        "--on-after-sync",
        &after,
    ];
    let mut mount = host.mount(&args);
    let written = pattern(CHUNK, CHUNK as usize, 1);
    mount.write(CHUNK, &written);
    fs::write(&forbidden, "").unwrap();
    let why = "the before-sync hook failed";
    host.fails(
        &["sync", "disk"],
        &["cannot sync `disk`", why, &before, "exit status: 1"],
    );
    host.fails(&["stop", "disk"], &[why, "--discard-dirty"]);
    assert_eq!(
        host.at_origin(CHUNK, CHUNK as usize),
        pattern(CHUNK, CHUNK as usize, 0)
    );
    assert!(!fs::exists(&pushed).unwrap(), "nothing was synced");

    fs::remove_file(&forbidden).unwrap();
    host.succeeds(&["sync", "disk"]);
    assert_eq!(host.at_origin(CHUNK, CHUNK as usize), written);
    assert_eq!(fs::read_to_string(&pushed).unwrap(), format!("{CHUNK}\n"));
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    assert_eq!(
        fs::read_to_string(&pushed).unwrap(),
        "0\n",
        "the end is a sync"
    );
}

#[test]
fn a_failing_hook_leaves_it_in_the_cache_when_the_mount_ends() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [
        &["--cache", cache.as_str(), "--on-before-sync", "false"],
        &KEEP_DIRTY[..],
    ];
    let mut mount = host.mount(&args.concat());
    mount.write(0, &pattern(0, 4096, 1));
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    assert_eq!(host.cache(&cache)["dirty_bytes"], 4096);
    assert_eq!(host.at_origin(0, 4096), pattern(0, 4096, 0));
}

#[test]
fn the_hook_before_the_end_finds_no_device_and_a_failure_of_it_is_told() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let gone = host.text("gone");
    let run = host.text("run");
    let command = format!("mountpoint -q {run}/disk/* || echo gone >>{gone}; exit 3");
    let mut mount = host.mount(&["--on-before-close", &command]);
    assert!(!fs::exists(&gone).unwrap());
    host.fails(
        &["stop", "disk"],
        &[
            "`disk` has stopped, but the before-close hook failed",
            "exit status: 3",
        ],
    );
    assert_eq!(mount.ended(), Some(1));
    assert_eq!(fs::read_to_string(&gone).unwrap(), "gone\n");
    assert!(host.stores().is_empty(), "it has ended all the same");
}

#[test]
fn a_failing_hook_before_the_end_does_not_hide_what_stays_unsent() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let cache = host.text("cache");
    let args = [
        "--cache",
        &cache,
        "--push",
        "off",
        "--on-before-close",
        "false",
    ];
    let mut mount = host.mount(&args);
    mount.write(0, &pattern(0, 4096, 1));
    let said = host.fails(
        &["stop", "disk"],
        &[
            "stopped, but",
            "4KiB of local writes stay in the local store",
            "`blockferry sync` sends them",
        ],
    );
    assert!(!said.contains("cannot stop"), "{said}");
    assert_eq!(mount.ended(), Some(1));
    assert_eq!(host.cache(&cache)["dirty_bytes"], 4096);
}

#[test]
fn each_chunk_is_told_of_once_when_all_of_it_is_local() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let chunks = host.text("chunks");
    let command = format!("exec cat >{chunks}");
    let mut mount = host.mount(&["--on-chunk-local", &command]);
    host.until_local();
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    // It has ended, so all of it is there.
    let told = fs::read_to_string(&chunks).unwrap();
    let expected: BTreeSet<String> = (0..SIZE / CHUNK)
        .map(|chunk| format!("{} {CHUNK}", chunk * CHUNK))
        .collect();
    assert_eq!(told.lines().count(), expected.len(), "{told}");
    assert_eq!(
        told.lines().map(str::to_owned).collect::<BTreeSet<_>>(),
        expected
    );
}

/// What a file of touched chunks says, but for the chunk that the kernel may have looked at first.
fn touched(heat: &str) -> Vec<String> {
    let recorded = fs::read_to_string(heat).unwrap_or_default();
    let lines = recorded.lines().filter(|it| !it.starts_with(['#', '0']));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_was_recorded_before_a_kill_is_kept_and_a_new_run_begins_anew() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let (heat, cache) = (host.text("heat"), host.text("cache"));
    let args = [
        "--pull-order",
        "none",
        "--record-heat",
        &heat,
        "--cache",
        &cache,
    ];
    let line = |chunk| format!("{} {CHUNK}", chunk * CHUNK);
    let mut mount = host.mount(&args);
    mount.read(40 * CHUNK, 4096);
    mount.read(7 * CHUNK, 4096);
    until("it was written", || touched(&heat).len() == 2);
    mount.crash();
    host.succeeds(&["stop", "disk"]);
    let mount = host.mount(&args);
    mount.read(21 * CHUNK, 4096);
    mount.read(7 * CHUNK, 4096);
    host.succeeds(&["stop", "disk"]);
    assert_eq!(touched(&heat), [40, 7, 21].map(line));
    let mount = host.mount(&args);
    mount.read(5 * CHUNK, 4096);
    host.succeeds(&["stop", "disk"]);
    assert_eq!(touched(&heat), [5].map(line));
}

#[test]
fn what_was_touched_first_is_recorded_and_pulled_first_the_next_time() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let (heat, told) = (host.text("heat"), host.text("told"));
    let mut mount = host.mount(&["--pull-order", "none", "--record-heat", &heat]);
    for chunk in [40, 7, 8] {
        mount.read(chunk * CHUNK, 4096);
    }
    // A kill would leave this much.
    until("it was written", || fs::exists(&heat).unwrap());
    mount.read(21 * CHUNK, 4096);
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let recorded = fs::read_to_string(&heat).unwrap();
    let lines: Vec<_> = recorded.lines().filter(|it| !it.starts_with('#')).collect();
    // The kernel may have looked for partitions before.
    let scanned = usize::from(lines[0].starts_with("0 "));
    for (line, (offset, len)) in lines[scanned..].iter().zip([(40, 1), (7, 2), (21, 1)]) {
        assert_eq!(*line, format!("{} {}", offset * CHUNK, len * CHUNK));
    }

    let command = format!("exec cat >{told}");
    let order = [
        "--pull-order",
        &heat,
        "--pull-workers",
        "1",
        "--on-chunk-local",
        &command,
    ];
    let mut mount = host.mount(&[&order[..], &["--pull-first"]].concat());
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let told = fs::read_to_string(&told).unwrap();
    let first: Vec<_> = told.lines().skip(scanned).take(4).collect();
    let expected = [40, 7, 8, 21].map(|chunk| format!("{} {CHUNK}", chunk * CHUNK));
    assert_eq!(first, expected);
}

#[test]
fn a_hook_that_hangs_is_named_by_those_who_wait_and_ended_by_a_forced_stop() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let args = ["--on-before-close", "sleep 600", "--hook-timeout", "600"];
    let mut mount = host.mount(&args);
    let hook = "--on-before-close `sleep 600`";
    let patient = host
        .command(&["stop", "disk", "--timeout", "600"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it runs", || {
        host.succeeds(&["status", "disk"]).contains(hook)
    });
    host.fails(&["stop", "disk", "--timeout", "3"], &[hook, "it waits for"]);
    let ended = [hook, "told to end at once", "it was ended"];
    host.fails(&["stop", "disk", "--force"], &ended);
    assert_eq!(mount.ended(), Some(1));
    let patient = patient.wait_with_output().unwrap();
    let waited = format!("waiting for the hook {hook}");
    for part in ended.into_iter().chain([waited.as_str()]) {
        assert!(said(&patient).contains(part), "{}", said(&patient));
    }
}

#[test]
fn a_hook_has_its_time_and_no_more() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let hang = format!("test -e {} || sleep 600", host.text("go"));
    let args = ["--on-before-sync", &hang, "--hook-timeout", "1"];
    let mut mount = host.mount(&args);
    mount.write(CHUNK, &pattern(CHUNK, CHUNK as usize, 1));
    host.fails(
        &["sync", "disk"],
        &["--on-before-sync", "within 1 s (--hook-timeout)"],
    );
    fs::write(host.path("go"), "").unwrap();
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
}

#[test]
fn where_nothing_can_be_recorded_nothing_is_mounted() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let ticket = host.ticket();
    for bad in [host.text(""), host.text("nowhere/heat")] {
        let args = ["mount", &ticket, "--device", "fuse", "--record-heat", &bad];
        host.fails(&args, &["cannot record what is touched in", &bad]);
    }
    assert!(host.stores().is_empty(), "{:?}", host.stores());
}

#[test]
fn an_order_that_is_for_a_longer_volume_is_said_so_once() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let order = host.text("order");
    fs::write(&order, format!("# boot\n0 4096\n{SIZE} 4096\n{SIZE} 1\n")).unwrap();
    let mount = host.mount(&["--pull-order", &order]);
    let said = mount.stderr();
    assert!(said.contains(&format!("{order}, line 3")), "{said}");
    assert!(said.contains("1 further ones"), "{said}");
}
