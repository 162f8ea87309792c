//! Nothing is left of a device that was removed or that could not be set up. In a program of its
//! own, since it counts the threads and descriptors of the process. Needs root, /dev/fuse and loop
//! devices.

mod fuse_support;

use std::path::Path;

use blockferry::backend::open;
use blockferry::device::{self, DeviceKind};
use blockferry::mount::direct;
use fuse_support::*;

/// What a process holds, and what it has left on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    loop_devices: Vec<String>,
    mounts: usize,
}

impl Holdings {
    /// Only loop devices over a file of ours count: others may come and go.
    fn now() -> Self {
        let count = |path: &str| std::fs::read_dir(path).expect(path).count();
        let loop_devices = std::fs::read_dir("/sys/block")
            .expect("devices")
            .filter_map(|entry| {
                let file = entry.ok()?.path().join("loop/backing_file");
                std::fs::read_to_string(file).ok()
            })
            .filter(|file| file.trim_end().ends_with("/fuse/disk"))
            .collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            loop_devices,
            mounts: mounts
                .lines()
                .filter(|line| line.contains("blockferry"))
                .count(),
        }
    }
}

fn in_turns(queues: u16) {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("disk.img");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("an image");
    for url in ["mem:1MiB".to_owned(), format!("file:{}", image.display())] {
        let served = serve(
            &url,
            Wish {
                queues,
                ..Wish::default()
            },
        );
        let bytes = pattern(u64::from(queues), 4096);
        std::fs::write(served.loop_device(), &bytes).expect("written");
        served.end();
    }
}

#[test]
fn forty_mounts_and_failed_ones_leave_nothing() {
    let Some(_turn) = turn() else { return };
    // What the libraries set up once is set up now.
    in_turns(1);
    let before = Holdings::now();
    for round in 0..20 {
        in_turns(1 + round % 3);
    }
    wait_until("the end of all threads", || Holdings::now() == before);

    fails_when_something_is_in_the_way();
    fails_without_its_directory();
    wait_until("the end of all threads", || Holdings::now() == before);
}

/// A file has the name of the directory for the mount.
fn fails_when_something_is_in_the_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).expect("an image");
    std::fs::write(directory.path().join("fuse"), "in the way").expect("a file");
    start_fails(&format!("file:{}", image.display()), directory.path());
    assert!(directory.path().join("fuse").is_file(), "it was not ours");
}

fn fails_without_its_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    start_fails("mem:1MiB", &directory.path().join("missing"));
}

fn start_fails(url: &str, run_directory: &Path) {
    let resource = open(url, &Default::default()).expect("a resource");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mount = runtime.block_on(async { direct::mount(&resource, 128, None) });
    let options = options(run_directory, Wish::default());
    let Err(error) = device::start(DeviceKind::Fuse, mount.volume, &options) else {
        panic!("it started");
    };
    assert!(!error.to_string().is_empty());
}

#[test]
fn two_devices_in_one_directory_are_refused() {
    let Some(_turn) = turn() else { return };
    let served = serve("mem:1MiB", Wish::default());
    let resource = open("mem:1MiB", &Default::default()).expect("a resource");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mount = runtime.block_on(async { direct::mount(&resource, 128, None) });
    let options = options(served.directory.path(), Wish::default());
    let Err(error) = device::start(DeviceKind::Fuse, mount.volume, &options) else {
        panic!("it started");
    };
    assert_eq!(error.kind(), blockferry::ErrorKind::Busy, "{error}");
    assert!(served.device.path().exists());
    served.end();
}

#[test]
fn a_prepared_device_shows_nothing_before_its_start_and_leaves_nothing_without_one() {
    let Some(_turn) = turn() else { return };
    let resource = open("mem:1MiB", &Default::default()).expect("a resource");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let volume = runtime.block_on(async { direct::mount(&resource, 128, None).volume });
    let directory = tempfile::tempdir().expect("a directory");
    let options = options(directory.path(), Wish::default());
    let file = directory.path().join("fuse").join(&options.name);

    let prepared = device::prepare(DeviceKind::Fuse, volume.clone(), &options).expect("prepared");
    let refused = std::fs::File::open(&file).expect_err("it was opened before its start");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EBUSY), "{refused}");
    drop(prepared);
    assert!(!file.exists() && !directory.path().join("fuse").exists());

    let prepared = device::prepare(DeviceKind::Fuse, volume, &options).expect("prepared");
    let mut device = prepared.start().expect("started");
    std::fs::File::open(device.path()).expect("it can be opened");
    device.remove().expect("removed");
    assert!(!directory.path().join("fuse").exists());
}
