//! The run-time directory of this user.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::{Context, Error, ErrorKind, Result};

/// Names another run-time directory, for tests and for hosts that keep theirs elsewhere.
const OVERRIDE: &str = "BLOCKFERRY_RUN_DIR";

/// Where the state of this user's running devices is, as an absolute path. The directory need not
/// exist.
pub fn run_directory() -> PathBuf {
    let path = chosen();
    std::path::absolute(&path).unwrap_or(path)
}

fn chosen() -> PathBuf {
    if let Some(path) = non_empty(OVERRIDE) {
        return path;
    }
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/blockferry");
    }
    match non_empty("XDG_RUNTIME_DIR") {
        Some(path) => path.join("blockferry"),
        None => std::env::temp_dir().join(format!("blockferry-{uid}")),
    }
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Makes the run-time directory, or refuses one that others could have prepared.
pub(super) fn make(root: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .context_io(|| format!("cannot make the run-time directory {}", root.display()))?;
    check(root)
}

/// Whether the directory is ours alone: not a link, owned by us, writable by nobody else.
pub(super) fn check(root: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(root)
        .context_io(|| format!("cannot look at the run-time directory {}", root.display()))?;
    let refuse = |what: &str| {
        Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "the run-time directory {} {what}; remove it, or name another one in {OVERRIDE}",
                root.display()
            ),
        ))
    };
    if !metadata.is_dir() {
        refuse("is not a directory")
    } else if metadata.uid() != geteuid().as_raw() {
        refuse("belongs to another user")
    } else if metadata.mode() & 0o022 != 0 {
        refuse("can be written by others")
    } else {
        Ok(())
    }
}
