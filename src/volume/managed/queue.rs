//! The path of a request on a managed volume, on its queue's thread.
//!
//! A request whose blocks are here becomes I/O on the ring, with two calls of the state map around
//! a write. Any other is parked: it goes to the asynchronous side, which makes it possible, and
//! then starts anew. So whoever waits is answered from the store, and pages that only the ring can
//! reach never have to leave it.

use std::sync::Arc;
use std::time::Instant;

use super::{Durability, ManagedStore};
use crate::volume::buffer::{RequestBuffer, RequestMemory};
use crate::volume::geometry::{BLOCK_BYTES, BlockRange, ByteOffset, Geometry};
use crate::volume::local_io::LocalQueue;
use crate::volume::request::{Op, Outcome, Request, Tag};
use crate::volume::ring::QueueRing;
use crate::volume::state_map::{FlightSlot, WriteStart};

/// One read in as many has its time taken: looking at the clock is not free.
const SAMPLE_EVERY: u32 = 64;

/// What becomes of a request.
pub(in crate::volume) enum Progress {
    /// It has ended.
    Ended(Outcome),
    /// It is on the ring.
    OnRing,
    /// This has to be asked of the asynchronous side.
    Away(Request),
}

/// What a tag is waiting for.
#[derive(Debug)]
enum Held {
    Nothing,
    /// The asynchronous side makes it possible, then it starts anew.
    Parked(Request, RequestBuffer),
    /// The asynchronous side ends it.
    Handed,
    Reading(Option<Instant>),
    Writing {
        blocks: BlockRange,
        start: WriteStart,
        fua: bool,
    },
    Flushing,
}

/// The requests of one queue.
#[derive(Debug)]
pub(in crate::volume) struct ManagedQueue {
    store: Arc<ManagedStore>,
    first_slot: u32,
    held: Box<[Held]>,
    until_sample: u32,
    /// The store had no room for a write of this queue.
    was_refused: bool,
}

impl ManagedQueue {
    pub(in crate::volume) fn new(store: Arc<ManagedStore>, depth: u16) -> std::io::Result<Self> {
        Ok(Self {
            first_slot: store.take_slots(u32::from(depth))?,
            held: (0..depth).map(|_| Held::Nothing).collect(),
            until_sample: SAMPLE_EVERY,
            was_refused: false,
            store,
        })
    }

    pub(in crate::volume) fn store(&self) -> &Arc<ManagedStore> {
        &self.store
    }

    /// Starts a request that was admitted.
    pub(in crate::volume) fn start(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Progress {
        match request.op {
            Op::Read => self.read(io, ring, tag, request, buffer),
            Op::Write => self.write(io, ring, tag, request, buffer),
            Op::Flush => self.make_durable(io, ring, tag),
            Op::Discard | Op::WriteZeroes => self.hand_over(tag, request),
        }
    }

    fn read(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Progress {
        let blocks = touched_blocks(&request);
        self.note_touched(&request);
        if !self.store.map.is_present(blocks) {
            return self.park(tag, request, buffer);
        }
        self.held[tag.index()] = Held::Reading(self.sample());
        self.on_ring(io, ring, tag, request, buffer)
    }

    fn write(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Progress {
        let blocks = touched_blocks(&request);
        self.note_touched(&request);
        let map = &self.store.map;
        let mut edges = edges_of(&request, &self.store.geometry)
            .into_iter()
            .flatten();
        if !edges.all(|edge| map.is_present(edge)) {
            return self.park(tag, request, buffer);
        }
        let start = map.begin_write(self.slot(tag), blocks);
        if let WriteStart::Busy | WriteStart::NotReady(_) = start {
            // It may have held claims for a moment.
            self.store.claim_released();
            return self.park(tag, request, buffer);
        }
        self.held[tag.index()] = Held::Writing {
            blocks,
            start,
            fua: request.fua,
        };
        let request = Request {
            fua: false,
            ..request
        };
        self.on_ring(io, ring, tag, request, buffer)
    }

    /// A flush, or the second half of a write that has to be durable.
    fn make_durable(&mut self, io: &mut LocalQueue, ring: &mut QueueRing, tag: Tag) -> Progress {
        let flush = flush_request();
        match self.store.durability {
            Durability::None => Progress::Ended(Ok(())),
            Durability::Local if !self.store.map.needs_checkpoint() => {
                self.held[tag.index()] = Held::Flushing;
                let nothing = RequestBuffer::Memory(RequestMemory::empty());
                self.on_ring(io, ring, tag, flush, nothing)
            }
            Durability::Local | Durability::Remote => self.hand_over(tag, flush),
        }
    }

    /// Starts I/O on the store. It goes past the end of the resource into the padding, for which
    /// the store has room.
    fn on_ring(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Progress {
        let data = &self.store.data;
        match io.start_on_file(ring, data, tag, request, buffer, request.len_bytes) {
            None => Progress::OnRing,
            Some(outcome) => self.stored(io, ring, tag, outcome),
        }
    }

    /// Takes a completion of the ring.
    pub(in crate::volume) fn completed(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        result: i32,
    ) -> Progress {
        match io.completed(ring, Some(&self.store.data), tag, result) {
            None => Progress::OnRing,
            Some(outcome) => self.stored(io, ring, tag, outcome),
        }
    }

    /// The I/O on the store has ended.
    fn stored(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        outcome: Outcome,
    ) -> Progress {
        match std::mem::replace(&mut self.held[tag.index()], Held::Nothing) {
            Held::Writing { blocks, start, fua } => {
                let map = &self.store.map;
                if map.end_write(self.slot(tag), blocks, start, outcome.is_ok()) {
                    self.store.claim_released();
                }
                self.note_room(start, outcome);
                if fua && outcome.is_ok() {
                    return self.make_durable(io, ring, tag);
                }
            }
            // Before anybody is told, nobody may be able to go on with what is lost: the other side
            // sees to that, and ends it.
            Held::Flushing if outcome.is_err() => return self.hand_over(tag, flush_request()),
            Held::Reading(Some(since)) => self.store.hits.note(since.elapsed()),
            _ => {}
        }
        Progress::Ended(outcome)
    }

    /// Takes an answer of the asynchronous side.
    pub(in crate::volume) fn came_back(
        &mut self,
        io: &mut LocalQueue,
        ring: &mut QueueRing,
        tag: Tag,
        outcome: Outcome,
    ) -> Progress {
        match std::mem::replace(&mut self.held[tag.index()], Held::Nothing) {
            Held::Parked(request, buffer) if outcome.is_ok() => {
                self.start(io, ring, tag, request, buffer)
            }
            _ => Progress::Ended(outcome),
        }
    }

    fn park(&mut self, tag: Tag, request: Request, buffer: RequestBuffer) -> Progress {
        self.held[tag.index()] = Held::Parked(request, buffer);
        Progress::Away(request)
    }

    fn hand_over(&mut self, tag: Tag, request: Request) -> Progress {
        self.held[tag.index()] = Held::Handed;
        Progress::Away(request)
    }

    fn slot(&self, tag: Tag) -> FlightSlot {
        FlightSlot(self.first_slot + u32::from(tag.0))
    }

    fn note_touched(&self, request: &Request) {
        if let Some(touched) = &self.store.touched {
            touched.note(request.offset, request.len_bytes);
        }
    }

    /// What a write tells of the room in the store. Writing over what is here looks at nothing that
    /// queues share.
    #[inline]
    fn note_room(&mut self, start: WriteStart, outcome: Outcome) {
        match outcome {
            Err(errno) => self.was_refused |= self.store.room.refused(errno),
            Ok(()) if matches!(start, WriteStart::Claimed) => self.store.room.taken(),
            Ok(()) if self.was_refused => self.was_refused = !self.store.room.maybe_taken(),
            Ok(()) => {}
        }
    }

    fn sample(&mut self) -> Option<Instant> {
        self.until_sample -= 1;
        if self.until_sample > 0 {
            return None;
        }
        self.until_sample = SAMPLE_EVERY;
        Some(Instant::now())
    }
}

fn flush_request() -> Request {
    Request::new(Op::Flush, ByteOffset(0), 0)
}

/// The blocks that hold any byte of the request.
pub(crate) fn touched_blocks(request: &Request) -> BlockRange {
    BlockRange::touched(request.offset, request.len_bytes)
}

/// The blocks of which a request has only a part: at most the first and the last. A block that ends
/// behind the resource is whole with what there is of it.
pub(crate) fn edges_of(request: &Request, geometry: &Geometry) -> [Option<BlockRange>; 2] {
    let end = request.offset.advanced(request.len_bytes);
    let begins_inside = !request.offset.0.is_multiple_of(BLOCK_BYTES);
    let ends_inside = !end.0.is_multiple_of(BLOCK_BYTES) && end.0 < geometry.resource_bytes();
    [
        begins_inside.then(|| BlockRange::of(request.offset.block())),
        ends_inside.then(|| BlockRange::of(end.block())),
    ]
}
