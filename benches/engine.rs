//! What a hit costs: a request on a volume in memory, from the queue's door and back.

use std::ptr::NonNull;
use std::sync::Arc;

use blockferry::volume::{
    ByteOffset, EngineQueue, Geometry, MemoryMap, Op, QueueRing, Request, RequestBuffer,
    RequestMemory, Store, Tag, Volume,
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
        let mut queue = queue(volume_bytes);
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

fn queue(volume_bytes: u64) -> EngineQueue {
    let memory = MemoryMap::new(volume_bytes).expect("memory for the volume");
    let block = vec![0xA5u8; 1 << 20];
    for offset in (0..volume_bytes).step_by(block.len()) {
        memory.write(offset, &block);
    }
    let geometry = Geometry::new(volume_bytes, LOGICAL_BLOCK_BYTES).expect("a sound geometry");
    let volume = Volume::new(Store::Memory(Arc::new(memory)), geometry, false, true);
    EngineQueue::new(Arc::new(volume), DEPTH).expect("a queue")
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

criterion_group!(benches, engine_hit);
criterion_main!(benches);
