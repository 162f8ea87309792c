//! Whether and how a file can be read past the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

nix::ioctl_read_bad!(block_logical_size, libc::BLKSSZGET, libc::c_int);

/// A block device's own smallest unit (`BLKSSZGET`).
pub(super) fn logical_block_bytes(file: &File) -> io::Result<u32> {
    let mut size = 0;
    // SAFETY: the ioctl writes one int.
    unsafe { block_logical_size(file.as_raw_fd(), &mut size) }?;
    u32::try_from(size).map_err(io::Error::other)
}

/// Switches a descriptor to direct I/O if the file takes requests of this alignment; else it stays
/// as it is.
///
/// A file system in memory takes the flag and goes on copying; there it keeps the ring from handing
/// each request to a worker thread, since such files cannot say that they never block.
pub(super) fn switch_on(file: &File, path: &Path, alignment_bytes: u32) {
    let aligned = alignment(path).is_none_or(|needed| needed <= alignment_bytes);
    let wanted = OFlag::O_DIRECT
        | if in_memory(file) {
            OFlag::O_NONBLOCK
        } else {
            OFlag::empty()
        };
    let result = fcntl(file, FcntlArg::F_GETFL).and_then(|before| {
        if !aligned {
            return Ok(0);
        }
        let flags = OFlag::from_bits_retain(before) | wanted;
        fcntl(file, FcntlArg::F_SETFL(flags))?;
        // A stacked file system may take the flag and refuse each request, for the one below does.
        read_one(file, alignment_bytes).or_else(|refused| {
            let before = OFlag::from_bits_retain(before);
            fcntl(file, FcntlArg::F_SETFL(before)).and(Err(refused))
        })
    });
    tracing::debug!(path = %path.display(), aligned, ?result, "direct I/O");
}

fn read_one(file: &File, len_bytes: u32) -> nix::Result<i32> {
    // Aligned to pages, like the buffers of a device.
    let mut page =
        memmap2::MmapMut::map_anon(len_bytes as usize).map_err(|_| nix::errno::Errno::ENOMEM)?;
    nix::sys::uio::pread(file, &mut page, 0).map(|_| 0)
}

/// What the file system says that it needs (`STATX_DIOALIGN`, Linux 6.1); `None` if it says nothing.
fn alignment(path: &Path) -> Option<u32> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a value of this plain struct.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and the answer is as long as the kernel expects.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            libc::STATX_DIOALIGN,
            &mut answer,
        )
    };
    let known = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    known.then_some(match answer.stx_dio_offset_align {
        0 => u32::MAX,
        bytes => bytes.max(answer.stx_dio_mem_align),
    })
}

fn in_memory(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}
