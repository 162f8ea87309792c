//! How to remove a device whose process has died.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Context, Error, ErrorKind, Result};

const FILE: &str = "device.json";

/// What has to be known of a device to remove it after its process has died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DeviceRecord {
    /// A ublk device.
    Ublk {
        /// The number in `/dev/ublkbN`.
        id: u32,
    },
    /// A FUSE mount.
    Fuse {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// The loop device on top, if there is one.
        loop_device: Option<PathBuf>,
    },
}

impl DeviceRecord {
    /// The block device or file that applications may still hold open, where the record tells.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Ublk { id } => Some(PathBuf::from(format!("/dev/ublkb{id}"))),
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
        DeviceRecord::Ublk { id } => super::ublk::remove_left_over(*id),
        DeviceRecord::Fuse { mount_point, .. } => super::fuse::remove_left_over(mount_point),
    }
}
