//! A queue of the file: requests come in from the threads that read them from the kernel, and are
//! run and answered by a thread with a ring of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;

use super::gate::Gate;
use super::slot::{Changes, Reply, Slot};
use crate::volume::mailbox::Parking;
use crate::volume::misses::Post;
use crate::volume::ring::Completion;
use crate::volume::{
    EngineQueue, Errno, Outcome, Owner, QueueRing, Request, RequestBuffer, Tag, Volume,
};

/// What the threads around one queue share.
#[derive(Debug)]
struct Shared {
    /// Filled slots on their way to the queue's thread. It has room for all slots.
    inbox: ArrayQueue<Box<Slot>>,
    /// The gate has opened, or has become empty.
    gate_moved: AtomicBool,
    /// Whether the queue's thread has to be woken.
    parking: Parking,
    /// Holds the bell that does it.
    post: Arc<Post>,
    ending: AtomicBool,
    /// Nobody looks into the inbox any more.
    gone: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        if self.parking.wake_needed() {
            self.post.bell.ring();
        }
    }

    /// Drops what nobody will run, which answers it with an I/O error.
    fn drop_all(&self) {
        while let Some(slot) = self.inbox.pop() {
            drop(slot);
        }
    }
}

/// The gate of a device and the queues that have to be told about it.
#[derive(Debug, Default)]
pub(super) struct SharedGate {
    gate: Gate,
    queues: OnceLock<Vec<QueueHandle>>,
}

impl SharedGate {
    /// All queues of the device, once they have started.
    pub(super) fn connect(&self, queues: Vec<QueueHandle>) {
        let _ = self.queues.set(queues);
    }

    /// A request that the gate had let through has ended.
    fn passed(&self, changes: Changes) {
        match changes {
            Changes::Nothing => {}
            Changes::WholeBlocks if self.gate.leave() => self.tell_all(),
            Changes::WholeBlocks => {}
            Changes::PartsOfBlocks => {
                self.gate.open();
                self.tell_all();
            }
        }
    }

    fn tell_all(&self) {
        for queue in self.queues.get().into_iter().flatten() {
            queue.shared.gate_moved.store(true, Ordering::Release);
            queue.shared.wake();
        }
    }
}

/// The side of those that ask.
#[derive(Debug, Clone)]
pub(super) struct QueueHandle {
    shared: Arc<Shared>,
    /// Empty slots. Whoever finds none waits for one.
    free: Receiver<Box<Slot>>,
}

impl QueueHandle {
    /// Hands a request over; waits while the queue is full. `data` is what it writes.
    pub(super) fn submit(&self, request: Request, data: &[u8], reply: Reply) {
        // Without a queue's thread there is none to answer: dropped, the reply is an I/O error.
        let Ok(mut slot) = self.free.recv() else {
            return;
        };
        slot.fill(request, data, reply);
        let _ = self.shared.inbox.push(slot);
        self.shared.wake();
        // Either this sees that the thread has gone, or the thread saw the slot when it went.
        fence(Ordering::SeqCst);
        if self.shared.gone.load(Ordering::Relaxed) {
            self.shared.drop_all();
        }
    }

    /// Lets the queue's thread end once everything that was handed over has been answered.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake();
    }
}

/// Starts a queue's thread and waits until it is ready to serve.
///
/// `ended` is called with the reason when the thread ends by itself.
pub(super) fn start(
    volume: Arc<Volume>,
    depth: u16,
    index: u16,
    gate: Arc<SharedGate>,
    ended: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<(QueueHandle, JoinHandle<()>)> {
    let block_bytes = volume.geometry().logical_block_bytes();
    let needs_ring = volume.needs_ring();
    let engine = EngineQueue::new(volume, depth)?;
    let shared = Arc::new(Shared {
        inbox: ArrayQueue::new(usize::from(depth)),
        gate_moved: AtomicBool::new(false),
        parking: Parking::new(),
        post: engine.post().clone(),
        ending: AtomicBool::new(false),
        gone: AtomicBool::new(false),
    });
    let (give_back, free) = bounded(usize::from(depth));
    for tag in 0..depth {
        // There is room for all of them.
        let _ = give_back.try_send(Box::new(Slot::new(Tag(tag), block_bytes)?));
    }
    let handle = QueueHandle {
        shared: shared.clone(),
        free,
    };
    let (report, ready) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("fuse-queue-{index}"))
        .spawn(move || {
            crate::device::become_io_flusher();
            let ring = if needs_ring {
                QueueRing::new(depth)
            } else {
                Ok(QueueRing::of_bell_only())
            };
            let ring = match ring {
                Ok(ring) => ring,
                Err(error) => return drop(report.send(Err(error))),
            };
            let _ = report.send(Ok(()));
            let mut queue = Queue {
                shared,
                give_back,
                gate,
                engine,
                ring,
                running: (0..depth).map(|_| None).collect(),
                running_count: 0,
                kept_out: VecDeque::with_capacity(usize::from(depth)),
                closed_by: None,
            };
            if let Err(error) = queue.serve() {
                ended(error);
            }
        })?;
    match ready.recv() {
        Ok(Ok(())) => Ok((handle, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the queue's thread died")),
    }
}

/// The side of the queue's thread.
struct Queue {
    shared: Arc<Shared>,
    give_back: Sender<Box<Slot>>,
    gate: Arc<SharedGate>,
    engine: EngineQueue,
    ring: QueueRing,
    /// The requests under way, by tag.
    running: Box<[Option<Box<Slot>>]>,
    running_count: usize,
    /// Those of them that the gate did not let through yet.
    kept_out: VecDeque<Tag>,
    /// The one that has closed the gate and waits for it to become empty.
    closed_by: Option<Tag>,
}

impl Queue {
    fn serve(&mut self) -> io::Result<()> {
        self.ring.arm_bell(&self.shared.post.bell)?;
        let mut answered = Vec::with_capacity(self.running.len());
        loop {
            while let Some(slot) = self.shared.inbox.pop() {
                self.begin(slot);
            }
            if self.shared.gate_moved.swap(false, Ordering::AcqRel) {
                self.try_gate_again();
            }
            let idle = self.running_count == 0 && self.shared.inbox.is_empty();
            if idle && self.shared.ending.load(Ordering::Acquire) {
                return Ok(());
            }
            self.wait()?;
            let batch = self.ring.completions();
            for completion in &batch {
                self.complete(completion)?;
            }
            self.ring.recycle(batch);
            self.engine.collect(&mut self.ring, |_, tag, outcome| {
                answered.push((tag, outcome));
            });
            for (tag, outcome) in answered.drain(..) {
                self.answered(tag, outcome);
            }
        }
    }

    fn begin(&mut self, slot: Box<Slot>) {
        let tag = slot.tag;
        self.running[tag.index()] = Some(slot);
        self.running_count += 1;
        self.pass_gate(tag);
    }

    /// Starts a request if the gate lets it through; keeps it for later if not.
    fn pass_gate(&mut self, tag: Tag) {
        let Some(slot) = &self.running[tag.index()] else {
            return;
        };
        let passed = match slot.changes() {
            Changes::Nothing => true,
            Changes::WholeBlocks => self.gate.gate.enter(),
            Changes::PartsOfBlocks if !self.gate.gate.close() => false,
            Changes::PartsOfBlocks if self.gate.gate.is_empty() => true,
            Changes::PartsOfBlocks => {
                self.closed_by = Some(tag);
                return;
            }
        };
        if passed {
            self.run(tag);
        } else {
            self.kept_out.push_back(tag);
        }
    }

    fn try_gate_again(&mut self) {
        if self.gate.gate.is_empty()
            && let Some(tag) = self.closed_by.take()
        {
            self.run(tag);
        }
        for _ in 0..self.kept_out.len() {
            if let Some(tag) = self.kept_out.pop_front() {
                self.pass_gate(tag);
            }
        }
    }

    /// Asks the engine for what the request needs next.
    fn run(&mut self, tag: Tag) {
        while let Some(slot) = &mut self.running[tag.index()] {
            let request = slot.request();
            // SAFETY: the slot rests in `running` until the volume has answered; a thread that
            // ends before that leaks it (see `drop`).
            let buffer = RequestBuffer::Memory(unsafe { slot.request_memory() });
            let Some(outcome) = self.engine.start(&mut self.ring, tag, request, buffer) else {
                return;
            };
            if let Some(outcome) = slot.advance(outcome) {
                return self.finish(tag, outcome);
            }
        }
    }

    fn answered(&mut self, tag: Tag, outcome: Outcome) {
        let Some(slot) = &mut self.running[tag.index()] else {
            return;
        };
        match slot.advance(outcome) {
            Some(outcome) => self.finish(tag, outcome),
            None => self.run(tag),
        }
    }

    fn finish(&mut self, tag: Tag, outcome: Outcome) {
        let Some(mut slot) = self.running[tag.index()].take() else {
            return;
        };
        self.running_count -= 1;
        self.gate.passed(slot.changes());
        slot.answer(outcome);
        let _ = self.give_back.try_send(slot);
    }

    fn wait(&mut self) -> io::Result<()> {
        let (shared, idle) = (&self.shared, self.running_count == 0);
        let something_waits = || {
            !shared.inbox.is_empty()
                || shared.gate_moved.load(Ordering::Acquire)
                || idle && shared.ending.load(Ordering::Acquire)
        };
        if !shared.parking.park_unless(something_waits) {
            return self.ring.submit_and_wait(false);
        }
        let result = self.engine.wait(&mut self.ring);
        shared.parking.unpark();
        result
    }

    fn complete(&mut self, completion: &Completion) -> io::Result<()> {
        match completion.owner {
            Owner::Engine => {
                let (tag, result) = (completion.tag, completion.result);
                if let Some(outcome) = self.engine.completed(&mut self.ring, tag, result) {
                    self.answered(tag, outcome);
                }
            }
            Owner::Bell => self.ring.arm_bell(&self.shared.post.bell)?,
            Owner::Device => {}
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.shared.drop_all();
        for mut slot in self.running.iter_mut().filter_map(Option::take) {
            if !self.kept_out.contains(&slot.tag) {
                self.gate.passed(slot.changes());
            }
            slot.answer(Err(Errno::EIO));
            // The volume may still be at it and touch the slot's memory: that must stay.
            std::mem::forget(slot);
        }
    }
}
