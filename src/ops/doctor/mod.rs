//! What this machine offers, and what would mend what it lacks.

mod memory;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::device::choice::{self, Lack};
use crate::device::ublk::features::Features;
use crate::device::{Choice, DeviceKind};

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// The names of the features of the ublk driver.
    pub ublk_features: Vec<String>,
    /// What was looked at, one by one.
    pub findings: Vec<Finding>,
    /// The kind of device that would be chosen; `None` where none can be made.
    pub device: Option<DeviceKind>,
    /// Why that kind, or why none.
    pub because: String,
    /// The kinds before it, and why not.
    pub rejected: Vec<Rejected>,
}

/// A kind of device that cannot be made here.
#[derive(Debug, Clone, Serialize)]
pub struct Rejected {
    /// The kind.
    pub device: DeviceKind,
    /// What is missing.
    pub because: String,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// Whether it can be used.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What would mend it.
    pub mend: Option<String>,
}

impl Finding {
    fn new(name: &'static str, found: Result<String, Lack>) -> Self {
        let (ok, detail, mend) = match found {
            Ok(detail) => (true, detail, None),
            Err(lack) => (false, lack.what, lack.mend),
        };
        Self {
            name,
            ok,
            detail,
            mend,
        }
    }
}

/// Looks at this machine. Changes nothing.
pub fn examine() -> Report {
    let choice = choice::choose(None);
    let (device, because, rejected) = match choice {
        Ok(Choice {
            kind,
            because,
            rejected,
        }) => (Some(kind), because, rejected),
        Err(error) => (None, error.chain(), Vec::new()),
    };
    let ublk = choice::ublk();
    let recovery = recovery(ublk.as_ref());
    Report {
        kernel: kernel(),
        ublk_features: ublk
            .as_ref()
            .map_or_else(|_| Vec::new(), |features| features.names()),
        findings: vec![
            Finding::new("ublk", ublk.map(|features| features.to_string())),
            Finding::new("recovery", recovery),
            Finding::new("ublk without root", choice::ublk_for_all()),
            Finding::new("nbd", nbd()),
            Finding::new("fuse", choice::fuse()),
            Finding::new("fusermount3", choice::fusermount()),
            Finding::new("fuse over io_uring", fuse_over_io_uring()),
            Finding::new("loop", choice::loop_device()),
            Finding::new("io_uring", choice::io_uring()),
            Finding::new("locked memory", memory::lock_limit()),
            Finding::new("userfaultfd", memory::userfaultfd()),
        ],
        device,
        because,
        rejected: rejected
            .into_iter()
            .map(|(device, because)| Rejected { device, because })
            .collect(),
    }
}

fn kernel() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// Whether a device outlives its process.
fn recovery(ublk: Result<&Features, &Lack>) -> Result<String, Lack> {
    let features = ublk.map_err(|_| Lack::for_good("only ublk devices outlive their process"))?;
    if !features.keep_devices_of_the_dead() {
        return Err(Lack::for_good(
            "the ublk driver lets a device end with its process (Linux 6.1 and later do not)",
        ));
    }
    match choice::has_capability(choice::CAP_SYS_ADMIN) {
        true => Ok("a device whose process is killed waits for `blockferry recover`".to_owned()),
        false => Err(Lack::mended_by(
            "a device that was made without root ends with its process",
            "run as root",
        )),
    }
}

fn nbd() -> Result<String, Lack> {
    let devices = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nbd"))
        .count();
    if devices > 0 || Path::new("/sys/module/nbd").exists() {
        return Ok(format!("{devices} devices"));
    }
    Err(match choice::module_is_there("nbd") {
        true => Lack::mended_by("the driver is not loaded", "modprobe nbd"),
        false => Lack::for_good("the kernel has no nbd driver"),
    })
}

fn fuse_over_io_uring() -> Result<String, Lack> {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
    match fs::read_to_string(SWITCH).as_deref().map(str::trim) {
        Ok("Y" | "1") => Ok("on".to_owned()),
        Ok(_) => Err(Lack::mended_by(
            "switched off",
            format!("echo Y > {SWITCH}"),
        )),
        Err(_) => Err(Lack::for_good("not in this kernel (Linux 6.14 and later)")),
    }
}
