//! A process that goes on for a client that has died: as the same client, with its lease.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockferry::net::{Remote, RemoteOptions};
use blockferry::wire::Ticket;
use blockferry::{AsyncBackend, ErrorKind, Result};
use net_support::{Memory, PATIENCE, Setup, options, write};

const SIZE: usize = 1 << 20;

/// A process of the client that is kept in `directory`.
async fn process(ticket: &Ticket, directory: &Path) -> Result<Arc<Remote>> {
    let options = RemoteOptions {
        client_file: Some(directory.join("client.json")),
        ..options("client")
    };
    Remote::connect(ticket.clone(), options).await
}

#[tokio::test]
async fn a_successor_has_the_lease_at_once_and_no_late_write_lands_after_its_own() {
    let (state, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    // To the server a dead process is a silent one: this one never says goodbye.
    let dead = process(&server.ticket, kept.path()).await.unwrap();
    memory.hold.send_replace(true);
    let late = tokio::spawn({
        let dead = Arc::clone(&dead);
        async move { write(&dead, 0, &[1; 512]).await }
    });
    memory.wait_until_held(1).await;

    let (ticket, directory) = (server.ticket.clone(), kept.path().to_owned());
    let mut next = tokio::spawn(async move { process(&ticket, &directory).await });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut next).await;
    assert!(early.is_err(), "let in while a write was under way");
    memory.hold.send_replace(false);
    let next = tokio::time::timeout(PATIENCE, next).await.unwrap();
    let next = next.unwrap().unwrap();
    assert_eq!(next.epoch(), dead.epoch(), "the lease went on");
    write(&next, 0, &[2; 512]).await.unwrap();
    late.abort();
    drop(dead);
    assert_eq!(memory.bytes.lock().unwrap()[..512], [2; 512]);
    server.stop().await;
}

#[tokio::test]
async fn a_successor_is_fenced_if_another_one_wrote_in_between() {
    let (state, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    drop(process(&server.ticket, kept.path()).await.unwrap());
    let other = RemoteOptions {
        takeover: true,
        ..options("other")
    };
    let other = Remote::connect(server.ticket.clone(), other).await.unwrap();
    other.close().await.unwrap();
    for _ in 0..2 {
        let error = process(&server.ticket, kept.path()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_successor_of_one_whose_unflushed_writes_were_lost_fails_a_flush_once() {
    let (state, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let listen = server.address;
    let dead = process(&server.ticket, kept.path()).await.unwrap();
    write(&dead, 0, &[1; 512]).await.unwrap();
    drop(dead);
    server.stop().await;

    let rebooted = Setup {
        listen,
        instance: [2; 16],
        ..Setup::new(state.path(), memory)
    };
    let server = rebooted.start().await;
    let next = process(&server.ticket, kept.path()).await.unwrap();
    assert!(next.flush().await.is_err());
    next.flush().await.unwrap();
    drop(next);
    let told = process(&server.ticket, kept.path()).await.unwrap();
    told.flush().await.unwrap();
    server.stop().await;
}
