//! Local I/O on the queue's ring: one state machine for each tag.
//!
//! A request may take several operations (a short read, a write followed by a sync, zeros written
//! piece by piece); it ends once, with all its bytes or an error.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use super::buffer::RequestBuffer;
use super::file::FileStore;
use super::memory::Unmap;
use super::request::{Errno, Op, Outcome, Request, Tag};
use super::ring::{Owner, QueueRing};
use super::sync_group::SyncGroup;

/// How often an operation that the kernel asks to repeat is repeated before it fails.
const RETRIES_MAX: u8 = 16;

/// Zeros to write where a file system cannot make them itself.
#[repr(align(4096))]
struct Zeros([u8; 256 << 10]);
static ZEROS: Zeros = Zeros([0; 256 << 10]);

/// What a tag is waiting for.
#[derive(Debug)]
enum Step {
    /// Reading or writing the rest of the buffer.
    Transfer,
    /// Filling what lies behind the end of a file with zeros.
    FillTail,
    /// A hole being punched, or a range being zeroed without unmapping.
    Allocate(i32),
    /// Zeros being written.
    WriteZeros,
    /// Pages being given back.
    Unmap(Option<Unmap>),
    /// A sync that makes the request durable.
    Sync,
    /// Being told that another request's sync has covered this one, too.
    Synced,
}

#[derive(Debug)]
struct LocalIo {
    request: Request,
    buffer: RequestBuffer,
    /// Bytes of the request inside the resource; the rest is padding.
    len_bytes: u64,
    done_bytes: u64,
    retries: u8,
    step: Step,
}

/// The local I/O of one queue.
#[derive(Debug)]
pub(super) struct LocalQueue {
    slots: Box<[Option<LocalIo>]>,
    files: Files,
}

/// What operations need beside the store.
#[derive(Debug)]
struct Files {
    /// Reads as zeros; fills registered buffers, which cannot be reached otherwise.
    zero_device: Option<File>,
    syncs: SyncGroup,
}

impl LocalQueue {
    /// For a queue of `depth` requests, on this file if it is one.
    ///
    /// # Errors
    /// When the file cannot be opened again.
    pub(super) fn new(depth: u16, store: Option<&FileStore>) -> io::Result<Self> {
        Ok(Self {
            slots: (0..depth).map(|_| None).collect(),
            files: Files {
                zero_device: File::open("/dev/zero").ok(),
                syncs: SyncGroup::new(depth, store)?,
            },
        })
    }

    /// Starts a request on a file. `len_bytes` of it lie inside the file.
    pub(super) fn start_on_file(
        &mut self,
        ring: &mut QueueRing,
        store: &Arc<FileStore>,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
        len_bytes: u64,
    ) -> Option<Outcome> {
        let step = match request.op {
            Op::Read | Op::Write => Step::Transfer,
            Op::Flush if store.flush_failed() => return Some(Err(Errno::EIO)),
            Op::Flush => Step::Sync,
            Op::Discard => Step::Allocate(libc::FALLOC_FL_PUNCH_HOLE),
            Op::WriteZeroes if request.no_unmap => Step::Allocate(libc::FALLOC_FL_ZERO_RANGE),
            Op::WriteZeroes => Step::Allocate(libc::FALLOC_FL_PUNCH_HOLE),
        };
        self.begin(
            ring,
            Some(store),
            tag,
            LocalIo {
                request,
                buffer,
                len_bytes,
                done_bytes: 0,
                retries: 0,
                step,
            },
        )
    }

    /// Starts giving back pages of memory.
    pub(super) fn start_unmap(
        &mut self,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        unmap: Unmap,
    ) -> Option<Outcome> {
        self.begin(
            ring,
            None,
            tag,
            LocalIo {
                len_bytes: request.len_bytes,
                request,
                buffer: RequestBuffer::Memory(super::buffer::RequestMemory::empty()),
                done_bytes: 0,
                retries: 0,
                step: Step::Unmap(Some(unmap)),
            },
        )
    }

    fn begin(
        &mut self,
        ring: &mut QueueRing,
        store: Option<&Arc<FileStore>>,
        tag: Tag,
        io: LocalIo,
    ) -> Option<Outcome> {
        let slot = &mut self.slots[tag.index()];
        debug_assert!(slot.is_none(), "a tag has one request");
        let io = slot.insert(io);
        let outcome = io.issue(ring, store, tag, &mut self.files);
        if outcome.is_some() {
            self.slots[tag.index()] = None;
        }
        outcome
    }

    /// Takes a completion of the ring. `Some` when the request has ended.
    pub(super) fn completed(
        &mut self,
        ring: &mut QueueRing,
        store: Option<&Arc<FileStore>>,
        tag: Tag,
        result: i32,
    ) -> Option<Outcome> {
        let io = self.slots[tag.index()].as_mut()?;
        let outcome = match io.advance(store, result) {
            Next::Issue => io.issue(ring, store, tag, &mut self.files),
            Next::End(outcome) => Some(outcome),
        };
        if outcome.is_some() {
            let led = matches!(io.step, Step::Sync);
            self.slots[tag.index()] = None;
            if led {
                self.next_sync(ring);
            }
        }
        outcome
    }

    /// Ends those whom a sync has covered, each by a completion of its own, and begins the sync of
    /// those who came after that.
    fn next_sync(&mut self, ring: &mut QueueRing) {
        let Self { slots, files } = self;
        let mut push = |entry, tag| {
            // SAFETY: it names no memory.
            if let Err(error) = unsafe { ring.push(entry, Owner::Engine, tag) } {
                // Nothing ends on a broken ring; whoever waits on it next gets to know.
                tracing::error!(?tag, %error, "the ring takes nothing any more");
            }
        };
        let next = files.syncs.ended(|tag| {
            if let Some(io) = &mut slots[tag.index()] {
                io.step = Step::Synced;
                push(opcode::Nop::new().build(), tag);
            }
        });
        if let Some((tag, entry)) = next {
            push(entry, tag);
        }
    }
}

enum Next {
    Issue,
    End(Outcome),
}

impl LocalIo {
    /// Queues the operation of the current step.
    fn issue(
        &mut self,
        ring: &mut QueueRing,
        store: Option<&Arc<FileStore>>,
        tag: Tag,
        files: &mut Files,
    ) -> Option<Outcome> {
        let entry = match (&mut self.step, store) {
            (Step::Unmap(rest), _) => {
                let (entry, left) = rest.take()?.next_entry();
                *rest = left;
                entry
            }
            (_, None) => return Some(Err(Errno::EIO)),
            (Step::Transfer, Some(store)) => self.transfer(store.raw_fd()),
            (Step::FillTail, _) => match &files.zero_device {
                Some(zeros) => self.transfer(zeros.as_raw_fd()),
                None => return Some(Err(Errno::EIO)),
            },
            (Step::Allocate(mode), Some(store)) => {
                let mode = *mode | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(types::Fd(store.raw_fd()), self.len_bytes)
                    .offset(self.request.offset.0)
                    .mode(mode)
                    .build()
            }
            (Step::WriteZeros, Some(store)) => {
                let piece = self.left_bytes().min(ZEROS.0.len() as u64) as u32;
                opcode::Write::new(types::Fd(store.raw_fd()), ZEROS.0.as_ptr(), piece)
                    .offset(self.position())
                    .build()
            }
            (Step::Sync, Some(_)) => files.syncs.join(tag)?,
            (Step::Synced, Some(_)) => return Some(Ok(())),
        };
        // SAFETY: the request's buffer is ours until it is answered, which is after this
        // completion; the zeros are static, and pages belong to a volume that outlives its queues.
        match unsafe { ring.push(entry, Owner::Engine, tag) } {
            Ok(()) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    /// What follows from the completion of the current step.
    fn advance(&mut self, store: Option<&Arc<FileStore>>, result: i32) -> Next {
        if matches!(result, r if r == -libc::EINTR || r == -libc::EAGAIN)
            && self.retries < RETRIES_MAX
        {
            self.retries += 1;
            return Next::Issue;
        }
        match (&self.step, result) {
            (Step::Allocate(_), r) if r == -libc::EOPNOTSUPP => self.allocate_otherwise(),
            (Step::Sync, r) if r < 0 => self.sync_failed(store, r),
            (_, r) if r < 0 => Next::End(Err(Errno::from_raw(-r))),
            (Step::Transfer, 0) if self.request.op == Op::Read => self.fill_tail(),
            (Step::Transfer | Step::FillTail | Step::WriteZeros, 0) => Next::End(Err(Errno::EIO)),
            (Step::Transfer | Step::FillTail | Step::WriteZeros, count) => self.moved(count as u64),
            (Step::Unmap(Some(_)), _) => Next::Issue,
            (Step::Allocate(_), _) if self.request.fua => {
                self.step = Step::Sync;
                Next::Issue
            }
            // Another sync may have been told of bytes that this one was to cover.
            (Step::Sync | Step::Synced, _) if store.is_some_and(|store| store.flush_failed()) => {
                Next::End(Err(Errno::EIO))
            }
            (Step::Allocate(_) | Step::Unmap(None) | Step::Sync | Step::Synced, _) => {
                Next::End(Ok(()))
            }
        }
    }

    fn moved(&mut self, count: u64) -> Next {
        self.done_bytes += count;
        if self.left_bytes() > 0 {
            return Next::Issue;
        }
        if self.request.fua && self.request.writes() {
            // Not by a flag on the write: its failure could not be told from one of the sync, which
            // the kernel reports once and for all bytes.
            self.step = Step::Sync;
            return Next::Issue;
        }
        Next::End(Ok(()))
    }

    /// The file ends before the request does: the rest reads as zeros.
    fn fill_tail(&mut self) -> Next {
        match &mut self.buffer {
            RequestBuffer::Memory(memory) => {
                let range = self.done_bytes as usize..self.len_bytes as usize;
                memory.bytes_mut()[range].fill(0);
                Next::End(Ok(()))
            }
            RequestBuffer::Registered(_) => {
                self.step = Step::FillTail;
                Next::Issue
            }
        }
    }

    /// The file system cannot do it that way.
    fn allocate_otherwise(&mut self) -> Next {
        if self.request.op == Op::Discard {
            return Next::End(Err(Errno::EOPNOTSUPP));
        }
        self.step = Step::WriteZeros;
        Next::Issue
    }

    fn sync_failed(&self, store: Option<&Arc<FileStore>>, result: i32) -> Next {
        if let Some(store) = store {
            store.note_flush_failure(&io::Error::from_raw_os_error(-result));
        }
        Next::End(Err(Errno::EIO))
    }

    fn transfer(&self, fd: RawFd) -> squeue::Entry {
        let fd = types::Fd(fd);
        let len = self.left_bytes() as u32;
        let done = self.done_bytes as usize;
        match (self.request.op, &self.buffer) {
            (Op::Read, RequestBuffer::Memory(memory)) => {
                opcode::Read::new(fd, memory.address().wrapping_add(done), len)
                    .offset(self.position())
                    .build()
            }
            (Op::Read, RequestBuffer::Registered(index)) => {
                // The address is an offset into the registered pages.
                opcode::ReadFixed::new(fd, std::ptr::without_provenance_mut(done), len, *index)
                    .offset(self.position())
                    .build()
            }
            (_, RequestBuffer::Memory(memory)) => {
                opcode::Write::new(fd, memory.address().wrapping_add(done), len)
                    .offset(self.position())
                    .build()
            }
            (_, RequestBuffer::Registered(index)) => {
                opcode::WriteFixed::new(fd, std::ptr::without_provenance(done), len, *index)
                    .offset(self.position())
                    .build()
            }
        }
    }

    fn position(&self) -> u64 {
        self.request.offset.0 + self.done_bytes
    }

    fn left_bytes(&self) -> u64 {
        self.len_bytes - self.done_bytes
    }
}
