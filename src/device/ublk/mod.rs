//! ublk: a block device whose requests are served by this process through io_uring.
//!
//! [`UblkDevice`] sets it up and takes it down; `queue` is the path of a request.

mod control;
pub mod features;
mod memory;
mod nodes;
pub mod owner;
mod params;
mod queue;
mod recovery;
mod threads;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use libublk_rs_sys as sys;

pub(super) use self::control::CONTROL_PATH;
use self::control::{Control, DeviceInfo, is_unprivileged};
use self::params::{RECOVERY, params, wanted};
use self::threads::QueueThreads;
use super::{Device, DeviceOptions, DeviceRecord, Prepared, Recovery, UblkRecord};
use crate::volume::{Volume, Watch};
use crate::{Context, Error, ErrorKind, Result};

/// How long a request of an unprivileged device may take. The driver kills a process that leaves
/// one unanswered for longer than the kernel's own limit of 30 s.
const UNPRIVILEGED_REQUEST_LIMIT: Duration = Duration::from_secs(25);

/// A running ublk device.
pub struct UblkDevice {
    record: UblkRecord,
    path: PathBuf,
    unprivileged: bool,
    writable: bool,
    /// Where it is written how to remove the device should this process die.
    run_directory: PathBuf,
    control: Control,
    queues: QueueThreads,
    watch: Arc<Watch>,
    when_dropped: WhenDropped,
}

/// What becomes of the device when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenDropped {
    /// It is ours: it goes.
    Remove,
    /// It is not ours yet, or not there any more.
    Leave,
}

impl UblkDevice {
    /// Makes a device for the volume, whose queues wait for its start.
    ///
    /// # Errors
    /// When the driver is missing or refuses; nothing is left behind then. `PermissionDenied` where
    /// nobody gives this user the nodes of an unprivileged device: that one stays, with its record,
    /// as the driver lets only those remove it who may open them.
    pub fn prepare(volume: Arc<Volume>, options: &DeviceOptions) -> Result<Self> {
        let mut control = Control::open()?;
        let features = control.features()?;
        let mark = random_mark()?;
        let wanted = wanted(&volume, options, features, mark);
        let unknown = UblkRecord {
            id: UblkRecord::ID_UNKNOWN,
            mark,
            recovery: None,
        };
        // It is there from the moment the driver adds it, also if this process dies in it.
        DeviceRecord::Ublk(unknown).save(&options.run_directory)?;
        let info = match add(&mut control, wanted, features) {
            Ok(info) => info,
            Err(error) => {
                DeviceRecord::forget(&options.run_directory)?;
                return Err(error);
            }
        };
        tracing::debug!(
            id = info.dev_id,
            flags = format!("{:#x}", info.flags),
            "ublk device added"
        );
        let recovery = Recovery {
            queues: options.queues,
            depth: options.depth,
        };
        let record = UblkRecord {
            id: info.dev_id,
            mark,
            recovery: (info.flags & RECOVERY == RECOVERY).then_some(recovery),
        };
        if is_unprivileged(&info) {
            volume.limit_requests(UNPRIVILEGED_REQUEST_LIMIT);
        }
        // From here on dropping the device removes it.
        let mut device = Self::new(
            record,
            &info,
            control,
            options,
            &volume,
            WhenDropped::Remove,
        );
        device.record().save(&device.run_directory)?;
        device.set_up(&volume, options, &info)?;
        Ok(device)
    }

    /// Takes over the device that a dead process left; see [`adopt`](super::adopt).
    pub(super) fn adopt(
        record: &UblkRecord,
        volume: Arc<Volume>,
        options: &DeviceOptions,
    ) -> Result<Self> {
        let id = record.id;
        let mut control = Control::open()?;
        let gone = || Error::new(ErrorKind::NotFound, format!("ublk device {id} is gone"));
        let info = recovery::left_over(&mut control, record)?
            .filter(recovery::is_quiesced)
            .ok_or_else(gone)?;
        let found = control.params(id)?;
        recovery::check(record, &info, &found, &volume, options)?;
        recovery::begin(&mut control, id)?;
        tracing::debug!(id, "taking the ublk device over");
        let record = record.clone();
        let mut device = Self::new(record, &info, control, options, &volume, WhenDropped::Leave);
        let character = device.open_queues()?;
        device
            .queues
            .start(&mut device.control, &info, &volume, &character)?;
        tracing::debug!(id, "the queues serve");
        device.control.end_recovery(id)?;
        tracing::debug!(id, "the ublk device is taken over");
        device.when_dropped = WhenDropped::Remove;
        Ok(device)
    }

    fn new(
        record: UblkRecord,
        info: &DeviceInfo,
        control: Control,
        options: &DeviceOptions,
        volume: &Volume,
        when_dropped: WhenDropped,
    ) -> Self {
        Self {
            path: nodes::of_block_device(record.id),
            record,
            unprivileged: is_unprivileged(info),
            writable: !options.read_only && !volume.is_read_only(),
            run_directory: options.run_directory.clone(),
            control,
            queues: QueueThreads::new(),
            watch: volume.watch().clone(),
            when_dropped,
        }
    }

    fn set_up(
        &mut self,
        volume: &Arc<Volume>,
        options: &DeviceOptions,
        info: &DeviceInfo,
    ) -> Result<()> {
        let character = self.open_queues()?;
        self.control
            .set_params(self.record.id, &params(volume, options))?;
        self.queues
            .start(&mut self.control, info, volume, &character)
    }

    fn open_queues(&self) -> Result<Arc<File>> {
        let path = nodes::of_queues(self.record.id);
        nodes::wait_for(&path, true, self.unprivileged)?;
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map(Arc::new)
            .context_io(|| format!("cannot open {}", path.display()))
    }

    /// Stops the device, waits for its threads and gives its number back. The order matters: the
    /// queues serve what the kernel still writes while it stops, and the driver deletes a device
    /// only when nobody holds its queues.
    fn remove(&mut self) -> Result<()> {
        if self.when_dropped == WhenDropped::Leave {
            return Ok(());
        }
        let id = self.record.id;
        self.watch.end_waiting();
        self.control.stop(id)?;
        self.queues.join();
        self.control.delete(id)?;
        self.when_dropped = WhenDropped::Leave;
        DeviceRecord::forget(&self.run_directory)
    }

    /// Writes back what the kernel has cached of the device.
    fn flush(&self) -> Result<()> {
        let context = || format!("cannot flush {}", self.path.display());
        let device = File::open(&self.path).context_io(context)?;
        device.sync_all().context_io(context)
    }
}

impl Prepared for UblkDevice {
    fn start(mut self: Box<Self>) -> Result<Box<dyn Device>> {
        self.control.start(self.record.id)?;
        nodes::wait_for(&self.path, self.writable, self.unprivileged)?;
        Ok(self)
    }
}

impl Device for UblkDevice {
    fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self) -> DeviceRecord {
        DeviceRecord::Ublk(self.record.clone())
    }

    fn ended(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Error> + Send + '_>> {
        Box::pin(async {
            self.queues.failure().await.unwrap_or_else(|| {
                Error::new(
                    ErrorKind::Io,
                    format!(
                        "ublk device {} was stopped by somebody else",
                        self.record.id
                    ),
                )
            })
        })
    }

    fn flush(&mut self) -> Result<()> {
        UblkDevice::flush(self)
    }

    fn remove(&mut self) -> Result<()> {
        UblkDevice::remove(self)
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        if self.when_dropped == WhenDropped::Leave && !self.queues.is_empty() {
            let id = self.record.id;
            tracing::warn!(
                id,
                "not taken over; nobody else can before this process ends"
            );
        }
        if let Err(error) = self.remove() {
            tracing::error!(id = self.record.id, %error, "the ublk device could not be removed");
        }
    }
}

/// Whether the device is there and waits to be taken over.
pub(super) fn is_left_over(record: &UblkRecord) -> Result<bool> {
    let left_over = recovery::left_over(&mut Control::open()?, record)?;
    Ok(left_over.is_some_and(|info| recovery::is_quiesced(&info)))
}

/// Removes a device whose process has died. What waits for it fails.
///
/// # Errors
/// `Busy` where it is still being served.
pub(super) fn remove_left_over(record: &UblkRecord) -> Result<()> {
    let mut control = Control::open()?;
    let Some(found) = recovery::left_over(&mut control, record)? else {
        return Ok(());
    };
    control.stop(found.dev_id)?;
    control.delete(found.dev_id)
}

/// A number that no other device has, and not 0.
fn random_mark() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context_io(|| "cannot read random bytes from /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// Adds the device, as an unprivileged one where it cannot be another.
fn add(control: &mut Control, wanted: DeviceInfo, features: u64) -> Result<DeviceInfo> {
    let unprivileged = u64::from(sys::UBLK_F_UNPRIVILEGED_DEV);
    match control.add(wanted) {
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied && features & unprivileged != 0 =>
        {
            // Who may not command the machine may not see the pages of others either: no zero copy.
            control.add(DeviceInfo {
                flags: unprivileged,
                ..wanted
            })
        }
        other => other,
    }
}
