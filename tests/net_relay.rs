//! The link of the tests does what it says; and what the protocol makes of such links.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;
#[path = "../examples/link_relay/relay.rs"]
#[allow(dead_code, unreachable_pub)]
mod relay;

use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blockferry::AsyncBackend;
use blockferry::net::Remote;
use blockferry::volume::Priority;
use blockferry::wire::Ticket;
use net_support::{Memory, PATIENCE, Running, Setup, connect, pattern, read, write};
use relay::{Link, Relay};
use tokio::task::JoinSet;

const LOCAL: &str = "127.0.0.1:0";

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

/// A socket behind a link, and one that speaks to it through the link.
struct Ends {
    server: UdpSocket,
    client: UdpSocket,
    relay: Relay,
}

impl Ends {
    fn new(link: Link) -> Self {
        let server = UdpSocket::bind(LOCAL).unwrap();
        let relay = Relay::to(server.local_addr().unwrap(), link).unwrap();
        let client = UdpSocket::bind(LOCAL).unwrap();
        client.connect(relay.address()).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self {
            server,
            client,
            relay,
        }
    }

    /// The way back for whom the server hears.
    fn bounce(&self) -> (Vec<u8>, SocketAddr) {
        let mut bytes = vec![0; 65536];
        let (len, from) = self.server.recv_from(&mut bytes).unwrap();
        bytes.truncate(len);
        self.server.send_to(&bytes, from).unwrap();
        (bytes, from)
    }

    /// Sends so many datagrams of this length at once, each with its number.
    fn send(&self, count: u32, len: usize) {
        for number in 0..count {
            let mut bytes = vec![0; len];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            self.client.send(&bytes).unwrap();
        }
    }

    /// The numbers that arrived, once all datagrams that were sent are accounted for.
    fn arrived(&self, sent: u64) -> Vec<u32> {
        let counters = self.relay.counters();
        let since = Instant::now();
        let settled = || {
            [&counters.delivered, &counters.lost, &counters.dropped]
                .map(|counter| counter.load(Ordering::Relaxed))
                .iter()
                .sum::<u64>()
        };
        self.server.set_nonblocking(true).unwrap();
        let mut bytes = [0; 2048];
        let mut numbers = Vec::new();
        loop {
            let all = settled() >= sent;
            while self.server.recv(&mut bytes).is_ok() {
                numbers.push(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
            }
            if all {
                return numbers;
            }
            assert!(since.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_datagram_is_never_early_and_late_only_where_the_machine_is_slow() {
    let rtt = Duration::from_millis(20);
    let ends = Ends::new(Link::symmetric(rtt, 0.0, None, 0));
    let mut times: Vec<Duration> = (0..30)
        .map(|_| {
            let sent = Instant::now();
            ends.send(1, 100);
            ends.bounce();
            ends.client.recv(&mut [0; 100]).unwrap();
            sent.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[0] >= rtt, "{times:?}");
    // The machine may have other things to do, so the best of them counts.
    assert!(times[0] < rtt * 2, "{times:?}");
}

#[test]
fn the_same_datagrams_are_lost_for_the_same_seed() {
    let arrived = |seed| {
        let ends = Ends::new(Link {
            seed,
            ..Link::symmetric(Duration::ZERO, 0.1, None, 0)
        });
        let mut arrived = Vec::new();
        for round in 1..=20 {
            ends.send(50, 64);
            arrived.push(ends.arrived(round * 50));
        }
        arrived.concat()
    };
    let first = arrived(1);
    assert!((850..950).contains(&first.len()), "{}", first.len());
    assert_eq!(arrived(1), first);
    assert_ne!(arrived(2), first);
}

#[test]
fn datagrams_leave_at_the_links_rate_and_what_the_queue_has_no_room_for_is_dropped() {
    // 972 bytes and 28 of headers at 8 Mbit/s: one a millisecond.
    let link = |queue| Link::symmetric(Duration::ZERO, 0.0, Some(8_000_000), queue);
    let ends = Ends::new(link(1 << 20));
    let begun = Instant::now();
    ends.send(100, 972);
    assert_eq!(ends.arrived(100).len(), 100);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(99), "{took:?}");
    assert!(took < Duration::from_millis(150), "{took:?}");

    let ends = Ends::new(link(10_000));
    ends.send(100, 972);
    let arrived = ends.arrived(100);
    // Ten wait, and some leave while the rest still comes.
    assert!((10..90).contains(&arrived.len()), "{arrived:?}");
    assert_eq!(arrived[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn what_is_larger_than_the_link_takes_is_dropped() {
    let ends = Ends::new(Link::symmetric(Duration::ZERO, 0.0, None, 0));
    ends.send(1, 1473);
    ends.send(1, 1472);
    assert_eq!(ends.arrived(2).len(), 1);
}

#[test]
fn nothing_gets_through_a_link_that_is_cut() {
    let ends = Ends::new(Link::symmetric(Duration::ZERO, 0.0, None, 0));
    ends.relay.cut();
    ends.send(10, 64);
    assert!(ends.arrived(10).is_empty());
    ends.relay.mend();
    ends.send(10, 64);
    assert_eq!(ends.arrived(20).len(), 10);
}

/// The server's ticket, with the link's address in it.
fn through(server: &Running, link: Link) -> (Relay, Ticket) {
    let relay = Relay::to(server.address, link).unwrap();
    let mut ticket = server.ticket.clone();
    ticket.address.port = relay.address().port();
    (relay, ticket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lossy_link_with_delay_loses_no_byte() {
    const SIZE: usize = 4 << 20;
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let rtt = Duration::from_millis(10);
    let link = Link::symmetric(rtt, 0.02, Some(200_000_000), 256 << 10);
    let (_relay, ticket) = through(&server, link);
    let remote = connect(&ticket).await;
    let bytes = pattern(3, SIZE);
    in_time(write(&remote, 0, &bytes)).await.unwrap();
    assert!(in_time(read(&remote, 0, SIZE)).await.unwrap() == bytes);
    assert!(*memory.bytes.lock().unwrap() == bytes);
    assert!(remote.path_rtt().is_some());
    remote.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_while_the_link_is_cut_and_go_on_when_it_is_mended() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(1 << 20)).start().await;
    let link = Link::symmetric(Duration::from_millis(2), 0.0, None, 0);
    let (relay, ticket) = through(&server, link);
    let remote = connect(&ticket).await;
    write(&remote, 0, &[1; 4096]).await.unwrap();
    relay.cut();
    let mut waiting = std::pin::pin!(read(&remote, 0, 4096));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err());
    relay.mend();
    assert_eq!(in_time(waiting).await.unwrap(), [1; 4096]);
    server.stop().await;
}

/// Reads of the background that fill a slow link, and how many of them have ended.
fn flood(remote: &Arc<Remote>, priority: Priority, count: usize) -> JoinSet<()> {
    let mut flood = JoinSet::new();
    for index in 0..count {
        let remote = Arc::clone(remote);
        flood.spawn(async move {
            let mut buf = vec![0; 1 << 20];
            let at = (index << 20) as u64;
            remote.read_at(&mut buf, at, priority).await.unwrap();
        });
    }
    flood
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_link_demand_overtakes_read_ahead_and_read_ahead_overtakes_pull() {
    const PULLS: usize = 8;
    const AHEAD: usize = 4;
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(PULLS << 20);
    memory.bytes.lock().unwrap().fill(7);
    let server = Setup::new(state.path(), memory).start().await;
    // All of it takes more than a second, and what the queue holds a fiftieth.
    let link = Link::symmetric(Duration::from_millis(4), 0.0, Some(50_000_000), 128 << 10);
    let (relay, ticket) = through(&server, link);
    let remote = connect(&ticket).await;
    let before = relay.counters().delivered.load(Ordering::Relaxed);
    let mut pulls = flood(&remote, Priority::Pull, PULLS);
    // The link is busy with them.
    in_time(async {
        while relay.counters().delivered.load(Ordering::Relaxed) < before + 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut ahead = flood(&remote, Priority::ReadAhead, AHEAD);
    in_time(read(&remote, 0, 4096)).await.unwrap();
    let mut ended = 0;
    while ahead.try_join_next().is_some() {
        ended += 1;
    }
    assert!(ended < AHEAD, "read-ahead ended before demand");
    while let Some(read) = in_time(ahead.join_next()).await {
        read.unwrap();
    }
    let mut ended = 0;
    while pulls.try_join_next().is_some() {
        ended += 1;
    }
    assert!(ended < PULLS, "the pulls ended before read-ahead");
    while let Some(pull) = in_time(pulls.join_next()).await {
        pull.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_cut_off_is_silent_long_before_the_connection_ends() {
    let time = Duration::from_millis(800);
    let memory = Memory::new(1 << 20);
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let link = Link::symmetric(Duration::from_millis(20), 0.0, None, 0);
    let (relay, ticket) = through(&server, link);
    let remote = connect(&ticket).await;
    // A write that its disk does not end is no silence.
    memory.hold.send_replace(true);
    let writer = Arc::clone(&remote);
    let writing = tokio::spawn(async move { write(&writer, 0, &[1; 4096]).await });
    let silent = tokio::time::timeout(time * 4, remote.silent(time)).await;
    assert!(silent.is_err(), "it is there");
    memory.hold.send_replace(false);
    in_time(writing).await.unwrap().unwrap();
    relay.cut();
    in_time(remote.silent(time)).await;
    assert!(remote.away_since().is_none(), "the transport still waits");
}

#[tokio::test]
async fn a_volume_that_is_given_back_is_not_taken_for_a_silent_server() {
    let time = Duration::from_millis(800);
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(1 << 20)).start().await;
    let link = Link::symmetric(Duration::from_millis(20), 0.0, None, 0);
    let (_relay, ticket) = through(&server, link);
    let remote = connect(&ticket).await;
    let told = tokio::select! {
        biased;
        () = remote.silent(time) => false,
        closed = remote.close() => closed.is_ok(),
    };
    assert!(told);
    let silent = tokio::time::timeout(time * 2, remote.silent(time)).await;
    assert!(silent.is_err(), "its end was ours");
}
