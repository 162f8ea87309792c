//! The model checker looks for a change that no collector hears of, for a request that starts in a
//! hold, and for a queue that sleeps for ever.

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use super::bitmap::Bitmap;
use super::queue::{Begin, QueueWatch};
use super::{Tracker, Watch};
use crate::volume::buffer::{RequestBuffer, RequestMemory};
use crate::volume::geometry::{BlockRange, ByteOffset};
use crate::volume::request::{Op, Request, Tag};

/// All executions with up to so many involuntary switches between threads.
fn check(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

fn collected(bitmap: &Bitmap) -> Vec<u64> {
    let mut blocks = Vec::new();
    bitmap.collect(|run| blocks.extend(run.iter().map(|block| block.0)));
    blocks
}

/// A write by the rule: noted, done, noted.
fn write(bitmap: &Bitmap, bytes: &AtomicU64, block: u64) {
    bitmap.note(BlockRange::new(block, block + 1));
    bytes.store(1, Ordering::Relaxed);
    bitmap.note(BlockRange::new(block, block + 1));
}

/// Copies what is collected.
fn copy(shared: &Shared, blocks: [u64; 2], copies: &mut [u64; 2]) {
    for block in collected(&shared.bitmap) {
        for of in (0..2).filter(|of| blocks[*of] == block) {
            copies[of] = shared.bytes[of].load(Ordering::Relaxed);
        }
    }
}

struct Shared {
    bitmap: Bitmap,
    bytes: [AtomicU64; 2],
}

/// Two writers, of one block or two; a leecher that copies what it collects, first beside them, then
/// once one has been answered, then once both have.
fn what_is_copied_last_is_what_was_written(blocks: [u64; 2]) {
    check(3, move || {
        let shared = Arc::new(Shared {
            bitmap: Bitmap::new(128).expect("memory"),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let leecher = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut copies = [0; 2];
                copy(&shared, blocks, &mut copies);
                copies
            }
        });
        let other = thread::spawn({
            let shared = shared.clone();
            move || write(&shared.bitmap, &shared.bytes[1], blocks[1])
        });
        write(&shared.bitmap, &shared.bytes[0], blocks[0]);
        let mut copies = leecher.join().expect("no panic");
        copy(&shared, blocks, &mut copies);
        assert_eq!(copies[0], 1);
        other.join().expect("no panic");
        copy(&shared, blocks, &mut copies);
        assert_eq!(copies, [1, 1]);
    });
}

#[test]
fn loom_no_change_of_a_shared_block_is_missed() {
    what_is_copied_last_is_what_was_written([3, 3]);
}

#[test]
fn loom_no_change_in_a_shared_word_is_missed() {
    what_is_copied_last_is_what_was_written([3, 5]);
}

#[test]
fn loom_no_change_in_words_of_their_own_is_missed() {
    what_is_copied_last_is_what_was_written([3, 70]);
}

/// Stands for the eventfd.
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(false), Condvar::new()))
    }
    fn ring(&self) {
        *self.0.lock().expect("not poisoned") = true;
        self.1.notify_one();
    }
    fn wait(&self) {
        let mut rung = self.0.lock().expect("not poisoned");
        while !*rung {
            rung = self.1.wait(rung).expect("not poisoned");
        }
        *rung = false;
    }
}

/// What the threads of a test share.
struct World {
    watch: Arc<Watch>,
    bell: Arc<Bell>,
    bytes: AtomicU64,
    ending: AtomicBool,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            watch: Arc::new(Watch::new(64, true)),
            bell: Bell::new(),
            bytes: AtomicU64::new(0),
            ending: AtomicBool::new(false),
        })
    }

    fn queue(&self) -> QueueWatch {
        let bell = self.bell.clone();
        QueueWatch::new(self.watch.clone(), 2, Box::new(move || bell.ring()))
    }

    /// Lets the queue's thread end once its requests have.
    fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// Waits for what a queue's thread has to do first.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let bell = Bell::new();
    let waker = bell.clone().into();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        bell.wait();
    }
}

const WRITE: Request = Request::new(Op::Write, ByteOffset(0), 4096);

/// A queue's thread: writes, and goes on looking until it is told to end. `at_once`: a request ends
/// where it starts, as on memory; otherwise a turn later, as on the ring.
fn serve(world: &World, mut queue: QueueWatch, at_once: bool) {
    let mut asked = 0;
    let mut ended = 0;
    let mut on_ring = false;
    loop {
        if on_ring {
            world.bytes.fetch_add(1, Ordering::Relaxed);
            queue.ended(Tag(0));
            on_ring = false;
            ended += 1;
        }
        let next = if asked == 0 {
            asked += 1;
            let nothing = RequestBuffer::Memory(RequestMemory::empty());
            matches!(queue.begin(Tag(0), &WRITE, nothing), Begin::Now(_))
        } else {
            queue.next().is_some()
        };
        if next {
            let outcome = at_once.then(|| {
                world.bytes.fetch_add(1, Ordering::Relaxed);
                ended += 1;
                Ok(())
            });
            queue.begun(Tag(0), &WRITE, outcome.as_ref());
            on_ring = !at_once;
        }
        // As `EngineQueue::wait` does.
        queue.look();
        if on_ring || queue.has_next() {
            continue;
        }
        if ended == 1 && world.ending.load(Ordering::Acquire) {
            return;
        }
        world.bell.wait();
    }
}

fn nothing_changes_in_a_hold(at_once: bool) {
    check(3, move || {
        let world = World::new();
        let queue = world.queue();
        let served = thread::spawn({
            let world = world.clone();
            move || serve(&world, queue, at_once)
        });
        wait(world.watch.hold());
        let before = world.bytes.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(world.bytes.load(Ordering::Relaxed), before);
        world.watch.resume();
        world.end();
        served.join().expect("it ends");
        assert_eq!(world.bytes.load(Ordering::Relaxed), 1, "it started once");
    });
}

#[test]
fn loom_nothing_starts_in_a_hold_on_memory_and_all_goes_on_after_it() {
    nothing_changes_in_a_hold(true);
}

#[test]
fn loom_nothing_is_under_way_in_a_hold_on_a_ring_and_all_goes_on_after_it() {
    nothing_changes_in_a_hold(false);
}

/// A leecher copies all once the tracking has begun, holds, and copies what was noted.
fn a_copy_is_whole_after_the_hold(at_once: bool) {
    check(3, move || {
        let world = World::new();
        let queue = world.queue();
        let served = thread::spawn({
            let world = world.clone();
            move || serve(&world, queue, at_once)
        });
        let tracker = wait(world.watch.track()).expect("room");
        let mut copy = world.bytes.load(Ordering::Relaxed);
        let mut round = |tracker: &Tracker| {
            if !tracker.collect().is_empty() {
                copy = world.bytes.load(Ordering::Relaxed);
            }
        };
        round(&tracker);
        wait(world.watch.hold());
        round(&tracker);
        assert_eq!(copy, world.bytes.load(Ordering::Relaxed));
        world.watch.resume();
        world.end();
        served.join().expect("it ends");
    });
}

#[test]
fn loom_a_copy_of_memory_is_whole_after_the_hold() {
    a_copy_is_whole_after_the_hold(true);
}

#[test]
fn loom_a_copy_of_a_file_is_whole_after_the_hold() {
    a_copy_is_whole_after_the_hold(false);
}
