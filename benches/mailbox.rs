//! What an answer from another thread costs: the mailbox alone, and the whole way of a miss from a
//! queue to the asynchronous side and back, over the queue's ring.

use std::ptr::NonNull;
use std::sync::Arc;

use blockferry::volume::mailbox::Mailbox;
use blockferry::volume::{
    ByteOffset, EngineQueue, Geometry, MissQueue, Op, Owner, QueueRing, Request, RequestBuffer,
    RequestMemory, Store, Tag, Volume,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const DEPTH: u16 = 128;
const REQUEST_BYTES: usize = 4096;

fn post_and_take(criterion: &mut Criterion) {
    let mailbox = Mailbox::new(DEPTH);
    let mut group = criterion.benchmark_group("mailbox, one thread");
    for count in [1u16, DEPTH] {
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(format!("post and take {count}"), |bencher| {
            bencher.iter(|| {
                for tag in 0..count {
                    let _nobody_sleeps = mailbox.post(Tag(tag), Ok(()));
                }
                let mut taken = 0;
                mailbox.take(|_, _| taken += 1);
                assert_eq!(taken, count);
            });
        });
    }
    group.finish();
}

fn miss_round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("miss round trip, two threads");
    for in_flight in [1u16, 32] {
        let mut misses = Misses::new();
        group.throughput(Throughput::Elements(u64::from(in_flight)));
        group.bench_function(format!("{in_flight} in flight"), |bencher| {
            bencher.iter(|| misses.round(in_flight));
        });
    }
    group.finish();
}

/// A queue whose requests all go to another thread, which answers at once.
struct Misses {
    queue: EngineQueue,
    ring: QueueRing,
    buffers: Vec<Box<[u8; REQUEST_BYTES]>>,
    // Dropped last: it ends the answering thread.
    _answering: tokio::runtime::Runtime,
}

impl Misses {
    fn new() -> Self {
        let misses = Arc::new(MissQueue::new(usize::from(DEPTH)));
        let answering = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        answering.spawn(answer(misses.clone()));
        let geometry = Geometry::new(1 << 20, 512).expect("a sound geometry");
        let volume = Arc::new(Volume::new(Store::Async(misses), geometry, false, true));
        let queue = EngineQueue::new(volume, DEPTH).expect("a queue");
        let mut ring = QueueRing::new(DEPTH).expect("this machine has io_uring");
        ring.arm_bell(&queue.post().bell).expect("a bell");
        Self {
            queue,
            ring,
            buffers: (0..DEPTH).map(|_| Box::new([0; REQUEST_BYTES])).collect(),
            _answering: answering,
        }
    }

    /// Starts `count` requests and waits for all answers, in the turns of a device's queue.
    fn round(&mut self, count: u16) {
        for tag in 0..count {
            let bytes = &mut self.buffers[usize::from(tag)];
            let address = NonNull::from(&mut **bytes).cast();
            // SAFETY: the buffer is not touched before its answer was collected below.
            let memory = unsafe { RequestMemory::new(address, REQUEST_BYTES) };
            let request = Request::new(Op::Read, ByteOffset(0), REQUEST_BYTES as u64);
            let buffer = RequestBuffer::Memory(memory);
            let outcome = self.queue.start(&mut self.ring, Tag(tag), request, buffer);
            assert!(outcome.is_none(), "a miss ends later");
        }
        let mut waiting = count;
        while waiting > 0 {
            self.queue.wait(&mut self.ring).expect("the ring works");
            let completions = self.ring.completions();
            if completions.iter().any(|it| it.owner == Owner::Bell) {
                self.ring
                    .arm_bell(&self.queue.post().bell)
                    .expect("the ring works");
            }
            self.ring.recycle(completions);
            self.queue.collect(&mut self.ring, |_, _, outcome| {
                outcome.expect("the other thread answers with success");
                waiting -= 1;
            });
        }
    }
}

async fn answer(misses: Arc<MissQueue>) {
    loop {
        let miss = misses.next().await;
        miss.answer.send(miss.memory, Ok(()));
    }
}

criterion_group!(benches, post_and_take, miss_round_trip);
criterion_main!(benches);
