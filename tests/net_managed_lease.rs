//! The lease of a managed mount: without an end in time, bound to its local store.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockferry::net::{EARLIER_OPENINGS, ManagedStore, Remote, RemoteOptions};
use blockferry::wire::Ticket;
use blockferry::{AsyncBackend, ErrorKind, Result};
use net_support::{Memory, PATIENCE, Running, Setup, options, read, write};

const SIZE: usize = 1 << 20;
/// A direct mount's lease would be over at once.
const SHORT: Duration = Duration::from_millis(1);

/// No two openings are alike.
static OPENINGS: AtomicU64 = AtomicU64::new(1);

/// A local store as a managed mount knows it.
struct Store {
    id: [u8; 16],
    /// Openings of which the server may have heard, the last one that it welcomed first.
    earlier: Vec<[u8; 16]>,
    epoch: Option<u64>,
    patience: Duration,
}

impl Store {
    fn new(id: u8) -> Self {
        Self {
            id: [id; 16],
            earlier: vec![[0; 16]],
            epoch: None,
            patience: PATIENCE,
        }
    }

    async fn open(&mut self, ticket: &Ticket, takeover: bool) -> Result<Arc<Remote>> {
        let (remote, opening) = self.open_and_forget(ticket, takeover).await?;
        self.earlier = vec![opening];
        self.epoch = Some(remote.epoch());
        Ok(remote)
    }

    /// The process dies before it has noted what came of it.
    async fn open_and_forget(
        &mut self,
        ticket: &Ticket,
        takeover: bool,
    ) -> Result<(Arc<Remote>, [u8; 16])> {
        let mut earlier = [[0; 16]; EARLIER_OPENINGS];
        earlier[..self.earlier.len()].copy_from_slice(&self.earlier);
        let opening = OPENINGS.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let opening = [opening, opening].concat().try_into().unwrap();
        self.earlier.push(opening);
        let options = RemoteOptions {
            managed: Some(ManagedStore {
                store: self.id,
                earlier,
                opening,
            }),
            known_epoch: self.epoch,
            takeover,
            connect_timeout: self.patience,
            ..options("managed-host")
        };
        let remote = Remote::connect(ticket.clone(), options).await?;
        Ok((remote, opening))
    }

    fn copied(&self) -> Self {
        Self {
            id: self.id,
            earlier: self.earlier.clone(),
            epoch: self.epoch,
            patience: self.patience,
        }
    }
}

async fn serve(state: &Path, memory: &Arc<Memory>, before: Option<Running>) -> Running {
    let usual = Setup::new(state, memory.clone());
    let listen = before
        .as_ref()
        .map_or(usual.listen, |server| server.address);
    if let Some(before) = before {
        before.stop().await;
    }
    let setup = Setup {
        lease: SHORT,
        listen,
        ..usual
    };
    setup.start().await
}

async fn is_held(ticket: &Ticket) {
    let error = Remote::connect(ticket.clone(), options("another")).await;
    let error = error.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let text = error.to_string();
    for part in ["`managed-host`", "managed mount", "not sent", "--takeover"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn it_outlives_its_time_and_the_server() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let first = store.open(&server.ticket, false).await.unwrap();
    write(&first, 0, &[1; 512]).await.unwrap();
    let epoch = first.epoch();
    first.close_keeping_lease().await.unwrap();
    assert!(write(&first, 0, &[1; 512]).await.is_err(), "it is closed");
    tokio::time::sleep(SHORT * 20).await;
    is_held(&server.ticket).await;
    let server = serve(state.path(), &memory, Some(server)).await;
    is_held(&server.ticket).await;
    let again = store.open(&server.ticket, false).await.unwrap();
    assert_eq!(again.epoch(), epoch);
    write(&again, 0, &[2; 512]).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_comes_back_while_its_dead_process_is_still_connected_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let killed = store.open(&server.ticket, false).await.unwrap();
    memory.hold.send_replace(true);
    let late = tokio::spawn({
        let killed = Arc::clone(&killed);
        async move { write(&killed, 0, &[1; 512]).await }
    });
    memory.wait_until_held(1).await;
    let ticket = server.ticket.clone();
    let mut successor = tokio::spawn(async move { store.open(&ticket, false).await.unwrap() });
    // The process before is out as soon as it is fenced, though its write is still at the backend.
    let fenced = tokio::time::timeout(PATIENCE, async {
        while read(&killed, 0, 512).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    fenced.await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), &mut successor).await;
    assert!(
        early.is_err(),
        "let in beside a write of the process before"
    );
    memory.hold.send_replace(false);
    let successor = tokio::time::timeout(PATIENCE, successor).await;
    let successor = successor.unwrap().unwrap();
    assert_eq!(successor.epoch(), killed.epoch());
    assert!(late.await.unwrap().is_err());
    write(&successor, 0, &[2; 512]).await.unwrap();
    // The one before does not take it back.
    let failed = tokio::time::timeout(PATIENCE, write(&killed, 0, &[3; 512])).await;
    assert!(failed.unwrap().is_err());
    assert_eq!(memory.bytes.lock().unwrap()[..512], [2; 512]);
    server.stop().await;
}

#[tokio::test]
async fn after_a_takeover_the_store_is_fenced_at_its_next_opening_and_can_begin_anew() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let first = store.open(&server.ticket, false).await.unwrap();
    first.close_keeping_lease().await.unwrap();
    let taking_over = RemoteOptions {
        takeover: true,
        ..options("another")
    };
    let other = Remote::connect(server.ticket.clone(), taking_over);
    let other = other.await.unwrap();
    assert_eq!(other.epoch(), first.epoch() + 1);
    for takeover in [false, true] {
        let error = store.open(&server.ticket, takeover).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        assert!(error.to_string().contains("is 2 now, and was 1"), "{error}");
    }
    other.close().await.unwrap();
    let error = store.open(&server.ticket, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    // Once it has dropped what it knew it is one like any other.
    store.epoch = None;
    let anew = store.open(&server.ticket, false).await.unwrap();
    assert_eq!(anew.epoch(), 3);
    write(&anew, 0, &[1; 512]).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_lease_that_was_given_back_is_free_and_goes_on_if_nobody_had_it() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let first = store.open(&server.ticket, false).await.unwrap();
    first.close().await.unwrap();
    let server = serve(state.path(), &memory, Some(server)).await;
    let again = store.open(&server.ticket, false).await.unwrap();
    assert_eq!(again.epoch(), first.epoch());
    again.close().await.unwrap();
    let other = Remote::connect(server.ticket.clone(), options("another"));
    other.await.unwrap().close().await.unwrap();
    let error = store.open(&server.ticket, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_copy_of_a_store_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let first = store.open(&server.ticket, false).await.unwrap();
    first.close().await.unwrap();
    let mut copy = store.copied();
    // Tried while the server was down: that counts for nothing.
    let (listen, ticket) = (server.address, server.ticket.clone());
    server.stop().await;
    copy.patience = Duration::from_millis(100);
    for _ in 0..3 {
        let tried = copy.open(&ticket, false).await.err().unwrap();
        assert_eq!(tried.kind(), ErrorKind::Unreachable, "{tried}");
    }
    let server = Setup {
        lease: SHORT,
        listen,
        ..Setup::new(state.path(), memory.clone())
    };
    let server = server.start().await;
    copy.patience = PATIENCE;
    let original = store.open(&server.ticket, false).await.unwrap();
    write(&original, 0, &[1; 512]).await.unwrap();
    original.close().await.unwrap();
    let error = copy.open(&server.ticket, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(error.to_string().contains("copied or restored"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_store_whose_process_died_before_it_noted_the_welcome_goes_on_and_a_copy_does_not() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let mut store = Store::new(1);
    let first = store.open(&server.ticket, false).await.unwrap();
    first.close_keeping_lease().await.unwrap();
    for _ in 0..2 {
        let died = store.open_and_forget(&server.ticket, false).await;
        died.unwrap().0.close_keeping_lease().await.unwrap();
    }
    let mut copy = store.copied();
    let again = store.open(&server.ticket, false).await.unwrap();
    assert_eq!(again.epoch(), first.epoch());
    write(&again, 0, &[1; 512]).await.unwrap();
    let error = copy.open(&server.ticket, false).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    write(&again, 0, &[2; 512]).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_managed_reader_holds_nothing() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let reader = RemoteOptions {
        read_only: true,
        managed: Some(ManagedStore {
            store: [1; 16],
            earlier: [[0; 16]; EARLIER_OPENINGS],
            opening: [1; 16],
        }),
        ..options("reader")
    };
    let reader = Remote::connect(server.ticket.clone(), reader);
    let reader = reader.await.unwrap();
    assert_eq!(reader.epoch(), 0);
    let writer = Remote::connect(server.ticket.clone(), options("writer"));
    let writer = writer.await.unwrap();
    write(&writer, 0, &[1; 512]).await.unwrap();
    assert_eq!(read(&reader, 0, 512).await.unwrap(), [1; 512]);
    assert!(write(&reader, 0, &[2; 512]).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn the_way_has_a_round_trip_time_while_it_is_there() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = serve(state.path(), &memory, None).await;
    let remote = Store::new(1).open(&server.ticket, false).await.unwrap();
    read(&remote, 0, 512).await.unwrap();
    let rtt = remote.path_rtt().unwrap();
    assert!(
        rtt > Duration::ZERO && rtt < Duration::from_secs(1),
        "{rtt:?}"
    );
    remote.close().await.unwrap();
    assert_eq!(remote.path_rtt(), None);
    server.stop().await;
}
