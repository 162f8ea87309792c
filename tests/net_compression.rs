//! Bodies that are compressed on their way, and ends that cannot do it.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;
#[path = "../examples/link_relay/relay.rs"]
#[allow(dead_code, unreachable_pub)]
mod relay;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockferry::net::{Compression, Remote, RemoteOptions};
use net_support::{Memory, PATIENCE, Running, Setup, options, pattern, read, write};
use relay::{Link, Relay};

const SIZE: usize = 8 << 20;

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

fn text(len: usize) -> Vec<u8> {
    (0..len / 16)
        .flat_map(|line| format!("line {line:>10}\n").into_bytes())
        .collect()
}

/// A volume behind a link that counts.
struct Linked {
    memory: Arc<Memory>,
    server: Running,
    relay: Relay,
    remote: Arc<Remote>,
    _state: tempfile::TempDir,
}

impl Linked {
    async fn new(compression: Compression) -> Self {
        Self::at(compression, 50_000_000).await
    }

    async fn at(compression: Compression, bits_per_s: u64) -> Self {
        let state = tempfile::tempdir().unwrap();
        let memory = Memory::new(SIZE);
        let server = Setup::new(state.path(), memory.clone()).start().await;
        let link = Link::symmetric(Duration::from_millis(2), 0.0, Some(bits_per_s), 256 << 10);
        let relay = Relay::to(server.address, link).unwrap();
        let mut ticket = server.ticket.clone();
        ticket.address.port = relay.address().port();
        let options = RemoteOptions {
            compression,
            ..options("packer")
        };
        let remote = Remote::connect(ticket, options).await.unwrap();
        Self {
            memory,
            server,
            relay,
            remote,
            _state: state,
        }
    }

    /// How many datagrams it took.
    async fn counted(&self, work: impl Future<Output = ()>) -> u64 {
        let counters = self.relay.counters();
        let sent = || {
            let dropped = counters.dropped.load(Ordering::Relaxed);
            counters.delivered.load(Ordering::Relaxed) + dropped
        };
        let before = sent();
        in_time(work).await;
        sent() - before
    }

    /// Datagrams to write and to read this body.
    async fn cost(&self, body: &[u8]) -> (u64, u64) {
        let written = self.counted(async {
            write(&self.remote, 4096, body).await.unwrap();
        });
        let written = written.await;
        assert!(self.memory.bytes.lock().unwrap()[4096..4096 + body.len()] == *body);
        let back = self.counted(async {
            assert!(read(&self.remote, 4096, body.len()).await.unwrap() == body);
        });
        (written, back.await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_takes_less_of_the_link_and_arrives_as_it_was() {
    let body = text(2 << 20);
    let plain = Linked::new(Compression::Off).await;
    let (written, back) = plain.cost(&body).await;
    for compression in [Compression::Lz4, Compression::Zstd] {
        let linked = Linked::new(compression).await;
        let (packed_written, packed_back) = linked.cost(&body).await;
        assert!(
            packed_written * 2 < written,
            "{compression:?}: {packed_written} of {written}"
        );
        assert!(
            packed_back * 2 < back,
            "{compression:?}: {packed_back} of {back}"
        );
        linked.server.stop().await;
    }
    plain.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_link_that_was_found_to_be_slow_text_is_compressed_unasked() {
    let body = text(1 << 20);
    // A build without optimisation compresses slowly, but not as slowly as this.
    let linked = Linked::at(Compression::Auto, 8_000_000).await;
    // The first one fills the link, so that its rate is known.
    let (first_written, first_back) = linked.cost(&body).await;
    let (written, back) = linked.cost(&body).await;
    assert!(written * 2 < first_written, "{written} of {first_written}");
    let plain = body.len() as u64 / 1500;
    assert!(
        back * 5 < plain * 3,
        "{back}, at first {first_back}, of {plain}"
    );
    linked.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_all_kinds_and_lengths_arrive_as_they_were() {
    let noise = pattern(7, 1 << 20);
    let words = text(1 << 20);
    for compression in [
        Compression::Off,
        Compression::Lz4,
        Compression::Zstd,
        Compression::Auto,
    ] {
        let linked = Linked::new(compression).await;
        for len in [1, 511, 4096, 4097, 131_072, 131_073, 400_000] {
            linked.cost(&words[..len]).await;
            linked.cost(&noise[..len]).await;
            linked.cost(&vec![0; len]).await;
        }
        let mixed = [&words[..300_000], &[0; 200_000], &noise[..300_000]].concat();
        linked.cost(&mixed).await;
        // Longer than one request.
        let long = [words.as_slice(), &noise, &words, &noise, &words].concat();
        linked.cost(&long).await;
        linked.server.stop().await;
    }
}
