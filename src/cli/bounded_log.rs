//! The log of a process in the background: two files of bounded size, the newer and the older lines.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use blockferry::{Context, Result};

use super::progress;

/// How long each of the two files gets, in bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// The extension of the older one.
const OLDER: &str = "old";

/// Where lines go in place of the terminal.
static LOG: OnceLock<Mutex<BoundedLog>> = OnceLock::new();

/// Sends what is logged from now on, and standard error, to a file.
///
/// # Errors
/// When the file cannot be opened.
pub(super) fn start(path: &Path) -> Result<()> {
    let context = || format!("cannot log to {}", path.display());
    let log = BoundedLog::open(path, LOG_BYTES_MAX).context_io(context)?;
    nix::unistd::dup2_stderr(&log.file).context_io(context)?;
    let _ = LOG.set(Mutex::new(log));
    Ok(())
}

/// Where a line of the log goes: to standard error, or to the file that [`start`] named.
pub(super) struct Destination;

impl Write for Destination {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(log) = LOG.get() else {
            return progress::aside(|| io::stderr().write(line));
        };
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.make_room(line.len() as u64)? {
            // Panics go there without our doing.
            nix::unistd::dup2_stderr(&log.file)?;
        }
        log.write(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is put aside when it is full.
struct BoundedLog {
    path: PathBuf,
    file: File,
    bytes_max: u64,
}

impl BoundedLog {
    /// Goes on behind what is there: a process before this one may have said why it died.
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::options().create(true).append(true).open(path)?,
            bytes_max,
        })
    }

    /// Puts the file aside, in place of an earlier one, if `bytes` more would be too many for it.
    /// Says whether there is a new one. Where that fails the line is lost, and the bound holds.
    fn make_room(&mut self, bytes: u64) -> io::Result<bool> {
        if self.file.metadata()?.len().saturating_add(bytes) <= self.bytes_max {
            return Ok(false);
        }
        fs::rename(&self.path, self.path.with_extension(OLDER))?;
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(true)
    }

    /// Writes a line, or as much of it as a whole file takes.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let len = line.len().min(self.bytes_max as usize);
        self.file.write_all(&line[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u64 = 100;

    #[test]
    fn however_much_is_said_the_log_stays_within_two_files() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let mut log = BoundedLog::open(&path, BYTES_MAX).expect("opened");
        for number in 0..1000 {
            let line = match number {
                500 => "x".repeat(2 * BYTES_MAX as usize),
                number => format!("line {number}\n"),
            };
            log.make_room(line.len() as u64).expect("room");
            log.write(line.as_bytes()).expect("written");
            for file in fs::read_dir(directory.path()).expect("readable") {
                let len = file.expect("a file").metadata().expect("there").len();
                assert!(len <= BYTES_MAX, "{len} after {number} lines");
            }
        }
        let older = fs::read_to_string(path.with_extension(OLDER)).expect("text");
        let both = older + &fs::read_to_string(&path).expect("text");
        assert!(both.ends_with("line 998\nline 999\n"), "{both}");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 2);
    }

    #[test]
    fn what_a_process_before_said_is_kept_and_counted() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        fs::write(&path, "x".repeat(90)).expect("written");
        let mut log = BoundedLog::open(&path, BYTES_MAX).expect("opened");
        assert!(!log.make_room(10).expect("room"));
        assert!(log.make_room(11).expect("room"));
        let kept = fs::read(path.with_extension(OLDER)).expect("kept");
        assert_eq!(kept.len(), 90);
    }
}
