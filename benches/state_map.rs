//! What the state map costs a request: the test whether it is a hit, on one thread and on two at
//! once, and the marks around a write.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use blockferry::volume::state_map::{FlightSlot, LiveMap, LiveMapKey, StateMap, WriteStart};
use blockferry::volume::{BlockIndex, BlockRange};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const VOLUME_BYTES: u64 = 1 << 30;
/// Requests a pass: that many different blocks, spread over the volume.
const REQUESTS: u64 = 1024;

/// Everything is present and clean, with bits; the directory keeps the live map.
fn local_volume() -> (tempfile::TempDir, StateMap) {
    let dir = tempfile::tempdir().expect("a directory");
    let key = LiveMapKey {
        boot_id: [0; 16],
        store_uuid: [0; 16],
        open_counter: 0,
        size_bytes: VOLUME_BYTES,
        queue_slots: 256,
    };
    let live = LiveMap::create(&dir.path().join("live"), &key).expect("a live map");
    let map = StateMap::new(live).expect("a map");
    for region in map.regions() {
        map.prepare_write(region).expect("room");
        map.set_write_ready(region);
        let claim = map.claim_fill(map.region_blocks(region));
        map.finish_fill(claim, true);
    }
    let token = map.begin_snapshot();
    for region in map.unsaved_regions() {
        black_box(map.snapshot(region));
    }
    map.saved(token);
    (dir, map)
}

/// The `nth` request: one or some blocks, in another place each time.
fn request(map: &StateMap, nth: u64, len: u64) -> BlockRange {
    let first = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (map.blocks().len() - len);
    BlockRange::new(first, first + len)
}

fn hits(map: &StateMap, len: u64) -> u64 {
    (0..REQUESTS)
        .filter(|nth| map.is_present(black_box(request(map, *nth, len))))
        .count() as u64
}

fn hit_test(criterion: &mut Criterion) {
    let (_dir, map) = local_volume();
    let mut group = criterion.benchmark_group("state map: hit test");
    group.throughput(Throughput::Elements(REQUESTS));
    for (name, len) in [("4 KiB", 1), ("256 KiB", 64)] {
        group.bench_function(format!("{name}, one thread"), |bencher| {
            bencher.iter(|| assert_eq!(hits(&map, len), REQUESTS));
        });
        group.bench_function(format!("{name}, beside another thread"), |bencher| {
            beside(
                || assert_eq!(hits(&map, len), REQUESTS),
                || bencher.iter(|| assert_eq!(hits(&map, len), REQUESTS)),
            );
        });
    }
    group.finish();
}

fn writes(map: &StateMap, slot: FlightSlot, from: u64) {
    for nth in from..from + REQUESTS {
        let blocks = black_box(request(map, nth, 1));
        let start = map.begin_write(slot, blocks);
        assert_eq!(start, WriteStart::Overwrite);
        map.end_write(slot, blocks, start, true);
    }
}

fn overwrite(criterion: &mut Criterion) {
    let (_dir, map) = local_volume();
    let mut group = criterion.benchmark_group("state map: overwrite");
    group.throughput(Throughput::Elements(REQUESTS));
    group.bench_function("dirty already, one thread", |bencher| {
        bencher.iter(|| writes(&map, FlightSlot(0), 0));
    });
    group.bench_function("dirty already, beside another thread", |bencher| {
        beside(
            || writes(&map, FlightSlot(128), 0),
            || bencher.iter(|| writes(&map, FlightSlot(0), 0)),
        );
    });
    group.bench_function("clean before, one thread", |bencher| {
        let send_all = || {
            let mut from = BlockIndex(0);
            while let Some(taken) = map.take_dirty(from, u64::MAX) {
                map.flushed(taken);
                from = taken.end;
            }
        };
        bencher.iter_batched(
            send_all,
            |()| writes(&map, FlightSlot(0), 0),
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Runs `other` again and again on another thread while `measured` runs.
fn beside(other: impl Fn() + Sync, measured: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                other();
            }
        });
        measured();
        over.store(true, Ordering::Relaxed);
    });
}

criterion_group!(benches, hit_test, overwrite);
criterion_main!(benches);
