//! Managed mounts: a local store in front of a resource that is far away.
//!
//! The device is there at once. What is not local is fetched when it is asked for, by chunk, ahead
//! of everything else; the rest comes in the background; writes land in the store and go to the
//! origin in sweeps. The queues' side is `crate::volume::managed`; this is the asynchronous side:
//!
//! | file | does |
//! |---|---|
//! | `serve` | makes requests possible that a queue could not begin |
//! | `zero` | discards, and writes of zeros |
//! | `carry_out` | does whole requests, for queues without a ring |
//! | `fetch`, `fetches` | one fetch a chunk, and who waits for it |
//! | `fill` | how its bytes get into the store |
//! | `pull`, `order`, `read_ahead` | what is fetched unasked |
//! | `push`, `batch` | sweeps of dirty blocks to the origin |
//! | `touch_record` | when it is written which chunks were touched |
//! | `mount::announcer` | tells a program which chunks are local |
//! | `checkpoint` | when the store is made durable unasked |
//! | `window`, `flow`, `rate`, `buffers` | how much of it at once |
//! | `status`, `throughput` | what it tells of itself |

mod batch;
mod buffers;
mod carry_out;
mod checkpoint;
mod end;
mod fetch;
mod fetches;
mod fill;
mod options;
mod order;
pub mod origin;
mod pull;
mod push;
mod rate;
mod read_ahead;
mod serve;
mod slots;
mod status;
mod tasks;
mod throughput;
mod touch_record;
mod zero;
mod zeros;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::batch::PIECE_BYTES;
use self::buffers::Buffers;
use self::checkpoint::Checkpoints;
use self::fetches::Fetches;
use self::push::{Pushes, Sweeper};
use self::rate::RateLimit;
use self::read_ahead::ReadAhead;
use self::slots::{SLOTS, Slots};
use self::status::Counters;
use self::tasks::Tasks;
use self::throughput::Throughput;
use self::zeros::Zeros;
use super::announcer::Announcer;
use super::deadline::Deadline;
use crate::backend::Resource;
use crate::net::flow::Flow;
use crate::volume::cache::{CacheDirectory, Checkpointer, FoundState, OpenedCache};
use crate::volume::geometry::BlockRange;
use crate::volume::managed::{Latencies, ManagedStore, Touched};
use crate::volume::misses::MISSES_MAX;
use crate::volume::state_map::Heat;
use crate::volume::{AsyncBackend, Geometry, MissQueue, QueueRing, Store, Volume};
use crate::{Context, Error, ErrorKind, Result};

pub use self::options::{Hook, Hooks, ManagedOptions, WORKERS_MAX};
pub use self::order::{OrderRange, PriorityFunction, PullOrder};
pub use self::status::ManagedStatus;

/// The share of the memory that is kept for I/O on the store, where queues do not do it themselves: one
/// in as many.
const LOCAL_SHARE: usize = 8;

/// A managed mount: its volume, and what fills and empties its store. Dropping it ends what is under
/// way; [`finish`](Self::finish) is the orderly end.
pub struct ManagedMount {
    volume: Arc<Volume>,
    shared: Arc<Shared>,
    cache: CacheDirectory,
}

impl std::fmt::Debug for ManagedMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagedMount")
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

/// How many places the table of writes under way needs for a device of `requests_max` requests.
pub fn in_flight_slots(requests_max: usize) -> u32 {
    u32::try_from(requests_max).unwrap_or(u32::MAX - SLOTS) + SLOTS
}

/// What the tasks of a mount have in common.
struct Shared {
    origin: Arc<dyn AsyncBackend>,
    store: Arc<ManagedStore>,
    checkpointer: Arc<Checkpointer>,
    geometry: Geometry,
    options: ManagedOptions,
    read_only: bool,
    /// Whether the queues do the I/O on the store themselves.
    on_rings: bool,
    /// How many chunks are pulled at once, at most.
    pull_workers: u32,
    /// How many pulls failed one after the other.
    pull_failures: AtomicU32,
    /// How many runs are pushed at once, at most.
    push_workers: u32,
    buffers: Arc<Buffers>,
    /// For I/O on the store, where queues do not do it themselves: nothing that waits for the origin
    /// has any of these.
    local_buffers: Arc<Buffers>,
    deadline: Deadline,
    fetches: Fetches,
    downlink: Flow,
    uplink: Flow,
    pull_rate: RateLimit,
    push_rate: RateLimit,
    /// How much zeros are pushed in one request.
    zeros: Zeros,
    read_ahead: Mutex<ReadAhead>,
    slots: Slots,
    pushes: Pushes,
    checkpoints: Checkpoints,
    /// The hook that a chunk is local, if there is one.
    announcer: Option<Announcer>,
    /// Whether everything is local.
    pulled: watch::Sender<bool>,
    pulling: Throughput,
    pushing: Throughput,
    counters: Counters,
    miss_times: Latencies,
    last_error: Mutex<Option<String>>,
    tasks: Tasks,
}

impl ManagedMount {
    /// Makes a volume of an origin and a local store, for a device that holds at most `requests_max`
    /// requests at once. Must be called in a tokio runtime, which then serves the requests.
    ///
    /// # Errors
    /// `InvalidInput` for options that cannot be met, and when the store's table of writes under way
    /// is too short (see [`in_flight_slots`]).
    pub fn start(
        origin: &Resource,
        cache: OpenedCache,
        options: ManagedOptions,
        requests_max: usize,
    ) -> Result<Self> {
        let on_rings = QueueRing::new(1).is_ok();
        Self::with_rings(origin, cache, options, requests_max, on_rings)
    }

    /// The same, where the queues are to do no I/O: the store is read and written on the runtime's
    /// pool of threads, as it is anyway where the kernel gives no ring.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_without_rings(
        origin: &Resource,
        cache: OpenedCache,
        options: ManagedOptions,
        requests_max: usize,
    ) -> Result<Self> {
        Self::with_rings(origin, cache, options, requests_max, false)
    }

    fn with_rings(
        origin: &Resource,
        cache: OpenedCache,
        options: ManagedOptions,
        requests_max: usize,
        on_rings: bool,
    ) -> Result<Self> {
        options.check()?;
        let misses = Arc::new(MissQueue::new(requests_max.min(MISSES_MAX)));
        let store = Arc::new(ManagedStore::new(
            cache.data,
            cache.map,
            origin.geometry,
            misses,
            options.durability,
            touched(&options, &origin.geometry, &cache.found.state)?,
        ));
        let seedable = options.seedable;
        let slots = store
            .take_slots(SLOTS)
            .context_io(|| "cannot serve the local store")?;
        let hook = options.hooks.chunk_is_local.clone();
        let announcer = hook
            .map(Announcer::new)
            .transpose()
            .context_io(|| "cannot start the thread of a hook")?;
        let shared = Arc::new(Shared::new(
            origin,
            Arc::clone(&store),
            cache.checkpointer,
            options,
            slots,
            on_rings,
            announcer,
        ));
        shared.start_tasks();
        let store = match on_rings {
            true => Store::Managed(store),
            // As if the store were somewhere else.
            false => Store::Async(Arc::clone(&store.misses)),
        };
        let volume = Volume::new(store, origin.geometry, origin.read_only, true);
        Ok(Self {
            volume: Arc::new(if seedable { volume.seedable() } else { volume }),
            shared,
            cache: cache.directory,
        })
    }

    /// The directory of the local store.
    pub fn cache(&self) -> &CacheDirectory {
        &self.cache
    }

    /// The volume, to be put behind a device.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Waits until everything is local.
    pub async fn pulled(&self) {
        let mut pulled = self.shared.pulled.subscribe();
        // The sender lives as long as `shared`.
        let _ = pulled.wait_for(|pulled| *pulled).await;
    }

    /// Makes everything that was written before this call durable at the origin.
    ///
    /// # Errors
    /// When the origin fails it, or the hook before it does. What was not pushed stays dirty.
    pub async fn sync(&self) -> Result<()> {
        self.sync_after(std::future::ready(Ok(()))).await
    }

    /// The same for what `write_back` writes to the volume, which is waited for between the hook before
    /// a sync and the sync.
    ///
    /// # Errors
    /// As [`sync`](Self::sync), and what `write_back` gives.
    pub async fn sync_after(&self, write_back: impl Future<Output = Result<()>>) -> Result<()> {
        let shared = &self.shared;
        if let Some(hook) = shared.options.hooks.before_sync.clone() {
            shared.hook("before-sync", hook).await?;
        }
        write_back.await?;
        let pushed_before = shared.counters.pushed_bytes.load(Ordering::Relaxed);
        shared.sweep_all().await.map_err(|error| {
            let cannot = "cannot make local writes durable at the origin";
            match shared.origin.lost_because() {
                Some(why) => Error::new(ErrorKind::Io, format!("{cannot}: {why}")),
                None => Error::io(cannot, error),
            }
        })?;
        shared.sync_store().await.context_io(|| {
            let path = self.cache.path().display();
            format!(
                "the origin has all local writes, but the disk of the local store fails: after a crash old \
                 bytes would take their place. Stop this mount and give the store up with `blockferry cache \
                 drop {path} --discard-dirty` before the next one"
            )
        })?;
        if let Some(hook) = shared.options.hooks.after_sync.clone() {
            let pushed = shared.counters.pushed_bytes.load(Ordering::Relaxed) - pushed_before;
            shared
                .hook(
                    "after-sync",
                    Arc::new(move || {
                        hook(pushed);
                        Ok(())
                    }),
                )
                .await?;
        }
        Ok(())
    }

    /// Makes everything that was written durable in the local store.
    ///
    /// # Errors
    /// When the store fails it.
    pub async fn checkpoint(&self) -> Result<()> {
        self.shared
            .checkpoint()
            .await
            .map_err(io::Error::from)
            .context_io(|| "cannot make the local store durable")
    }

    /// How many bytes were written here and are not durable at the origin.
    pub fn dirty_bytes(&self) -> u64 {
        self.shared.dirty_bytes()
    }

    /// What it has done, and how far it is.
    pub fn status(&self) -> ManagedStatus {
        ManagedStatus {
            store: self.cache.path().to_owned(),
            ..self.shared.status(self.volume.counters().reads)
        }
    }

    /// The volume in `parts` of about the same length, and what is here of each; fewer where it has
    /// fewer blocks. It looks at the state of every block, which takes its time.
    pub fn heat(&self, parts: u64) -> Vec<Heat> {
        let map = &self.shared.store.map;
        map.heat(parts.min(map.blocks().len()))
    }

    /// Whether all of these blocks came from the origin, and were not written here.
    pub(crate) fn is_clean(&self, blocks: BlockRange) -> bool {
        self.shared.store.map.came_from_origin(blocks)
    }

    /// Gives up what waits for the origin: such requests, and all to come that would have to wait,
    /// fail.
    pub fn give_up(&self) {
        self.shared.tasks.end();
        self.shared.store.misses.close();
    }

    /// How long ago the origin last gave an answer.
    pub fn silent_for(&self) -> Duration {
        self.shared.deadline.silent_for()
    }

    /// Ends the mount, after its device is gone: what was touched is recorded, the store is made
    /// durable. Dirty blocks stay dirty in the store; [`sync`](Self::sync) comes first where they are
    /// to reach the origin. Writes that come later fail.
    ///
    /// # Errors
    /// When the hook, the store or the record fails; everything is done all the same. `Busy` when a
    /// write is under way on a queue: then the store is durable, but only a process that goes on for
    /// this one knows of that write. `TimedOut` when a write that was given up still goes on at the
    /// origin: whoever opened that again in this process could have it overwritten.
    pub async fn finish(&self) -> Result<()> {
        self.shared.finish().await
    }
}

impl Drop for ManagedMount {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Shared {
    fn new(
        origin: &Resource,
        store: Arc<ManagedStore>,
        checkpointer: Checkpointer,
        options: ManagedOptions,
        slots: u32,
        on_rings: bool,
        announcer: Option<Announcer>,
    ) -> Self {
        let backend = origin.as_async();
        let chunk_bytes = options.chunk_bytes;
        let piece_bytes = chunk_bytes.max(PIECE_BYTES);
        let limit = usize::try_from(options.memory_limit_bytes).unwrap_or(usize::MAX);
        let local_limit = limit / LOCAL_SHARE;
        let buffers = Buffers::new(if on_rings { limit } else { limit - local_limit });
        // Neither has all of the memory, nor all calls of the backend, while it waits for the link.
        let half = |buffer_bytes| (buffers.bulk_buffers(buffer_bytes) / 2).max(1);
        let calls = (backend.capabilities().max_concurrency / 2).max(1);
        let bulk_limit = options.memory_limit_bytes / 2;
        Self {
            pull_workers: options
                .pull_workers
                .min(half(chunk_bytes as usize))
                .min(calls),
            push_workers: options.push_workers.min(half(piece_bytes as usize)),
            pull_failures: AtomicU32::new(0),
            deadline: Deadline::new(options.io_timeout, Arc::clone(&store.misses)),
            fetches: Fetches::default(),
            downlink: Flow::new(fetch::piece_bytes(chunk_bytes), bulk_limit),
            uplink: Flow::new(piece_bytes, bulk_limit),
            pull_rate: RateLimit::new(options.pull_rate),
            push_rate: RateLimit::new(options.push_rate),
            zeros: Zeros::new(options.io_timeout),
            read_ahead: Mutex::default(),
            slots: Slots::new(slots),
            pushes: Pushes::new(),
            checkpoints: Checkpoints::default(),
            announcer,
            pulled: watch::Sender::new(false),
            pulling: Throughput::new(Instant::now()),
            pushing: Throughput::new(Instant::now()),
            counters: Counters::default(),
            miss_times: Latencies::default(),
            last_error: Mutex::default(),
            tasks: Tasks::default(),
            checkpointer: Arc::new(checkpointer),
            origin: backend,
            geometry: origin.geometry,
            read_only: origin.read_only,
            store,
            options,
            on_rings,
            buffers,
            local_buffers: Buffers::new(local_limit),
        }
    }

    fn start_tasks(self: &Arc<Self>) {
        self.tasks.spawn(serve::serve(Arc::clone(self)));
        self.tasks.spawn(pull::pull(Arc::clone(self)));
        self.tasks.spawn(checkpoint::keep_durable(Arc::clone(self)));
        self.tasks
            .spawn(touch_record::keep_recorded(Arc::clone(self)));
        if !self.read_only {
            self.tasks.spawn(Sweeper::new(Arc::clone(self)).push());
        }
    }
}

/// Where to note which chunks are touched, if that is wanted. A mount that goes on for one that has died
/// goes on with what that has recorded; any other begins anew.
fn touched(
    options: &ManagedOptions,
    geometry: &Geometry,
    found: &FoundState,
) -> Result<Option<Touched>> {
    let Some(path) = &options.record_heat else {
        return Ok(None);
    };
    options.check_record()?;
    let touched = Touched::new(geometry.device_bytes(), options.chunk_bytes);
    let touched = touched.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            "the volume has too many chunks to record which are touched: use a larger --chunk-size",
        )
    })?;
    if *found != FoundState::Continued || !path.exists() {
        return Ok(Some(touched));
    }
    match PullOrder::load(path) {
        Ok(order) => Ok(Some(
            touched.after(&order.first(geometry, options.chunk_bytes)),
        )),
        Err(error) => {
            tracing::warn!("what was touched before is not known: {}", error.chain());
            Ok(Some(touched))
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
