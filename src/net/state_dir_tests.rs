use super::*;
use crate::net::lease::{Holder, LastOpening};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn disk() -> VolumeName {
    "disk".parse().expect("a name")
}

fn here() -> HostPort {
    "10.0.0.7:4480".parse().expect("an address")
}

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::open(Some(&dir.path().join("state"))).expect("opened");
    (dir, state)
}

#[test]
fn a_ticket_stays_the_same_over_restarts_until_it_is_rotated() {
    let (dir, state) = state();
    let first = state.announce(&disk(), &here(), false).expect("a ticket");
    let again = StateDir::open(Some(&dir.path().join("state"))).expect("opened");
    assert_eq!(again.ticket(&disk(), false).expect("the same"), first);
    let rotated = again.ticket(&disk(), true).expect("another");
    let secret = |ticket: &Ticket| ticket.credentials.clone().expect("with one").secret;
    let key = |ticket: &Ticket| ticket.credentials.clone().expect("with one").fingerprint;
    assert!(secret(&rotated) != secret(&first));
    assert_eq!(key(&rotated), key(&first));
    assert_eq!(state.ticket(&disk(), false).expect("the new one"), rotated);
}

#[test]
fn nothing_in_the_directory_is_readable_by_others() {
    let (_dir, state) = state();
    state.announce(&disk(), &here(), false).expect("a ticket");
    let _lock = state.lock(&disk()).expect("locked");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o077;
    let mut seen = 0;
    for directory in [state.path.clone(), state.path.join("volumes")] {
        assert_eq!(mode(&directory), 0);
        for entry in fs::read_dir(&directory).expect("listed") {
            assert_eq!(mode(&entry.expect("listed").path()), 0);
            seen += 1;
        }
    }
    assert_eq!(seen, 5, "server.pem, volumes, secret, address, lock");
}

#[test]
fn a_lease_is_kept_as_it_was() {
    let (_dir, state) = state();
    assert_eq!(state.lease(&disk()).expect("none yet"), Record::default());
    let record = Record {
        epoch: u64::MAX,
        holder: Some(Holder {
            client_id: [0xFE; 16],
            name: "a \"host\"".to_owned(),
            since_unix_s: 1,
        }),
        managed: Some(LastOpening {
            store: [1; 16],
            token: [0xFD; 16],
        }),
    };
    state.keep_lease(&disk(), &record).expect("kept");
    assert_eq!(state.lease(&disk()).expect("read"), record);
}

#[test]
fn a_volume_is_served_by_one_process_at_a_time() {
    let (_dir, state) = state();
    let lock = state.lock(&disk()).expect("locked");
    let error = state.lock(&disk()).expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(lock);
    assert!(state.lock(&disk()).is_ok());
}

#[test]
fn a_damaged_file_is_named() {
    let (_dir, state) = state();
    state.announce(&disk(), &here(), false).expect("a ticket");
    for what in ["volumes/disk.secret", "volumes/disk.address", "server.pem"] {
        let path = state.path.join(what);
        let before = fs::read(&path).expect("there");
        fs::write(&path, "garbage").expect("written");
        let error = state.ticket(&disk(), false).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
        assert!(!error.contains("garbage"), "{error}");
        fs::write(&path, before).expect("written");
    }
    fs::write(state.path.join("volumes/disk.lease"), "{}").expect("written");
    assert!(state.lease(&disk()).is_err());
}

#[test]
fn a_volume_that_was_never_served_has_no_ticket() {
    let (_dir, state) = state();
    let error = state.ticket(&disk(), false).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    state.announce(&disk(), &here(), true).expect("a URL");
    assert_eq!(
        state.ticket(&disk(), false).expect("a URL").reveal(),
        "blockferry://10.0.0.7:4480/disk"
    );
    assert!(state.ticket(&disk(), true).is_err());
}
