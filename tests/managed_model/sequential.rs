//! One request at a time.

use std::sync::Arc;
use std::time::Duration;

use blockferry::backend::faults::{Fault, Faulty, Rule};
use blockferry::backend::{OpenOptions, Resource};
use blockferry::mount::managed::{ManagedMount, ManagedOptions, PullOrder, in_flight_slots};
use blockferry::volume::cache::{AfterFailedSync, CacheDirectory, CacheOptions, OpenedCache};
use blockferry::volume::{ByteOffset, Durability, Errno, MemoryMap, Op, Outcome, Request};
use blockferry::{Backend, ErrorKind};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::engine_support::{DEPTH, Rig, SECTOR, Step, steps};

const CHUNK: u64 = 16 << 10;

/// How many parts a sequence has, each with one event beside its requests.
const PARTS_MAX: usize = 4;

/// How often a thing is tried that fails as often as was planned.
const TRIES: usize = PARTS_MAX + 1;

/// How often a cache is tried that is still locked.
const LOCK_TRIES: u32 = 10_000;

type Origin = Arc<Faulty<MemoryMap>>;

/// What happens beside the requests.
#[derive(Debug, Clone)]
enum Event {
    Request(Step),
    Sync,
    /// The next call of this operation at the origin fails.
    OriginFails(Op),
    /// The mount ends in an orderly way and is opened again.
    Restart,
    /// The mount is dropped as it stands, as if its process were killed.
    Kill,
}

fn events(sectors: u64) -> impl Strategy<Value = Vec<Event>> {
    let request =
        steps(sectors).prop_map(|steps| steps.into_iter().map(Event::Request).collect::<Vec<_>>());
    let other = prop_oneof![
        3 => Just(Event::Sync),
        1 => Just(Event::OriginFails(Op::Read)),
        1 => Just(Event::OriginFails(Op::Write)),
        1 => Just(Event::OriginFails(Op::Flush)),
        2 => Just(Event::Restart),
        2 => Just(Event::Kill),
    ];
    proptest::collection::vec((request, other), 1..=PARTS_MAX).prop_map(|parts| {
        parts
            .into_iter()
            .flat_map(|(requests, other)| requests.into_iter().chain([other]))
            .collect()
    })
}

struct World {
    runtime: Runtime,
    origin: Origin,
    directory: tempfile::TempDir,
    options: ManagedOptions,
}

struct Mounted {
    mount: ManagedMount,
    resource: Resource,
    rig: Rig,
}

impl World {
    fn new(origin_bytes: u64, pull: PullOrder) -> Self {
        let memory = MemoryMap::new(origin_bytes).expect("memory");
        let origin = Arc::new(Faulty::new(memory));
        for block in 0..origin_bytes.div_ceil(4096) {
            // Every third block is a hole.
            if block % 3 != 0 {
                let len = 4096.min(origin_bytes - block * 4096);
                let bytes = vec![block as u8 | 1; len as usize];
                origin.write_at(&bytes, block * 4096).expect("filled");
            }
        }
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime"),
            origin,
            directory: tempfile::tempdir().expect("a directory"),
            options: ManagedOptions {
                chunk_bytes: CHUNK,
                pull,
                push_interval: Duration::from_millis(2),
                durability: Durability::Local,
                io_timeout: None,
                ..ManagedOptions::default()
            },
        }
    }

    fn mount(&self) -> Mounted {
        let _guard = self.runtime.enter();
        let open = OpenOptions::default();
        let resource = Resource::custom("origin", self.origin.clone(), open).expect("a resource");
        let cache = self.open_cache(resource.geometry.resource_bytes());
        let mount = ManagedMount::start(&resource, cache, self.options.clone(), DEPTH.into())
            .expect("mounted");
        let rig = Rig::new(mount.volume().clone());
        Mounted {
            mount,
            resource,
            rig,
        }
    }

    /// Ends a mount as if its process were killed, in which no thread goes on either.
    fn kill(&self, mounted: Mounted) {
        let origin = mounted.resource.as_async();
        drop(mounted);
        for _ in 0..LOCK_TRIES {
            if Arc::strong_count(&origin) == 1 {
                // No task of the mount is left that could begin anything.
                return self.runtime.block_on(origin.settled()).expect("settled");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the origin is never let go of");
    }

    /// Opens the cache, as soon as what was under way when it was dropped has let go of it.
    fn open_cache(&self, size_bytes: u64) -> OpenedCache {
        let path = self.directory.path().join("cache");
        let options = CacheOptions {
            size_bytes,
            chunk_bytes: CHUNK,
            identity: [7; 16],
            origin_name: "origin".to_owned(),
            persistent: true,
            run_directory: self.directory.path().join("run"),
            in_flight_slots: in_flight_slots(DEPTH.into()),
            direct_alignment_bytes: Some(512),
            after_failed_sync: AfterFailedSync::Refuse,
        };
        for _ in 0..LOCK_TRIES {
            match CacheDirectory::open(&path, &options) {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other.expect("a cache"),
            }
        }
        panic!("the cache is never let go of");
    }

    /// Syncs, as often as it takes: the origin may have been told to fail.
    fn sync(&self, mounted: &Mounted) {
        let synced = (0..TRIES).any(|_| self.runtime.block_on(mounted.mount.sync()).is_ok());
        assert!(synced, "each failure is planned once");
    }

    fn origin_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.origin.size().expect("known") as usize];
        self.origin.inner().read_at(&mut bytes, 0).expect("read");
        bytes
    }
}

fn request(op: Op, from: u64, len: u64) -> Request {
    Request::new(op, ByteOffset(from * SECTOR), len * SECTOR)
}

fn behaves(origin_bytes: u64, pull: PullOrder, events: &[Event]) -> Result<(), TestCaseError> {
    let world = World::new(origin_bytes, pull);
    let mut mounted = world.mount();
    let mut model = world.origin_bytes();
    let device_bytes = mounted.mount.volume().geometry().device_bytes() as usize;
    model.resize(device_bytes, 0);
    for event in events {
        match event {
            Event::Request(step) => {
                run(&mut mounted.rig, &mut model, origin_bytes as usize, step)?;
            }
            Event::Sync => {
                world.sync(&mounted);
                prop_assert_eq!(&world.origin_bytes()[..], &model[..origin_bytes as usize]);
            }
            Event::OriginFails(op) => {
                world.origin.plan(Rule::once(*op, Fault::Error(Errno::EIO)));
            }
            Event::Restart => {
                world
                    .runtime
                    .block_on(mounted.mount.finish())
                    .expect("finished");
                drop(mounted);
                mounted = world.mount();
            }
            Event::Kill => {
                world.kill(mounted);
                mounted = world.mount();
            }
        }
    }
    world.origin.release();
    world.sync(&mounted);
    prop_assert_eq!(&world.origin_bytes()[..], &model[..origin_bytes as usize]);
    prop_assert_eq!(mounted.mount.dirty_bytes(), 0);
    Ok(())
}

fn run(
    rig: &mut Rig,
    model: &mut [u8],
    resource_bytes: usize,
    step: &Step,
) -> Result<(), TestCaseError> {
    let bytes = |from: u64, len: u64| (from * SECTOR) as usize..((from + len) * SECTOR) as usize;
    match *step {
        Step::Read(from, len) => {
            rig.buffers[0].fill(0xee);
            let outcome = rig.run(request(Op::Read, from, len));
            if outcome.is_ok() {
                let range = bytes(from, len);
                prop_assert_eq!(&rig.buffers[0][..range.len()], &model[range]);
            } else {
                prop_assert_eq!(outcome, Err(Errno::EIO), "the origin was told to fail");
            }
        }
        Step::Write(from, len, fill, fua) => {
            let range = bytes(from, len);
            rig.buffers[0][..range.len()].fill(fill);
            let asked = Request {
                fua,
                ..request(Op::Write, from, len)
            };
            if range.end > resource_bytes {
                let outcome = rig.run(asked);
                prop_assert_eq!(outcome, Err(Errno::EIO), "padding takes zeros only");
            } else {
                prop_assert_eq!(run_at_last(rig, asked), Ok(()));
                model[range].fill(fill);
            }
        }
        Step::Zero(from, len, no_unmap) => {
            let asked = Request {
                no_unmap,
                ..request(Op::WriteZeroes, from, len)
            };
            zero(rig, model, asked)?;
        }
        Step::Discard(from, len) => zero(rig, model, request(Op::Discard, from, len))?,
        Step::Flush => {
            prop_assert_eq!(rig.run(Request::new(Op::Flush, ByteOffset(0), 0)), Ok(()));
        }
    }
    Ok(())
}

/// Runs a request whose edges may fail to be fetched, as planned.
fn run_at_last(rig: &mut Rig, asked: Request) -> Outcome {
    let mut outcomes = (0..TRIES).map(|_| rig.run(asked));
    let end = outcomes.find(|outcome| *outcome != Err(Errno::EIO));
    end.unwrap_or(Err(Errno::EIO))
}

fn zero(rig: &mut Rig, model: &mut [u8], asked: Request) -> Result<(), TestCaseError> {
    prop_assert_eq!(run_at_last(rig, asked), Ok(()));
    let from = asked.offset.0 as usize;
    model[from..from + asked.len_bytes as usize].fill(0);
    Ok(())
}

proptest! {
    #![proptest_config(super::cases(640))]

    #[test]
    fn a_managed_volume_is_an_array_of_bytes(
        events in events(400),
        odd in 0u64..=3,
        pull in prop_oneof![Just(PullOrder::Sequential), Just(PullOrder::Nothing)],
    ) {
        let origin_bytes = 400 * SECTOR - [0, 1, 100, 511][odd as usize];
        behaves(origin_bytes, pull, &events)?;
    }
}

#[test]
fn everything_is_pulled_and_holes_stay_holes() {
    let world = World::new(1 << 20, PullOrder::Sequential);
    let mounted = world.mount();
    world.runtime.block_on(mounted.mount.pulled());
    let status = mounted.mount.status();
    assert_eq!(status.local_bytes, 1 << 20);
    assert_eq!(status.dirty_bytes, 0);
    let stored = std::fs::metadata(world.directory.path().join("cache/data")).expect("there");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&stored);
    assert!(
        blocks * 512 < 1 << 20,
        "{blocks} blocks of 512: holes were filled"
    );
}
