//! The fallback for machines without ublk: a FUSE file system with one file in it, which is the
//! device, and where the process may make one a loop device on top.
//!
//! One read: the kernel hands it to one of the threads of `session`, which calls
//! `filesystem::OneFile`. A volume in memory is answered there and then (`requests`). For any other
//! the request goes into a `slot` of a `queue`, whose thread runs it on its own ring or sends
//! it to the asynchronous side, and answers the kernel from the slot's buffer.

mod device;
mod filesystem;
mod gate;
mod left_over;
mod loop_child;
mod loop_device;
mod mounts;
mod queue;
mod requests;
mod session;
mod slot;

pub use device::FuseDevice;
pub use left_over::remove_left_over;

/// The largest read or write that the kernel may ask for, in bytes.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// How many requests the kernel may have under way that no thread is waiting for.
const BACKGROUND_MAX: u16 = 512;

/// The directory under the run-time directory where the file system is mounted.
const MOUNT_DIRECTORY: &str = "fuse";

/// The name of the file system in the list of mounts.
const FS_NAME: &str = "blockferry";
