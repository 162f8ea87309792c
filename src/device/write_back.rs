//! What the kernel has cached of a device, written to it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use crate::{Context, Result};

/// Writes what the kernel has cached of a device or a file to it, and waits until that is done. Nothing
/// is flushed: for a volume that is made durable otherwise.
///
/// # Errors
/// When it cannot be opened, or a write fails.
pub fn write_back(path: &Path) -> Result<()> {
    let cannot = || format!("cannot write back what is cached of {}", path.display());
    let device = File::open(path).context_io(cannot)?;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: a call without pointers, on a descriptor that is open.
    let result = unsafe { libc::sync_file_range(device.as_raw_fd(), 0, 0, flags) };
    Errno::result(result)
        .map(drop)
        .map_err(std::io::Error::from)
        .context_io(cannot)
}
