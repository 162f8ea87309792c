//! Which of several stores of a volume a mount without `--cache` goes on with.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::support::{CHUNK, Host, KEEP_DIRTY, pattern};

/// A store of its own with a dirty chunk, of a mount that was killed.
fn killed_store(host: &Host) -> std::path::PathBuf {
    let on_demand = ["--pull-order", "none", "--read-ahead", "0"];
    let mut mount = host.mount(&[&KEEP_DIRTY[..], &on_demand].concat());
    mount.write(CHUNK, &pattern(CHUNK, CHUNK as usize, 1));
    // So that it is in the checkpoint: a copy has no live map.
    File::open(&mount.device).unwrap().sync_all().unwrap();
    mount.crash();
    host.succeeds(&["stop", "disk", "--force"]);
    let stores = host.stores();
    assert_eq!(stores.len(), 1);
    stores[0].clone()
}

fn numbered(store: &Path, number: u32) -> std::path::PathBuf {
    store.with_file_name(format!(
        "{}-{number}",
        store.file_name().unwrap().to_str().unwrap()
    ))
}

#[test]
fn a_store_with_local_writes_is_gone_on_with_though_an_earlier_place_is_free() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let store = killed_store(&host);
    std::fs::rename(&store, numbered(&store, 3)).unwrap();
    let mount = host.mount(&KEEP_DIRTY);
    assert_eq!(host.number("dirty_bytes"), CHUNK);
    assert_eq!(mount.read(CHUNK, 4096), pattern(CHUNK, 4096, 1));
    host.succeeds(&["stop", "disk"]);
    assert!(host.stores().is_empty(), "{:?}", host.stores());
    assert_eq!(host.at_origin(CHUNK, 4096), pattern(CHUNK, 4096, 1));
}

#[test]
fn of_two_stores_with_local_writes_of_one_lease_none_is_taken_unasked() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let store = killed_store(&host);
    let other = numbered(&store, 2);
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([&store, &other])
        .status();
    assert!(copied.unwrap().success());
    let (store, other) = (store.display().to_string(), other.display().to_string());
    let ticket = host.ticket();
    let mount = ["mount", ticket.as_str(), "--device", "fuse"];
    let parts = [store.as_str(), other.as_str(), "256KiB", "cache show"];
    host.fails(&mount, &parts);
    host.succeeds(&["cache", "drop", &other, "--discard-dirty"]);
    let mount = host.mount(&KEEP_DIRTY);
    assert_eq!(mount.read(CHUNK, 4096), pattern(CHUNK, 4096, 1));
    host.succeeds(&["stop", "disk"]);
}
