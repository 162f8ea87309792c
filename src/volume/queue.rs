//! The engine's side of one queue: requests in, answers out, on one thread.
//!
//! The hot path is [`EngineQueue::start`]: a request on memory is answered in it, one on a file
//! becomes an operation on the ring that the device shares with the engine, and one on anything
//! else goes to the asynchronous side and comes back through the mailbox.

use std::io;
use std::sync::Arc;

use super::buffer::{RequestBuffer, RequestMemory};
use super::counters::QueueCounters;
use super::local_io::LocalQueue;
use super::managed::queue::{ManagedQueue, Progress};
use super::memory::MemoryMap;
use super::misses::Post;
use super::request::{Errno, Op, Outcome, Request, Tag};
use super::ring::QueueRing;
use super::volume::{Store, Volume};
use super::watch::queue::{Begin, QueueWatch};

/// How often a queue looks into its mailbox before it parks, at most.
const SPINS_MAX: u32 = 64;

/// One queue of a volume. It belongs to the thread that serves the queue.
#[derive(Debug)]
pub struct EngineQueue {
    volume: Arc<Volume>,
    local: LocalQueue,
    managed: Option<ManagedQueue>,
    /// For a seedable volume.
    watch: Option<QueueWatch>,
    post: Arc<Post>,
    /// Answers being handled.
    arrived: Vec<(Tag, Outcome)>,
    /// Requests with the asynchronous side.
    away: u32,
    /// Requests went there since it was last woken.
    wake_misses: bool,
    spins: u32,
    counters: Arc<QueueCounters>,
}

impl EngineQueue {
    /// A queue that holds `depth` requests.
    ///
    /// # Errors
    /// When the process has no file descriptor left, or a managed volume no room for more writes
    /// under way.
    pub fn new(volume: Arc<Volume>, depth: u16) -> io::Result<Self> {
        let counters = volume.new_counters();
        let managed = match &volume.store {
            Store::Managed(store) => Some(ManagedQueue::new(store.clone(), depth)?),
            _ => None,
        };
        let file = match &volume.store {
            Store::File(file) => Some(file.as_ref()),
            Store::Managed(store) => Some(store.data.as_ref()),
            Store::Memory(_) | Store::Async(_) => None,
        };
        let local = LocalQueue::new(depth, file)?;
        let post = volume.new_post(depth)?;
        let watch = volume.is_seedable().then(|| {
            let post = post.clone();
            let wake = Box::new(move || post.bell.ring());
            QueueWatch::new(volume.watch().clone(), depth, wake)
        });
        Ok(Self {
            local,
            managed,
            watch,
            post,
            arrived: Vec::with_capacity(usize::from(depth)),
            away: 0,
            wake_misses: false,
            spins: SPINS_MAX,
            counters,
            volume,
        })
    }

    /// Starts a request. `Some`: it has ended already. Otherwise it ends in
    /// [`completed`](Self::completed) or [`collect`](Self::collect), with the same tag.
    pub fn start(
        &mut self,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Option<Outcome> {
        self.counters.count_request(&request);
        let begin = match &mut self.watch {
            Some(watch) => watch.begin(tag, &request, buffer),
            None => Begin::Now(buffer),
        };
        match begin {
            Begin::Now(buffer) => self.begin(ring, tag, request, buffer),
            Begin::Later => None,
            Begin::Never(errno) => {
                let outcome = Err(errno);
                self.counters.count_outcome(&outcome);
                Some(outcome)
            }
        }
    }

    fn begin(
        &mut self,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        buffer: RequestBuffer,
    ) -> Option<Outcome> {
        let outcome = self.dispatch(ring, tag, request, buffer);
        if let Some(watch) = &mut self.watch {
            watch.begun(tag, &request, outcome.as_ref());
        }
        if let Some(outcome) = &outcome {
            self.counters.count_outcome(outcome);
        }
        outcome
    }

    /// Starts the requests that a hold had kept, or ends them.
    fn begin_waiting(
        &mut self,
        ring: &mut QueueRing,
        mut each: impl FnMut(&mut QueueRing, Tag, Outcome),
    ) {
        while let Some((tag, request, let_through)) = self.watch.as_mut().and_then(QueueWatch::next)
        {
            let outcome = match let_through {
                Ok(buffer) => self.begin(ring, tag, request, buffer),
                Err(errno) => {
                    let outcome = Err(errno);
                    self.counters.count_outcome(&outcome);
                    Some(outcome)
                }
            };
            if let Some(outcome) = outcome {
                each(ring, tag, outcome);
            }
        }
    }

    /// What has to be done before a request that was under way is answered.
    fn ended(&mut self, tag: Tag, outcome: &Outcome) {
        if let Some(watch) = &mut self.watch {
            watch.ended(tag);
        }
        self.counters.count_outcome(outcome);
    }

    fn dispatch(
        &mut self,
        ring: &mut QueueRing,
        tag: Tag,
        request: Request,
        mut buffer: RequestBuffer,
    ) -> Option<Outcome> {
        let inside_bytes = match self.volume.admit(&request, &mut buffer) {
            Ok(0) if request.op != Op::Flush => return Some(Ok(())),
            Ok(inside_bytes) => inside_bytes,
            Err(errno) => return Some(Err(errno)),
        };
        match &self.volume.store {
            Store::Memory(memory) => {
                match answer_from_memory(memory, &request, buffer, inside_bytes) {
                    MemoryAnswer::Ended(outcome) => Some(outcome),
                    MemoryAnswer::Unmap(unmap) if ring.takes_operations() => {
                        self.local.start_unmap(ring, tag, request, unmap)
                    }
                    MemoryAnswer::Unmap(unmap) => Some(unmap.run().map_err(Errno::from)),
                }
            }
            Store::File(file) => {
                self.local
                    .start_on_file(ring, file, tag, request, buffer, inside_bytes)
            }
            Store::Async(misses) => {
                let RequestBuffer::Memory(memory) = buffer else {
                    return Some(Err(Errno::EIO));
                };
                let request = Request {
                    len_bytes: inside_bytes,
                    ..request
                };
                misses.push(request, memory, &self.post, tag);
                self.away += 1;
                self.wake_misses = true;
                None
            }
            Store::Managed(_) => {
                let queue = self.managed.as_mut()?;
                let progress = queue.start(&mut self.local, ring, tag, request, buffer);
                self.follow(tag, progress)
            }
        }
    }

    fn follow(&mut self, tag: Tag, progress: Progress) -> Option<Outcome> {
        match progress {
            Progress::Ended(outcome) => Some(outcome),
            Progress::OnRing => None,
            Progress::Away(request) => {
                if let Some(queue) = &self.managed {
                    let misses = &queue.store().misses;
                    misses.push(request, RequestMemory::empty(), &self.post, tag);
                }
                self.away += 1;
                self.wake_misses = true;
                None
            }
        }
    }

    /// Takes a completion that has [`Owner::Engine`](super::ring::Owner::Engine).
    pub fn completed(&mut self, ring: &mut QueueRing, tag: Tag, result: i32) -> Option<Outcome> {
        let outcome = if let Some(queue) = &mut self.managed {
            let progress = queue.completed(&mut self.local, ring, tag, result);
            self.follow(tag, progress)
        } else {
            let store = match &self.volume.store {
                Store::File(file) => Some(file),
                _ => None,
            };
            self.local.completed(ring, store, tag, result)
        };
        if let Some(outcome) = &outcome {
            self.ended(tag, outcome);
        }
        outcome
    }

    /// Gives the answers that came from the asynchronous side, some of which only say that a request
    /// can start now, and starts what a hold had kept. To be called once a turn, after the
    /// completions.
    pub fn collect(
        &mut self,
        ring: &mut QueueRing,
        mut each: impl FnMut(&mut QueueRing, Tag, Outcome),
    ) {
        self.begin_waiting(ring, &mut each);
        if self.away == 0 {
            return;
        }
        let mut arrived = std::mem::take(&mut self.arrived);
        self.post
            .mailbox
            .take(|tag, outcome| arrived.push((tag, outcome)));
        for (tag, outcome) in arrived.drain(..) {
            self.away -= 1;
            let outcome = match &mut self.managed {
                None => Some(outcome),
                Some(queue) => {
                    let progress = queue.came_back(&mut self.local, ring, tag, outcome);
                    self.follow(tag, progress)
                }
            };
            if let Some(outcome) = outcome {
                self.ended(tag, &outcome);
                each(ring, tag, outcome);
            }
        }
        self.arrived = arrived;
    }

    /// Ends the turn: starts what was queued on the ring and waits for the next thing to do. The
    /// answers that ended the wait are in the ring and in the mailbox.
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub fn wait(&mut self, ring: &mut QueueRing) -> io::Result<()> {
        // From here on the bell tells of changes.
        let has_next = self.watch.as_mut().is_some_and(|watch| {
            watch.look();
            watch.has_next()
        });
        if self.away == 0 {
            return ring.submit_and_wait(!has_next);
        }
        if self.wake_misses {
            if let Some(misses) = self.volume.misses() {
                misses.wake();
            }
            self.wake_misses = false;
        }
        if has_next {
            return ring.submit_and_wait(false);
        }
        let sleep = !self.spin_for_mail() && self.post.mailbox.park();
        let result = ring.submit_and_wait(sleep);
        self.post.mailbox.unpark();
        result
    }

    /// Looks for mail for a moment. The moment grows while looking helps and shrinks while not.
    fn spin_for_mail(&mut self) -> bool {
        for _ in 0..self.spins {
            if !self.post.mailbox.is_empty() {
                self.spins = (self.spins * 2).min(SPINS_MAX);
                return true;
            }
            std::hint::spin_loop();
        }
        self.spins = (self.spins / 2).max(1);
        false
    }

    /// Where answers arrive; its bell has to be armed on the ring of a volume that
    /// [needs](Volume::needs_bell) it.
    pub fn post(&self) -> &Arc<Post> {
        &self.post
    }
}

enum MemoryAnswer {
    Ended(Outcome),
    Unmap(super::memory::Unmap),
}

fn answer_from_memory(
    memory: &MemoryMap,
    request: &Request,
    buffer: RequestBuffer,
    inside_bytes: u64,
) -> MemoryAnswer {
    let offset = request.offset.0;
    match (request.op, buffer) {
        (Op::Read, RequestBuffer::Memory(mut to)) => {
            memory.read(offset, &mut to.bytes_mut()[..inside_bytes as usize]);
        }
        (Op::Write, RequestBuffer::Memory(from)) => {
            memory.write(offset, &from.bytes()[..inside_bytes as usize]);
        }
        (Op::Discard | Op::WriteZeroes, _) => {
            if let Some(unmap) = memory.zero_edges(offset, inside_bytes) {
                return MemoryAnswer::Unmap(unmap);
            }
        }
        (Op::Flush, _) => {}
        (_, RequestBuffer::Registered(_)) => return MemoryAnswer::Ended(Err(Errno::EIO)),
    }
    MemoryAnswer::Ended(Ok(()))
}

/// Answers a request on a memory volume where it stands, for devices that have no ring at hand.
/// `None` when the volume [is not answered so](Volume::is_answered_inline).
pub fn answer_inline(
    volume: &Volume,
    counters: &QueueCounters,
    request: Request,
    memory: RequestMemory,
) -> Option<Outcome> {
    let store = match &volume.store {
        Store::Memory(store) if volume.is_answered_inline() => store,
        _ => return None,
    };
    counters.count_request(&request);
    let mut buffer = RequestBuffer::Memory(memory);
    let outcome = volume
        .admit(&request, &mut buffer)
        .and_then(
            |inside_bytes| match answer_from_memory(store, &request, buffer, inside_bytes) {
                MemoryAnswer::Ended(outcome) => outcome,
                MemoryAnswer::Unmap(unmap) => unmap.run().map_err(Errno::from),
            },
        );
    counters.count_outcome(&outcome);
    Some(outcome)
}
