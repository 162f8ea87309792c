//! What a hit costs: a request on a volume in memory, from the queue's door and back.

use std::pin::pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use blockferry::volume::{
    ByteOffset, EngineQueue, Geometry, MemoryMap, Op, QueueRing, Request, RequestBuffer,
    RequestMemory, Store, Tag, Tracker, Volume,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const DEPTH: u16 = 128;
const LOGICAL_BLOCK_BYTES: u32 = 512;

/// The same volume as a cache sees it: in the processor's caches, and mostly outside them.
const VOLUMES: [(&str, u64); 2] = [("1 MiB", 1 << 20), ("256 MiB", 256 << 20)];

/// Requests by name.
const REQUESTS: [(&str, Op, u64); 3] = [
    ("read 4k", Op::Read, 4 << 10),
    ("write 4k", Op::Write, 4 << 10),
    ("read 128k", Op::Read, 128 << 10),
];

fn engine_hit(criterion: &mut Criterion) {
    for (volume_name, volume_bytes) in VOLUMES {
        let mut queue = queue(volume(volume_bytes));
        let mut ring = QueueRing::new(DEPTH).expect("this machine has io_uring");
        for (request_name, op, len_bytes) in REQUESTS {
            let mut group = criterion.benchmark_group(format!("engine hit, {volume_name}"));
            group.throughput(Throughput::Bytes(len_bytes));
            let mut bytes = vec![0u8; len_bytes as usize];
            let mut offsets = Offsets::new(volume_bytes, len_bytes);
            group.bench_function(request_name, |bencher| {
                bencher.iter_batched(
                    || Request::new(op, offsets.draw(), len_bytes),
                    |request| {
                        let outcome = queue.start(&mut ring, Tag(0), request, buffer(&mut bytes));
                        assert_eq!(outcome, Some(Ok(())), "a hit ends where it starts");
                    },
                    BatchSize::SmallInput,
                );
            });
            group.finish();
        }
    }
}

/// What a seedable volume costs while nobody leeches, and what each leecher does.
fn engine_hit_watched(criterion: &mut Criterion) {
    const LEN_BYTES: u64 = 4 << 10;
    let mut group = criterion.benchmark_group("engine hit, 1 MiB, write 4k");
    let mut bytes = vec![0u8; LEN_BYTES as usize];
    let mut ring = QueueRing::new(DEPTH).expect("this machine has io_uring");
    for (name, seedable, leechers) in [
        ("not seedable", false, 0),
        ("seedable", true, 0),
        ("1 leecher", true, 1),
        ("4 leechers", true, 4),
    ] {
        let volume = volume(1 << 20);
        let volume = Arc::new(if seedable { volume.seedable() } else { volume });
        let mut queue = queue(volume.clone());
        let _trackers: Vec<_> = (0..leechers)
            .map(|_| track(&volume, &mut queue, &mut ring))
            .collect();
        let mut offsets = Offsets::new(1 << 20, LEN_BYTES);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || Request::new(Op::Write, offsets.draw(), LEN_BYTES),
                |request| {
                    let outcome = queue.start(&mut ring, Tag(0), request, buffer(&mut bytes));
                    assert_eq!(outcome, Some(Ok(())), "a hit ends where it starts");
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// The tracker is there once the queue has looked, which it does with each request.
fn track(volume: &Arc<Volume>, queue: &mut EngineQueue, ring: &mut QueueRing) -> Tracker {
    let mut tracking = pin!(volume.watch().track());
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(tracker) = tracking.as_mut().poll(&mut context) {
            return tracker.expect("room");
        }
        let flush = Request::new(Op::Flush, ByteOffset(0), 0);
        queue.start(ring, Tag(0), flush, buffer(&mut []));
    }
}

/// Taking what changed of a large volume, of which little did.
fn collect(criterion: &mut Criterion) {
    const VOLUME_BYTES: u64 = 1 << 40;
    let memory = MemoryMap::new(1 << 20).expect("memory for the volume");
    let geometry = Geometry::new(VOLUME_BYTES, LOGICAL_BLOCK_BYTES).expect("a sound geometry");
    let store = Store::Memory(Arc::new(memory));
    let volume = Arc::new(Volume::new(store, geometry, false, true).seedable());
    let mut ring = QueueRing::new(DEPTH).expect("this machine has io_uring");
    let mut queue = queue(volume.clone());
    let tracker = track(&volume, &mut queue, &mut ring);
    criterion.bench_function("collect, 1 TiB, clean", |bencher| {
        bencher.iter(|| assert!(tracker.collect().is_empty()));
    });
}

fn volume(volume_bytes: u64) -> Volume {
    let memory = MemoryMap::new(volume_bytes).expect("memory for the volume");
    let block = vec![0xA5u8; 1 << 20];
    for offset in (0..volume_bytes).step_by(block.len()) {
        memory.write(offset, &block);
    }
    let geometry = Geometry::new(volume_bytes, LOGICAL_BLOCK_BYTES).expect("a sound geometry");
    Volume::new(Store::Memory(Arc::new(memory)), geometry, false, true)
}

fn queue(volume: impl Into<Arc<Volume>>) -> EngineQueue {
    EngineQueue::new(volume.into(), DEPTH).expect("a queue")
}

fn buffer(bytes: &mut [u8]) -> RequestBuffer {
    let address = NonNull::new(bytes.as_mut_ptr()).expect("a vector's address");
    // SAFETY: a hit is answered before `start` returns, and the vector outlives that.
    RequestBuffer::Memory(unsafe { RequestMemory::new(address, bytes.len()) })
}

/// Aligned offsets all over a volume, the same in each run.
struct Offsets {
    state: u64,
    places: u64,
    grain_bytes: u64,
}

impl Offsets {
    fn new(volume_bytes: u64, grain_bytes: u64) -> Self {
        Self {
            state: 0x9E37_79B9_7F4A_7C15,
            places: volume_bytes / grain_bytes,
            grain_bytes,
        }
    }

    /// The next one, by xorshift.
    fn draw(&mut self) -> ByteOffset {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ByteOffset(self.state % self.places * self.grain_bytes)
    }
}

criterion_group!(benches, engine_hit, engine_hit_watched, collect);
criterion_main!(benches);
