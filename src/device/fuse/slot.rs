//! The place of one request: its buffer, and the duty to answer it.

use std::io;
use std::ptr::NonNull;
use std::sync::mpsc::SyncSender;

use fuser::{ReplyData, ReplyEmpty, ReplyWrite};
use memmap2::MmapMut;

use super::REQUEST_BYTES_MAX;
use super::requests::to_fuse;
use crate::volume::{ByteOffset, Op, Outcome, Request, RequestMemory, Tag};

/// Who waits for the answer. A reply of the kernel's that is dropped answers with an I/O error.
#[derive(Debug)]
pub(super) enum Reply {
    /// A read.
    Data(ReplyData),
    /// A write.
    Written(ReplyWrite),
    /// Anything without data.
    Done(ReplyEmpty),
    /// A thread of our own.
    Own(SyncSender<Outcome>),
}

/// The place of one request.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its number in the queue.
    pub(super) tag: Tag,
    /// What is asked.
    pub(super) request: Request,
    /// Page-aligned, and mapped only as far as it was ever used.
    buffer: MmapMut,
    reply: Option<Reply>,
}

impl Slot {
    pub(super) fn new(tag: Tag) -> io::Result<Self> {
        Ok(Self {
            tag,
            request: Request::new(Op::Flush, ByteOffset(0), 0),
            buffer: MmapMut::map_anon(REQUEST_BYTES_MAX)?,
            reply: None,
        })
    }

    /// Takes a request in; `data` is what it writes.
    pub(super) fn fill(&mut self, request: Request, data: &[u8], reply: Reply) {
        self.request = request;
        self.buffer[..data.len()].copy_from_slice(data);
        self.reply = Some(reply);
    }

    /// The request's memory, for the engine.
    ///
    /// # Safety
    /// The slot is neither used nor dropped until the request has ended.
    pub(super) unsafe fn memory(&mut self) -> RequestMemory {
        let len_bytes = match self.request.op {
            Op::Read | Op::Write => self.request.len_bytes as usize,
            Op::Flush | Op::Discard | Op::WriteZeroes => return RequestMemory::empty(),
        };
        let bytes = &mut self.buffer[..len_bytes];
        // SAFETY: the bytes belong to the slot, and the caller leaves it alone.
        unsafe { RequestMemory::new(NonNull::from(bytes).cast(), len_bytes) }
    }

    /// Answers the request.
    pub(super) fn answer(&mut self, outcome: Outcome) {
        let len_bytes = self.request.len_bytes;
        match (self.reply.take(), outcome) {
            (Some(Reply::Data(reply)), Ok(())) => reply.data(&self.buffer[..len_bytes as usize]),
            (Some(Reply::Data(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            (Some(Reply::Written(reply)), Ok(())) => reply.written(len_bytes as u32),
            (Some(Reply::Written(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            (Some(Reply::Done(reply)), Ok(())) => reply.ok(),
            (Some(Reply::Done(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            // Whoever asked may have given up waiting.
            (Some(Reply::Own(reply)), outcome) => drop(reply.try_send(outcome)),
            (None, _) => {}
        }
    }
}
