//! Sessions and instances: what is sent again, what must not be reordered, what was lost.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blockferry::AsyncBackend;
use blockferry::net::{Content, Remote};
use blockferry::volume::Priority;
use net_support::{Memory, PATIENCE, Setup, connect, options, pattern, read, write};

const SIZE: usize = 4 << 20;

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_a_server_that_is_restarted_under_load_and_go_on() {
    const WORKERS: usize = 8;
    const ROUNDS: u64 = 60;
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let mut server = Setup::new(state.path(), memory.clone()).start().await;
    let listen = server.address;
    let remote = connect(&server.ticket).await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let remote = Arc::clone(&remote);
        workers.spawn(async move {
            let share = SIZE / WORKERS;
            let base = (worker * share) as u64;
            for round in 0..ROUNDS {
                let bytes = pattern(round * 31 + worker as u64, 20_000);
                let at = base + round % 7 * 20_000;
                write(&remote, at, &bytes).await.unwrap();
                assert!(read(&remote, at, bytes.len()).await.unwrap() == bytes);
                if round % 10 == 0 {
                    remote.flush().await.unwrap();
                }
            }
        });
    }
    for restart in 1..=4 {
        let target = memory.writes.load(Ordering::SeqCst) + 40;
        let progress = async {
            while memory.writes.load(Ordering::SeqCst) < target && !workers.is_empty() {
                tokio::task::yield_now().await;
                while workers.try_join_next().is_some() {}
            }
        };
        in_time(progress).await;
        server.stop().await;
        let again = Setup {
            listen,
            ..Setup::new(state.path(), memory.clone())
        };
        server = again.start().await;
        assert!(restart <= 4);
    }
    while let Some(worker) = in_time(workers.join_next()).await {
        worker.unwrap();
    }
    // They may have ended before the last restart.
    in_time(read(&remote, 0, 512)).await.unwrap();
    assert!(remote.away_since().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_told_and_a_read_waits_for_it() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let listen = server.address;
    let remote = connect(&server.ticket).await;
    write(&remote, 0, &[5; 4096]).await.unwrap();
    server.stop().await;
    in_time(async {
        while remote.away_since().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut buf = vec![0; 4096];
    {
        let waiting = remote.read_at(&mut buf, 0, Priority::Demand);
        let early = tokio::time::timeout(Duration::from_millis(200), waiting).await;
        assert!(early.is_err(), "it was answered by nobody");
    }
    // The one that was given up did no harm.
    let again = Setup {
        listen,
        ..Setup::new(state.path(), memory)
    };
    let server = again.start().await;
    assert_eq!(in_time(read(&remote, 0, 4096)).await.unwrap(), [5; 4096]);
    assert!(remote.away_since().is_none());
    server.stop().await;
}

/// Polls the future until `condition` holds.
async fn drive<F: Future>(mut future: Pin<&mut F>, condition: impl Future) {
    tokio::select! {
        biased;
        _ = condition => {}
        _ = future.as_mut() => panic!("answered too early"),
    }
}

#[tokio::test]
async fn a_write_that_was_given_up_never_lands_after_a_later_one() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = connect(&server.ticket).await;
    for round in 0..5u8 {
        memory.hold.send_replace(true);
        {
            let old = [round * 2 + 1; 8192];
            let mut given_up = std::pin::pin!(remote.write_at(&old, 4096, false, Priority::Demand));
            drive(given_up.as_mut(), memory.wait_until_held(1)).await;
        }
        // Dropped while it is at the backend. What overlaps must not overtake it.
        let new = [round * 2 + 2; 8192];
        let mut later = std::pin::pin!(write(&remote, 4096, &new));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut later).await;
        assert!(early.is_err(), "it overtook the write that was given up");
        assert_eq!(
            *memory.held.borrow(),
            1,
            "it reached the backend beside the one before"
        );
        memory.hold.send_replace(false);
        in_time(later).await.unwrap();
        assert_eq!(in_time(read(&remote, 4096, 8192)).await.unwrap(), new);
        assert_eq!(memory.bytes.lock().unwrap()[4096..12288], new);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_discard_that_was_given_up_never_lands_after_a_later_write() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = connect(&server.ticket).await;
    memory.hold.send_replace(true);
    {
        let mut given_up = std::pin::pin!(remote.discard(0, 65536));
        drive(given_up.as_mut(), memory.wait_until_held(1)).await;
    }
    {
        let mut given_up = std::pin::pin!(remote.write_zeroes(0, 65536, false, false));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(
            given_up.as_mut().poll(&mut context),
            Poll::Pending
        ));
    }
    let mut later = std::pin::pin!(write(&remote, 0, &[9; 65536]));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut later).await;
    assert!(early.is_err());
    memory.hold.send_replace(false);
    in_time(later).await.unwrap();
    assert_eq!(memory.bytes.lock().unwrap()[..65536], [9; 65536]);
    server.stop().await;
}

#[tokio::test]
async fn other_requests_in_flight_survive_a_write_that_was_given_up() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = connect(&server.ticket).await;
    memory.hold.send_replace(true);
    let others: Vec<_> = (1..5u8)
        .map(|n| {
            let remote = Arc::clone(&remote);
            tokio::spawn(async move { write(&remote, u64::from(n) * 4096, &[n; 4096]).await })
        })
        .collect();
    memory.wait_until_held(4).await;
    {
        let mut given_up = std::pin::pin!(remote.write_at(&[9; 512], 0, false, Priority::Demand));
        drive(given_up.as_mut(), memory.wait_until_held(5)).await;
    }
    memory.hold.send_replace(false);
    for other in others {
        in_time(other).await.unwrap().unwrap();
    }
    for n in 1..5u8 {
        let at = usize::from(n) * 4096;
        assert_eq!(memory.bytes.lock().unwrap()[at..at + 4096], [n; 4096]);
    }
    server.stop().await;
}

/// Serves once as instance 1, does `first`, serves again as instance 2, and does `then`.
async fn over_another_instance(
    flush_before: bool,
    content: Content,
    then: impl AsyncFnOnce(&Remote, &Memory),
) {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let setup = Setup {
        content: content.clone(),
        ..Setup::new(state.path(), memory.clone())
    };
    let server = setup.start().await;
    let listen = server.address;
    let remote = connect(&server.ticket).await;
    write(&remote, 0, &[1; 4096]).await.unwrap();
    if flush_before {
        remote.flush().await.unwrap();
    }
    server.stop().await;
    let again = Setup {
        listen,
        content,
        instance: [2; 16],
        ..Setup::new(state.path(), memory.clone())
    };
    let server = again.start().await;
    then(&remote, &memory).await;
    server.stop().await;
}

#[tokio::test]
async fn a_flush_fails_once_when_unflushed_writes_were_lost() {
    over_another_instance(false, Content::Name, async |remote, memory| {
        let before = memory.flushes.load(Ordering::SeqCst);
        let lost = in_time(remote.flush()).await.unwrap_err();
        assert_eq!(lost.raw_os_error(), Some(libc::EIO));
        assert_eq!(memory.flushes.load(Ordering::SeqCst), before);
        write(remote, 0, &[2; 4096]).await.unwrap();
        remote.flush().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flush_goes_on_when_nothing_was_lost() {
    over_another_instance(true, Content::Name, async |remote, memory| {
        let before = memory.flushes.load(Ordering::SeqCst);
        in_time(remote.flush()).await.unwrap();
        assert_eq!(memory.flushes.load(Ordering::SeqCst), before + 1);
    })
    .await;
}

#[tokio::test]
async fn memory_that_is_not_the_same_any_more_is_refused() {
    over_another_instance(true, Content::Instance, async |remote, _| {
        assert!(in_time(read(remote, 0, 4096)).await.is_err());
        assert!(in_time(write(remote, 0, &[2; 512])).await.is_err());
        assert!(in_time(remote.flush()).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_volume_of_another_size_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let listen = server.address;
    let remote = connect(&server.ticket).await;
    server.stop().await;
    let again = Setup {
        listen,
        ..Setup::new(state.path(), Memory::new(SIZE * 2))
    };
    let server = again.start().await;
    assert!(in_time(read(&remote, 0, 4096)).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn an_error_of_the_backend_arrives_as_it_is() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = connect(&server.ticket).await;
    memory.broken.store(true, Ordering::SeqCst);
    for error in [
        write(&remote, 0, &[1; 512]).await.unwrap_err(),
        read(&remote, 0, 512).await.unwrap_err(),
        remote.flush().await.unwrap_err(),
        remote.discard(0, 512).await.unwrap_err(),
    ] {
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
    memory.broken.store(false, Ordering::SeqCst);
    write(&remote, 0, &[1; 512]).await.unwrap();
    let error = read(&remote, SIZE as u64 - 1, 512).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let error = write(&remote, SIZE as u64, &[1; 512]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert_eq!(read(&remote, 0, 512).await.unwrap(), [1; 512]);
    server.stop().await;
}

#[tokio::test]
async fn stopping_lets_a_write_in_flight_finish_and_its_answer_arrive() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = Remote::connect(server.ticket.clone(), options("a"))
        .await
        .unwrap();
    memory.hold.send_replace(true);
    let write = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { write(&remote, 0, &[1; 4096]).await }
    });
    memory.wait_until_held(1).await;
    let stopping = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!stopping.is_finished(), "it did not wait for the write");
    memory.hold.send_replace(false);
    in_time(stopping).await.unwrap();
    // There is no server any more that could have answered it a second time.
    in_time(write).await.unwrap().unwrap();
    assert_eq!(memory.writes.load(Ordering::SeqCst), 1);
}
