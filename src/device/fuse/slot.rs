//! The place of one request: its buffer, the steps it takes, and the duty to answer it.

use std::io;
use std::ptr::NonNull;
use std::sync::mpsc::SyncSender;

use fuser::{ReplyData, ReplyEmpty, ReplyWrite};
use memmap2::MmapMut;

use super::REQUEST_BYTES_MAX;
use super::requests::to_fuse;
use crate::volume::geometry::BLOCK_BYTES;
use crate::volume::{ByteOffset, Errno, Op, Outcome, Request, RequestMemory, Tag};

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

/// What the volume is doing for a request. A write of parts of blocks takes up to three steps:
/// both edge blocks are read, and what was asked for is written with the rest of them around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    ReadFirst,
    ReadLast,
    Whole,
}

/// Largest logical block, and so the largest part of a request that was not asked for, at each end.
const EDGE_BYTES: usize = BLOCK_BYTES as usize;

/// Where the edge blocks are in a slot's memory; before them is the request's data.
const FIRST: usize = REQUEST_BYTES_MAX + 2 * EDGE_BYTES;
const LAST: usize = FIRST + EDGE_BYTES;
const MEMORY_BYTES: usize = LAST + EDGE_BYTES;

/// The place of one request.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its number in the queue.
    pub(super) tag: Tag,
    /// The request, rounded out to whole blocks.
    whole: Request,
    /// How many bytes of the first block come before what was asked for.
    lead: usize,
    /// How many bytes of the last block come after it.
    trail: usize,
    block: usize,
    step: Step,
    changes: Changes,
    /// Page-aligned, and real memory only as far as it was ever used.
    memory: MmapMut,
    reply: Option<Reply>,
}

impl Slot {
    /// A place in the queue of a volume with such blocks.
    pub(super) fn new(tag: Tag, block_bytes: u32) -> io::Result<Self> {
        Ok(Self {
            tag,
            whole: Request::new(Op::Flush, ByteOffset(0), 0),
            lead: 0,
            trail: 0,
            block: block_bytes as usize,
            step: Step::Whole,
            changes: Changes::Nothing,
            memory: MmapMut::map_anon(MEMORY_BYTES)?,
            reply: None,
        })
    }

    /// Takes a request in; `data` is what it writes.
    pub(super) fn fill(&mut self, request: Request, data: &[u8], reply: Reply) {
        let block = self.block as u64;
        let end = request.offset.0 + request.len_bytes;
        let first = request.offset.0 / block * block;
        self.lead = (request.offset.0 - first) as usize;
        self.trail = (end.next_multiple_of(block) - end) as usize;
        self.whole = Request {
            offset: ByteOffset(first),
            len_bytes: end.next_multiple_of(block) - first,
            ..request
        };
        self.step = match request.op {
            Op::Write if self.lead > 0 => Step::ReadFirst,
            Op::Write if self.trail > 0 => Step::ReadLast,
            _ => Step::Whole,
        };
        self.changes = match request.op {
            Op::Read | Op::Flush => Changes::Nothing,
            _ if self.step == Step::Whole => Changes::WholeBlocks,
            _ => Changes::PartsOfBlocks,
        };
        self.memory[self.lead..][..data.len()].copy_from_slice(data);
        self.reply = Some(reply);
    }

    /// How it has to agree with other requests.
    pub(super) fn changes(&self) -> Changes {
        self.changes
    }

    /// What to ask the volume for now.
    pub(super) fn request(&self) -> Request {
        let block = self.block as u64;
        let offset = self.whole.offset;
        match self.step {
            Step::Whole => self.whole,
            Step::ReadFirst => Request::new(Op::Read, offset, block),
            Step::ReadLast => {
                let last = offset.advanced(self.whole.len_bytes - block);
                Request::new(Op::Read, last, block)
            }
        }
    }

    /// Its memory, for the engine.
    ///
    /// # Safety
    /// The slot is neither used nor dropped until the volume has answered.
    pub(super) unsafe fn request_memory(&mut self) -> RequestMemory {
        let range = match (self.step, self.whole.op) {
            (Step::ReadFirst, _) => FIRST..FIRST + self.block,
            (Step::ReadLast, _) => LAST..LAST + self.block,
            (Step::Whole, Op::Read | Op::Write) => 0..self.whole.len_bytes as usize,
            (Step::Whole, _) => return RequestMemory::empty(),
        };
        let bytes = &mut self.memory[range];
        // SAFETY: the bytes belong to the slot, and the caller leaves it alone.
        unsafe { RequestMemory::new(NonNull::from(&mut *bytes).cast(), bytes.len()) }
    }

    /// Takes the volume's answer. `None`: there is another step to do.
    pub(super) fn advance(&mut self, outcome: Outcome) -> Option<Outcome> {
        let (lead, trail) = (self.lead, self.trail);
        let len = self.whole.len_bytes as usize;
        let edge = match self.step {
            Step::Whole => return Some(outcome),
            Step::ReadFirst => FIRST,
            Step::ReadLast => LAST,
        };
        if outcome.is_err() {
            return Some(outcome);
        }
        if self.step == Step::ReadFirst {
            self.memory.copy_within(edge..edge + lead, 0);
        }
        let is_last = self.step == Step::ReadLast || len == self.block;
        if is_last {
            let rest = edge + self.block - trail..edge + self.block;
            self.memory.copy_within(rest, len - trail);
        }
        self.step = if is_last || trail == 0 {
            Step::Whole
        } else {
            Step::ReadLast
        };
        None
    }

    /// Answers the request.
    pub(super) fn answer(&mut self, outcome: Outcome) {
        let asked = self.lead..self.whole.len_bytes as usize - self.trail;
        match (self.reply.take(), outcome) {
            (Some(Reply::Data(reply)), Ok(())) => reply.data(&self.memory[asked]),
            (Some(Reply::Data(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            (Some(Reply::Written(reply)), Ok(())) => reply.written(asked.len() as u32),
            (Some(Reply::Written(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            (Some(Reply::Done(reply)), Ok(())) => reply.ok(),
            (Some(Reply::Done(reply)), Err(errno)) => reply.error(to_fuse(errno)),
            // Whoever asked may have given up waiting.
            (Some(Reply::Own(reply)), outcome) => drop(reply.try_send(outcome)),
            (None, _) => {}
        }
    }
}

/// What a request changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// It reads, or flushes.
    Nothing,
    /// It changes whole blocks.
    WholeBlocks,
    /// It changes blocks in part, so that it has to read them first.
    PartsOfBlocks,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.answer(Err(Errno::EIO));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::mpsc::sync_channel;

    /// Plays the volume for one request.
    fn serve(slot: &mut Slot, disk: &mut [u8]) -> usize {
        for step in 1.. {
            let request = slot.request();
            assert_eq!(request.offset.0 as usize % slot.block, 0);
            assert_eq!(request.len_bytes as usize % slot.block, 0);
            let range = request.offset.0 as usize..(request.offset.0 + request.len_bytes) as usize;
            // SAFETY: used here only, and before the slot is used again.
            let mut memory = unsafe { slot.request_memory() };
            match request.op {
                Op::Read => memory.bytes_mut().copy_from_slice(&disk[range]),
                Op::Write => disk[range].copy_from_slice(memory.bytes()),
                _ => {}
            }
            if let Some(outcome) = slot.advance(Ok(())) {
                slot.answer(outcome);
                return step;
            }
        }
        unreachable!("a request has an end");
    }

    proptest! {
        #[test]
        fn a_write_changes_its_bytes_and_no_other(
            shift in 9u32..=12,
            offset in 0usize..20_000,
            len in 1usize..20_000,
        ) {
            let mut disk: Vec<u8> = (0..65_536).map(|n: u32| (n % 251) as u8).collect();
            let mut model = disk.clone();
            let data = vec![0xee; len];
            model[offset..offset + len].copy_from_slice(&data);
            let mut slot = Slot::new(Tag(0), 1 << shift).expect("memory");
            let (reply, answer) = sync_channel(1);
            let request = Request::new(Op::Write, ByteOffset(offset as u64), len as u64);
            slot.fill(request, &data, Reply::Own(reply));
            let parts = slot.changes() == Changes::PartsOfBlocks;
            let steps = serve(&mut slot, &mut disk);
            prop_assert!(steps <= 3 && (steps > 1) == parts);
            prop_assert_eq!(answer.try_recv().expect("answered"), Ok(()));
            prop_assert!(disk == model);
        }
    }

    #[test]
    fn a_slot_that_is_dropped_answers_with_an_error() {
        let mut slot = Slot::new(Tag(0), 512).expect("memory");
        let (reply, answer) = sync_channel(1);
        let flush = Request::new(Op::Flush, ByteOffset(0), 0);
        slot.fill(flush, &[], Reply::Own(reply));
        drop(slot);
        assert_eq!(answer.try_recv().expect("answered"), Err(Errno::EIO));
    }
}
