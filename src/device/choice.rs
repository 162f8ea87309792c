//! Which kind of device this machine can make, and why not the better ones.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use io_uring::IoUring;
use nix::unistd::geteuid;
use serde::Serialize;

use super::DeviceKind;
use super::ublk::features::{self, Features};
use super::ublk::{CONTROL_PATH, owner};
use crate::{Error, ErrorKind, Result};

/// The kinds of device, the best first.
const LADDER: [DeviceKind; 2] = [DeviceKind::Ublk, DeviceKind::Fuse];

/// The right to mount and to add block devices, as a bit of a capability set.
pub(crate) const CAP_SYS_ADMIN: u32 = 21;

/// Container flags that FUSE takes.
const FUSE_IN_CONTAINER: &str =
    "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN";

/// The kind of device that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The kind.
    pub kind: DeviceKind,
    /// Why this one.
    pub because: String,
    /// The better ones, and why not.
    pub rejected: Vec<(DeviceKind, String)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.because)?;
        for (kind, why_not) in &self.rejected {
            write!(f, "; not {kind}: {why_not}")?;
        }
        Ok(())
    }
}

/// Something that is missing, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// What is missing.
    pub what: String,
    /// The command, or the flag, that mends it; `None` where nothing does.
    pub mend: Option<String>,
}

impl Lack {
    /// Something missing that a command mends.
    pub fn mended_by(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            mend: Some(mend.into()),
        }
    }

    /// Something missing that nothing mends on this machine.
    pub fn for_good(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            mend: None,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.mend {
            Some(mend) => write!(f, " (try: {mend})"),
            None => Ok(()),
        }
    }
}

/// Chooses the kind of device: the one that was asked for, or the best that this machine can make.
///
/// # Errors
/// `Unsupported`, with what is missing and how to get it.
pub fn choose(requested: Option<DeviceKind>) -> Result<Choice> {
    if let Some(kind) = requested {
        return match usable(kind) {
            Ok(because) => Ok(Choice {
                kind,
                because: format!("asked for; {because}"),
                rejected: Vec::new(),
            }),
            Err(lack) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("this machine cannot make a {kind} device: {lack}"),
            )),
        };
    }
    let mut rejected = Vec::new();
    for kind in LADDER {
        match usable(kind) {
            Ok(because) => {
                return Ok(Choice {
                    kind,
                    because,
                    rejected,
                });
            }
            Err(lack) => rejected.push((kind, lack.to_string())),
        }
    }
    let reasons = rejected.iter().map(|(kind, why)| format!("{kind}: {why}"));
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "this machine cannot make any device; {}",
            reasons.collect::<Vec<_>>().join("; ")
        ),
    ))
}

fn usable(kind: DeviceKind) -> Result<String, Lack> {
    match kind {
        DeviceKind::Ublk => {
            let count = |features: Features| features.names().len();
            ublk().map(|features| format!("the driver is there, with {} features", count(features)))
        }
        DeviceKind::Fuse => fuse(),
    }
}

/// Whether this process can use ublk, and the driver's features.
///
/// # Errors
/// What is missing.
pub fn ublk() -> Result<Features, Lack> {
    let control = Path::new(CONTROL_PATH);
    if !control.exists() {
        return Err(if Path::new("/sys/class/misc/ublk-control").exists() {
            Lack::mended_by(
                format!("the driver is there, but {CONTROL_PATH} is not"),
                "start the container with --privileged -v /dev:/dev",
            )
        } else {
            missing_driver(
                "ublk_drv",
                "the kernel has no ublk driver (Linux 6.0 and later)",
            )
        });
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open(control) {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => missing_driver("ublk_drv", "the ublk driver is not loaded"),
            _ if !geteuid().is_root() => {
                Lack::mended_by(format!("{CONTROL_PATH}: {error}"), ublk_rules())
            }
            _ => Lack::mended_by(
                format!("{CONTROL_PATH}: {error}"),
                "start the container with --privileged -v /dev:/dev",
            ),
        });
    }
    io_uring()?;
    let features = features::query().map_err(|error| {
        Lack::for_good(format!(
            "the ublk driver is too old or does not answer (Linux 6.5 and later): {}",
            error.chain()
        ))
    })?;
    if !has_capability(CAP_SYS_ADMIN) {
        unprivileged_ublk(features)?;
    }
    Ok(features)
}

/// Whether ublk devices can be made, and removed again, without root.
fn unprivileged_ublk(features: Features) -> Result<(), Lack> {
    if !features.makes_unprivileged_devices() {
        return Err(Lack::mended_by(
            "the ublk driver makes devices for root alone",
            "run as root",
        ));
    }
    match owner::udev_rule() {
        Some(_) => Ok(()),
        None => Err(Lack::mended_by(
            "no udev rule gives the nodes of a ublk device to the user who made it",
            ublk_rules(),
        )),
    }
}

/// What makes ublk devices possible for those who are not root.
fn ublk_rules() -> &'static str {
    match geteuid().is_root() {
        true => "blockferry udev >/etc/udev/rules.d/90-blockferry.rules",
        false => "run as root, or let root install the udev rules that `blockferry udev` prints",
    }
}

/// Whether those who are not root can make ublk devices.
///
/// # Errors
/// What is missing.
pub fn ublk_for_all() -> Result<String, Lack> {
    let features = match has_capability(CAP_SYS_ADMIN) {
        true => ublk()?,
        false => return ublk().map(|_| "the control node and a udev rule allow it".to_owned()),
    };
    unprivileged_ublk(features)?;
    let mode = fs::metadata(CONTROL_PATH).map_or(0, |metadata| metadata.mode());
    match mode & 0o066 {
        0 => Err(Lack::mended_by(
            format!("{CONTROL_PATH} is root's alone"),
            ublk_rules(),
        )),
        _ => Ok(format!(
            "{CONTROL_PATH} has mode {:o}, and there is a udev rule",
            mode & 0o777
        )),
    }
}

/// Whether FUSE can be used, and whether with a loop device on top.
///
/// # Errors
/// What is missing.
pub fn fuse() -> Result<String, Lack> {
    const DEVICE: &str = "/dev/fuse";
    if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) {
        let what = format!("{DEVICE}: {error}");
        return Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) if module_is_there("fuse") => {
                Lack::mended_by(what, format!("modprobe fuse; {FUSE_IN_CONTAINER}"))
            }
            Some(libc::EACCES) if !geteuid().is_root() => {
                Lack::mended_by(what, format!("chmod 666 {DEVICE}, or run as root"))
            }
            _ => Lack::mended_by(what, FUSE_IN_CONTAINER),
        });
    }
    if has_capability(CAP_SYS_ADMIN) {
        return Ok(match loop_device() {
            Ok(_) => "a file with a loop device on top".to_owned(),
            Err(lack) => format!("a file, without a loop device on top: {lack}"),
        });
    }
    if !may_gain(CAP_SYS_ADMIN) {
        return Err(Lack::mended_by("no right to mount", FUSE_IN_CONTAINER));
    }
    fusermount()?;
    Ok("a file, as only root can put a loop device on top".to_owned())
}

/// Whether the program is there that mounts for those who may not.
///
/// # Errors
/// That it is missing, with the package.
pub fn fusermount() -> Result<String, Lack> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("FUSERMOUNT_PATH").map(PathBuf::from);
    let found = std::env::split_paths(&search)
        .chain(["/bin".into(), "/sbin".into()])
        .flat_map(|folder| ["fusermount3", "fusermount"].map(|name| folder.join(name)));
    named
        .into_iter()
        .chain(found)
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
        .ok_or_else(|| {
            Lack::mended_by(
                "no fusermount3, without which only root can mount",
                "apt-get install fuse3",
            )
        })
}

/// Whether loop devices can be made.
///
/// # Errors
/// What is missing.
pub fn loop_device() -> Result<String, Lack> {
    const CONTROL: &str = "/dev/loop-control";
    match OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(_) => Ok(format!("{CONTROL} can be opened")),
        Err(error) if !geteuid().is_root() => Err(Lack::mended_by(
            format!("{CONTROL}: {error}"),
            "run as root",
        )),
        Err(error) => {
            let what = format!("{CONTROL}: {error}");
            let container = "start the container with --privileged -v /dev:/dev";
            Err(match module_is_there("loop") {
                true => Lack::mended_by(what, format!("modprobe loop; or {container}")),
                false => Lack::mended_by(what, container),
            })
        }
    }
}

/// Whether io_uring can be used.
///
/// # Errors
/// What forbids it.
pub fn io_uring() -> Result<String, Lack> {
    let error = match IoUring::new(2) {
        Ok(_) => return Ok("works".to_owned()),
        Err(error) => error,
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let what = format!("io_uring: {error}");
    Err(match (error.raw_os_error(), disabled.trim()) {
        (_, "1" | "2") => Lack::mended_by(what, "sysctl kernel.io_uring_disabled=0"),
        (Some(libc::ENOSYS), _) => Lack::for_good(what),
        (Some(libc::ENOMEM), _) => Lack::mended_by(what, "ulimit -l unlimited"),
        _ => Lack::mended_by(
            what,
            "start the container with --security-opt seccomp=unconfined",
        ),
    })
}

fn missing_driver(module: &str, otherwise: &str) -> Lack {
    match module_is_there(module) {
        true => Lack::mended_by("the driver is not loaded", format!("modprobe {module}")),
        false => Lack::for_good(otherwise),
    }
}

/// Whether `modprobe` would find a module for the running kernel.
pub(crate) fn module_is_there(module: &str) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else {
        return false;
    };
    let modules = Path::new("/lib/modules")
        .join(name.release())
        .join("modules.dep");
    let file = format!("/{module}.ko");
    fs::read_to_string(modules).is_ok_and(|list| {
        list.lines()
            .filter_map(|line| line.split(':').next())
            .any(|path| path.contains(&file))
    })
}

/// Whether this process has a right.
pub(crate) fn has_capability(bit: u32) -> bool {
    capabilities("CapEff") >> bit & 1 == 1
}

/// Whether a set-user-id program that this process starts may have a right.
fn may_gain(bit: u32) -> bool {
    capabilities("CapBnd") >> bit & 1 == 1
}

fn capabilities(set: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter_map(|line| line.strip_prefix(set)?.strip_prefix(':'))
        .find_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
