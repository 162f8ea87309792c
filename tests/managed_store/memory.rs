//! What a mount takes of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::{Op, Tag};

use super::engine_support::{DEPTH, Rig};
use super::managed_support::{BLOCK, Plan, Trouble, World, read};
use super::{numbered, turn};

/// Counts what is allocated.
pub(crate) struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(now, Relaxed);
}

// SAFETY: all of it is the system's allocator; counting does not touch what it gives.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[test]
fn the_memory_limit_holds_for_all_buffers_together() {
    const LIMIT: u64 = 8 << 20;
    /// Tasks, tables, and what the test itself remembers.
    const BESIDE: usize = 2 << 20;
    let _turn = turn();
    for (chunk_bytes, rings) in [
        (4 << 10, true),
        (256 << 10, true),
        (1 << 20, true),
        (64 << 10, false),
    ] {
        let mut world = World::in_memory(numbered(8192));
        world.rings = rings;
        world.options.chunk_bytes = chunk_bytes;
        // Slow enough that as much is under way as there may be.
        for op in [Op::Read, Op::Write] {
            world
                .origin
                .plan(Plan::always(op, Trouble::Delay(Duration::from_millis(3))));
        }
        let before = NOW.load(Relaxed);
        MOST.store(before, Relaxed);
        let mount = world.mount_as(ManagedOptions {
            memory_limit_bytes: LIMIT,
            pull: PullOrder::Sequential,
            pull_workers: 256,
            push_workers: 256,
            push: true,
            push_interval: Duration::from_millis(1),
            read_ahead_bytes: 16 << 20,
            ..world.options.clone()
        });
        let mut rig = Rig::of(&mount);
        for round in 0..24u64 {
            for block in 0..64 {
                let at = ((round * 331 + block * 2) % 8000) * BLOCK;
                assert_eq!(rig.put(at, BLOCK, 1), Ok(()));
            }
            for tag in 0..u64::from(DEPTH) {
                let at = (8191 - (round * 16 + tag) * 21) * BLOCK;
                assert_eq!(
                    rig.start(Tag(tag as u16), read(at, BLOCK))
                        .unwrap_or(Ok(())),
                    Ok(())
                );
            }
            assert!(rig.finish().values().all(Result::is_ok));
        }
        world.run(mount.sync()).expect("synced");
        let most = MOST.load(Relaxed) - before;
        assert!(
            most <= LIMIT as usize + BESIDE,
            "chunks of {chunk_bytes}: {most} bytes were taken"
        );
    }
}
