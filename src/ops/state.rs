//! What a running device says of itself: written once to a file, and counted while it runs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::device::DeviceRecord;
use crate::migrate::MigrationStatus;
use crate::mount::managed::ManagedStatus;
use crate::volume::Counters;
use crate::{Context, Error, ErrorKind, Result};

/// The largest state file that is read, in bytes.
const STATE_BYTES_MAX: u64 = 64 << 10;

const FILE: &str = "state.json";

/// What runs under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The process that serves the device. Only for people: the lock says whether it lives.
    pub pid: u32,
    /// What applications open.
    pub device: PathBuf,
    /// How to remove the device should the process die.
    pub record: DeviceRecord,
    /// The resource, without secrets: see [`redacted`].
    pub resource: String,
    /// How long the device is, in bytes.
    pub size_bytes: u64,
    /// How requests reach the resource: `direct` or `managed`.
    pub mode: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// When the device became ready, in seconds since 1970.
    pub since: u64,
    /// The version of the program that serves it.
    pub version: String,
}

impl Running {
    /// A device of this process that is ready now.
    pub fn new(device: &Path, record: DeviceRecord, resource: &str, size_bytes: u64) -> Self {
        Self {
            pid: std::process::id(),
            device: device.to_owned(),
            record,
            resource: redacted(resource),
            size_bytes,
            mode: "direct".to_owned(),
            read_only: false,
            since: unix_seconds(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Whether the process is there that wrote this, and not just one that takes its device over.
    pub(super) fn is_of_living_process(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// Writes the state file, whole or not at all.
    pub(super) fn save(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        write_whole(&path, self).context_io(|| format!("cannot write {}", path.display()))
    }

    /// Reads the state file; `None` where there is none.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>> {
        read_whole(&directory.join(FILE))
    }
}

/// A command that is run because something happens to a device, and that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningHook {
    /// The option that it was given by.
    pub option: String,
    /// The command.
    pub command: String,
    /// When it was started, in seconds since 1970.
    pub since: u64,
}

impl std::fmt::Display for RunningHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let running = unix_seconds().saturating_sub(self.since);
        write!(f, "{} `{}`, for {running} s", self.option, self.command)
    }
}

/// What a device has done since it became ready.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The requests.
    #[serde(flatten)]
    pub counters: Counters,
    /// How many queues serve the device.
    pub queues: u16,
    /// How many requests each queue holds.
    pub depth: u16,
    /// Since when the other end of the resource cannot be reached, in seconds since 1970.
    pub away_since: Option<u64>,
    /// Whether the resource will not come back: every request fails.
    pub lost: bool,
    /// The last failure, for people.
    pub last_error: Option<String>,
    /// Commands that it waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<RunningHook>,
    /// How far the migration is that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationStatus>,
    /// How far a managed mount is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedStatus>,
}

/// A resource URL without what must not be shown: the fragment of a ticket, and a password.
///
/// ```
/// use blockferry::ops::redacted;
/// assert_eq!(redacted("blockferry://host:4480/disk#f.s"), "blockferry://host:4480/disk");
/// assert_eq!(redacted("redis://user:password@host/0"), "redis://user:***@host/0");
/// ```
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // A local path may hold any character; it has no secret in it.
        return url.to_owned();
    };
    if scheme == "file" {
        return url.to_owned();
    }
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = match user.split_once(':') {
                Some((user, _)) => format!("{user}:***"),
                None => user.to_owned(),
            };
            format!("{scheme}://{user}@{host}{path}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

/// Now, in seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Reads what [`write_whole`] wrote; `None` where there is nothing.
pub(super) fn read_whole<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context_io(|| format!("cannot read {}", path.display()))?,
    };
    let damaged = || Error::new(ErrorKind::Io, format!("{} is damaged", path.display()));
    if metadata.len() > STATE_BYTES_MAX {
        return Err(damaged());
    }
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context_io(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_slice(&text).map_err(|error| damaged().because(error))
}

/// Writes a file beside its place and moves it there.
pub(super) fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.write_all(b"\n")?;
    drop(file);
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::UblkRecord;
    use proptest::prelude::*;

    fn device() -> DeviceRecord {
        DeviceRecord::Ublk(UblkRecord {
            id: 3,
            mark: 0,
            recovery: None,
        })
    }

    fn running() -> Running {
        Running::new(Path::new("/dev/ublkb3"), device(), "mem:1GiB", 1 << 30)
    }

    #[test]
    fn a_reader_never_sees_half_a_state_file() {
        let directory = tempfile::tempdir().expect("directory");
        running().save(directory.path()).expect("written");
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for _ in 0..1000 {
                    let read = Running::load(directory.path()).expect("whole");
                    assert_eq!(read.expect("there").device, Path::new("/dev/ublkb3"));
                }
            });
            while !reader.is_finished() {
                running().save(directory.path()).expect("written");
            }
        });
        let left = fs::read_dir(directory.path()).expect("readable").count();
        assert_eq!(left, 1);
    }

    #[test]
    fn the_state_of_a_later_version_can_be_read() {
        let directory = tempfile::tempdir().expect("directory");
        let mut json = serde_json::to_value(running()).expect("JSON");
        json["something_new"] = serde_json::json!({ "a": [1, 2] });
        fs::write(directory.path().join(FILE), json.to_string()).expect("written");
        let read = Running::load(directory.path()).expect("readable");
        assert_eq!(read.expect("there").record, device());
        let status: Status = serde_json::from_str(r#"{"queues":2,"new":1}"#).expect("readable");
        assert_eq!(status.queues, 2);
    }

    #[test]
    fn local_paths_are_shown_whole() {
        for url in ["file:/srv/a#b@c:d", "file:///srv/a#b", "mem:1GiB", "/srv/a"] {
            assert_eq!(redacted(url), url);
        }
    }

    proptest! {
        #[test]
        fn no_secret_is_shown(
            scheme in "(blockferry|redis|nbd|grpc|cassandra|s3)",
            secret in "[A-Z]{12}",
            host in "[a-z.]{1,8}(:[0-9]{1,5})?",
        ) {
            for url in [
                format!("{scheme}://{host}/disk#{secret}"),
                format!("{scheme}://{host}#{secret}"),
                format!("{scheme}://user:{secret}@{host}/0"),
                format!("{scheme}://:{secret}@{host}"),
                format!("{scheme}://user:{secret}@{host}?x=1#{secret}"),
            ] {
                let shown = redacted(&url);
                prop_assert!(!shown.contains(&secret), "{shown}");
                prop_assert!(shown.contains(&host), "{shown}");
            }
        }
    }
}
