//! Loop devices, by the kernel's own interface.

use std::ffi::{CStr, CString, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::loop_child;
use super::mounts::lies_in;
use crate::{Context, Error, ErrorKind, Result};

/// `LOOP_CONFIGURE` of `linux/loop.h`: its argument is a [`LoopConfig`].
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;

/// The major number of loop devices.
const LOOP_MAJOR: u64 = 7;

/// How often a free loop device may be taken by somebody else before we give up.
const ATTACH_TRIES_MAX: usize = 64;

/// How long a detached device may take to let go of its file. Something such as udev may have it
/// open for a moment; after this time somebody must have it open for longer.
const DETACH_WAIT: Duration = Duration::from_secs(1);

/// How often the kernel is asked whether the device has let go.
const DETACH_POLL: Duration = Duration::from_millis(1);

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopInfo64 {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

mod ioctl {
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
}

/// What a loop device looks like.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopOptions {
    /// Its logical block.
    pub(super) logical_block_bytes: u32,
    /// Refuse writes.
    pub(super) read_only: bool,
}

/// A loop device that has a file. Dropping it leaves it as it is.
#[derive(Debug)]
pub(super) struct LoopDevice {
    number: u32,
    path: PathBuf,
    /// The device node was not there and we made it.
    made_node: bool,
    /// The file below, as the kernel named it when we saw it there first.
    backing: Option<PathBuf>,
}

impl LoopDevice {
    /// Puts a loop device on top of `file`, with direct I/O.
    ///
    /// # Errors
    /// Where the kernel or the container has no loop devices, or all are taken.
    pub(super) fn attach(file: &Path, options: LoopOptions) -> Result<Self> {
        let control = open("/dev/loop-control".as_ref(), false).map_err(no_loop_devices)?;
        let mut flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN;
        if options.read_only {
            flags |= LO_FLAGS_READ_ONLY;
        }
        let path = CString::new(file.as_os_str().as_bytes())
            .context_io(|| format!("cannot use {}", file.display()))?;
        let mut config = LoopConfig {
            // The child that opens it says.
            fd: 0,
            block_size: options.logical_block_bytes,
            info: LoopInfo64 {
                flags,
                file_name: display_name(file),
                ..LoopInfo64::EMPTY
            },
            reserved: [0; 8],
        };
        for _ in 0..ATTACH_TRIES_MAX {
            // SAFETY: an ioctl without an argument on a descriptor that we hold.
            let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }
                .context_io(|| "cannot get a free loop device")? as u32;
            let mut device = Self {
                number,
                path: PathBuf::from(format!("/dev/loop{number}")),
                made_node: false,
                backing: None,
            };
            match device.configure(&path, &mut config) {
                Ok(()) => {
                    device.backing = device.backing_file();
                    return Ok(device);
                }
                // Somebody else took it between the two calls.
                Err(Errno::EBUSY) => device.remove_own_node(),
                Err(errno) => {
                    device.remove_own_node();
                    return Err(Error::io(
                        format!(
                            "cannot put {} on top of {}",
                            device.path.display(),
                            file.display()
                        ),
                        errno,
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{ATTACH_TRIES_MAX} free loop devices were each taken by somebody else"),
        ))
    }

    /// The loop devices that have a file in `directory`, whoever made them.
    ///
    /// # Errors
    /// When the kernel's list of devices cannot be read.
    pub(super) fn all_on(directory: &Path) -> Result<Vec<Self>> {
        let context = || "cannot list the block devices";
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block").context_io(context)? {
            let name = entry.context_io(context)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
            let Some(number) = number.and_then(|digits| digits.parse().ok()) else {
                continue;
            };
            let device = Self {
                number,
                path: PathBuf::from(format!("/dev/loop{number}")),
                made_node: false,
                backing: None,
            };
            if device
                .backing_file()
                .is_some_and(|file| lies_in(&file, directory))
            {
                found.push(device);
            }
        }
        Ok(found)
    }

    /// What applications open.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file below, as the kernel names it; `None` where it has none (any more).
    fn backing_file(&self) -> Option<PathBuf> {
        let mut name = std::fs::read(self.state().join("backing_file")).ok()?;
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        Some(OsString::from_vec(name).into())
    }

    /// Takes the file away from the device and waits until the kernel has let go of it. False:
    /// somebody holds the device open, and it ends as soon as they close it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn detach(&mut self) -> Result<bool> {
        if self.is_anothers() {
            // Somebody detached it before, and may have given the number to a file of their own.
            return Ok(true);
        }
        match self.clear() {
            // It has no file: nothing is left to do.
            Ok(()) | Err(Errno::ENXIO | Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::io(
                    format!("cannot detach {}", self.path.display()),
                    errno,
                ));
            }
        }
        let deadline = Instant::now() + DETACH_WAIT;
        while self.state().exists() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(DETACH_POLL);
        }
        self.remove_own_node();
        Ok(true)
    }

    /// Whether another file lies below by now. Ours is named by its full path, and by its name alone
    /// once its mount is detached.
    fn is_anothers(&self) -> bool {
        let (Some(ours), now) = (&self.backing, self.backing_file()) else {
            return false;
        };
        now.is_none_or(|now| now != *ours && now.file_name() != ours.file_name())
    }

    fn state(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}/loop", self.number))
    }

    fn configure(&mut self, file: &CStr, config: &mut LoopConfig) -> nix::Result<()> {
        let read_only = config.info.flags & LO_FLAGS_READ_ONLY != 0;
        let device = match open(&self.path, !read_only) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A container whose /dev is not the kernel's own.
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                mknod(&self.path, SFlag::S_IFBLK, mode, self.device_number())?;
                self.made_node = true;
                open(&self.path, !read_only).map_err(to_errno)?
            }
            other => other.map_err(to_errno)?,
        };
        let flags = match read_only {
            true => libc::O_RDONLY,
            false => libc::O_RDWR,
        };
        let config = NonNull::from(config);
        // SAFETY: the argument is a whole `struct loop_config`, which the kernel only reads, and the place
        // is in it.
        unsafe {
            let file_in_argument = NonNull::new_unchecked(&raw mut (*config.as_ptr()).fd);
            loop_child::ioctl_with_file(
                device.as_raw_fd(),
                file,
                flags,
                LOOP_CONFIGURE,
                config.cast(),
                file_in_argument,
            )
        }
    }

    fn clear(&self) -> nix::Result<()> {
        let device = open(&self.path, false).map_err(to_errno)?;
        // SAFETY: an ioctl without an argument on a descriptor that we hold.
        unsafe { ioctl::loop_clr_fd(device.as_raw_fd()) }.map(drop)
    }

    fn device_number(&self) -> libc::dev_t {
        makedev(LOOP_MAJOR, u64::from(self.number))
    }

    fn remove_own_node(&mut self) {
        if std::mem::take(&mut self.made_node)
            && std::fs::metadata(&self.path).is_ok_and(|node| node.file_type().is_block_device())
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes out what the page cache of the loop device at `path` still holds, and flushes it.
pub(super) fn sync(path: &Path) -> Result<()> {
    open(path, false)
        .and_then(|device| nix::unistd::fsync(&device).map_err(io::Error::from))
        .context_io(|| format!("cannot flush {}", path.display()))
}

fn open(path: &Path, write: bool) -> io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map(File::into)
}

fn to_errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The start of the path, for tools that show this field; the kernel knows the whole path.
fn display_name(file: &Path) -> [u8; 64] {
    let mut name = [0; 64];
    let bytes = file.as_os_str().as_bytes();
    let len = bytes.len().min(name.len() - 1);
    name[..len].copy_from_slice(&bytes[..len]);
    name
}

fn no_loop_devices(error: io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => {
            "load the driver with `modprobe loop`, or give the container the device \
             (`--device /dev/loop-control` and the loop devices)"
        }
        _ => "making a loop device takes root and, in a container, `--privileged`",
    };
    Error::io(format!("cannot open /dev/loop-control; {advice}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_cut_and_ends_with_a_zero() {
        let name = display_name(&PathBuf::from("/x".repeat(60)));
        assert_eq!(name[62], b'/');
        assert_eq!(name[63], 0);
    }
}
