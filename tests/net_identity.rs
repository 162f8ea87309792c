//! A volume's content is told from another one under its name, and a change of it from none.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockferry::backend::{Kind, OpenOptions, open};
use blockferry::net::{Content, Remote, RemoteOptions};
use blockferry::wire::Ticket;
use blockferry::{AsyncBackend, ErrorKind};
use net_support::{Memory, PATIENCE, Running, Setup, connect, options, read, write};

const SIZE: usize = 1 << 20;

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

async fn reader(ticket: &Ticket) -> Arc<Remote> {
    let reader = RemoteOptions {
        read_only: true,
        ..options("reader")
    };
    Remote::connect(ticket.clone(), reader).await.unwrap()
}

fn make_file(path: &Path, byte: u8) {
    std::fs::write(path, vec![byte; SIZE]).unwrap();
}

/// Serves the file as `blockferry serve` does.
async fn serve_file(state: &Path, file: &Path, listen: Option<SocketAddr>) -> Running {
    let url = format!("file:{}", file.display());
    let resource = open(&url, &OpenOptions::default()).unwrap();
    let Kind::File(store) = &resource.kind else {
        panic!("no file")
    };
    let setup = Setup::new(state, resource.as_async());
    let setup = Setup {
        listen: listen.unwrap_or(setup.listen),
        content: Content::File(Arc::clone(store)),
        instance: resource.instance,
        ..setup
    };
    setup.start().await
}

#[tokio::test]
async fn a_mount_goes_on_when_its_file_is_served_again() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("state"), dir.path().join("disk.img"));
    make_file(&file, 1);
    let server = serve_file(&state, &file, None).await;
    let remote = connect(&server.ticket).await;
    let identity = remote.identity();
    write(&remote, 0, &[2; 4096]).await.unwrap();
    let address = server.address;
    server.stop().await;
    let moved = dir.path().join("moved.img");
    std::fs::rename(&file, &moved).unwrap();
    let server = serve_file(&state, &moved, Some(address)).await;
    assert_eq!(in_time(read(&remote, 0, 4096)).await.unwrap(), [2; 4096]);
    assert_eq!(reader(&server.ticket).await.identity(), identity);
    server.stop().await;
}

#[tokio::test]
async fn a_mount_does_not_take_another_file_for_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("state"), dir.path().join("disk.img"));
    let other = dir.path().join("other.img");
    make_file(&file, 1);
    make_file(&other, 7);
    let server = serve_file(&state, &file, None).await;
    let writer = connect(&server.ticket).await;
    let watching = reader(&server.ticket).await;
    let address = server.address;
    server.stop().await;
    let again = serve_file(&state, &other, Some(address)).await;
    for remote in [&writer, &watching] {
        assert!(in_time(read(remote, 0, 4096)).await.is_err());
        let why = remote.lost_because().unwrap();
        assert!(why.contains("another file"), "{why}");
    }
    assert!(in_time(write(&writer, 0, &[2; 512])).await.is_err());
    assert_eq!(std::fs::read(&other).unwrap(), vec![7; SIZE]);
    // Whoever held the old content holds nothing of the new one.
    assert_ne!(connect(&again.ticket).await.identity(), writer.identity());
    again.stop().await;
}

#[tokio::test]
async fn a_known_identity_that_is_no_more_is_refused_and_takes_no_lease() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let first = connect(&server.ticket).await;
    let (identity, epoch) = (first.identity(), first.epoch());
    first.close().await.unwrap();
    for read_only in [false, true] {
        let stranger = RemoteOptions {
            read_only,
            known_identity: Some([0xEE; 16]),
            ..options("stranger")
        };
        let error = Remote::connect(server.ticket.clone(), stranger).await;
        assert_eq!(error.err().unwrap().kind(), ErrorKind::Replaced);
    }
    let known = RemoteOptions {
        known_identity: Some(identity),
        ..options("known")
    };
    let again = Remote::connect(server.ticket.clone(), known).await.unwrap();
    assert_eq!(again.epoch(), epoch + 1, "nobody had the lease in between");
    server.stop().await;
}

#[tokio::test]
async fn a_reader_learns_whether_anybody_wrote_since() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let at_first = reader(&server.ticket).await.generation();
    assert!(at_first.is_some());
    // A writer that only reads changes nothing.
    let writer = connect(&server.ticket).await;
    read(&writer, 0, 4096).await.unwrap();
    assert_eq!(reader(&server.ticket).await.generation(), at_first);
    // From its first write on nothing that is read can be relied upon.
    write(&writer, 0, &[1; 512]).await.unwrap();
    assert_eq!(reader(&server.ticket).await.generation(), None);
    writer.close().await.unwrap();
    let written = reader(&server.ticket).await.generation();
    assert!(written > at_first, "{written:?} {at_first:?}");
    // A writer that is cut off counts like one that leaves.
    let writer = connect(&server.ticket).await;
    writer.discard(0, 4096).await.unwrap();
    drop(writer);
    let later = in_time(async {
        loop {
            match reader(&server.ticket).await.generation() {
                None => tokio::time::sleep(Duration::from_millis(5)).await,
                settled => return settled,
            }
        }
    });
    let later = later.await;
    assert!(later > written, "{later:?} {written:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_write_in_flight_keeps_the_generation_from_settling() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let writer = connect(&server.ticket).await;
    memory.hold.send_replace(true);
    let late = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move { write(&writer, 0, &[1; 512]).await }
    });
    memory.wait_until_held(1).await;
    drop(writer);
    late.abort();
    let _ = late.await;
    // The writer is gone, and what it sent is still at the backend.
    for _ in 0..5 {
        assert_eq!(reader(&server.ticket).await.generation(), None);
    }
    memory.hold.send_replace(false);
    let settled = in_time(async {
        while reader(&server.ticket).await.generation().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    settled.await;
    assert_eq!(memory.bytes.lock().unwrap()[..512], [1; 512]);
    server.stop().await;
}

#[tokio::test]
async fn a_volume_whose_state_cannot_be_kept_is_not_written() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let writer = connect(&server.ticket).await;
    // A directory in the place of the file cannot be replaced by one.
    let kept = state.path().join("volumes/disk.content");
    std::fs::remove_file(&kept).unwrap();
    std::fs::create_dir(&kept).unwrap();
    let error = write(&writer, 0, &[1; 512]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(memory.bytes.lock().unwrap()[..512], [0; 512]);
    std::fs::remove_dir(&kept).unwrap();
    write(&writer, 0, &[1; 512]).await.unwrap();
    server.stop().await;
}
