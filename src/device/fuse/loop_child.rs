//! System calls that wait for our own FUSE file, made where they cannot wait for ever.
//!
//! A process that is killed while a call of its own waits for an answer that it would have to give itself
//! never ends: the call waits for the connection to end, and the connection for the process's
//! descriptors. While that call configures a loop device, nobody on this host can open one. So the file is
//! opened, and the device configured, by a child that has none of these descriptors.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How much stack the child has, in bytes: it makes a few system calls.
const STACK_BYTES: usize = 64 << 10;

/// What the child does: it opens the file, and then configures a device if there is one.
struct Call<'a> {
    file: &'a CStr,
    flags: libc::c_int,
    on_device: Option<OnDevice>,
}

struct OnDevice {
    device: RawFd,
    request: libc::Ioctl,
    argument: NonNull<libc::c_void>,
    file_in_argument: NonNull<u32>,
}

/// Whether `file` can be opened to be read.
///
/// # Errors
/// What the call gives, or what keeps the child from being made.
pub(super) fn try_open(file: &CStr) -> nix::Result<()> {
    let call = Call {
        file,
        flags: libc::O_RDONLY,
        on_device: None,
    };
    // SAFETY: it has no argument.
    unsafe { carry_out(&call) }
}

/// Opens `file` and makes an `ioctl` on `device`, in a child that has no other descriptor than these two
/// and those of its standard streams.
///
/// # Safety
/// The request takes a pointer to an argument that is valid for it. `file_in_argument` is the place in the
/// argument for the file's descriptor.
///
/// # Errors
/// What the calls give, or what keeps the child from being made.
pub(super) unsafe fn ioctl_with_file(
    device: RawFd,
    file: &CStr,
    flags: libc::c_int,
    request: libc::Ioctl,
    argument: NonNull<libc::c_void>,
    file_in_argument: NonNull<u32>,
) -> nix::Result<()> {
    let call = Call {
        file,
        flags,
        on_device: Some(OnDevice {
            device,
            request,
            argument,
            file_in_argument,
        }),
    };
    // SAFETY: as promised.
    unsafe { carry_out(&call) }
}

/// Has a child do it.
///
/// # Safety
/// What is to be done on a device is as promised to `ioctl_with_file`.
unsafe fn carry_out(call: &Call<'_>) -> nix::Result<()> {
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    // The child has our memory, and we wait until it has ended; descriptors it has of its own.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on its own stack, which grows down from the end of `stack`, and touches
    // nothing but `call` and the argument. Both live until it has ended, since CLONE_VFORK has this thread wait for that.
    let child = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            std::ptr::from_ref(call).cast_mut().cast(),
        )
    };
    let child = Pid::from_raw(Errno::result(child)?);
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => return Err(Errno::from_raw(errno)),
            Ok(_) => return Err(Errno::EINTR),
        }
    }
}

/// Nothing here may allocate or lock: the memory is that of a process with other threads.
extern "C" fn child(call: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `carry_out` passes a `Call` that lives until we have ended.
    let call = unsafe { &*call.cast::<Call<'_>>() };
    let kept = call.on_device.as_ref().map_or(2, |on| on.device);
    for (first, last) in [(3, kept - 1), (kept + 1, RawFd::MAX)] {
        if first.max(3) <= last {
            // SAFETY: these are the child's own descriptors; it uses none of them.
            unsafe { libc::syscall(libc::SYS_close_range, first.max(3), last, 0) };
        }
    }
    // SAFETY: the path ends with a zero.
    let file = unsafe { libc::open(call.file.as_ptr(), call.flags | libc::O_CLOEXEC) };
    if file < 0 {
        return last_error();
    }
    let Some(on) = &call.on_device else {
        return 0;
    };
    // SAFETY: as promised to `ioctl_with_file`.
    unsafe { on.file_in_argument.write(file as u32) };
    // SAFETY: as promised to `ioctl_with_file`.
    match unsafe { libc::ioctl(on.device, on.request, on.argument.as_ptr()) } {
        -1 => last_error(),
        _ => 0,
    }
}

fn last_error() -> libc::c_int {
    // SAFETY: it names the variable of this thread.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_child_makes_the_calls_and_closes_nothing_of_ours() {
        let [device, other] = std::array::from_fn(|_| tempfile::tempfile().expect("made"));
        let file = tempfile::NamedTempFile::new().expect("made");
        let path = CString::new(file.path().as_os_str().as_bytes()).expect("a path");
        let mut answer: libc::c_int = 1;
        let mut opened = u32::MAX;
        let argument = NonNull::from(&mut answer).cast();
        let mut made = |path: &CStr, request| {
            let place = NonNull::from(&mut opened);
            // SAFETY: FIONREAD writes an int; TCGETS is refused before anything is written.
            unsafe {
                ioctl_with_file(
                    device.as_raw_fd(),
                    path,
                    libc::O_RDONLY,
                    request,
                    argument,
                    place,
                )
            }
        };
        assert_eq!(made(&path, libc::FIONREAD), Ok(()));
        assert_eq!(made(&path, libc::TCGETS), Err(Errno::ENOTTY));
        assert_eq!(made(c"/no/such/file", libc::FIONREAD), Err(Errno::ENOENT));
        assert_eq!(try_open(&path), Ok(()));
        assert_eq!(try_open(c"/no/such/file"), Err(Errno::ENOENT));
        assert_eq!(answer, 0);
        assert_ne!(opened, u32::MAX);
        for file in [&device, &other, file.as_file()] {
            file.metadata().expect("still open");
        }
    }
}
