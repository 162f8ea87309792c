//! What the tests of the FUSE device share.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blockferry::backend::{OpenOptions, Resource, open};
use blockferry::device::{self, Device, DeviceKind, DeviceOptions, DeviceRecord};
use blockferry::mount::direct::{self, DirectMount};

/// Long enough for anything that happens at all on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A resource behind a FUSE device, in a directory of its own.
pub(crate) struct Served {
    pub device: Box<dyn Device>,
    pub mount: DirectMount,
    pub directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// How a device is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Wish {
    pub read_only: bool,
    pub block_bytes: Option<u32>,
    pub queues: u16,
    pub depth: u16,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            read_only: false,
            block_bytes: None,
            queues: 2,
            depth: 32,
        }
    }
}

/// Serves what `url` names.
pub(crate) fn serve(url: &str, wish: Wish) -> Served {
    let options = OpenOptions {
        read_only: wish.read_only,
        block_bytes: wish.block_bytes,
        direct_io: true,
        ..OpenOptions::default()
    };
    serve_resource(&open(url, &options).expect("the resource opens"), wish)
}

/// Serves a resource.
pub(crate) fn serve_resource(resource: &Resource, wish: Wish) -> Served {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mount = {
        let _in_runtime = runtime.enter();
        direct::mount(resource, 4096, Some(PATIENCE))
    };
    let options = options(directory.path(), wish);
    let device =
        device::start(DeviceKind::Fuse, mount.volume.clone(), &options).expect("the device starts");
    Served {
        device,
        mount,
        directory,
        _runtime: runtime,
    }
}

/// The options for a device in `directory`.
pub(crate) fn options(directory: &Path, wish: Wish) -> DeviceOptions {
    DeviceOptions {
        queues: wish.queues,
        depth: wish.depth,
        read_only: wish.read_only,
        ..DeviceOptions::new("disk", directory)
    }
}

impl Served {
    /// The file below the loop device.
    pub(crate) fn file(&self) -> PathBuf {
        match self.device.record() {
            DeviceRecord::Fuse { mount_point, .. } => mount_point.join("disk"),
            other => panic!("{other:?}"),
        }
    }

    /// The loop device.
    pub(crate) fn loop_device(&self) -> PathBuf {
        match self.device.record() {
            DeviceRecord::Fuse {
                loop_device: Some(path),
                ..
            } => path,
            other => panic!("{other:?}"),
        }
    }

    /// Ends it in order, and says that nothing is left.
    pub(crate) fn end(mut self) {
        let loop_device = self.loop_device();
        self.device.flush().expect("flushed");
        self.device.remove().expect("removed");
        assert!(
            !is_on(&loop_device, self.directory.path()),
            "it is detached"
        );
        let left: Vec<_> = std::fs::read_dir(self.directory.path())
            .expect("a directory")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A test's turn: they share the machine's loop devices. `None`, with the reason printed, where
/// FUSE devices cannot be tested.
pub(crate) fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else if !Path::new("/dev/loop-control").exists() {
        "there is no /dev/loop-control"
    } else {
        return Some(TURN.lock().unwrap_or_else(PoisonError::into_inner));
    };
    eprintln!("skipped: {reason}");
    None
}

/// Whether a loop device has a file.
pub(crate) fn is_bound(loop_device: &Path) -> bool {
    let name = loop_device.file_name().expect("a name");
    Path::new("/sys/block").join(name).join("loop").exists()
}

/// Whether a loop device has a file below `directory`. Another test may have it by now.
pub(crate) fn is_on(loop_device: &Path, directory: &Path) -> bool {
    let name = loop_device.file_name().expect("a name");
    let state = Path::new("/sys/block").join(name).join("loop/backing_file");
    std::fs::read_to_string(state).is_ok_and(|file| Path::new(file.trim()).starts_with(directory))
}

/// Runs a program, which has to succeed, and gives what it printed.
pub(crate) fn run<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> String {
    let (succeeded, output) = try_run(program, arguments);
    assert!(succeeded, "{program}: {output}");
    output
}

/// Runs a program and says whether it succeeded and what it printed.
pub(crate) fn try_run<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> (bool, String) {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
