//! A volume in use is copied as a migration does it: tracked, collected in rounds, held, collected
//! for the last time. The copy is the volume then, nothing changes until the hold ends, and no
//! request fails.

mod engine_support;
mod fuse_support;
mod managed_support;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use blockferry::backend::{OpenOptions, Resource, open};
use blockferry::mount::direct;
use blockferry::volume::{
    BlockRange, ByteOffset, Errno, Geometry, MemoryMap, Op, Request, Store, Tag, Tracker, Volume,
};
use engine_support::{BUFFER_BYTES, DEPTH, Rig, SECTOR, Step, in_runtime, steps};
use managed_support::{Origin, World};
use proptest::prelude::*;

const BLOCK: u64 = 4096;
const VOLUME_BYTES: u64 = 4 << 20;

/// How often a volume is copied while it is written.
const COPIES: u32 = 12;

/// Whole blocks only, and no reads: what a managed store has of other blocks is its own affair.
#[derive(Clone, Copy, PartialEq)]
enum Traffic {
    Any,
    WholeBlocks,
}

/// Gives the bytes of a range.
type ReadAt = dyn Fn(&mut [u8], u64);

fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

fn random_request(state: &mut u64, traffic: Traffic) -> Request {
    let grain = match traffic {
        Traffic::Any => SECTOR,
        Traffic::WholeBlocks => BLOCK,
    };
    let len = (random(state, BUFFER_BYTES as u64 / grain) + 1) * grain;
    let offset = random(state, (VOLUME_BYTES - len) / grain + 1) * grain;
    let op = match random(state, 16) {
        0 => return Request::new(Op::Flush, ByteOffset(0), 0),
        1 => Op::Discard,
        2 => Op::WriteZeroes,
        3..6 if traffic == Traffic::Any => Op::Read,
        _ => Op::Write,
    };
    Request {
        fua: op == Op::Write && random(state, 16) == 0,
        ..Request::new(op, ByteOffset(offset), len)
    }
}

/// Keeps a queue busy until `ending`.
fn keep_busy(
    volume: Arc<Volume>,
    seed: u64,
    traffic: Traffic,
    ending: &AtomicBool,
    done: &AtomicU64,
) {
    let mut rig = Rig::new(volume);
    let mut state = seed;
    while !ending.load(Ordering::Relaxed) {
        for tag in 0..=random(&mut state, DEPTH.into()) as u16 {
            let request = random_request(&mut state, traffic);
            rig.buffers[usize::from(tag)].fill(random(&mut state, 256) as u8);
            if let Some(outcome) = rig.start(Tag(tag), request) {
                assert_eq!(outcome, Ok(()), "{request:?}");
            }
        }
        for (tag, outcome) in rig.finish() {
            assert_eq!(outcome, Ok(()), "{tag:?}");
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let patient = async { tokio::time::timeout(fuse_support::PATIENCE, future).await };
    runtime.block_on(patient).expect("it ends")
}

/// A leecher.
struct Copy {
    tracker: Tracker,
    bytes: Vec<u8>,
}

impl Copy {
    fn begin(volume: &Volume, read_at: &ReadAt) -> Self {
        let tracker = wait(volume.watch().track()).expect("tracked");
        let mut bytes = vec![0; VOLUME_BYTES as usize];
        read_at(&mut bytes, 0);
        Self { tracker, bytes }
    }

    fn round(&mut self, read_at: &ReadAt) {
        for run in self.tracker.collect() {
            let range = (run.start().0 as usize)..(run.start().0 + run.len_bytes()) as usize;
            read_at(&mut self.bytes[range], run.start().0);
        }
    }
}

fn is_copied_whole(volume: &Arc<Volume>, traffic: Traffic, read_at: &ReadAt) {
    let (ending, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 1..=2 {
            let volume = volume.clone();
            let (ending, done) = (&ending, &done);
            scope.spawn(move || keep_busy(volume, seed * 0x9e37_79b9, traffic, ending, done));
        }
        let all = || {
            let mut bytes = vec![0; VOLUME_BYTES as usize];
            read_at(&mut bytes, 0);
            bytes
        };
        for _ in 0..COPIES {
            let before = done.load(Ordering::Relaxed);
            let mut copies = [Copy::begin(volume, read_at), Copy::begin(volume, read_at)];
            for _ in 0..3 {
                copies[0].round(read_at);
            }
            wait(volume.watch().hold());
            let held = all();
            for copy in &mut copies {
                copy.round(read_at);
                assert!(copy.bytes == held, "a change was missed");
                assert_eq!(copy.tracker.collect(), [], "nothing changes in a hold");
            }
            assert!(all() == held, "nothing changes in a hold");
            volume.watch().resume();
            fuse_support::wait_until("more traffic", || {
                done.load(Ordering::Relaxed) >= before + 4
            });
        }
        ending.store(true, Ordering::Relaxed);
    });
    assert_eq!(volume.counters().errors, 0);
}

#[test]
fn a_volume_in_memory_is_copied_whole_while_it_is_written() {
    let memory = Arc::new(MemoryMap::new(VOLUME_BYTES).expect("memory"));
    let geometry = Geometry::new(VOLUME_BYTES, SECTOR as u32).expect("a geometry");
    let store = Store::Memory(memory.clone());
    let volume = Arc::new(Volume::new(store, geometry, false, true).seedable());
    is_copied_whole(&volume, Traffic::Any, &move |to, at| memory.read(at, to));
}

fn image() -> (tempfile::NamedTempFile, Resource) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(VOLUME_BYTES).expect("sized");
    let url = format!("file:{}", file.path().display());
    let resource = open(&url, &OpenOptions::default()).expect("open");
    (file, resource)
}

#[test]
fn a_file_is_copied_whole_while_it_is_written() {
    let (file, resource) = image();
    let mount = direct::mount_seedable(&resource, DEPTH.into(), None);
    is_copied_whole(&mount.volume, Traffic::Any, &move |to, at| {
        file.as_file().read_exact_at(to, at).expect("read");
    });
}

#[test]
fn a_volume_of_the_asynchronous_side_is_copied_whole_while_it_is_written() {
    in_runtime(|| {
        let memory = Arc::new(MemoryMap::new(VOLUME_BYTES).expect("memory"));
        let resource = Resource::custom("test", memory.clone(), OpenOptions::default());
        let resource = resource.expect("a size");
        let mount = direct::mount_seedable(&resource, 2 * usize::from(DEPTH), None);
        is_copied_whole(&mount.volume, Traffic::Any, &move |to, at| {
            memory.read(at, to)
        });
    });
}

#[test]
fn a_managed_volume_is_copied_whole_while_it_is_written() {
    let mut world = World::in_memory(Origin::new(VOLUME_BYTES));
    world.options.seedable = true;
    let mount = world.mount();
    let data = std::fs::File::open(world.cache_path().join("data")).expect("a store");
    is_copied_whole(mount.volume(), Traffic::WholeBlocks, &move |to, at| {
        data.read_exact_at(to, at).expect("read");
    });
}

const SECTORS: u64 = 2048;

fn request(step: &Step) -> Request {
    let range = |op, from: u64, len: u64| Request::new(op, ByteOffset(from * SECTOR), len * SECTOR);
    match *step {
        Step::Read(from, len) => range(Op::Read, from, len),
        Step::Write(from, len, _, fua) => Request {
            fua,
            ..range(Op::Write, from, len)
        },
        Step::Zero(from, len, no_unmap) => Request {
            no_unmap,
            ..range(Op::WriteZeroes, from, len)
        },
        Step::Discard(from, len) => range(Op::Discard, from, len),
        Step::Flush => Request::new(Op::Flush, ByteOffset(0), 0),
    }
}

fn blocks(runs: &[BlockRange]) -> BTreeSet<u64> {
    runs.iter()
        .flat_map(|run| run.iter())
        .map(|it| it.0)
        .collect()
}

/// Lets a queue that this thread drives hear of a change.
fn until_ready<T>(rig: &mut Rig, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        rig.turn();
    }
}

fn is_noted_exactly(
    volume: &Arc<Volume>,
    steps: &[Step],
    every: usize,
) -> Result<(), TestCaseError> {
    let mut rig = Rig::new(volume.clone());
    let tracker = until_ready(&mut rig, volume.watch().track()).expect("tracked");
    let mut changed = BTreeSet::new();
    for (number, step) in steps.iter().enumerate() {
        let asked = request(step);
        prop_assert_eq!(rig.run(asked), Ok(()));
        if asked.writes() {
            let touched = BlockRange::touched(asked.offset, asked.len_bytes);
            changed.extend(touched.iter().map(|it| it.0));
        }
        if number % every == 0 {
            prop_assert_eq!(blocks(&tracker.collect()), std::mem::take(&mut changed));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_collected_is_what_has_changed_in_memory(steps in steps(SECTORS), every in 1usize..5) {
        let resource = open("mem:1MiB", &OpenOptions::default()).expect("open");
        let mount = direct::mount_seedable(&resource, DEPTH.into(), None);
        is_noted_exactly(&mount.volume, &steps, every)?;
    }

    #[test]
    fn what_is_collected_is_what_has_changed_in_a_file(steps in steps(SECTORS), every in 1usize..5) {
        let (_file, resource) = image();
        let mount = direct::mount_seedable(&resource, DEPTH.into(), None);
        is_noted_exactly(&mount.volume, &steps, every)?;
    }

    #[test]
    fn what_a_hold_kept_runs_in_its_order(steps in steps(SECTORS)) {
        let memory = Arc::new(MemoryMap::new(SECTORS * SECTOR).expect("memory"));
        let geometry = Geometry::new(SECTORS * SECTOR, SECTOR as u32).expect("a geometry");
        let store = Store::Memory(memory.clone());
        let volume = Arc::new(Volume::new(store, geometry, false, true).seedable());
        let mut rig = Rig::new(volume.clone());
        let mut model = vec![0u8; (SECTORS * SECTOR) as usize];
        for held in steps.chunks(DEPTH.into()) {
            until_ready(&mut rig, volume.watch().hold());
            for (tag, step) in (0..).zip(held) {
                let asked = request(step);
                let range = asked.offset.0 as usize..(asked.offset.0 + asked.len_bytes) as usize;
                match *step {
                    Step::Write(_, _, fill, _) => {
                        rig.buffers[usize::from(tag)].fill(fill);
                        model[range].fill(fill);
                    }
                    Step::Zero(..) | Step::Discard(..) => model[range].fill(0),
                    Step::Read(..) | Step::Flush => {}
                }
                prop_assert_eq!(rig.start(Tag(tag), asked), None);
            }
            volume.watch().resume();
            let ended = rig.finish();
            prop_assert_eq!(ended.len(), held.len());
            prop_assert!(ended.values().all(|outcome| *outcome == Ok(())));
        }
        let mut bytes = vec![1; model.len()];
        memory.read(0, &mut bytes);
        prop_assert!(bytes == model);
    }
}

#[test]
fn a_queue_that_sleeps_is_woken_for_all_that_changes() {
    let (_file, resource) = image();
    let mount = direct::mount_seedable(&resource, DEPTH.into(), None);
    let volume = &mount.volume;
    let ended = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rig = Rig::new(volume.clone());
            let write = Request::new(Op::Write, ByteOffset(0), BLOCK);
            let mut outcome = rig.run(write);
            while outcome.is_ok() {
                ended.fetch_add(1, Ordering::Relaxed);
                outcome = rig.run(write);
            }
            assert_eq!(outcome, Err(Errno::EIO));
        });
        for _ in 0..50 {
            wait(volume.watch().hold());
            let before = ended.load(Ordering::Relaxed);
            // The next one waits by now, or will, and its queue sleeps.
            drop(wait(volume.watch().track()).expect("it wakes for that"));
            volume.watch().resume();
            fuse_support::wait_until("the next write", || ended.load(Ordering::Relaxed) > before);
        }
        wait(volume.watch().hold());
        volume.watch().close_moved();
    });
}
