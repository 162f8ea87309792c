//! The hot path: one thread, one ring, one hardware queue of a ublk device.
//!
//! A turn of the loop is one system call: it commits what was answered, starts what the engine
//! queued, and waits for the next requests. Every tag is at any time either with the driver (its
//! fetch command is in the ring) or with the engine.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use libublk_rs_sys as sys;

use super::memory::{Descriptors, TagBuffers};
use crate::volume::request::{Errno, Op, Outcome, Request, Tag};
use crate::volume::ring::Completion;
use crate::volume::{
    ByteOffset, EngineQueue, Owner, QueueRing, RequestBuffer, RequestMemory, Volume,
};

/// The queue's part of the device, set up by the device and served here.
pub(super) struct QueueSetup {
    pub(super) volume: Arc<Volume>,
    pub(super) queue: u16,
    pub(super) depth: u16,
    /// The character device of the queues.
    pub(super) fd: RawFd,
    pub(super) descriptors: Descriptors,
    /// Requests arrive with their pages registered; there are no buffers for the tags.
    pub(super) zero_copy: bool,
    /// The largest request, in bytes.
    pub(super) request_bytes_max: u32,
}

/// One queue being served.
pub(super) struct UblkQueue {
    fd: types::Fd,
    queue: u16,
    descriptors: Descriptors,
    buffers: Option<TagBuffers>,
    engine: EngineQueue,
    ring: QueueRing,
    depth: u16,
    /// Tags whose fetch command the driver holds, or whose request the engine holds.
    live: u32,
}

impl UblkQueue {
    /// Sets the queue up on the calling thread, which has to serve it. The driver knows nothing of it
    /// yet.
    pub(super) fn prepare(setup: QueueSetup) -> io::Result<Self> {
        let mut ring = QueueRing::new(setup.depth)?;
        let engine = EngineQueue::new(setup.volume.clone(), setup.depth)?;
        if setup.volume.needs_bell() {
            ring.arm_bell(&engine.post().bell)?;
        }
        let buffers = if setup.zero_copy {
            ring.reserve_buffers(setup.depth)?;
            None
        } else {
            Some(TagBuffers::new(setup.depth, setup.request_bytes_max)?)
        };
        Ok(Self {
            fd: types::Fd(setup.fd),
            queue: setup.queue,
            descriptors: setup.descriptors,
            buffers,
            engine,
            ring,
            depth: setup.depth,
            live: 0,
        })
    }

    /// Hands all tags to the driver, which may hand requests over from then on.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        for tag in 0..self.depth {
            self.live += 1;
            self.give_to_driver(Tag(tag), sys::UBLK_U_IO_FETCH_REQ, 0)?;
        }
        self.ring.submit_and_wait(false)
    }

    /// Serves until the driver has taken every tag back, which it does when the device stops.
    pub(super) fn serve(mut self) -> io::Result<()> {
        let result = self.take_turns();
        if result.is_err() {
            // The ring is broken: who else still uses the buffers cannot be told any more.
            std::mem::forget(self);
        }
        result
    }

    fn take_turns(&mut self) -> io::Result<()> {
        while self.live > 0 {
            self.engine.wait(&mut self.ring)?;
            let batch = self.ring.completions();
            for completion in &batch {
                self.handle(completion)?;
            }
            self.ring.recycle(batch);
            self.commit_mail()?;
        }
        Ok(())
    }

    fn handle(&mut self, completion: &Completion) -> io::Result<()> {
        let tag = completion.tag;
        match completion.owner {
            Owner::Device if completion.result == sys::UBLK_IO_RES_OK as i32 => {
                let (request, buffer) = self.request(tag);
                let answer = match request {
                    Ok(request) => self.engine.start(&mut self.ring, tag, request, buffer),
                    Err(errno) => Some(Err(errno)),
                };
                self.commit_if_ended(tag, answer)
            }
            Owner::Device if completion.result == sys::UBLK_IO_RES_ABORT => {
                self.live -= 1;
                Ok(())
            }
            Owner::Device => Err(io::Error::from_raw_os_error(-completion.result)),
            Owner::Engine => {
                let answer = self
                    .engine
                    .completed(&mut self.ring, tag, completion.result);
                self.commit_if_ended(tag, answer)
            }
            Owner::Bell => self.ring.arm_bell(&self.engine.post().bell),
        }
    }

    /// What the driver asks for under this tag.
    fn request(&self, tag: Tag) -> (Result<Request, Errno>, RequestBuffer) {
        let asked = self.descriptors.read(tag);
        let op = match asked.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => Ok(Op::Read),
            sys::UBLK_IO_OP_WRITE => Ok(Op::Write),
            sys::UBLK_IO_OP_FLUSH => Ok(Op::Flush),
            sys::UBLK_IO_OP_DISCARD => Ok(Op::Discard),
            sys::UBLK_IO_OP_WRITE_ZEROES => Ok(Op::WriteZeroes),
            _ => Err(Errno::EOPNOTSUPP),
        };
        let len_bytes = u64::from(asked.nr_sectors) << 9;
        let buffer = match (op, &self.buffers) {
            (Ok(Op::Read | Op::Write), Some(buffers)) => {
                RequestBuffer::Memory(buffers.lend(tag, len_bytes as usize))
            }
            (Ok(Op::Read | Op::Write), None) => RequestBuffer::Registered(tag.0),
            _ => RequestBuffer::Memory(RequestMemory::empty()),
        };
        let request = op.map(|op| match op {
            Op::Flush => Request::new(op, ByteOffset(0), 0),
            op => Request {
                op,
                fua: asked.op_flags & sys::UBLK_IO_F_FUA != 0,
                no_unmap: asked.op_flags & sys::UBLK_IO_F_NOUNMAP != 0,
                offset: ByteOffset(asked.start_sector << 9),
                len_bytes,
            },
        });
        (request, buffer)
    }

    fn commit_if_ended(&mut self, tag: Tag, answer: Option<Outcome>) -> io::Result<()> {
        answer.map_or(Ok(()), |outcome| self.commit(tag, outcome))
    }

    fn commit_mail(&mut self) -> io::Result<()> {
        let Self {
            engine,
            ring,
            descriptors,
            buffers,
            fd,
            queue,
            ..
        } = self;
        let mut result = Ok(());
        engine.collect(ring, |ring, tag, outcome| {
            let entry = commit_entry(*fd, *queue, descriptors, buffers.as_ref(), tag, outcome);
            result = push(ring, entry, tag).and(std::mem::replace(&mut result, Ok(())));
        });
        result
    }

    fn commit(&mut self, tag: Tag, outcome: Outcome) -> io::Result<()> {
        let entry = commit_entry(
            self.fd,
            self.queue,
            &self.descriptors,
            self.buffers.as_ref(),
            tag,
            outcome,
        );
        push(&mut self.ring, entry, tag)
    }

    fn give_to_driver(&mut self, tag: Tag, code: u32, result: i32) -> io::Result<()> {
        let entry = command_entry(
            self.fd,
            self.queue,
            self.buffers.as_ref(),
            tag,
            code,
            result,
        );
        push(&mut self.ring, entry, tag)
    }
}

fn push(ring: &mut QueueRing, entry: squeue::Entry, tag: Tag) -> io::Result<()> {
    // SAFETY: the driver uses the tag's buffer, which lives as long as the queue, and the queue
    // lives until the driver has given every tag back.
    unsafe { ring.push(entry, Owner::Device, tag) }
}

/// Answers the request and fetches the tag's next one, in one command.
fn commit_entry(
    fd: types::Fd,
    queue: u16,
    descriptors: &Descriptors,
    buffers: Option<&TagBuffers>,
    tag: Tag,
    outcome: Outcome,
) -> squeue::Entry {
    let result = match outcome {
        // The driver completes the whole request whatever the count, so it is always the whole.
        Ok(()) => (descriptors.read(tag).nr_sectors << 9) as i32,
        Err(errno) => -errno.raw(),
    };
    let code = sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ;
    command_entry(fd, queue, buffers, tag, code, result)
}

fn command_entry(
    fd: types::Fd,
    queue: u16,
    buffers: Option<&TagBuffers>,
    tag: Tag,
    code: u32,
    result: i32,
) -> squeue::Entry {
    let mut command = [0; 16];
    command[0..2].copy_from_slice(&queue.to_ne_bytes());
    command[2..4].copy_from_slice(&tag.0.to_ne_bytes());
    command[4..8].copy_from_slice(&result.to_ne_bytes());
    if let Some(buffers) = buffers {
        command[8..16].copy_from_slice(&(buffers.address(tag) as u64).to_ne_bytes());
    }
    // Without buffers: register the request's pages under the tag's number
    // (`struct ublk_auto_buf_reg`, whose first two bytes are the index).
    let register = buffers.is_none().then_some(u64::from(tag.0));
    opcode::UringCmd16::new(fd, code)
        .cmd(command)
        .addr(register)
        .build()
}
