//! Where the live map of a store is, and whether it may be used.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;

use crate::{Context, Result};

/// The files of a store in the run-time directory.
#[derive(Debug)]
pub(super) struct LivePlace {
    map: PathBuf,
    failed: PathBuf,
}

impl LivePlace {
    /// Of the store whose `data` has these numbers: a copy of its directory has the same UUID, and may
    /// be opened beside it.
    pub(super) fn new(run_directory: &Path, store: [u8; 16], data: [u64; 2]) -> Self {
        let [device, inode] = data;
        let store = HEXLOWER.encode(&store);
        let name = format!("{store}-{device:x}-{inode:x}");
        Self {
            map: run_directory.join(format!("{name}.live")),
            failed: run_directory.join(format!("{name}.failed")),
        }
    }

    /// Makes the run-time directory unless it is there.
    pub(super) fn make_directory(run_directory: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_directory)
            .context_io(|| {
                format!(
                    "cannot make the run-time directory {}",
                    run_directory.display()
                )
            })
    }

    /// The live map.
    pub(super) fn map(&self) -> &Path {
        &self.map
    }

    /// The note of a failed sync.
    pub(super) fn failed(&self) -> &Path {
        &self.failed
    }

    /// Whether writes that the live map speaks of may be lost, since a sync failed.
    pub(super) fn is_failed(&self) -> bool {
        self.failed.exists()
    }

    /// Notes that a sync failed: what was written since the last one may never reach the disk, so
    /// nobody may go on with the live map.
    pub(super) fn note_failure(&self) {
        if let Err(error) = fs::write(&self.failed, b"") {
            tracing::error!(
                path = %self.failed.display(), %error,
                "cannot note that a sync failed; do not mount this cache again before a restart"
            );
        }
    }

    /// A new live map is there, which speaks of nothing that was lost.
    pub(super) fn clear_failure(&self) -> io::Result<()> {
        removed(&self.failed)
    }

    /// Removes all of it.
    pub(super) fn remove(&self) -> io::Result<()> {
        removed(&self.map)?;
        removed(&self.failed)
    }

    /// Removes all of whatever store has, or had, this `data`: of one that is damaged nobody knows the
    /// UUID.
    pub(super) fn remove_all_of(run_directory: &Path, data: [u64; 2]) -> io::Result<()> {
        let [device, inode] = data;
        let ends = ["live", "failed"].map(|kind| format!("-{device:x}-{inode:x}.{kind}"));
        let entries = match fs::read_dir(run_directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if ends.iter().any(|end| name.ends_with(end)) {
                removed(&run_directory.join(&*name))?;
            }
        }
        Ok(())
    }
}

fn removed(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
