//! A system call that waits for our own FUSE file, made where it cannot wait for ever.
//!
//! A process that is killed while a call of its own waits for an answer that it would have to give itself
//! never ends: the call waits for the connection to end, and the connection for the process's
//! descriptors. While that call configures a loop device, nobody on this host can open one. So it is made
//! by a child that has none of these descriptors.

use std::os::fd::RawFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How much stack the child has, in bytes: it makes a few system calls.
const STACK_BYTES: usize = 64 << 10;

/// What the child does.
struct Call {
    /// What it keeps open, the lower one first.
    kept: [RawFd; 2],
    device: RawFd,
    request: libc::Ioctl,
    argument: NonNull<libc::c_void>,
}

/// Makes an `ioctl` on `device`, in a child that has no other descriptor open than that, `file`, and
/// those of its standard streams.
///
/// # Safety
/// The request takes a pointer to an argument that is valid for it.
///
/// # Errors
/// What the call gives, or what keeps the child from being made.
pub(super) unsafe fn ioctl(
    device: RawFd,
    file: RawFd,
    request: libc::Ioctl,
    argument: NonNull<libc::c_void>,
) -> nix::Result<()> {
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    let call = Call {
        kept: [device.min(file), device.max(file)],
        device,
        request,
        argument,
    };
    // The child has our memory, and we wait until it has ended; descriptors it has of its own.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on its own stack, which grows down from the end of `stack`, and touches
    // nothing but `call`. Both live until it has ended, since CLONE_VFORK has this thread wait for that.
    let child = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            (&raw const call).cast_mut().cast(),
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
    // SAFETY: `ioctl` above passes a `Call` that lives until we have ended.
    let call = unsafe { &*call.cast::<Call>() };
    let [lower, higher] = call.kept;
    for (first, last) in [
        (3, lower - 1),
        (lower + 1, higher - 1),
        (higher + 1, RawFd::MAX),
    ] {
        if first.max(3) <= last {
            // SAFETY: these are the child's own descriptors; it uses none of them.
            unsafe { libc::syscall(libc::SYS_close_range, first.max(3), last, 0) };
        }
    }
    // SAFETY: as promised to `ioctl`.
    match unsafe { libc::ioctl(call.device, call.request, call.argument.as_ptr()) } {
        // SAFETY: it names the variable of this thread.
        -1 => unsafe { *libc::__errno_location() },
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_child_makes_the_call_and_closes_nothing_of_ours() {
        let [one, other, third]: [File; 3] =
            std::array::from_fn(|_| tempfile::tempfile().expect("made"));
        let mut answer: libc::c_int = 1;
        let argument = NonNull::from(&mut answer).cast();
        // SAFETY: FIONREAD writes an int; TCGETS is refused before anything is written.
        let (made, refused) = unsafe {
            (
                ioctl(other.as_raw_fd(), one.as_raw_fd(), libc::FIONREAD, argument),
                ioctl(one.as_raw_fd(), other.as_raw_fd(), libc::TCGETS, argument),
            )
        };
        assert_eq!((made, answer), (Ok(()), 0));
        assert_eq!(refused, Err(Errno::ENOTTY));
        for file in [one, other, third] {
            file.metadata().expect("still open");
        }
    }
}
