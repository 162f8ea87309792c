//! A resource that the engine has opened.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::bell::Bell;
use super::buffer::RequestBuffer;
use super::counters::{Counters, QueueCounters};
use super::file::FileStore;
use super::geometry::{BLOCK_BYTES, Geometry};
use super::mailbox::Mailbox;
use super::managed::ManagedStore;
use super::memory::MemoryMap;
use super::misses::{MissQueue, Post};
use super::request::{Errno, Op, Request};
use super::watch::Watch;

/// Where the bytes of a volume are, seen from a queue thread.
#[derive(Debug, Clone)]
pub enum Store {
    /// In this process's memory: requests are copies.
    Memory(Arc<MemoryMap>),
    /// In a local file or block device: requests are I/O on the queue's ring.
    File(Arc<FileStore>),
    /// Somewhere else: requests go to the asynchronous side.
    Async(Arc<MissQueue>),
    /// In a local store in front of an origin.
    Managed(Arc<ManagedStore>),
}

/// A resource with its geometry, ready to be put behind a device.
#[derive(Debug)]
pub struct Volume {
    pub(super) store: Store,
    geometry: Geometry,
    read_only: bool,
    discard: bool,
    watch: Arc<Watch>,
    counters: Mutex<Vec<Arc<QueueCounters>>>,
}

impl Volume {
    /// A volume over `store`. `discard`: whether discards reach the resource.
    pub fn new(store: Store, geometry: Geometry, read_only: bool, discard: bool) -> Self {
        Self {
            store,
            geometry,
            read_only,
            discard,
            watch: watch(&geometry, false),
            counters: Mutex::default(),
        }
    }

    /// The same volume, which can be migrated while it is in use: its queues look whether they have
    /// to wait, and can be woken for it. To be said before it has queues.
    #[must_use]
    pub fn seedable(self) -> Self {
        Self {
            watch: watch(&self.geometry, true),
            ..self
        }
    }

    /// Whether it can be migrated while it is in use.
    pub fn is_seedable(&self) -> bool {
        self.watch.is_seedable()
    }

    /// Its migrations' way to know what changes, and to hold it.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Its sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a discard does anything.
    pub fn can_discard(&self) -> bool {
        self.discard
    }

    /// Whether written bytes may need a flush to be durable; not so for memory.
    pub fn has_volatile_cache(&self) -> bool {
        !matches!(self.store, Store::Memory(_))
    }

    /// Whether requests can run on pages that only the kernel can reach.
    pub fn takes_registered_buffers(&self) -> bool {
        matches!(self.store, Store::File(_) | Store::Managed(_))
            && self.geometry.padding_bytes() == 0
    }

    /// Has every request that goes to the asynchronous side answered within `limit`, whatever time
    /// its mount gives it. Local I/O has the kernel's own limits.
    pub fn limit_requests(&self, limit: Duration) {
        if let Some(misses) = self.misses() {
            misses.limit_requests(limit);
        }
    }

    /// Whether requests are answered from memory, without I/O.
    pub fn is_memory(&self) -> bool {
        matches!(self.store, Store::Memory(_))
    }

    /// Whether other threads wake its queues, so that a queue has to arm its bell.
    pub fn needs_bell(&self) -> bool {
        self.is_seedable() || matches!(self.store, Store::Async(_) | Store::Managed(_))
    }

    /// Whether the thread that has a request can answer it where it stands, without a queue.
    pub fn is_answered_inline(&self) -> bool {
        self.is_memory() && !self.is_seedable()
    }

    /// Whether requests are I/O on their queue's ring.
    pub fn needs_ring(&self) -> bool {
        matches!(self.store, Store::File(_) | Store::Managed(_))
    }

    /// Where requests wait for the asynchronous side.
    pub(super) fn misses(&self) -> Option<&Arc<MissQueue>> {
        match &self.store {
            Store::Async(misses) => Some(misses),
            Store::Managed(store) => Some(&store.misses),
            Store::Memory(_) | Store::File(_) => None,
        }
    }

    /// What all queues did so far.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for queue in self.lock_counters().iter() {
            queue.add_to(&mut sum);
        }
        sum
    }

    /// Counters for one more queue, which are part of the sum.
    pub fn new_counters(&self) -> Arc<QueueCounters> {
        let counters = Arc::new(QueueCounters::default());
        self.lock_counters().push(counters.clone());
        counters
    }

    fn lock_counters(&self) -> std::sync::MutexGuard<'_, Vec<Arc<QueueCounters>>> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new_post(&self, depth: u16) -> io::Result<Arc<Post>> {
        Ok(Arc::new(Post {
            mailbox: Mailbox::new(depth),
            bell: Bell::new()?,
        }))
    }

    /// Checks a request and says how many of its bytes lie inside the resource. The padding behind
    /// them reads as zeros and takes nothing else.
    pub(super) fn admit(
        &self,
        request: &Request,
        buffer: &mut RequestBuffer,
    ) -> Result<u64, Errno> {
        if !self.geometry.contains(request.offset, request.len_bytes) {
            return Err(Errno::EINVAL);
        }
        if self.read_only && request.writes() {
            return Err(Errno::EPERM);
        }
        if let (Op::Read | Op::Write, RequestBuffer::Memory(memory)) = (request.op, &*buffer)
            && memory.len_bytes() as u64 != request.len_bytes
        {
            return Err(Errno::EINVAL);
        }
        let inside_bytes = self
            .geometry
            .within_resource(request.offset, request.len_bytes);
        if inside_bytes < request.len_bytes {
            pad(request.op, buffer, inside_bytes)?;
        }
        Ok(inside_bytes)
    }
}

fn watch(geometry: &Geometry, seedable: bool) -> Arc<Watch> {
    let blocks = geometry.device_bytes().div_ceil(BLOCK_BYTES);
    Arc::new(Watch::new(blocks, seedable))
}

/// Handles the part of a request that lies behind the end of the resource.
fn pad(op: Op, buffer: &mut RequestBuffer, inside_bytes: u64) -> Result<(), Errno> {
    match (op, buffer) {
        (Op::Read, RequestBuffer::Memory(memory)) => {
            memory.bytes_mut()[inside_bytes as usize..].fill(0);
            Ok(())
        }
        (Op::Write, RequestBuffer::Memory(memory)) => {
            let zeros = memory.bytes()[inside_bytes as usize..]
                .iter()
                .all(|byte| *byte == 0);
            if zeros { Ok(()) } else { Err(Errno::EIO) }
        }
        (Op::Read | Op::Write, RequestBuffer::Registered(_)) => Err(Errno::EIO),
        (Op::Flush | Op::Discard | Op::WriteZeroes, _) => Ok(()),
    }
}
