//! What is mounted, as the kernel lists it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Context, Result};

/// One line of `/proc/self/mountinfo`, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The minor number of the file system; of a FUSE one, the number of its connection.
    pub(super) minor: u32,
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// Its kind, such as `fuse`.
    pub(super) kind: String,
}

impl Mount {
    /// Whether it is a FUSE file system.
    pub(super) fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }
}

/// The file system that is mounted at `mount_point`; the uppermost, if there are several. Asking
/// the kernel's list never touches the file system itself, which may be dead.
pub(super) fn mounted_at(mount_point: &Path) -> Result<Option<Mount>> {
    let list = std::fs::read("/proc/self/mountinfo").context_io(|| "cannot list the mounts")?;
    Ok(list
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .rfind(|mount| mount.mount_point == mount_point))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let mount_point = unescape(fields.nth(1)?);
    // Optional fields end with a lone `-`.
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        minor: device.split_once(':')?.1.parse().ok()?,
        mount_point,
        kind: String::from_utf8_lossy(fields.next()?).into_owned(),
    })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether `path` lies in the directory `mount_point`.
pub(super) fn lies_in(path: &Path, mount_point: &Path) -> bool {
    path.as_os_str().as_bytes() != mount_point.as_os_str().as_bytes()
        && path.starts_with(mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields_is_understood() {
        let line = br"36 35 98:7 / /mnt/a\040b rw,noatime master:1 - fuse.x blockferry rw";
        let mount = parse(line).expect("a line");
        assert_eq!(mount.mount_point, Path::new("/mnt/a b"));
        assert_eq!((mount.minor, mount.is_fuse()), (7, true));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / /mnt rw"), None);
    }

    #[test]
    fn what_is_not_mounted_is_not_found() {
        assert_eq!(mounted_at("/nowhere/at/all".as_ref()).expect("list"), None);
        assert!(mounted_at("/proc".as_ref()).expect("list").is_some());
    }
}
