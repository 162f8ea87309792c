//! One fetch a chunk; and only what is needed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::{Errno, Op, Priority, Tag};

use super::engine_support::{DEPTH, Rig, SECTOR};
use super::managed_support::{
    BLOCK, CHUNK, Origin, Plan, Trouble, World, discard, read, until, write,
};
use super::{number_of, numbered};

const BLOCKS: u64 = 256;
const CHUNK_BLOCKS: u64 = CHUNK / BLOCK;

fn hold_reads(world: &World) {
    world.origin.plan(Plan::always(Op::Read, Trouble::Hold));
}

#[test]
fn however_many_wait_for_a_chunk_it_is_fetched_once() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    hold_reads(&world);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut rig = Rig::of(&mount);
                for block in 0..u64::from(DEPTH) {
                    let started = rig.start(Tag(block as u16), read(block * BLOCK, BLOCK));
                    assert_eq!(started, None);
                }
                let ended = rig.finish();
                assert!(ended.values().all(Result::is_ok), "{ended:?}");
                for (block, buffer) in rig.buffers.iter().enumerate() {
                    assert_eq!(
                        buffer[..BLOCK as usize],
                        [number_of(block as u64); BLOCK as usize]
                    );
                }
            });
        }
        world.run(world.origin.held(1));
        world.origin.release();
    });
    until("the rest came", || mount.status().local_bytes == CHUNK);
    let calls = each_once(&world, 0..CHUNK);
    // What is waited for first, what is behind it, and what is before it.
    assert!(calls <= 3, "{:?}", world.origin.calls());
    assert_eq!(mount.status().fetches, calls);
}

/// Nothing was asked for twice, and nothing else than the range; in so many calls.
fn each_once(world: &World, range: std::ops::Range<u64>) -> u64 {
    let mut calls = world.origin.calls_of(Op::Read);
    calls.sort_by_key(|call| call.start);
    let mut at = range.start;
    for call in &calls {
        assert_eq!(call.start, at, "{calls:?}");
        at = call.end;
    }
    assert_eq!(at, range.end, "{calls:?}");
    calls.len() as u64
}

#[test]
fn what_is_waited_for_comes_before_the_rest_of_its_chunk() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    let (from, end) = (CHUNK + 8 * BLOCK, CHUNK + 9 * BLOCK);
    for rest in [end..2 * CHUNK, CHUNK..from] {
        world.origin.plan(Plan {
            range: rest,
            ..Plan::always(Op::Read, Trouble::Hold)
        });
    }
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.get(from, BLOCK)[0], number_of(from / BLOCK));
    world.run(world.origin.held(1));
    assert_eq!(mount.status().local_bytes, BLOCK, "the rest is held");
    world.origin.release();
    until("the rest came", || mount.status().local_bytes == CHUNK);
    let reads: Vec<_> = world.origin.calls();
    let reads = reads
        .iter()
        .map(|call| (call.range.clone(), call.priority))
        .collect::<Vec<_>>();
    let ahead = Some(Priority::ReadAhead);
    assert_eq!(
        reads,
        [
            (from..end, Some(Priority::Demand)),
            (end..2 * CHUNK, ahead),
            (CHUNK..from, ahead)
        ]
    );
}

#[test]
fn a_rest_that_fails_is_nothing_to_those_who_wait_for_the_first_part() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    for (range, trouble) in [
        (0..BLOCK, Trouble::Delay(Duration::from_millis(20))),
        (BLOCK..CHUNK, Trouble::Error(Errno::ENOSPC)),
    ] {
        world.origin.plan(Plan {
            range,
            ..Plan::once(Op::Read, trouble)
        });
    }
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.get(0, BLOCK)[0], number_of(0));
    until("all has ended", || mount.status().fetches_under_way == 0);
    assert_eq!(mount.status().origin_failures, 1);
    assert_eq!(rig.get(9 * BLOCK, BLOCK)[0], number_of(9));
}

#[test]
fn reads_all_over_the_volume_do_not_ask_for_all_of_it() {
    let world = World::new(Origin::new(64 << 20));
    let mount = world.mount();
    // The rests of chunks, of which the first block is read.
    for chunk in 0..1024 {
        world.origin.plan(Plan {
            range: chunk * CHUNK + BLOCK..(chunk + 1) * CHUNK,
            ..Plan::always(Op::Read, Trouble::Hold)
        });
    }
    let mut rig = Rig::of(&mount);
    for chunk in (0..1024).step_by(2) {
        assert_eq!(rig.get(chunk * CHUNK, BLOCK)[0], 0);
    }
    let most = (8 << 20) / CHUNK;
    until("the others have ended", || {
        mount.status().fetches_under_way <= most
    });
    assert!(world.origin.calls_of(Op::Read).len() as u64 <= 512 + most);
    world.origin.release();
}

#[test]
fn a_read_joins_the_pull_of_its_chunk_and_all_others_go_at_once() {
    let world = World::new(numbered(BLOCKS));
    hold_reads(&world);
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        pull_workers: 1,
        ..world.options.clone()
    });
    world.run(world.origin.held(1));
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| Rig::of(&mount).get(BLOCK, BLOCK));
        let other = scope.spawn(|| Rig::of(&mount).get(5 * CHUNK, BLOCK));
        world.run(
            world
                .origin
                .came(|call| call.range == (5 * CHUNK..5 * CHUNK + BLOCK)),
        );
        world.origin.release();
        assert_eq!(joined.join().expect("read")[0], number_of(1));
        assert_eq!(other.join().expect("read")[0], number_of(5 * CHUNK_BLOCKS));
    });
    world.run(mount.pulled());
    let calls = each_once(&world, 0..BLOCKS * BLOCK);
    assert_eq!(calls, BLOCKS / CHUNK_BLOCKS + 1, "one chunk in two parts");
}

#[test]
fn of_an_unaligned_write_only_the_edges_are_fetched_and_both_at_once() {
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let mount = world.mount();
        hold_reads(&world);
        let (from, len) = (CHUNK - BLOCK - SECTOR, 5 * BLOCK);
        std::thread::scope(|scope| {
            let written = scope.spawn(|| Rig::of(&mount).put(from, len, 0xaa));
            world.run(world.origin.held(2));
            world.origin.release();
            assert_eq!(written.join().expect("written"), Ok(()));
        });
        let mut reads = world.origin.calls_of(Op::Read);
        reads.sort_by_key(|range| range.start);
        let last = from + len - len % BLOCK;
        let edge = |at: u64| at / BLOCK * BLOCK..(at / BLOCK + 1) * BLOCK;
        assert_eq!(reads, [edge(from), edge(last)]);
        let mut rig = Rig::of(&mount);
        let around = rig.get(edge(from).start, 6 * BLOCK);
        let before = (from % BLOCK) as usize;
        let after = before + len as usize;
        assert!(
            around[..before]
                .iter()
                .all(|byte| *byte == number_of(from / BLOCK))
        );
        assert!(around[before..after].iter().all(|byte| *byte == 0xaa));
        assert!(
            around[after..]
                .iter()
                .all(|byte| *byte == number_of(last / BLOCK))
        );
        assert_eq!(
            world.origin.calls_of(Op::Read).len(),
            2,
            "all of it was here"
        );
    }
}

#[test]
fn a_write_never_waits_for_the_origin() {
    for rings in [true, false] {
        // The last block has a part of a sector.
        let world = Origin::new(BLOCKS * BLOCK + BLOCK + 100);
        let mut world = World::new(world);
        world.rings = rings;
        let mount = world.mount();
        let mut rig = Rig::of(&mount);
        rig.get(0, BLOCK);
        hold_reads(&world);
        assert_eq!(
            rig.put(CHUNK, 3 * CHUNK / 4, 1),
            Ok(()),
            "whole blocks, absent"
        );
        assert_eq!(
            rig.put(SECTOR, 3 * SECTOR, 2),
            Ok(()),
            "a part of one that is present"
        );
        let across = (CHUNK + 3 * SECTOR, CHUNK / 2);
        assert_eq!(
            rig.put(across.0, across.1, 3),
            Ok(()),
            "a part of two that were written"
        );
        let tail = BLOCKS * BLOCK + BLOCK;
        rig.buffers[0].fill(0);
        rig.buffers[0][..100].fill(4);
        assert_eq!(
            rig.run(write(tail, SECTOR)),
            Ok(()),
            "the last one, which is short"
        );
        assert_eq!(rig.run(discard(2 * CHUNK, CHUNK)), Ok(()));
        let mut expected = vec![4; 100];
        expected.resize(SECTOR as usize, 0);
        assert_eq!(rig.get(tail, SECTOR), expected);
        assert_eq!(world.origin.held_now(), 0);
    }
}

#[test]
fn a_write_of_a_part_of_an_absent_block_joins_the_fetch_of_its_chunk() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    hold_reads(&world);
    std::thread::scope(|scope| {
        let got = scope.spawn(|| Rig::of(&mount).get(0, BLOCK));
        world.run(world.origin.held(1));
        let written = scope.spawn(|| {
            let mut rig = Rig::of(&mount);
            for sector in 1..5u16 {
                rig.buffers[usize::from(sector)][..512].fill(0xb0 | sector as u8);
                let at = 3 * BLOCK + u64::from(sector) * SECTOR;
                assert_eq!(rig.start(Tag(sector), write(at, SECTOR)), None);
            }
            rig.finish()
        });
        world.origin.release();
        assert_eq!(got.join().expect("read")[0], number_of(0));
        let ended = written.join().expect("written");
        assert!(
            ended.len() == 4 && ended.values().all(Result::is_ok),
            "{ended:?}"
        );
    });
    let merged = Rig::of(&mount).get(3 * BLOCK, BLOCK);
    for (sector, bytes) in merged.chunks(512).enumerate() {
        let byte = match sector {
            1..5 => 0xb0 | sector as u8,
            _ => number_of(3),
        };
        assert_eq!(bytes, [byte; 512], "sector {sector}");
    }
    until("the rest came", || mount.status().local_bytes == CHUNK);
    each_once(&world, 0..CHUNK);
}

#[test]
fn more_requests_than_there_are_places_for_all_end() {
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let mount = world.mount();
        hold_reads(&world);
        std::thread::scope(|scope| {
            for queue in 0..6 {
                let mount = &mount;
                scope.spawn(move || {
                    let mut rig = Rig::of(mount);
                    for tag in 0..DEPTH {
                        rig.buffers[usize::from(tag)].fill(1);
                        // All of them overlap, and have two edges that are not here.
                        let (from, len) = (SECTOR * (1 + queue), 4 * BLOCK + SECTOR);
                        let request = match tag % 3 {
                            0 => discard(from, len),
                            1 => write(from, len),
                            _ => discard(0, CHUNK),
                        };
                        assert_eq!(rig.start(Tag(tag), request), None);
                    }
                    let ended = rig.finish();
                    assert!(ended.values().all(Result::is_ok), "{ended:?}");
                });
            }
            world.run(world.origin.held(1));
            world.origin.release();
        });
    }
}

#[test]
fn a_fetch_that_fails_fails_whoever_waits_for_it_and_the_next_one_is_another() {
    let world = World::new(numbered(BLOCKS));
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    world
        .origin
        .plan(Plan::once(Op::Read, Trouble::Error(Errno::ENOSPC)));
    assert_eq!(rig.try_get(0, BLOCK), Err(Errno::ENOSPC));
    assert_eq!(mount.status().local_bytes, 0, "nothing is taken for local");
    assert_eq!(rig.get(0, BLOCK)[0], number_of(0));
}

#[test]
fn what_the_origin_does_not_send_reads_as_zeros() {
    let origin = Origin::new(BLOCKS * BLOCK - 1000).short_from(10 * BLOCK + 10);
    origin.fill(0, &[7; 10 * BLOCK as usize + 10]);
    let world = World::new(origin);
    let mount = world.mount();
    let mut rig = Rig::of(&mount);
    // What the buffers held before must not show.
    assert_eq!(rig.get(0, BLOCK), [7; BLOCK as usize]);
    assert_eq!(rig.get(9 * BLOCK, BLOCK), [7; BLOCK as usize]);
    let last = rig.get(10 * BLOCK, BLOCK);
    assert!(last[..10].iter().all(|byte| *byte == 7) && last[10..].iter().all(|byte| *byte == 0));
    for chunk in 1..BLOCKS / CHUNK_BLOCKS {
        assert!(rig.get(chunk * CHUNK, BLOCK).iter().all(|byte| *byte == 0));
    }
    let end = BLOCKS * BLOCK - 3 * SECTOR;
    assert!(rig.get(end, 2 * SECTOR).iter().all(|byte| *byte == 0));
}

#[test]
fn read_ahead_grows_with_a_run_up_to_its_limit() {
    let world = World::new(numbered(1024));
    let mount = world.mount_as(ManagedOptions {
        read_ahead_bytes: 8 * CHUNK,
        ..world.options.clone()
    });
    let under_way = || mount.status().fetches_under_way;
    let mut rig = Rig::of(&mount);
    rig.get(10 * CHUNK, CHUNK);
    assert_eq!(world.origin.calls_of(Op::Read).len(), 1, "one is no run");
    rig.get(11 * CHUNK, CHUNK);
    until("two chunks ahead", || {
        world.origin.calls_of(Op::Read).len() == 4
    });
    let mut next = 14;
    for ahead in [4, 8, 8, 8] {
        until("nothing under way", || under_way() == 0);
        hold_reads(&world);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| Rig::of(&mount).get(next * CHUNK, CHUNK)[0]);
            until("read-ahead", || under_way() == 1 + ahead);
            world.origin.release();
            assert_eq!(reader.join().expect("read"), number_of(next * CHUNK_BLOCKS));
        });
        next += 1 + ahead;
    }
    until("nothing under way", || under_way() == 0);
    let reads = world.origin.calls_of(Op::Read).len() as u64;
    assert_eq!(reads, next - 10, "each chunk once, and none beyond");
}

#[test]
fn requests_that_nobody_waits_for_any_more_leave_nothing_behind() {
    let world = World::new(Origin::new(64 << 20));
    let mount = world.mount_as(ManagedOptions {
        memory_limit_bytes: 8 << 20,
        io_timeout: Some(Duration::from_millis(30)),
        ..world.options.clone()
    });
    hold_reads(&world);
    let mut rig = Rig::of(&mount);
    for round in 0..40 {
        for tag in 0..DEPTH {
            let chunk = round * u64::from(DEPTH) + u64::from(tag);
            assert_eq!(rig.start(Tag(tag), read(chunk * CHUNK, CHUNK)), None);
        }
        let ended = rig.finish();
        assert!(
            ended.values().all(|outcome| *outcome == Err(Errno::EIO)),
            "{ended:?}"
        );
    }
    let left = mount.status().fetches_under_way;
    assert!(
        left <= (8 << 20) / CHUNK,
        "{left} of 640 fetches wait for nobody"
    );
    assert_eq!(mount.status().timeouts, 640);
    world.origin.release();
    assert_eq!(
        rig.try_get(1000 * CHUNK, BLOCK).map(|bytes| bytes[0]),
        Ok(0)
    );
}

#[test]
fn each_chunk_is_told_to_be_local_once_and_no_read_waits_for_whoever_is_told() {
    /// More than any pool of helping threads would take.
    const CHUNKS: u64 = 40;
    let world = World::new(numbered(CHUNKS * CHUNK_BLOCKS));
    let told = Arc::new(AtomicUsize::new(0));
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let mut options = world.options.clone();
    let counted = Arc::clone(&told);
    options.hooks.chunk_is_local = Some(Arc::new(move |_| {
        // It ends when the test lets go of the other end.
        let _ = wait.lock().expect("held").recv();
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let mount = world.mount_as(options);
    let mut rig = Rig::of(&mount);
    for chunk in 0..CHUNKS {
        assert_eq!(
            rig.get(chunk * CHUNK, CHUNK)[0],
            number_of(chunk * CHUNK_BLOCKS)
        );
    }
    assert_eq!(told.load(Ordering::Relaxed), 0);
    drop(go_on);
    world.run(mount.finish()).expect("finished");
    assert_eq!(told.load(Ordering::Relaxed), CHUNKS as usize);
    assert_eq!(mount.status().chunks_untold, 0);
}

#[test]
fn what_is_touched_is_recorded_whoever_does_the_io() {
    for rings in [true, false] {
        let mut world = World::new(numbered(BLOCKS));
        world.rings = rings;
        let path = world.directory.path().join("heat");
        let mount = world.mount_as(ManagedOptions {
            record_heat: Some(path.clone()),
            ..world.options.clone()
        });
        let mut rig = Rig::of(&mount);
        rig.get(5 * CHUNK, BLOCK);
        assert_eq!(rig.put(2 * CHUNK, BLOCK, 1), Ok(()));
        rig.get(5 * CHUNK + BLOCK, BLOCK);
        world.run(mount.finish()).expect("finished");
        let heat = std::fs::read_to_string(path).expect("recorded");
        let ranges: Vec<_> = heat.lines().skip(1).collect();
        let line = |chunk| format!("{} {CHUNK}", chunk * CHUNK);
        assert_eq!(ranges, [line(5), line(2)], "rings: {rings}");
        let status = mount.status();
        assert_eq!(
            (status.missed_reads, status.miss_latency.count),
            (1, 1),
            "rings: {rings}"
        );
    }
}
