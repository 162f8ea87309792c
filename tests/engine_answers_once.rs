//! Every request that a queue starts ends exactly once, with exactly its bytes: on memory, on
//! files (on a page-cached and on an in-memory file system) and on the asynchronous side, whatever
//! the backend does.

mod engine_support;
mod fuse_support;

use std::path::Path;
use std::sync::Arc;

use blockferry::backend::faults::{Fault, Faulty, Rule};
use blockferry::backend::{OpenOptions, Resource, open};
use blockferry::mount::direct;
use blockferry::volume::{ByteOffset, Errno, MemoryMap, Op, Request, Tag, Volume};
use engine_support::{DEPTH, Rig, SECTOR, Step, in_runtime, steps};
use proptest::prelude::*;

fn mount(resource: &Resource) -> (Arc<Volume>, direct::DirectMount) {
    let mount = direct::mount(resource, DEPTH.into(), None);
    (mount.volume.clone(), mount)
}

/// Runs the steps against the engine and against an array of bytes.
fn agrees_with_an_array(resource: &Resource, steps: &[Step]) -> Result<(), TestCaseError> {
    let (volume, _mount) = mount(resource);
    let resource_bytes = volume.geometry().resource_bytes() as usize;
    let mut model = vec![0u8; volume.geometry().device_bytes() as usize];
    let mut rig = Rig::new(volume);
    let request =
        |op, from: u64, len: u64| Request::new(op, ByteOffset(from * SECTOR), len * SECTOR);
    let bytes = |from: u64, len: u64| (from * SECTOR) as usize..((from + len) * SECTOR) as usize;
    for step in steps {
        match *step {
            Step::Read(from, len) => {
                rig.buffers[0].fill(0xee);
                prop_assert_eq!(rig.run(request(Op::Read, from, len)), Ok(()));
                let range = bytes(from, len);
                prop_assert_eq!(&rig.buffers[0][..range.len()], &model[range]);
            }
            Step::Write(from, len, fill, fua) => {
                let range = bytes(from, len);
                rig.buffers[0][..range.len()].fill(fill);
                let outcome = rig.run(Request {
                    fua,
                    ..request(Op::Write, from, len)
                });
                if range.end > resource_bytes {
                    prop_assert_eq!(outcome, Err(Errno::EIO), "padding takes zeros only");
                } else {
                    prop_assert_eq!(outcome, Ok(()));
                    model[range].fill(fill);
                }
            }
            Step::Zero(from, len, no_unmap) => {
                let asked = Request {
                    no_unmap,
                    ..request(Op::WriteZeroes, from, len)
                };
                prop_assert_eq!(rig.run(asked), Ok(()));
                model[bytes(from, len)].fill(0);
            }
            Step::Discard(from, len) => {
                prop_assert_eq!(rig.run(request(Op::Discard, from, len)), Ok(()));
                model[bytes(from, len)].fill(0);
            }
            Step::Flush => {
                prop_assert_eq!(rig.run(Request::new(Op::Flush, ByteOffset(0), 0)), Ok(()))
            }
        }
    }
    Ok(())
}

fn file_in(folder: &Path, len: u64) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir_in(folder).expect("a directory");
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path)
        .expect("made")
        .set_len(len)
        .expect("sized");
    let url = format!("file:{}", path.display());
    (dir, url)
}

const SECTORS: u64 = 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn memory_agrees_with_an_array(steps in steps(SECTORS)) {
        let resource = open("mem:256KiB", &OpenOptions::default()).expect("open");
        agrees_with_an_array(&resource, &steps)?;
    }

    #[test]
    fn padded_memory_agrees_with_an_array(steps in steps(SECTORS)) {
        let resource = open("mem:261633", &OpenOptions::default()).expect("open");
        agrees_with_an_array(&resource, &steps)?;
    }

    #[test]
    fn file_agrees_with_an_array(steps in steps(SECTORS), direct_io in any::<bool>(), shm in any::<bool>()) {
        let folder = if shm { Path::new("/dev/shm").to_owned() } else { std::env::temp_dir() };
        let (_dir, url) = file_in(&folder, SECTORS * SECTOR);
        let options = OpenOptions { direct_io, ..OpenOptions::default() };
        agrees_with_an_array(&open(&url, &options).expect("open"), &steps)?;
    }

    #[test]
    fn padded_file_agrees_with_an_array(steps in steps(SECTORS)) {
        let (_dir, url) = file_in(&std::env::temp_dir(), SECTORS * SECTOR - 100);
        let options = OpenOptions { direct_io: true, ..OpenOptions::default() };
        agrees_with_an_array(&open(&url, &options).expect("open"), &steps)?;
    }

    #[test]
    fn pooled_backend_agrees_with_an_array(steps in steps(SECTORS)) {
        in_runtime(|| {
            let memory = MemoryMap::new(SECTORS * SECTOR).expect("memory");
            let resource = Resource::custom("test", Arc::new(memory), OpenOptions::default());
            agrees_with_an_array(&resource.expect("a size"), &steps)
        })?;
    }
}

/// Syncs are shared, so each of them has more than one request to end.
#[test]
fn many_durable_writes_and_flushes_at_once_all_end_with_their_bytes_in_the_file() {
    let (dir, url) = file_in(&std::env::temp_dir(), 1 << 20);
    let resource = open(&url, &OpenOptions::default()).expect("open");
    let (volume, _mount) = mount(&resource);
    let mut rig = Rig::new(volume);
    for round in 1..=20u8 {
        for tag in 0..DEPTH {
            let request = match tag % 4 {
                3 => Request::new(Op::Flush, ByteOffset(0), 0),
                _ => Request {
                    fua: true,
                    ..Request::new(Op::Write, ByteOffset(u64::from(tag) * 4096), 4096)
                },
            };
            rig.buffers[usize::from(tag)].fill(round);
            assert_eq!(rig.start(Tag(tag), request), None);
        }
        let ended = rig.finish();
        assert_eq!(ended.len(), usize::from(DEPTH));
        assert!(
            ended.values().all(|outcome| *outcome == Ok(())),
            "{ended:?}"
        );
    }
    let written = std::fs::read(dir.path().join("disk.img")).expect("read");
    for tag in (0..usize::from(DEPTH)).filter(|tag| tag % 4 != 3) {
        assert!(written[tag * 4096..][..4096].iter().all(|byte| *byte == 20));
    }
}

/// A volume over a loop device whose writes to the page cache succeed, and whose later ones do not.
fn on_failing_disk(test: impl FnOnce(Arc<Volume>, &Faulty<MemoryMap>)) {
    let Some(_turn) = fuse_support::turn() else {
        return;
    };
    let faulty = Arc::new(Faulty::new(MemoryMap::new(1 << 20).expect("memory")));
    let backend: Arc<dyn blockferry::Backend> = faulty.clone();
    let below = Resource::custom("test", backend, OpenOptions::default()).expect("a size");
    let served = fuse_support::serve_resource(&below, fuse_support::Wish::default());
    {
        let url = format!("file:{}", served.loop_device().display());
        let resource = open(&url, &OpenOptions::default()).expect("open");
        let (volume, _mount) = mount(&resource);
        test(volume, &faulty);
    }
    served.end();
}

const WRITE: Request = Request::new(Op::Write, ByteOffset(0), 4096);
const FLUSH: Request = Request::new(Op::Flush, ByteOffset(0), 0);

/// L10: the kernel tells whoever syncs first that bytes are lost, and holds them for clean then.
#[test]
fn a_flush_fails_even_if_another_queue_was_told_of_the_loss_and_has_not_said_so_yet() {
    on_failing_disk(|volume, faulty| {
        let mut first = Rig::new(volume.clone());
        let mut second = Rig::new(volume);
        assert_eq!(second.run(WRITE), Ok(()));
        faulty.plan(Rule::always(Op::Write, Fault::Error(Errno::EIO)));
        assert_eq!(first.start(Tag(0), FLUSH), None);
        first.queue.wait(&mut first.ring).expect("it has ended");
        assert_eq!(second.run(FLUSH), Err(Errno::EIO));
        assert_eq!(first.finish()[&Tag(0)], Err(Errno::EIO));
    });
}

#[test]
fn no_flush_that_was_under_way_with_a_failed_one_succeeds() {
    on_failing_disk(|volume, faulty| {
        let mut rig = Rig::new(volume);
        assert_eq!(rig.run(WRITE), Ok(()));
        faulty.plan(Rule::always(Op::Write, Fault::Error(Errno::EIO)));
        for tag in 0..DEPTH {
            assert_eq!(rig.start(Tag(tag), FLUSH), None);
        }
        for (tag, outcome) in rig.finish() {
            assert_eq!(outcome, Err(Errno::EIO), "{tag:?}");
        }
        assert_eq!(rig.run(FLUSH), Err(Errno::EIO), "it stays so");
    });
}

#[test]
fn a_short_read_reads_as_zeros_and_not_as_what_the_buffer_held() {
    in_runtime(|| {
        let faulty = Faulty::new(MemoryMap::new(1 << 20).expect("memory"));
        faulty.plan(Rule::once(Op::Read, Fault::ShortRead(100)));
        let resource = Resource::custom("test", Arc::new(faulty), OpenOptions::default());
        let (volume, _mount) = mount(&resource.expect("a size"));
        let mut rig = Rig::new(volume);
        rig.buffers[0].fill(0xee);
        assert_eq!(rig.run(Request::new(Op::Read, ByteOffset(0), 4096)), Ok(()));
        assert!(rig.buffers[0][..4096].iter().all(|byte| *byte == 0));
        assert_eq!(
            rig.buffers[0][4096], 0xee,
            "nothing behind the request is touched"
        );
    });
}

#[test]
fn a_file_that_shrank_reads_as_zeros_behind_its_end() {
    let (dir, url) = file_in(&std::env::temp_dir(), 1 << 20);
    let resource = open(&url, &OpenOptions::default()).expect("open");
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![7; 6000]).expect("shrunk");
    let (volume, _mount) = mount(&resource);
    let mut rig = Rig::new(volume);
    rig.buffers[0].fill(0xee);
    assert_eq!(
        rig.run(Request::new(Op::Read, ByteOffset(4096), 4096)),
        Ok(())
    );
    let (data, tail) = rig.buffers[0][..4096].split_at(6000 - 4096);
    assert!(data.iter().all(|byte| *byte == 7) && tail.iter().all(|byte| *byte == 0));
}

#[test]
fn errors_of_the_backend_reach_the_device_with_their_code() {
    in_runtime(|| {
        let faulty = Faulty::new(MemoryMap::new(1 << 20).expect("memory"));
        for (op, errno) in [
            (Op::Read, libc::EREMOTEIO),
            (Op::Write, libc::ENOSPC),
            (Op::Flush, libc::EIO),
        ] {
            faulty.plan(Rule::once(op, Fault::Error(Errno::from_raw(errno))));
        }
        let resource = Resource::custom("test", Arc::new(faulty), OpenOptions::default());
        let (volume, _mount) = mount(&resource.expect("a size"));
        let mut rig = Rig::new(volume.clone());
        for (op, errno) in [(Op::Read, libc::EREMOTEIO), (Op::Write, libc::ENOSPC)] {
            let request = Request::new(op, ByteOffset(0), 4096);
            assert_eq!(rig.run(request), Err(Errno::from_raw(errno)));
            assert_eq!(rig.run(request), Ok(()));
        }
        let flush = Request::new(Op::Flush, ByteOffset(0), 0);
        assert_eq!(rig.run(flush), Err(Errno::EIO));
        assert_eq!(rig.run(flush), Ok(()));
        assert_eq!(volume.counters().errors, 3);
    });
}

/// L2 and L3: the request ends at its deadline, and the call that went on in the background
/// touches the device's buffer no more.
#[test]
fn a_request_past_its_deadline_fails_and_lets_go_of_its_buffer() {
    in_runtime(|| {
        let faulty = Arc::new(Faulty::new(MemoryMap::new(1 << 20).expect("memory")));
        faulty.plan(Rule::once(Op::Read, Fault::Hold));
        let backend: Arc<dyn blockferry::Backend> = faulty.clone();
        let resource = Resource::custom("test", backend, OpenOptions::default()).expect("a size");
        let timeout = Some(std::time::Duration::from_millis(50));
        let mount = direct::mount(&resource, DEPTH.into(), timeout);
        let timeouts = mount.fetcher.as_ref().expect("asynchronous").timeouts();
        let mut rig = Rig::new(mount.volume.clone());
        rig.buffers[0].fill(0xee);
        let read = Request::new(Op::Read, ByteOffset(0), 4096);
        assert_eq!(rig.run(read), Err(Errno::EIO));
        assert_eq!(timeouts.load(std::sync::atomic::Ordering::Relaxed), 1);
        faulty.release();
        assert_eq!(rig.run(Request::new(Op::Flush, ByteOffset(0), 0)), Ok(()));
        assert!(rig.buffers[0].iter().all(|byte| *byte == 0xee));
        assert_eq!(rig.run(read), Ok(()), "the volume works on");
    });
}

/// A device whose kernel kills whoever is too slow says so, and no mount outlasts that.
#[test]
fn a_limit_of_the_device_holds_where_the_mount_would_wait_for_ever() {
    in_runtime(|| {
        let faulty = Arc::new(Faulty::new(MemoryMap::new(1 << 20).expect("memory")));
        faulty.plan(Rule::once(Op::Read, Fault::Hold));
        let backend: Arc<dyn blockferry::Backend> = faulty.clone();
        let resource = Resource::custom("test", backend, OpenOptions::default()).expect("a size");
        let mount = direct::mount(&resource, DEPTH.into(), None);
        let limit = std::time::Duration::from_millis(50);
        mount.volume.limit_requests(limit);
        let mut rig = Rig::new(mount.volume.clone());
        let read = Request::new(Op::Read, ByteOffset(0), 4096);
        assert_eq!(rig.run(read), Err(Errno::EIO));
        faulty.release();
        assert_eq!(rig.run(read), Ok(()), "the volume works on");
    });
}

/// A write that was given up does not land after a later one.
#[test]
fn a_write_past_its_deadline_never_overtakes_a_later_one() {
    in_runtime(|| {
        let faulty = Arc::new(Faulty::new(MemoryMap::new(1 << 20).expect("memory")));
        faulty.plan(Rule::once(Op::Write, Fault::Hold));
        let backend: Arc<dyn blockferry::Backend> = faulty.clone();
        let resource = Resource::custom("test", backend, OpenOptions::default()).expect("a size");
        let timeout = Some(std::time::Duration::from_millis(50));
        let mount = direct::mount(&resource, DEPTH.into(), timeout);
        let mut rig = Rig::new(mount.volume.clone());
        let write = Request::new(Op::Write, ByteOffset(0), 4096);
        rig.buffers[0].fill(1);
        assert_eq!(rig.run(write), Err(Errno::EIO));
        rig.buffers[0].fill(2);
        assert_eq!(
            rig.run(write),
            Err(Errno::EIO),
            "waits behind the first, which hangs"
        );
        faulty.release();
        rig.buffers[0].fill(3);
        assert_eq!(rig.run(write), Ok(()));
        assert_eq!(rig.run(Request::new(Op::Read, ByteOffset(0), 4096)), Ok(()));
        assert!(rig.buffers[0][..4096].iter().all(|byte| *byte == 3));
    });
}

#[test]
fn requests_under_way_fail_when_the_asynchronous_side_ends() {
    in_runtime(|| {
        let faulty = Arc::new(Faulty::new(MemoryMap::new(1 << 20).expect("memory")));
        faulty.plan(Rule::always(Op::Read, Fault::Hold));
        let backend: Arc<dyn blockferry::Backend> = faulty.clone();
        let resource = Resource::custom("test", backend, OpenOptions::default()).expect("a size");
        let mut mount = direct::mount(&resource, DEPTH.into(), None);
        let mut rig = Rig::new(mount.volume.clone());
        for tag in 0..DEPTH {
            let offset = ByteOffset(u64::from(tag) * 4096);
            assert_eq!(
                rig.start(Tag(tag), Request::new(Op::Read, offset, 4096)),
                None
            );
        }
        drop(mount.fetcher.take());
        let ended = rig.finish();
        assert_eq!(ended.len(), usize::from(DEPTH));
        assert!(ended.values().all(|outcome| *outcome == Err(Errno::EIO)));
        faulty.release();
    });
}

#[test]
fn what_lies_past_the_end_or_is_read_only_is_refused() {
    let read_only = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let (volume, _mount) = mount(&open("mem:1MiB", &read_only).expect("open"));
    let mut rig = Rig::new(volume);
    for (offset, len) in [
        (1 << 20, 512),
        ((1 << 20) - 512, 1024),
        (u64::MAX - 511, 1024),
    ] {
        let outcome = rig.run(Request::new(Op::Read, ByteOffset(offset), len));
        assert_eq!(outcome, Err(Errno::EINVAL), "{offset}");
    }
    for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
        let outcome = rig.run(Request::new(op, ByteOffset(0), 512));
        assert_eq!(outcome, Err(Errno::EPERM), "{op:?}");
    }
}

/// A link that is slow but works fails nothing: requests behind others wait as long as those are
/// being answered.
#[test]
fn a_request_behind_others_that_are_being_answered_outlives_its_deadline() {
    in_runtime(|| {
        let faulty = Faulty::new(MemoryMap::new(1 << 20).expect("memory"));
        let slow = std::time::Duration::from_millis(200);
        faulty.plan(Rule::always(Op::Write, Fault::Delay(slow)));
        let resource = Resource::custom("test", Arc::new(faulty), OpenOptions::default());
        // Writes to one place go one after the other, so the last one takes four times 200 ms.
        let timeout = Some(slow * 2);
        let mount = direct::mount(&resource.expect("a size"), DEPTH.into(), timeout);
        let mut rig = Rig::new(mount.volume.clone());
        for tag in 0..4 {
            let write = Request::new(Op::Write, ByteOffset(0), 4096);
            assert_eq!(rig.start(Tag(tag), write), None);
        }
        let ended = rig.finish();
        assert!(ended.values().all(|outcome| outcome.is_ok()), "{ended:?}");
    });
}
