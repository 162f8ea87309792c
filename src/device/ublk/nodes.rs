//! The nodes of a device: where they are, and when they can be opened.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::owner;
use crate::{Context, Error, Result};

/// Where the kernel lists the devices that were added.
const DEVICES: &str = "/sys/class/ublk-char";

/// How long the node of a new device may take to appear.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the nodes of an unprivileged device may take until they are this user's.
const OWNER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked.
const NODE_POLL: Duration = Duration::from_millis(1);

/// The device of the queues of ublk device `id`, which exists as soon as that was added.
pub(super) fn of_queues(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// The block device, which exists once it was started.
pub(super) fn of_block_device(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// The numbers of the devices that there are, whoever made them.
pub(super) fn numbers() -> Result<Vec<u32>> {
    let entries = match std::fs::read_dir(DEVICES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context_io(|| format!("cannot list {DEVICES}"))?,
    };
    let number = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_prefix("ublkc")?.parse().ok()
    };
    Ok(entries.filter_map(number).collect())
}

/// Waits until a node can be opened. It appears a moment after it was made, and that of an
/// unprivileged device has to be given to this user, too. It is not opened for that: whoever
/// watches block devices would look at it again.
pub(super) fn wait_for(path: &Path, writable: bool, unprivileged: bool) -> Result<()> {
    let mut wanted = AccessFlags::R_OK;
    wanted.set(AccessFlags::W_OK, writable);
    let started = Instant::now();
    loop {
        let errno = match faccessat(AT_FDCWD, path, wanted, AtFlags::AT_EACCESS) {
            Ok(()) => return Ok(()),
            Err(errno) => errno,
        };
        let limit = match errno {
            Errno::ENOENT => NODE_TIMEOUT,
            Errno::EACCES if unprivileged => OWNER_TIMEOUT,
            _ => Duration::ZERO,
        };
        if started.elapsed() >= limit {
            return Err(cannot_open(path, errno, unprivileged));
        }
        thread::sleep(NODE_POLL);
    }
}

fn cannot_open(path: &Path, errno: Errno, unprivileged: bool) -> Error {
    let path = path.display();
    let needed = owner::WHAT_IS_NEEDED;
    let why = match errno {
        Errno::ENOENT => format!("{path} did not appear; is /dev a devtmpfs, or udev running?"),
        Errno::EACCES if unprivileged => format!("{path} was not given to this user; {needed}"),
        _ => format!("cannot open {path}"),
    };
    Error::io(why, errno)
}
