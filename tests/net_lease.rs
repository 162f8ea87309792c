//! One writer at a time: refused, taken over, run out, given back, and kept over restarts.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::sync::Arc;
use std::time::Duration;

use blockferry::net::{Remote, RemoteOptions};
use blockferry::wire::Ticket;
use blockferry::{AsyncBackend, ErrorKind, Result};
use net_support::{Memory, PATIENCE, Setup, options, read, write};

const SIZE: usize = 1 << 20;
const SHORT: Duration = Duration::from_millis(200);

async fn writer(ticket: &Ticket, name: &str) -> Result<Arc<Remote>> {
    Remote::connect(ticket.clone(), options(name)).await
}

async fn taking_over(ticket: &Ticket, name: &str) -> Arc<Remote> {
    let options = RemoteOptions {
        takeover: true,
        ..options(name)
    };
    Remote::connect(ticket.clone(), options).await.unwrap()
}

/// Tries until the lease is free.
async fn patient_writer(ticket: &Ticket, name: &str) -> Arc<Remote> {
    let trying = async {
        loop {
            match writer(ticket, name).await {
                Ok(remote) => return remote,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.unwrap()
}

#[tokio::test]
async fn a_second_writer_is_refused_with_the_first_one_named_and_readers_are_not() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let first = writer(&server.ticket, "first-host").await.unwrap();
    let error = writer(&server.ticket, "second").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let text = error.to_string();
    for part in ["`first-host`", "since 20", "UTC", "--takeover"] {
        assert!(text.contains(part), "{text}");
    }
    for _ in 0..5 {
        let reader = RemoteOptions {
            read_only: true,
            ..options("reader")
        };
        let reader = Remote::connect(server.ticket.clone(), reader)
            .await
            .unwrap();
        read(&reader, 0, 512).await.unwrap();
    }
    write(&first, 0, &[1; 512]).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_free_at_once_and_its_epoch_grows() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    for epoch in 1..4 {
        let remote = writer(&server.ticket, "a").await.unwrap();
        assert_eq!(remote.epoch(), epoch);
        write(&remote, 0, &[1; 512]).await.unwrap();
        remote.close().await.unwrap();
        assert!(write(&remote, 0, &[1; 512]).await.is_err(), "it is closed");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_takeover_fences_the_first_writer_for_ever() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let first = writer(&server.ticket, "first").await.unwrap();
    write(&first, 0, &[1; 512]).await.unwrap();
    let second = taking_over(&server.ticket, "second").await;
    assert_eq!(second.epoch(), first.epoch() + 1);
    write(&second, 0, &[2; 512]).await.unwrap();
    let before = memory.writes.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..3 {
        let failed = tokio::time::timeout(PATIENCE, write(&first, 0, &[3; 512])).await;
        assert!(failed.unwrap().is_err());
    }
    // Nor does it come back when the one who took over is gone.
    second.close().await.unwrap();
    assert!(write(&first, 0, &[3; 512]).await.is_err());
    assert!(read(&first, 0, 512).await.is_err());
    let after = memory.writes.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(after, before);
    assert_eq!(memory.bytes.lock().unwrap()[..512], [2; 512]);
    server.stop().await;
}

#[tokio::test]
async fn a_takeover_waits_for_the_writes_of_the_first() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let first = writer(&server.ticket, "first").await.unwrap();
    memory.hold.send_replace(true);
    let late = tokio::spawn({
        let first = Arc::clone(&first);
        async move { write(&first, 0, &[1; 512]).await }
    });
    memory.wait_until_held(1).await;
    let ticket = server.ticket.clone();
    let mut second = tokio::spawn(async move { taking_over(&ticket, "second").await });
    // The first is out as soon as it is fenced, though its write is still at the backend.
    let fenced = tokio::time::timeout(PATIENCE, async {
        while read(&first, 0, 512).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    fenced.await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
    assert!(
        early.is_err(),
        "granted while a write of the first was under way"
    );
    memory.hold.send_replace(false);
    let second = tokio::time::timeout(PATIENCE, second)
        .await
        .unwrap()
        .unwrap();
    assert!(late.await.unwrap().is_err());
    write(&second, 0, &[2; 512]).await.unwrap();
    assert_eq!(memory.bytes.lock().unwrap()[..512], [2; 512]);
    server.stop().await;
}

#[tokio::test]
async fn a_writer_that_is_gone_loses_its_lease_after_its_time() {
    let state = tempfile::tempdir().unwrap();
    let setup = Setup {
        lease: SHORT,
        ..Setup::new(state.path(), Memory::new(SIZE))
    };
    let server = setup.start().await;
    let first = writer(&server.ticket, "first").await.unwrap();
    let epoch = first.epoch();
    drop(first);
    let second = patient_writer(&server.ticket, "second").await;
    assert_eq!(second.epoch(), epoch + 1);
    server.stop().await;
}

#[tokio::test]
async fn a_restarted_server_keeps_the_volume_for_its_holder_for_one_lease_time() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let listen = server.address;
    let first = writer(&server.ticket, "first").await.unwrap();
    write(&first, 0, &[1; 512]).await.unwrap();
    server.stop().await;

    let again = Setup {
        listen,
        ..Setup::new(state.path(), memory.clone())
    };
    let server = again.start().await;
    let error = writer(&server.ticket, "second").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("`first`"), "{error}");
    // The first goes on, under the epoch that it has.
    let written = tokio::time::timeout(PATIENCE, write(&first, 0, &[2; 512])).await;
    written.unwrap().unwrap();
    let epoch = first.epoch();
    drop(first);
    server.stop().await;

    let again = Setup {
        listen,
        lease: SHORT,
        ..Setup::new(state.path(), memory)
    };
    let server = again.start().await;
    let second = patient_writer(&server.ticket, "second").await;
    assert_eq!(second.epoch(), epoch + 1, "epochs grow over restarts");
    server.stop().await;
}

#[tokio::test]
async fn a_writer_that_comes_back_after_another_had_the_volume_is_fenced() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let setup = Setup {
        lease: SHORT,
        ..Setup::new(state.path(), memory.clone())
    };
    let server = setup.start().await;
    let listen = server.address;
    let first = writer(&server.ticket, "first").await.unwrap();
    server.stop().await;

    // While the first looks for the server here, another writes over there.
    let elsewhere = Setup {
        lease: SHORT,
        ..Setup::new(state.path(), memory.clone())
    };
    let server = elsewhere.start().await;
    let second = patient_writer(&server.ticket, "second").await;
    second.close().await.unwrap();
    server.stop().await;

    let back = Setup {
        listen,
        ..Setup::new(state.path(), memory.clone())
    };
    let server = back.start().await;
    let failed = tokio::time::timeout(PATIENCE, write(&first, 0, &[1; 512])).await;
    assert!(failed.unwrap().is_err());
    assert_eq!(memory.bytes.lock().unwrap()[..512], [0; 512]);
    server.stop().await;
}
