//! Managed mounts in miniature: an origin to watch, a store, and queues that the test drives.
#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

pub(crate) mod bytes;
pub(crate) mod link;
pub(crate) mod origin;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::ErrorKind;
use blockferry::backend::{OpenOptions, Resource};
use blockferry::mount::managed::{ManagedMount, ManagedOptions, PullOrder, in_flight_slots};
use blockferry::volume::cache::{AfterFailedSync, CacheDirectory, CacheOptions, OpenedCache};
use blockferry::volume::{ByteOffset, Durability, Op, Outcome, Request};
use tokio::runtime::Runtime;

use super::engine_support::{DEPTH, Rig};
pub(crate) use origin::{Call, Origin, Plan, Trouble, until};

pub(crate) const CHUNK: u64 = 64 << 10;
pub(crate) const BLOCK: u64 = 4096;

/// How many queues a mount may have, all together.
pub(crate) const QUEUES: usize = 32;

/// How often a cache is tried that is still locked.
const LOCK_TRIES: u32 = 10_000;

/// Where things are that a mount needs, whether it is there or not.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) origin: Arc<Origin>,
    pub(crate) resource: Resource,
    pub(crate) directory: tempfile::TempDir,
    /// The directory of the store, if not in `directory`.
    pub(crate) store: Option<PathBuf>,
    /// The run-time directory, if not in `directory`.
    pub(crate) run_directory: Option<PathBuf>,
    pub(crate) options: ManagedOptions,
    /// Whether the queues do the store's I/O.
    pub(crate) rings: bool,
    /// Whether the store is past the page cache.
    pub(crate) direct: bool,
    pub(crate) after_failed_sync: AfterFailedSync,
}

/// What most tests want: nothing by itself, and no deadline.
pub(crate) fn options() -> ManagedOptions {
    ManagedOptions {
        chunk_bytes: CHUNK,
        pull: PullOrder::Nothing,
        push: false,
        push_interval: Duration::from_millis(5),
        read_ahead_bytes: 0,
        durability: Durability::Local,
        io_timeout: None,
        ..ManagedOptions::default()
    }
}

impl World {
    pub(crate) fn new(origin: Origin) -> Self {
        Self::on(tempfile::tempdir().expect("a directory"), origin)
    }

    /// With the store in memory, where syncs cost nothing.
    pub(crate) fn in_memory(origin: Origin) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::on(directory.expect("a directory"), origin)
    }

    fn on(directory: tempfile::TempDir, origin: Origin) -> Self {
        let origin = Arc::new(origin);
        let resource = Resource::remote("origin", origin.clone(), OpenOptions::default());
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime"),
            origin,
            resource: resource.expect("a resource"),
            directory,
            store: None,
            run_directory: None,
            options: options(),
            rings: true,
            direct: true,
            after_failed_sync: AfterFailedSync::Refuse,
        }
    }

    pub(crate) fn mount(&self) -> ManagedMount {
        self.mount_as(self.options.clone())
    }

    pub(crate) fn mount_as(&self, options: ManagedOptions) -> ManagedMount {
        let cache = self.open_cache();
        self.mount_cache(cache, options)
    }

    pub(crate) fn mount_cache(&self, cache: OpenedCache, options: ManagedOptions) -> ManagedMount {
        let _guard = self.runtime.enter();
        let start = match self.rings {
            true => ManagedMount::start,
            false => ManagedMount::start_without_rings,
        };
        start(&self.resource, cache, options, requests_max()).expect("mounted")
    }

    pub(crate) fn cache_path(&self) -> PathBuf {
        let own = self.directory.path().join("cache");
        self.store.clone().unwrap_or(own)
    }

    pub(crate) fn run_path(&self) -> PathBuf {
        let own = self.directory.path().join("run");
        self.run_directory.clone().unwrap_or(own)
    }

    pub(crate) fn cache_options(&self) -> CacheOptions {
        CacheOptions {
            size_bytes: self.resource.geometry.resource_bytes(),
            chunk_bytes: self.options.chunk_bytes,
            identity: [7; 16],
            origin_name: "origin".to_owned(),
            persistent: true,
            run_directory: self.run_path(),
            in_flight_slots: in_flight_slots(requests_max()),
            direct_alignment_bytes: self.direct.then_some(512),
            after_failed_sync: self.after_failed_sync,
        }
    }

    /// Opens the cache, as soon as what was under way when it was dropped has let go of it.
    pub(crate) fn open_cache(&self) -> OpenedCache {
        for _ in 0..LOCK_TRIES {
            match CacheDirectory::open(&self.cache_path(), &self.cache_options()) {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other.expect("a cache"),
            }
        }
        panic!("the cache is never let go of");
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let patient = async { tokio::time::timeout(origin::PATIENCE, future).await };
        self.runtime.block_on(patient).expect("it ends")
    }
}

fn requests_max() -> usize {
    QUEUES * usize::from(DEPTH)
}

pub(crate) fn read(offset: u64, len: u64) -> Request {
    Request::new(Op::Read, ByteOffset(offset), len)
}

pub(crate) fn write(offset: u64, len: u64) -> Request {
    Request::new(Op::Write, ByteOffset(offset), len)
}

pub(crate) fn discard(offset: u64, len: u64) -> Request {
    Request::new(Op::Discard, ByteOffset(offset), len)
}

pub(crate) fn flush() -> Request {
    Request::new(Op::Flush, ByteOffset(0), 0)
}

impl Rig {
    pub(crate) fn of(mount: &ManagedMount) -> Self {
        Self::new(mount.volume().clone())
    }

    /// Writes `byte` all over the range.
    pub(crate) fn put(&mut self, offset: u64, len: u64, byte: u8) -> Outcome {
        self.buffers[0][..len as usize].fill(byte);
        self.run(write(offset, len))
    }

    /// The bytes of the range.
    pub(crate) fn get(&mut self, offset: u64, len: u64) -> Vec<u8> {
        self.try_get(offset, len).expect("read")
    }

    pub(crate) fn try_get(
        &mut self,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, blockferry::volume::Errno> {
        self.buffers[0].fill(0xee);
        self.run(read(offset, len))?;
        Ok(self.buffers[0][..len as usize].to_vec())
    }
}
