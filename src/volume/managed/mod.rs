//! A local store in front of an origin, seen from the queues: what is here is I/O on the queue's
//! own ring, everything else waits with the asynchronous side until it is possible.
//!
//! `queue` is the path of a request; [`ManagedStore`] is what it shares with the asynchronous
//! side (`crate::mount::managed`).

mod latency;
pub(crate) mod queue;
mod room;
mod touched;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub use latency::{Latencies, LatencyStep, LatencySummary};
pub use room::Room;
pub use touched::Touched;

use super::file::FileStore;
use super::geometry::Geometry;
use super::misses::MissQueue;
use super::state_map::StateMap;

/// What an answered flush promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The bytes survive a power cut in the local store.
    Local,
    /// The origin has flushed them.
    Remote,
    /// Nothing.
    None,
}

/// The local store of a managed mount.
#[derive(Debug)]
pub struct ManagedStore {
    /// The bytes.
    pub data: Arc<FileStore>,
    /// What is known of them.
    pub map: Arc<StateMap>,
    /// The sizes of the volume.
    pub geometry: Geometry,
    /// Requests that have to wait for the asynchronous side.
    pub misses: Arc<MissQueue>,
    /// What a flush promises.
    pub durability: Durability,
    /// The order in which chunks were first touched, where it is recorded.
    pub touched: Option<Touched>,
    /// How long reads took that found their blocks here, from a sample.
    pub hits: Latencies,
    /// Reads that had to wait for the origin.
    pub missed: AtomicU64,
    /// Whether it has room.
    pub room: Room,
    slots_taken: AtomicU32,
    claims: Claims,
}

impl ManagedStore {
    /// A store whose requests go to `misses` when they have to wait.
    pub fn new(
        data: Arc<FileStore>,
        map: Arc<StateMap>,
        geometry: Geometry,
        misses: Arc<MissQueue>,
        durability: Durability,
        touched: Option<Touched>,
    ) -> Self {
        Self {
            data,
            map,
            geometry,
            misses,
            durability,
            touched,
            hits: Latencies::default(),
            missed: AtomicU64::new(0),
            room: Room::default(),
            slots_taken: AtomicU32::new(0),
            claims: Claims::default(),
        }
    }

    /// Takes `count` places in the table of writes under way, and gives the first.
    ///
    /// # Errors
    /// When the table has no room for as many.
    pub fn take_slots(&self, count: u32) -> io::Result<u32> {
        self.slots_taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken
                    .checked_add(count)
                    .filter(|sum| *sum <= self.map.queue_slots())
            })
            .map_err(|taken| {
                io::Error::other(format!(
                    "the table of writes under way has {} places, {taken} are taken, and {count} more are needed",
                    self.map.queue_slots()
                ))
            })
    }

    /// Tells those who wait for a claim that one was given back.
    pub fn claim_released(&self) {
        self.claims.released();
    }

    /// Waits until `is_free` holds; it is looked at whenever a claim was given back.
    pub async fn claims_free(&self, is_free: impl Fn() -> bool) {
        self.claims.wait(is_free).await;
    }
}

/// Those who wait for a claim on blocks. Giving one back costs a load while nobody does.
#[derive(Debug, Default)]
struct Claims {
    waiting: AtomicU32,
    released: Notify,
}

impl Claims {
    fn released(&self) {
        // With the fence in `wait`: either the waiter sees the claim gone, or it is seen here.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.released.notify_waiters();
        }
    }

    async fn wait(&self, is_free: impl Fn() -> bool) {
        let _counted = Counted::new(&self.waiting);
        loop {
            let released: Notified<'_> = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            fence(Ordering::SeqCst);
            if is_free() {
                return;
            }
            released.await;
        }
    }
}

/// One more, until it is dropped.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
