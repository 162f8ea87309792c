//! What an application waits for is not queued behind what the background does.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use blockferry::AsyncBackend;
use blockferry::backend::faults::{Fault, Faulty, Rule};
use blockferry::backend::{OpenOptions, Resource};
use blockferry::net::Remote;
use blockferry::volume::{MemoryMap, Op, Priority};
use net_support::{PATIENCE, Running, Setup, connect, read, write};
use tokio::task::JoinSet;

const SIZE: usize = 64 << 20;
/// What the background asks for lies below, and the backend does not answer it.
const HELD: u64 = 32 << 20;

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

/// A server with a backend that holds everything up that touches the lower half.
struct Slow {
    backend: Arc<Faulty<MemoryMap>>,
    server: Running,
    remote: Arc<Remote>,
    _state: tempfile::TempDir,
    _release: Release,
}

/// Lets go of what is held, also when a test fails: its runtime waits for these calls.
struct Release(Arc<Faulty<MemoryMap>>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Slow {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let backend = Arc::new(Faulty::new(MemoryMap::new(SIZE as u64).unwrap()));
        for op in [Op::Read, Op::Write] {
            backend.plan(Rule {
                range: Some(0..HELD),
                ..Rule::always(op, Fault::Hold)
            });
        }
        let resource = Resource::custom("slow", backend.clone(), OpenOptions::default());
        let server = Setup::new(state.path(), resource.unwrap().as_async())
            .start()
            .await;
        let remote = connect(&server.ticket).await;
        Self {
            _release: Release(backend.clone()),
            backend,
            server,
            remote,
            _state: state,
        }
    }

    /// Starts `count` requests of the background, and waits until `held` of them are at the
    /// backend: as many as it lets the background have.
    async fn flood(&self, op: Op, count: usize, len: usize, priority: Priority) -> JoinSet<()> {
        let mut flood = JoinSet::new();
        for index in 0..count {
            let remote = Arc::clone(&self.remote);
            let offset = (index * len) as u64 % HELD;
            flood.spawn(async move {
                let mut buf = vec![7; len];
                match op {
                    Op::Write => remote.write_at(&buf, offset, false, priority).await,
                    _ => remote.read_at(&mut buf, offset, priority).await.map(|_| ()),
                }
                .unwrap();
            });
        }
        // It has reached its bound when no further one arrives.
        let settled = async {
            let mut before = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let held = self.backend.held();
                if held > 0 && held == before {
                    return;
                }
                before = held;
            }
        };
        in_time(settled).await;
        flood
    }

    /// Demand goes through while the background is held; then that ends well too.
    async fn demand_overtakes(self, mut flood: JoinSet<()>) {
        let at = HELD + 4096;
        in_time(write(&self.remote, at, &[5; 65536])).await.unwrap();
        in_time(self.remote.flush()).await.unwrap();
        let back = in_time(read(&self.remote, at, 65536)).await.unwrap();
        assert_eq!(back, [5; 65536]);
        assert!(self.backend.held() > 0, "the background was not held");
        assert!(flood.try_join_next().is_none(), "the background went on");
        self.backend.release();
        while let Some(ended) = in_time(flood.join_next()).await {
            ended.unwrap();
        }
        self.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_overtakes_pulls_that_have_all_calls_of_the_backend_they_can_get() {
    let slow = Slow::start().await;
    let flood = slow.flood(Op::Read, 200, 65536, Priority::Pull).await;
    slow.demand_overtakes(flood).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_overtakes_pulls_that_have_all_memory_of_the_session_they_can_get() {
    let slow = Slow::start().await;
    let flood = slow.flood(Op::Read, 40, 4 << 20, Priority::Pull).await;
    slow.demand_overtakes(flood).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_overtakes_read_ahead_that_has_all_streams_it_can_get() {
    let slow = Slow::start().await;
    let flood = slow.flood(Op::Read, 1200, 4096, Priority::ReadAhead).await;
    slow.demand_overtakes(flood).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_overtakes_pushes_that_fill_the_way_to_the_server() {
    let slow = Slow::start().await;
    let flood = slow.flood(Op::Write, 40, 4 << 20, Priority::Push).await;
    slow.demand_overtakes(flood).await;
}
