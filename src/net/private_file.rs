//! Files that only their owner reads, written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Context;
use crate::{Error, ErrorKind, Result};

/// The longest file that is read back, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Writes `bytes` to `path` with mode 0600: durably, and whole or not at all.
///
/// # Errors
/// `InvalidInput` where there is something that is no regular file; else what the operating system
/// reports. `path` is then as it was.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = write_beside(path, bytes)?;
    let renamed =
        fs::rename(&temporary.0, path).context_io(|| format!("cannot write {}", path.display()));
    renamed.and_then(|()| sync_parent(path))
}

/// Finds out whether [`write_private`] can write there, and leaves everything as it is.
///
/// # Errors
/// As there.
pub fn check_private(path: &Path) -> Result<()> {
    write_beside(path, b"").map(drop)
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<Temporary> {
    // The rename would put a file in the place of a device or a link.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no regular file; name another one", path.display()),
        ));
    }
    write_temporary(path, bytes)
}

/// As [`write_private`], but leaves a file alone that is there already. Says whether it wrote.
pub(super) fn create_private(path: &Path, bytes: &[u8]) -> Result<bool> {
    let temporary = write_temporary(path, bytes)?;
    match fs::hard_link(&temporary.0, path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == IoKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io(format!("cannot write {}", path.display()), error)),
    }
}

/// The bytes of the file; none where there is no such file.
pub(super) fn read_private(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("cannot open {}", path.display()), error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .context_io(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is not one of our files: too long", path.display()),
        ));
    }
    Ok(Some(bytes))
}

/// Makes the directory, with mode 0700, unless it is there.
pub(super) fn create_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context_io(|| format!("cannot make the directory {}", path.display()))
}

/// A file that is removed again unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<Temporary> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{number}.tmp", std::process::id()));
    let temporary = Temporary(path.with_file_name(name));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary.0)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().context_io(|| format!("cannot write {}", path.display()))?;
    Ok(temporary)
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .context_io(|| format!("cannot make {} durable", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_file_is_replaced_whole_and_read_by_its_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        write_private(&path, b"first").expect("written");
        write_private(&path, b"second").expect("replaced");
        assert_eq!(read_private(&path).expect("read"), Some(b"second".to_vec()));
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn creating_never_replaces() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        assert!(create_private(&path, b"first").expect("made"));
        assert!(!create_private(&path, b"second").expect("left alone"));
        assert_eq!(read_private(&path).expect("read"), Some(b"first".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("a")).expect("made");
        for path in ["a", "no/such"].map(|name| dir.path().join(name)) {
            assert!(check_private(&path).is_err());
            assert!(write_private(&path, b"x").is_err());
        }
        check_private(&dir.path().join("b")).expect("it can be");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
