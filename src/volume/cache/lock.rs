//! Who has a cache: the lock on `data`.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::Flock;

use super::DATA;
use super::files::{OsDirectory, OsFile};
use crate::volume::file::{self, FileOptions};
use crate::{Context, Error, ErrorKind, Result};

/// How often somebody may remove `data` between our opening it and our locking it.
const TRIES_MAX: usize = 16;

/// Of a process whose end has begun (`linux/sched.h`).
const PF_EXITING: u64 = 0x4;

/// How long somebody may take to die who was killed just now, or to let go who is about to.
const LETS_GO_WAIT: Duration = Duration::from_millis(250);

/// How long the last writes of a process that has died may take.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(10);

/// Opens `data` and locks it. The lock of a process that has died is waited for: its last writes are
/// on their way (L11).
///
/// # Errors
/// `Busy`, with who has it; `NotFound` where there is none and none is to be made.
pub(super) fn open_data(directory: &OsDirectory, path: &Path, create: bool) -> Result<Flock<File>> {
    let cannot = || format!("cannot open `{DATA}` in {}", path.display());
    for _ in 0..TRIES_MAX {
        let data = directory.open_file(DATA, create).context_io(cannot)?;
        let data = lock_data(data, path)?;
        if still_named(&data, path).context_io(cannot)? {
            return Ok(data);
        }
    }
    Err(Error::new(ErrorKind::Busy, cannot()))
}

fn lock_data(data: File, path: &Path) -> Result<Flock<File>> {
    let holder = holder(&data);
    let lives = || holder.is_some_and(lives);
    let same = data
        .try_clone()
        .context_io(|| format!("cannot open `{DATA}` in {}", path.display()))?;
    let first = file::lock(same, path, patience(LETS_GO_WAIT));
    let locked = match first {
        Err(error) if error.kind() == ErrorKind::Busy && !lives() => {
            file::lock(data, path, patience(LAST_WRITES_WAIT))
        }
        other => other,
    };
    locked.map_err(|error| match (error.kind(), holder) {
        (ErrorKind::Busy, Some(pid)) => Error::new(
            ErrorKind::Busy,
            format!(
                "the cache in {} is in use by process {pid}; stop that first",
                path.display()
            ),
        ),
        _ => error,
    })
}

fn patience(lock_patience: Duration) -> FileOptions {
    FileOptions {
        lock_patience,
        ..FileOptions::default()
    }
}

/// Whether a process is there and not about to end: one that was killed is still listed while its
/// memory and its rings are taken down, and until its parent has asked for its status.
fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !is_ending(&stat))
}

/// `3049 (name) S 1 …`: the state, and six fields behind it the flags.
fn is_ending(stat: &str) -> bool {
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok());
    matches!(fields.first(), Some(&("Z" | "X")))
        || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Whether the file that we have locked still is the one in the directory.
fn still_named(data: &File, path: &Path) -> io::Result<bool> {
    let ours = data.metadata()?;
    match std::fs::symlink_metadata(path.join(DATA)) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A locked file, as long as no store has been made of it.
pub(super) fn plain(data: &Flock<File>, path: &Path) -> Result<Box<OsFile>> {
    let same = data
        .try_clone()
        .context_io(|| format!("cannot open `{DATA}` in {}", path.display()))?;
    Ok(Box::new(OsFile(same)))
}

/// The process that has locked `data`; see [`holder`].
pub(super) fn holder_of(directory: &OsDirectory) -> Option<u32> {
    holder(&directory.open_file(DATA, false).ok()?)
}

/// The process that has locked a file, as the kernel lists it; none if nobody has, or it cannot be
/// seen from here.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device),
        metadata.ino()
    );
    holder_in(&std::fs::read_to_string("/proc/locks").ok()?, &place)
}

/// `12: FLOCK  ADVISORY  WRITE 3049 00:25:1234 0 EOF`; who waits for a lock has `->` behind the
/// number.
fn holder_in(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => {
                pid.parse().ok().filter(|pid| *pid != 0)
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_has_died_does_not_live_however_long_it_is_listed() {
        assert!(lives(std::process::id()));
        let mut child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        assert!(lives(child.id()));
        child.kill().expect("killed");
        // It is a zombie until it is waited for.
        while lives(child.id()) {
            std::thread::yield_now();
        }
        child.wait().expect("waited");
        assert!(!lives(child.id()));
        assert!(is_ending("7 (a) b) S 1 7 7 0 -1 4194564 0"));
        assert!(!is_ending("7 (a) b) S 1 7 7 0 -1 4194560 0"));
    }
}
