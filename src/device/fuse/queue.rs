//! A queue of the file: requests come in from the threads that read them from the kernel, and are
//! run and answered by a thread with a ring of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;

use super::slot::{Reply, Slot};
use crate::volume::mailbox::Parking;
use crate::volume::misses::Post;
use crate::volume::ring::Completion;
use crate::volume::{
    EngineQueue, Errno, Outcome, Owner, QueueRing, Request, RequestBuffer, Tag, Volume,
};

/// What both sides of a queue see.
#[derive(Debug)]
struct Shared {
    /// Filled slots on their way to the queue's thread. It has room for all slots.
    inbox: ArrayQueue<Box<Slot>>,
    /// Whether the queue's thread has to be woken.
    parking: Parking,
    /// Holds the bell that does it.
    post: Arc<Post>,
    ending: AtomicBool,
    /// Nobody looks into the inbox any more.
    gone: AtomicBool,
}

impl Shared {
    /// Drops what nobody will run, and so answers it with an I/O error.
    fn drop_all(&self) {
        while let Some(slot) = self.inbox.pop() {
            drop(slot);
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
        self.wake();
        // Either this sees that the thread has gone, or the thread saw the slot when it went.
        fence(Ordering::SeqCst);
        if self.shared.gone.load(Ordering::Relaxed) {
            self.shared.drop_all();
        }
    }

    /// Lets the queue's thread end once everything that was handed over has been answered.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if self.shared.parking.wake_needed() {
            self.shared.post.bell.ring();
        }
    }
}

/// Starts a queue's thread and waits until it is ready to serve.
///
/// `ended` is called with the reason when the thread ends by itself.
pub(super) fn start(
    volume: Arc<Volume>,
    depth: u16,
    index: u16,
    ended: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<(QueueHandle, JoinHandle<()>)> {
    let engine = EngineQueue::new(volume, depth)?;
    let shared = Arc::new(Shared {
        inbox: ArrayQueue::new(usize::from(depth)),
        parking: Parking::new(),
        post: engine.post().clone(),
        ending: AtomicBool::new(false),
        gone: AtomicBool::new(false),
    });
    let (give_back, free) = bounded(usize::from(depth));
    for tag in 0..depth {
        // There is room for all of them.
        let _ = give_back.try_send(Box::new(Slot::new(Tag(tag))?));
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
            match QueueRing::new(depth) {
                Ok(ring) => {
                    let _ = report.send(Ok(()));
                    let mut queue = Queue {
                        running: (0..depth).map(|_| None).collect(),
                        running_count: 0,
                        shared,
                        give_back,
                        engine,
                        ring,
                    };
                    if let Err(error) = queue.serve() {
                        ended(error);
                    }
                }
                Err(error) => drop(report.send(Err(error))),
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
    engine: EngineQueue,
    ring: QueueRing,
    /// The requests under way, by tag.
    running: Box<[Option<Box<Slot>>]>,
    running_count: usize,
}

impl Queue {
    fn serve(&mut self) -> io::Result<()> {
        self.ring.arm_bell(&self.shared.post.bell)?;
        loop {
            while let Some(slot) = self.shared.inbox.pop() {
                self.begin(slot);
            }
            if self.shared.ending.load(Ordering::Acquire)
                && self.running_count == 0
                && self.shared.inbox.is_empty()
            {
                return Ok(());
            }
            self.wait()?;
            let batch = self.ring.completions();
            for completion in &batch {
                self.complete(completion)?;
            }
            self.ring.recycle(batch);
            self.collect();
        }
    }

    fn begin(&mut self, mut slot: Box<Slot>) {
        let (tag, request) = (slot.tag, slot.request);
        // SAFETY: the slot rests in `running` until the request has ended; a thread that ends
        // before that leaks it (see `drop`).
        let memory = unsafe { slot.memory() };
        let buffer = RequestBuffer::Memory(memory);
        self.running[tag.index()] = Some(slot);
        self.running_count += 1;
        if let Some(outcome) = self.engine.start(&mut self.ring, tag, request, buffer) {
            self.finish(tag, outcome);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let (shared, idle) = (&self.shared, self.running_count == 0);
        let something_waits =
            || !shared.inbox.is_empty() || idle && shared.ending.load(Ordering::Acquire);
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
                    self.finish(tag, outcome);
                }
            }
            Owner::Bell => self.ring.arm_bell(&self.shared.post.bell)?,
            Owner::Device => {}
        }
        Ok(())
    }

    fn collect(&mut self) {
        let (running, count, give_back) =
            (&mut self.running, &mut self.running_count, &self.give_back);
        self.engine
            .collect(|tag, outcome| finish(running, count, give_back, tag, outcome));
    }

    fn finish(&mut self, tag: Tag, outcome: Outcome) {
        let (running, count) = (&mut self.running, &mut self.running_count);
        finish(running, count, &self.give_back, tag, outcome);
    }
}

fn finish(
    running: &mut [Option<Box<Slot>>],
    running_count: &mut usize,
    give_back: &Sender<Box<Slot>>,
    tag: Tag,
    outcome: Outcome,
) {
    let Some(mut slot) = running[tag.index()].take() else {
        return;
    };
    *running_count -= 1;
    slot.answer(outcome);
    let _ = give_back.try_send(slot);
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.shared.drop_all();
        for mut slot in self.running.iter_mut().filter_map(Option::take) {
            slot.answer(Err(Errno::EIO));
            // The request is still under way and may touch its memory at any time: it must stay.
            std::mem::forget(slot);
        }
    }
}
