//! Limits and services of memory management.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::device::choice::{self, Lack};
use crate::volume::format_size;

/// What is taken for enough locked memory, in bytes.
const LOCKED_BYTES_ENOUGH: u64 = 64 << 20;

/// The right to lock memory without a limit, as a bit of a capability set.
const CAP_IPC_LOCK: u32 = 14;

/// How much memory this process may lock.
pub(super) fn lock_limit() -> Result<String, Lack> {
    let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) => limit,
        Err(error) => return Err(Lack::for_good(format!("unknown: {error}"))),
    };
    let text = match limit {
        RLIM_INFINITY => return Ok("no limit".to_owned()),
        bytes => format!("at most {}", format_size(bytes)),
    };
    if choice::has_capability(CAP_IPC_LOCK) {
        Ok(format!("{text}, which does not bind this user"))
    } else if limit >= LOCKED_BYTES_ENOUGH {
        Ok(text)
    } else {
        Err(Lack::mended_by(text, "ulimit -l unlimited"))
    }
}

/// Whether page faults can be served by a process.
pub(super) fn userfaultfd() -> Result<String, Lack> {
    const USER_MODE_ONLY: libc::c_int = 1;
    match faults(0) {
        Ok(features) => Ok(format!("features {features:#x}")),
        Err(error) => match faults(USER_MODE_ONLY) {
            Ok(features) => Ok(format!(
                "features {features:#x}, of user code alone (sysctl vm.unprivileged_userfaultfd=1 \
                 lifts that)"
            )),
            Err(_) if error.raw_os_error() == Some(libc::EPERM) => Err(Lack::mended_by(
                format!("userfaultfd: {error}"),
                "start the container with --security-opt seccomp=unconfined",
            )),
            Err(_) => Err(Lack::for_good(format!("userfaultfd: {error}"))),
        },
    }
}

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);

/// The kernel's features, through a descriptor that is closed at once.
fn faults(flags: libc::c_int) -> io::Result<u64> {
    const VERSION: u64 = 0xaa;
    // SAFETY: takes a flag word alone; the descriptor it returns is ours and nobody else's.
    let fd = unsafe {
        match libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) {
            fd @ 0.. => OwnedFd::from_raw_fd(fd as i32),
            _ => return Err(io::Error::last_os_error()),
        }
    };
    let mut api = Api {
        api: VERSION,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: the structure is the one that this ioctl reads and writes.
    unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
    Ok(api.features)
}
