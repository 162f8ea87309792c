//! The FUSE device with real file systems and tools on it. Needs root, /dev/fuse and loop devices.

mod fuse_support;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fuse_support::*;

/// A sparse file of that size, in a directory of its own.
fn image(len_bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.img");
    File::create(&path)
        .and_then(|file| file.set_len(len_bytes))
        .expect("an image");
    (directory, path)
}

fn open_rw(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn errno(result: io::Result<usize>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// mkfs, mount, write, unmount, check, mount again, compare, trim.
fn a_file_system_lives_on(served: &Served) {
    let device = served.loop_device();
    let place = tempfile::tempdir().expect("a directory");
    run("mkfs.ext4", [OsStr::new("-q"), device.as_os_str()]);
    run("mount", [device.as_path(), place.path()]);
    let contents: Vec<_> = (0..40).map(|n| pattern(n, 10_000 * n as usize)).collect();
    for (n, bytes) in contents.iter().enumerate() {
        std::fs::write(place.path().join(n.to_string()), bytes).expect("written");
    }
    run("umount", [place.path()]);
    run("e2fsck", [OsStr::new("-fn"), device.as_os_str()]);
    run("mount", [device.as_path(), place.path()]);
    for (n, bytes) in contents.iter().enumerate() {
        let read = std::fs::read(place.path().join(n.to_string())).expect("read");
        assert!(read == *bytes, "file {n} has changed");
        std::fs::remove_file(place.path().join(n.to_string())).expect("removed");
    }
    run("fstrim", [place.path()]);
    run("umount", [place.path()]);
    run("e2fsck", [OsStr::new("-fn"), device.as_os_str()]);
}

#[test]
fn a_file_system_in_memory_survives_its_unmount() {
    let Some(_turn) = turn() else { return };
    let served = serve("mem:64MiB", Wish::default());
    a_file_system_lives_on(&served);
    let counters = served.mount.volume.counters();
    assert!(counters.writes > 0 && counters.reads > 0 && counters.discards > 0);
    assert_eq!(counters.errors, 0);
    served.end();
}

#[test]
fn a_file_system_in_a_file_survives_and_trimmed_space_is_given_back() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(128 << 20);
    let served = serve(&format!("file:{}", path.display()), Wish::default());
    a_file_system_lives_on(&served);
    assert_eq!(served.mount.volume.counters().errors, 0);
    served.end();
    let (fine, report) = try_run("e2fsck", [OsStr::new("-fn"), path.as_os_str()]);
    assert!(fine, "{report}");
}

#[test]
fn trimmed_space_is_given_back_by_the_file_below() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(128 << 20);
    let allocated = || std::fs::metadata(&path).expect("there").blocks() * 512;
    let served = serve(&format!("file:{}", path.display()), Wish::default());
    let device = served.loop_device();
    let place = tempfile::tempdir().expect("a directory");
    run("mkfs.ext4", [OsStr::new("-q"), device.as_os_str()]);
    run("mount", [device.as_path(), place.path()]);
    let file = place.path().join("large");
    std::fs::write(&file, pattern(1, 32 << 20)).expect("written");
    run("sync", [OsStr::new("-f"), place.path().as_os_str()]);
    let before = allocated();
    assert!(before > 32 << 20);
    std::fs::remove_file(&file).expect("removed");
    run("sync", [OsStr::new("-f"), place.path().as_os_str()]);
    run("fstrim", [place.path()]);
    assert!(
        allocated() < before - (30 << 20),
        "{} of {before}",
        allocated()
    );
    run("umount", [place.path()]);
    served.end();
}

#[test]
fn the_logical_block_of_the_loop_device_is_the_volumes() {
    let Some(_turn) = turn() else { return };
    for block_bytes in [512, 4096] {
        let served = serve(
            "mem:16MiB",
            Wish {
                block_bytes: Some(block_bytes),
                ..Wish::default()
            },
        );
        let device = served.loop_device();
        let name = device.file_name().expect("a name");
        let queue = Path::new("/sys/block").join(name).join("queue");
        let value = |file: &str| std::fs::read_to_string(queue.join(file)).expect("readable");
        assert_eq!(value("logical_block_size").trim(), block_bytes.to_string());
        assert_eq!(value("../loop/dio").trim(), "1", "direct I/O is on");
        served.end();
    }
}

#[test]
fn an_odd_sized_resource_is_padded_and_never_extended() {
    let Some(_turn) = turn() else { return };
    let len_bytes = (1 << 20) + 700;
    let (_directory, path) = image(len_bytes);
    let served = serve(&format!("file:{}", path.display()), Wish::default());
    let device_bytes = len_bytes.next_multiple_of(512);
    assert_eq!(
        std::fs::metadata(served.file()).expect("there").len(),
        device_bytes
    );
    let disk = open_rw(&served.loop_device());
    // Page-sized and page-aligned, so that neither the cache nor the tail is in the way.
    let last = device_bytes - 512;
    let mut tail = pattern(3, 512);
    disk.write_all_at(&tail, last).expect("cached");
    assert!(
        disk.sync_all().is_err(),
        "bytes do not fit into the padding"
    );
    let data_bytes = (len_bytes - last) as usize;
    tail[data_bytes..].fill(0);
    disk.write_all_at(&tail, last).expect("cached");
    disk.sync_all().expect("zeros fit into the padding");
    drop(disk);
    let mut read = vec![1; 512];
    open_rw(&served.file())
        .read_exact_at(&mut read, last)
        .expect("read");
    assert!(read == tail);
    served.end();
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(bytes.len() as u64, len_bytes);
    assert!(bytes[last as usize..] == tail[..data_bytes]);
}

#[test]
fn the_file_takes_any_offset_and_length_up_to_its_end_and_not_a_byte_more() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(1 << 20);
    for url in ["mem:1MiB".to_owned(), format!("file:{}", path.display())] {
        let served = serve(&url, Wish::default());
        let file = open_rw(&served.file());
        let end: u64 = 1 << 20;
        let mut model = vec![0; end as usize];
        let places = [
            (0, 1),
            (511, 2),
            (1000, 5000),
            (4095, 4097),
            (end - 700, 700),
            (end - 1, 1),
            (70_000, 300_001),
        ];
        for (n, (offset, len)) in (1..).zip(places) {
            let bytes = pattern(n, len);
            file.write_all_at(&bytes, offset).expect("written");
            model[offset as usize..][..len].copy_from_slice(&bytes);
        }
        let mut read = vec![0; end as usize];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == model, "{url}");
        for (offset, len) in [(3, 7), (4000, 200), (end - 5, 5), (100_001, 9_999)] {
            let mut part = vec![0; len];
            file.read_exact_at(&mut part, offset).expect("read");
            assert!(part == model[offset as usize..][..len], "{url} at {offset}");
        }
        for (offset, len) in [(end, 1), (end - 1, 2), (end + 4096, 512)] {
            let result = file.write_at(&vec![1; len], offset);
            assert_eq!(errno(result), Some(libc::ENOSPC), "{len} at {offset}");
        }
        assert_eq!(file.read_at(&mut [0; 8], end).expect("the end"), 0);
        assert_eq!(file.read_at(&mut [0; 8], end - 3).expect("the end"), 3);
        assert_eq!(file.metadata().expect("there").len(), end);
        assert!(file.set_len(end).is_ok());
        assert!(file.set_len(end + 512).is_err());
        assert!(file.set_len(0).is_err());
        drop(file);
        served.end();
    }
}

#[test]
fn a_hole_reads_as_zeros_and_leaves_its_neighbours_alone() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(4 << 20);
    for url in ["mem:4MiB".to_owned(), format!("file:{}", path.display())] {
        let served = serve(&url, Wish::default());
        let disk = open_rw(&served.loop_device());
        let bytes = pattern(9, 4 << 20);
        disk.write_all_at(&bytes, 0).expect("written");
        disk.sync_all().expect("flushed");
        drop(disk);
        let device = served.loop_device();
        let mut model = bytes;
        for (arguments, offset, len) in [
            (vec!["-o", "4096", "-l", "8192"], 4096, 8192),
            (vec!["-z", "-o", "1048576", "-l", "512"], 1_048_576, 512),
            (vec!["-o", "2097152", "-l", "1048576"], 2 << 20, 1 << 20),
        ] {
            let mut all: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
            all.push(device.as_os_str());
            run("blkdiscard", all);
            model[offset..offset + len].fill(0);
        }
        let mut read = vec![1; 4 << 20];
        open_rw(&device).read_exact_at(&mut read, 0).expect("read");
        assert!(read == model, "{url}");
        served.end();
    }
}

/// A backend that takes only whole blocks of 512 bytes. A read waits a moment for another request,
/// so that requests that may meet do.
struct Blocks {
    disk: std::sync::Mutex<Vec<u8>>,
    requests: std::sync::atomic::AtomicU64,
}

impl Blocks {
    fn wait_for_another(&self) {
        use std::sync::atomic::Ordering::SeqCst;
        let before = self.requests.load(SeqCst);
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(1);
        while self.requests.load(SeqCst) == before && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    }

    fn arrived(&self) {
        self.requests
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

impl blockferry::Backend for Blocks {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().expect("not poisoned").len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        assert_eq!((offset % 512, buf.len() % 512), (0, 0));
        let disk = self.disk.lock().expect("not poisoned");
        buf.copy_from_slice(&disk[offset as usize..][..buf.len()]);
        drop(disk);
        self.arrived();
        self.wait_for_another();
        Ok(buf.len())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!((offset % 512, buf.len() % 512), (0, 0));
        self.arrived();
        let mut disk = self.disk.lock().expect("not poisoned");
        disk[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn writers_of_parts_of_the_same_blocks_do_not_undo_each_other() {
    let Some(_turn) = turn() else { return };
    const LEN: u64 = 32 << 10;
    // Odd, so that neighbours share blocks.
    const PIECE: u64 = 333;
    let backend = std::sync::Arc::new(Blocks {
        disk: std::sync::Mutex::new(vec![0; LEN as usize]),
        requests: Default::default(),
    });
    let resource = blockferry::backend::Resource::custom("blocks", backend, Default::default())
        .expect("a resource");
    let served = serve_resource(&resource, Wish::default());
    let path = served.file();
    let pieces = LEN / PIECE;
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                // Direct, so that the kernel does not let one writer in after the other.
                let file = open_rw(path);
                for round in 1..=4 {
                    for piece in (0..pieces).filter(|piece| piece % 4 == writer) {
                        let bytes = pattern(piece * 100 + round, PIECE as usize);
                        file.write_all_at(&bytes, piece * PIECE).expect("written");
                    }
                }
            });
        }
    });
    let mut read = vec![0; LEN as usize];
    open_rw(&path).read_exact_at(&mut read, 0).expect("read");
    for piece in 0..pieces {
        let range = (piece * PIECE) as usize..((piece + 1) * PIECE) as usize;
        assert!(
            read[range] == pattern(piece * 100 + 4, PIECE as usize),
            "piece {piece}"
        );
    }
    let counters = served.mount.volume.counters();
    assert!(
        counters.reads >= counters.writes,
        "blocks were read before they were changed in part"
    );
    assert_eq!(counters.errors, 0);
    served.end();
}

#[test]
fn a_read_only_device_refuses_every_way_of_writing() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(1 << 20);
    let served = serve(
        &format!("file:{}", path.display()),
        Wish {
            read_only: true,
            ..Wish::default()
        },
    );
    for path in [served.file(), served.loop_device()] {
        // Some kernels let a read-only block device be opened for writing, and then refuse to.
        let refused = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_at(&[1; 512], 0));
        assert!(
            matches!(
                errno(refused),
                Some(libc::EROFS | libc::EPERM | libc::EACCES)
            ),
            "{}",
            path.display()
        );
        let mut bytes = [1; 512];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut bytes, 0))
            .expect("it can be read");
        assert_eq!(bytes, [0; 512]);
    }
    served.end();
}

#[test]
fn direct_io_verified_by_fio_with_discards_between() {
    let Some(_turn) = turn() else { return };
    if !Path::new("/usr/bin/fio").exists() {
        eprintln!("skipped: fio is not installed");
        return;
    }
    let (_directory, path) = image(64 << 20);
    for url in ["mem:64MiB".to_owned(), format!("file:{}", path.display())] {
        let served = serve(&url, Wish::default());
        let report = run(
            "fio",
            [
                "--name=verify",
                &format!("--filename={}", served.loop_device().display()),
                "--ioengine=libaio",
                "--direct=1",
                "--iodepth=16",
                "--rw=randrw",
                "--bsrange=4k-256k",
                "--bs_unaligned=0",
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_fatal=1",
                "--fsync=64",
                "--size=48M",
                "--verify_backlog=128",
                "--verify_state_save=0",
                "--output-format=terse",
            ],
        );
        assert!(!report.contains("verify:"), "{report}");
        assert_eq!(served.mount.volume.counters().errors, 0, "{url}");
        served.end();
    }
}

#[test]
fn a_synchronous_write_reaches_the_disk_before_it_returns() {
    let Some(_turn) = turn() else { return };
    let (_directory, path) = image(1 << 20);
    let served = serve(&format!("file:{}", path.display()), Wish::default());
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(served.file())
        .expect("opened");
    file.write_all_at(&pattern(1, 4096), 0).expect("written");
    file.sync_all().expect("flushed");
    assert!(served.mount.volume.counters().flushes >= 1);
    drop(file);
    served.end();
}

#[test]
fn removing_a_device_that_is_mounted_ends_its_io_and_then_itself() {
    let Some(_turn) = turn() else { return };
    let mut served = serve("mem:32MiB", Wish::default());
    let device = served.loop_device();
    let place = tempfile::tempdir().expect("a directory");
    run("mkfs.ext4", [OsStr::new("-q"), device.as_os_str()]);
    run("mount", [device.as_path(), place.path()]);
    std::fs::write(place.path().join("kept"), pattern(5, 100_000)).expect("written");
    served.device.flush().expect("flushed");
    served.device.remove().expect("removed");
    let (_, _) = try_run(
        "dd",
        [
            OsStr::new("if=/dev/zero"),
            OsStr::new("bs=64k"),
            OsStr::new("count=1"),
            OsStr::new("conv=fsync"),
            OsStr::new(&format!("of={}/lost", place.path().display())),
        ],
    );
    run("umount", [place.path()]);
    wait_until("the end of the loop device", || !is_bound(&device));
    assert!(!served.directory.path().join("fuse").exists());
}

#[test]
fn removing_a_device_takes_the_file_from_those_who_hold_it_open() {
    let Some(_turn) = turn() else { return };
    let served = serve("mem:1MiB", Wish::default());
    let file = open_rw(&served.file());
    file.write_all_at(&[7; 4096], 0).expect("written");
    served.end();
    let result = file.read_at(&mut [0; 4096], 0);
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_does_not_keep_it_alive() {
    let Some(_turn) = turn() else { return };
    let served = serve("mem:1MiB", Wish::default());
    let mut other = std::process::Command::new("unshare")
        .args(["-m", "--propagation", "private", "cat"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("unshare");
    let own = std::fs::read_link("/proc/self/ns/mnt").expect("readable");
    let others = format!("/proc/{}/ns/mnt", other.id());
    wait_until("the other namespace", || {
        std::fs::read_link(&others).is_ok_and(|link| link != own)
    });
    served.end();
    drop(other.stdin.take());
    assert!(other.wait().expect("ended").success());
}

#[test]
fn somebody_elses_unmount_is_reported() {
    let Some(_turn) = turn() else { return };
    let mut served = serve("mem:1MiB", Wish::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let place = served.directory.path().join("fuse");
    run(
        "umount",
        [OsStr::new("-l"), OsStr::new("-f"), place.as_os_str()],
    );
    let error = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, served.device.ended()).await })
        .expect("reported");
    assert!(error.to_string().contains("unmounted"), "{error}");
}
