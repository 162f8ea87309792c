//! Who holds a block device or a file open.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Context, Error, ErrorKind, Result};

/// How many holders a message names.
const NAMED_MAX: usize = 6;

/// Somebody who holds a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, where it is one.
    pub pid: Option<u32>,
    /// The name of its program.
    pub command: Option<String>,
    /// In what way.
    pub how: How,
}

/// In what way a device is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// A process has it open.
    Open,
    /// A file system on it is mounted there.
    Mounted(PathBuf),
    /// The kernel swaps to it.
    Swap,
    /// Another block device stands on it: device mapper, RAID, loop.
    Under(String),
}

impl Holder {
    fn kernel(how: How) -> Self {
        Self {
            pid: None,
            command: None,
            how,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Mounted(at) => write!(f, "mounted at {}", at.display()),
            How::Swap => write!(f, "used as swap"),
            How::Under(device) => write!(f, "part of /dev/{device}"),
            How::Open => {
                let command = self.command.as_deref().unwrap_or("?");
                write!(f, "open by {} ({command})", self.pid.unwrap_or_default())
            }
        }
    }
}

/// Who holds a block device (or a partition of it) or a file, this process left out.
///
/// What other users' processes hold is seen by root alone.
///
/// # Errors
/// When `path` cannot be looked at, or there is no /proc.
pub fn holders(path: &Path) -> Result<Vec<Holder>> {
    let target = Target::of(path)?;
    let mut found = mounts(&target)?;
    found.extend(swaps(&target));
    found.extend(devices_on_top(&target));
    found.extend(openers(&target)?);
    Ok(found)
}

/// The error for a device that somebody holds: by whom, and what to do.
pub fn in_use(path: &Path, holders: &[Holder]) -> Error {
    let mut words: Vec<String> = holders.iter().map(Holder::to_string).collect();
    if words.len() > NAMED_MAX {
        let more = words.len() - NAMED_MAX;
        words.truncate(NAMED_MAX);
        words.push(format!("{more} more"));
    }
    if words.is_empty() {
        words.push("held by a process that cannot be seen from here".to_owned());
    }
    let mounted = holders.iter().any(|h| matches!(h.how, How::Mounted(_)));
    Error::new(
        ErrorKind::Busy,
        format!(
            "{} is in use: {}. {} it, or stop with --force (a second signal does that too).",
            path.display(),
            words.join("; "),
            if mounted { "Unmount" } else { "Close" },
        ),
    )
}

/// The error of [`in_use`] where somebody holds `path`. What is not there is held by nobody.
pub(super) fn refuse_in_use(path: &Path) -> Result<()> {
    match holders(path) {
        Ok(holders) if holders.is_empty() => Ok(()),
        Ok(holders) => Err(in_use(path, &holders)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is looked for, by number: paths may be written in many ways.
struct Target {
    path: PathBuf,
    what: What,
    /// Kernel names of the device and its partitions (`ublkb0`, `ublkb0p1`).
    names: Vec<String>,
}

#[derive(PartialEq, Eq)]
enum What {
    /// The numbers of the device and its partitions.
    Block(BTreeSet<Number>),
    File {
        on: Number,
        inode: u64,
    },
}

/// Major and minor.
type Number = (u32, u32);

impl Target {
    fn of(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot look at {}", path.display());
        let path = fs::canonicalize(path).context_io(cannot)?;
        let seen = Seen::at(&path).context_io(cannot)?;
        let Some(number) = seen.block else {
            let what = What::File {
                on: seen.on,
                inode: seen.inode,
            };
            let names = Vec::new();
            return Ok(Self { path, what, names });
        };
        let mut numbers = BTreeSet::from([number]);
        let mut names = Vec::new();
        let sys = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
        if let Ok(sys) = fs::canonicalize(&sys) {
            names.extend(sys.file_name().map(|n| n.to_string_lossy().into_owned()));
            for (name, directory) in children(&sys) {
                // A partition is a folder with a number within the disk's folder.
                if directory.join("partition").exists()
                    && let Some(number) = number_in(&directory.join("dev"))
                {
                    numbers.insert(number);
                    names.push(name);
                }
            }
        }
        let what = What::Block(numbers);
        Ok(Self { path, what, names })
    }

    fn is(&self, seen: &Seen) -> bool {
        match &self.what {
            What::Block(numbers) => seen.block.is_some_and(|number| numbers.contains(&number)),
            What::File { on, inode } => {
                seen.block.is_none() && seen.on == *on && seen.inode == *inode
            }
        }
    }

    fn is_number(&self, number: Number) -> bool {
        matches!(&self.what, What::Block(numbers) if numbers.contains(&number))
    }

    /// Whether `path` names the device or a partition of it.
    fn is_path(&self, path: &Path) -> bool {
        path == self.path
            || path.starts_with("/dev")
                && matches!(self.what, What::Block(_))
                && Seen::at(path).is_ok_and(|seen| self.is(&seen))
    }
}

/// What the kernel has in its cache about a file.
struct Seen {
    /// The file system that the file is on.
    on: Number,
    inode: u64,
    /// The number of the device, where the file is a block device.
    block: Option<Number>,
}

impl Seen {
    /// Looks without asking the file system: it may be served by a process that hangs, or by us.
    fn at(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the path ends with a NUL, and the kernel fills what it was given room for; a
        // `statx` of zeros is a legal value.
        let found = unsafe {
            let result = libc::statx(
                libc::AT_FDCWD,
                path.as_ptr(),
                libc::AT_STATX_DONT_SYNC,
                libc::STATX_TYPE | libc::STATX_INO,
                found.as_mut_ptr(),
            );
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            found.assume_init()
        };
        let is_block = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
        Ok(Self {
            on: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            block: is_block.then_some((found.stx_rdev_major, found.stx_rdev_minor)),
        })
    }
}

/// Processes with an open descriptor, once each.
fn openers(target: &Target) -> Result<Vec<Holder>> {
    Ok(processes()?
        .filter(|(pid, _)| *pid != std::process::id())
        .filter(|(_, directory)| {
            children(&directory.join("fd"))
                .any(|(_, fd)| Seen::at(&fd).is_ok_and(|seen| target.is(&seen)))
        })
        .map(|(pid, directory)| Holder {
            pid: Some(pid),
            command: fs::read_to_string(directory.join("comm"))
                .ok()
                .map(|comm| comm.trim_end().to_owned()),
            how: How::Open,
        })
        .collect())
}

/// Mounts, once each: in every mount namespace that a process lives in. Our own comes first, as
/// paths are relative to the root directory of the process that is asked.
fn mounts(target: &Target) -> Result<Vec<Holder>> {
    if matches!(target.what, What::File { .. }) {
        return Ok(Vec::new());
    }
    let mut namespaces = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let ourselves = (std::process::id(), PathBuf::from("/proc/self"));
    for (_, directory) in std::iter::once(ourselves).chain(processes()?) {
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else {
            continue;
        };
        if namespaces.insert(namespace)
            && let Ok(table) = fs::read(directory.join("mountinfo"))
        {
            let lines = table.split(|byte| *byte == b'\n');
            seen.extend(lines.filter_map(|line| mounted_at(line, target)));
        }
    }
    let holders = seen.into_iter().map(|at| Holder::kernel(How::Mounted(at)));
    Ok(holders.collect())
}

/// The mount point in a line of mountinfo that is about `target`. The number is compared, and the
/// source too, as some file systems (btrfs) have numbers of their own.
fn mounted_at(line: &[u8], target: &Target) -> Option<PathBuf> {
    let mut words = line.split(|byte| *byte == b' ');
    let number = parse_number(std::str::from_utf8(words.nth(2)?).ok()?)?;
    let at = unescaped(words.nth(1)?);
    // Optional fields end with a dash; then come the type and the source.
    let source = unescaped(words.skip_while(|word| *word != b"-").nth(2)?);
    let is_ours = target.is_number(number) || target.is_path(Path::new(&source));
    is_ours.then(|| PathBuf::from(at))
}

/// A word of mountinfo or swaps, where blanks stand as octal numbers: `\040`.
fn unescaped(word: &[u8]) -> OsString {
    let mut text = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        match after {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if byte == b'\\' => {
                text.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                text.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(text)
}

fn swaps(target: &Target) -> Vec<Holder> {
    let table = fs::read("/proc/swaps").unwrap_or_default();
    table
        .split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| line.split(u8::is_ascii_whitespace).next())
        .filter(|word| !word.is_empty() && target.is_path(Path::new(&unescaped(word))))
        .map(|_| Holder::kernel(How::Swap))
        .collect()
}

/// Block devices that stand on this one.
fn devices_on_top(target: &Target) -> Vec<Holder> {
    let mut names = BTreeSet::new();
    for name in &target.names {
        let above = Path::new("/sys/class/block").join(name).join("holders");
        names.extend(children(&above).map(|(name, _)| name));
    }
    for (name, directory) in children(Path::new("/sys/block")) {
        if let Ok(backing) = fs::read(directory.join("loop/backing_file")) {
            let backing = backing.strip_suffix(b"\n").unwrap_or(&backing);
            if target.is_path(Path::new(OsStr::from_bytes(backing))) {
                names.insert(name);
            }
        }
    }
    let holders = names.into_iter().map(|n| Holder::kernel(How::Under(n)));
    holders.collect()
}

/// The processes of this host. Each may be gone by the time it is looked at.
fn processes() -> Result<impl Iterator<Item = (u32, PathBuf)>> {
    let entries = fs::read_dir("/proc").context_io(|| "cannot read /proc")?;
    Ok(entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    }))
}

fn children(directory: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, entry.path())
    })
}

fn number_in(path: &Path) -> Option<Number> {
    parse_number(fs::read_to_string(path).ok()?.trim_end())
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_with_the_file_open_is_found_until_it_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("disk");
        fs::write(&path, "x").expect("written");
        let ours = File::open(&path).expect("opened");
        assert_eq!(
            holders(&path).expect("looked"),
            [],
            "this process is left out"
        );
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(ours))
            .spawn()
            .expect("started");
        let found = holders(&path);
        child.kill().expect("killed");
        child.wait().expect("waited");
        let expected = Holder {
            pid: Some(child.id()),
            command: Some("sleep".to_owned()),
            how: How::Open,
        };
        assert_eq!(found.expect("looked"), [expected]);
        assert_eq!(holders(&path).expect("looked"), []);
    }

    #[test]
    fn mount_points_are_found_by_number_and_by_source() {
        let target = Target {
            path: PathBuf::from("/dev/example"),
            what: What::Block(BTreeSet::from([(259, 3), (259, 4)])),
            names: Vec::new(),
        };
        for (line, at) in [
            (
                "36 35 259:4 / /mnt rw - ext4 /dev/examplep1 rw",
                Some("/mnt"),
            ),
            (
                r"36 35 259:3 / /my\040disk rw shared:1 master:2 - xfs x rw",
                Some("/my disk"),
            ),
            (
                "36 35 0:44 /sub /data rw shared:1 - btrfs /dev/example rw",
                Some("/data"),
            ),
            ("36 35 259:5 / /mnt rw - ext4 /dev/other rw", None),
            ("36 35 0:4 / /proc rw - proc proc rw", None),
            ("", None),
            ("36 35 259:3", None),
            ("garbage in every single word of it all", None),
        ] {
            let found = mounted_at(line.as_bytes(), &target);
            assert_eq!(found, at.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn a_message_names_who_holds_and_stays_short() {
        let opener = |pid| Holder {
            pid: Some(pid),
            command: Some("fio".to_owned()),
            how: How::Open,
        };
        let mut all = vec![
            Holder::kernel(How::Mounted(PathBuf::from("/mnt"))),
            opener(123),
        ];
        let text = in_use(Path::new("/dev/ublkb0"), &all).to_string();
        assert!(
            text.starts_with("/dev/ublkb0 is in use: mounted at /mnt; open by 123 (fio). Unmount"),
            "{text}"
        );
        all.extend((0..1000).map(opener));
        let text = in_use(Path::new("/dev/ublkb0"), &all).to_string();
        assert!(text.contains("996 more") && text.len() < 400, "{text}");
    }
}
