//! Removing what a process that was killed has left.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::loop_device::LoopDevice;
use super::mounts::{Mount, mounted_at};
use super::session::abort;
use crate::{Error, ErrorKind, Result};

/// How many mounts may lie one upon the other at one place.
const STACKED_MAX: usize = 16;

/// Removes a FUSE mount, and the loop device on top, whose process has died. It never waits for
/// the dead file system. The loop device need not be known, so a process that was killed while it
/// set the device up leaves nothing for ever either.
///
/// # Errors
/// `Busy` where the loop device is still held open, by a mounted file system for example: it has
/// then lost its file, and ends as soon as it is closed.
pub fn remove_left_over(mount_point: &Path) -> Result<()> {
    // The kernel names the file below by its path, which is gone once the mount is.
    let loop_devices = LoopDevice::all_on(mount_point)?;
    // Before the loop device: closing it writes out what its cache holds, which must fail, not
    // wait.
    unmount(mount_point)?;
    let mut held = Vec::new();
    for mut device in loop_devices {
        if !device.detach()? {
            held.push(device.path().display().to_string());
        }
    }
    remove_directory(mount_point)?;
    if held.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "{} is still in use; unmount or close what is on it, and it ends",
            held.join(", ")
        ),
    ))
}

fn unmount(mount_point: &Path) -> Result<()> {
    for _ in 0..STACKED_MAX {
        let Some(mount) = mounted_at(mount_point)?.filter(Mount::is_fuse) else {
            return Ok(());
        };
        let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match umount2(mount_point, flags) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(Errno::EPERM) => {
                abort(Some(mount.minor));
                unmount_unprivileged(mount_point)?;
            }
            Err(errno) => {
                return Err(Error::io(
                    format!("cannot unmount {}", mount_point.display()),
                    errno,
                ));
            }
        }
    }
    Ok(())
}

fn unmount_unprivileged(mount_point: &Path) -> Result<()> {
    let context = || format!("cannot unmount {} by fusermount3", mount_point.display());
    let output = std::process::Command::new("fusermount3")
        .args(["-u", "-q", "-z", "--"])
        .arg(mount_point)
        .output()
        .map_err(|error| Error::io(context(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, context())
        .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn remove_directory(mount_point: &Path) -> Result<()> {
    match std::fs::remove_dir(mount_point) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
            format!("cannot remove {}", mount_point.display()),
            error,
        )),
        _ => Ok(()),
    }
}
