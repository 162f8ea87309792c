//! What has to be known of a mount to repeat it after its process has died.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::state::{read_whole, write_whole};
use crate::volume::FileMark;
use crate::{Context, Result};

const FILE: &str = "mount.json";

/// The same of a `seed` or a `leech`, whose device ends with its process.
const MIGRATION_FILE: &str = "migration.json";

/// What has to be known of a mount to repeat it after its process has died. No secret is in it. It is
/// there for mounts alone whose device can be taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// The arguments of the program, without a ticket among them.
    pub arguments: Vec<String>,
    /// In which folder it was started.
    pub directory: PathBuf,
    /// What is mounted, in one way of writing it: [`backend::canonical`](crate::backend::canonical)
    /// for a local resource; a ticket's URL.
    pub resource: String,
    /// Which file that is; `None` where it is none of this host.
    #[serde(default)]
    pub file: Option<FileMark>,
    /// The ticket was not in a file, so that it has to be given again.
    #[serde(default)]
    pub needs_ticket: bool,
}

impl MountRecord {
    /// Writes the record into the device's run-time directory, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, run_directory: &Path) -> Result<()> {
        let path = run_directory.join(FILE);
        write_whole(&path, self).context_io(|| format!("cannot write {}", path.display()))
    }

    /// The same for a `seed` or a `leech`: its device cannot be taken over, but the command be given again.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_of_migration(&self, run_directory: &Path) -> Result<()> {
        let path = run_directory.join(MIGRATION_FILE);
        write_whole(&path, self).context_io(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`save_of_migration`](Self::save_of_migration) wrote; `None` where there is none.
    pub(super) fn load_of_migration(run_directory: &Path) -> Result<Option<Self>> {
        read_whole(&run_directory.join(MIGRATION_FILE))
    }

    /// Whatever runs there next is none, unless it says so.
    pub(super) fn forget_migration(run_directory: &Path) -> Result<()> {
        let path = run_directory.join(MIGRATION_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.context_io(|| format!("cannot remove {}", path.display())),
        }
    }

    /// Reads the record from a device's run-time directory; `None` where there is none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn load(run_directory: &Path) -> Result<Option<Self>> {
        read_whole(&run_directory.join(FILE))
    }
}
