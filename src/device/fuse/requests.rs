//! How the file's requests are served: memory at once, unless it may be held; everything else by
//! queues.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuser::{ReplyData, ReplyEmpty, ReplyWrite};

use super::queue::QueueHandle;
use super::slot::Reply;
use crate::volume::queue::answer_inline;
use crate::volume::{
    ByteOffset, Errno, Op, Outcome, QueueCounters, Request, RequestMemory, Volume,
};

/// What the file system hands its requests to.
pub(super) enum Requests {
    /// A volume in memory: answered on the thread that got the request from the kernel.
    Inline(Inline),
    /// Any other: the thread leaves the request in a queue and fetches the next one.
    Queued(Vec<QueueHandle>),
}

impl Requests {
    /// Fills the reply with `len_bytes` from `offset` on.
    pub(super) fn read(&self, offset: u64, len_bytes: usize, reply: ReplyData) {
        let request = Request::new(Op::Read, ByteOffset(offset), len_bytes as u64);
        match self {
            Self::Inline(inline) => inline.read(request, len_bytes, reply),
            Self::Queued(queues) => pick(queues).submit(request, &[], Reply::Data(reply)),
        }
    }

    /// Writes `data` at `offset`.
    pub(super) fn write(&self, offset: u64, data: &[u8], fua: bool, reply: ReplyWrite) {
        let request = Request {
            fua,
            ..Request::new(Op::Write, ByteOffset(offset), data.len() as u64)
        };
        match self {
            Self::Inline(inline) => match inline.write(request, data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(errno) => reply.error(to_fuse(errno)),
            },
            Self::Queued(queues) => pick(queues).submit(request, data, Reply::Written(reply)),
        }
    }

    /// Runs a request without data.
    pub(super) fn run(&self, request: Request, reply: ReplyEmpty) {
        match self {
            Self::Inline(inline) => match inline.run(request, RequestMemory::empty()) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(to_fuse(errno)),
            },
            Self::Queued(queues) => pick(queues).submit(request, &[], Reply::Done(reply)),
        }
    }

    /// Whether a range that is to be zeroed has to consist of whole blocks.
    pub(super) fn zeroes_whole_blocks_only(&self) -> bool {
        matches!(self, Self::Queued(_))
    }
}

/// The number of this thread among those that serve file systems; counted from the first request.
fn worker() -> usize {
    static WORKERS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    WORKER.with(|worker| {
        worker.get().unwrap_or_else(|| {
            let number = WORKERS.fetch_add(1, Ordering::Relaxed);
            worker.set(Some(number));
            number
        })
    })
}

/// Each thread keeps to one queue, and the threads spread over the queues.
fn pick(queues: &[QueueHandle]) -> &QueueHandle {
    &queues[worker() % queues.len()]
}

/// Serves a volume in memory.
pub(super) struct Inline {
    volume: Arc<Volume>,
}

thread_local! {
    /// Where a read is put together before it goes to the kernel.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// What this thread counts; it serves one volume.
    static COUNTERS: RefCell<Option<Arc<QueueCounters>>> = const { RefCell::new(None) };
}

impl Inline {
    pub(super) fn new(volume: Arc<Volume>) -> Self {
        Self { volume }
    }

    fn read(&self, request: Request, len_bytes: usize, reply: ReplyData) {
        READ.with_borrow_mut(|buffer| {
            if buffer.len() < len_bytes {
                buffer.resize(len_bytes, 0);
            }
            let bytes = &mut buffer[..len_bytes];
            // SAFETY: `run` has ended before the buffer is used again.
            let memory =
                unsafe { RequestMemory::new(NonNull::from(&mut *bytes).cast(), len_bytes) };
            match self.run(request, memory) {
                Ok(()) => reply.data(bytes),
                Err(errno) => reply.error(to_fuse(errno)),
            }
        });
    }

    fn write(&self, request: Request, data: &[u8]) -> Outcome {
        // SAFETY: a write only reads its memory, and it has ended before `data` is gone.
        let memory = unsafe { RequestMemory::new(NonNull::from(data).cast(), data.len()) };
        self.run(request, memory)
    }

    fn run(&self, request: Request, memory: RequestMemory) -> Outcome {
        COUNTERS.with_borrow_mut(|counters| {
            let counters = counters.get_or_insert_with(|| self.volume.new_counters());
            answer_inline(&self.volume, counters, request, memory).unwrap_or(Err(Errno::EIO))
        })
    }
}

/// The same error for the kernel; a write to what is read-only is named as file systems name it.
pub(super) fn to_fuse(errno: Errno) -> fuser::Errno {
    match errno {
        Errno::EPERM => fuser::Errno::EROFS,
        other => fuser::Errno::from_i32(other.raw()),
    }
}
