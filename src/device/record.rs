//! What to know of a device whose process has died: how to remove it, or to take it over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Device, DeviceOptions};
use crate::volume::Volume;
use crate::{Context, Error, ErrorKind, Result};

const FILE: &str = "device.json";

/// What has to be known of a device to remove it after its process has died, or to take it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DeviceRecord {
    /// A ublk device.
    Ublk(UblkRecord),
    /// A FUSE mount.
    Fuse {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// The loop device on top, if there is one.
        loop_device: Option<PathBuf>,
    },
}

/// What has to be known of a ublk device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UblkRecord {
    /// The number in `/dev/ublkbN`. [`ID_UNKNOWN`](Self::ID_UNKNOWN) until the driver has said it.
    pub id: u32,
    /// A random number that the device was given, by which to know it again: the driver gives the
    /// number of a device that is gone to the next one. 0 where it is not known.
    #[serde(default)]
    pub mark: u64,
    /// `None`: it ends with its process.
    #[serde(default)]
    pub recovery: Option<Recovery>,
}

impl UblkRecord {
    /// The device is being added, or its process died meanwhile; its mark tells whether it is there.
    pub const ID_UNKNOWN: u32 = u32::MAX;
}

/// How a device was set up that another process can take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// How many queues were asked for; the driver makes no more than there are processors.
    pub queues: u16,
    /// How many requests each queue holds.
    pub depth: u16,
}

impl DeviceRecord {
    /// Whether, and how, another process can take the device over.
    pub fn recovery(&self) -> Option<Recovery> {
        match self {
            Self::Ublk(record) => record.recovery,
            Self::Fuse { .. } => None,
        }
    }

    /// The block device or file that applications may still hold open, where the record tells.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Ublk(UblkRecord { id, .. }) if *id == UblkRecord::ID_UNKNOWN => None,
            Self::Ublk(UblkRecord { id, .. }) => Some(PathBuf::from(format!("/dev/ublkb{id}"))),
            Self::Fuse { loop_device, .. } => loop_device.clone(),
        }
    }

    /// Writes the record into the device's run-time directory, whole or not at all. To be called
    /// as soon as there is something to remove, so that no crash leaves a device nobody knows of.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, run_directory: &Path) -> Result<()> {
        let path = run_directory.join(FILE);
        let beside = path.with_extension("new");
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &path))
            .context_io(|| format!("cannot write {}", path.display()))
    }

    /// Removes the record: the device is gone.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn forget(run_directory: &Path) -> Result<()> {
        let path = run_directory.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
                format!("cannot remove {}", path.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Reads the record from a device's run-time directory; `None` where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(run_directory: &Path) -> Result<Option<Self>> {
        let path = run_directory.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context_io(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_slice(&text).map_err(|error| {
            Error::new(ErrorKind::Io, format!("{} is damaged", path.display())).because(error)
        })
    }
}

/// Removes a device whose process has died, by the way of its kind.
///
/// # Errors
/// `Busy` while somebody holds it open; what the operating system says otherwise. A device that is
/// not there any more is no error.
pub fn remove_left_over(record: &DeviceRecord) -> Result<()> {
    match record {
        DeviceRecord::Ublk(record) => super::ublk::remove_left_over(record),
        DeviceRecord::Fuse { mount_point, .. } => super::fuse::remove_left_over(mount_point),
    }
}

/// Whether the device of a process that has died is there and waits to be taken over by [`adopt`].
/// Waits a while for the kernel to notice the death.
///
/// # Errors
/// What the driver says; `Busy` where the dead process still serves it.
pub fn is_left_over(record: &DeviceRecord) -> Result<bool> {
    match record {
        DeviceRecord::Ublk(record) if record.recovery.is_some() => {
            super::ublk::is_left_over(record)
        }
        _ => Ok(false),
    }
}

/// Takes over the device of a process that has died, and goes on where that one was: requests that
/// wait, also those that it had begun, are served again from the volume. It returns when they are.
///
/// The volume has to be the one that the device was made for. What can be checked of that is: when
/// this fails because of it, the device is as it was.
///
/// # Errors
/// `NotFound` for a device that is gone, `Unsupported` for one that cannot be taken over,
/// `InvalidInput` for a volume or options that do not fit, and what the driver says.
pub fn adopt(
    record: &DeviceRecord,
    volume: Arc<Volume>,
    options: &DeviceOptions,
) -> Result<Box<dyn Device>> {
    options.check()?;
    match record {
        DeviceRecord::Ublk(record) => Ok(Box::new(super::ublk::UblkDevice::adopt(
            record, volume, options,
        )?)),
        DeviceRecord::Fuse { .. } => Err(Error::new(
            ErrorKind::Unsupported,
            "a FUSE device ends with its process and cannot be taken over",
        )),
    }
}
