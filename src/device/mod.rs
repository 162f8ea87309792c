//! The devices that applications open, and the choice among them.

pub mod choice;
pub mod fuse;
mod record;
pub mod ublk;
mod write_back;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::volume::Volume;
use crate::{Error, ErrorKind, Result};

pub use choice::{Choice, choose};
pub use record::{DeviceRecord, Recovery, UblkRecord, adopt, is_left_over, remove_left_over};
pub use write_back::write_back;

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A userspace block device driven through io_uring.
    Ublk,
    /// A FUSE file, with a loop device on top where the process may make one.
    Fuse,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ublk => "ublk",
            Self::Fuse => "fuse",
        })
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ublk" => Ok(Self::Ublk),
            "fuse" => Ok(Self::Fuse),
            other => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{other}` is no kind of device; use auto, ublk or fuse"),
            )),
        }
    }
}

/// The most queues of a device.
pub const QUEUES_MAX: u16 = 64;

/// The most requests that a queue holds (`UBLK_MAX_QUEUE_DEPTH`).
pub const DEPTH_MAX: u16 = 4096;

/// How many requests a queue holds unless another number is asked for.
pub const DEPTH_DEFAULT: u16 = 128;

/// How a device is set up.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// The name under which the device runs.
    pub name: String,
    /// The directory of this device's run-time state.
    pub run_directory: PathBuf,
    /// How many queues serve it.
    pub queues: u16,
    /// How many requests each queue holds.
    pub depth: u16,
    /// Refuse writes.
    pub read_only: bool,
    /// When this process dies, let requests wait for one that takes the device over ([`adopt`])
    /// instead of failing them. For ublk alone, and only for volumes whose bytes outlive the
    /// process. Who sets it sees to it that somebody comes: until then whoever uses the device hangs.
    pub recoverable: bool,
}

impl DeviceOptions {
    /// The usual: a queue for each processor up to four, [`DEPTH_DEFAULT`] requests each.
    pub fn new(name: impl Into<String>, run_directory: impl Into<PathBuf>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: name.into(),
            run_directory: run_directory.into(),
            queues: processors.min(4) as u16,
            depth: DEPTH_DEFAULT,
            read_only: false,
            recoverable: false,
        }
    }

    /// How many requests all queues hold together.
    pub fn requests_max(&self) -> usize {
        usize::from(self.queues) * usize::from(self.depth)
    }

    fn check(&self) -> Result<()> {
        let within =
            (1..=QUEUES_MAX).contains(&self.queues) && (1..=DEPTH_MAX).contains(&self.depth);
        if within {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{} queues of depth {}: there can be 1 to {QUEUES_MAX} queues, of depth 1 to {DEPTH_MAX}",
                self.queues, self.depth
            ),
        ))
    }
}

/// Makes a device of the given kind for a volume, and returns when applications can open it.
/// [`choose`] tells which kind suits this machine.
///
/// # Errors
/// `InvalidInput` for options out of bounds, and what the kind of device gives; nothing is left
/// behind then.
pub fn start(
    kind: DeviceKind,
    volume: Arc<Volume>,
    options: &DeviceOptions,
) -> Result<Box<dyn Device>> {
    prepare(kind, volume, options)?.start()
}

/// The same as far as it goes without anybody seeing the volume, for one that is not here yet.
///
/// # Errors
/// As those of [`start`].
pub fn prepare(
    kind: DeviceKind,
    volume: Arc<Volume>,
    options: &DeviceOptions,
) -> Result<Box<dyn Prepared>> {
    options.check()?;
    Ok(match kind {
        DeviceKind::Ublk => Box::new(ublk::UblkDevice::prepare(volume, options)?),
        DeviceKind::Fuse => Box::new(fuse::FuseDevice::prepare(volume, options)?),
    })
}

/// A device that waits to be started. Dropping it removes it.
pub trait Prepared: Send {
    /// Starts it, and returns when applications can open it.
    ///
    /// # Errors
    /// Why it cannot be started; it is removed then.
    fn start(self: Box<Self>) -> Result<Box<dyn Device>>;
}

/// A device that is being served. Dropping it removes it.
pub trait Device: Send {
    /// What applications open.
    fn path(&self) -> &Path;

    /// How to remove it should this process die.
    fn record(&self) -> DeviceRecord;

    /// Completes when the device ended without being asked to, with the reason.
    fn ended(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Error> + Send + '_>>;

    /// Writes back what the kernel has cached of the device, and flushes the volume.
    ///
    /// # Errors
    /// When bytes could not be made durable.
    fn flush(&mut self) -> Result<()>;

    /// Takes the device away, also from those who hold it open, and lets what is in flight finish.
    ///
    /// # Errors
    /// When the kernel does not let go of it.
    fn remove(&mut self) -> Result<()>;
}

/// Tells the kernel that the calling thread serves a block device (`PR_SET_IO_FLUSHER`), so that it never waits for
/// memory which only this device could free. Needs the right to do so; without it the machine can
/// lock up when it runs out of memory while writing to the device. Devices do it on their own
/// threads; a program that embeds this library should on those of the runtime that serves remote
/// resources.
pub fn become_io_flusher() {
    /// `include/uapi/linux/prctl.h`
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: changes a flag of the calling thread only.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        tracing::debug!(
            error = %std::io::Error::last_os_error(),
            "this thread may wait for memory under memory pressure"
        );
    }
}
