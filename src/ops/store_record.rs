//! Which local store a managed mount has: what becomes of its writes when its process has died.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::running::names;
use super::state::{read_whole, write_whole};
use super::{directory, recovery};
use crate::volume::cache::{Contents, Discard, discard, empty, inspect};
use crate::volume::format_size;
use crate::{Context, Error, ErrorKind, Result};

const FILE: &str = "store.json";

/// The local store of a managed mount, for whoever cleans up after its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRecord {
    /// Its directory, by a path from the root.
    pub path: PathBuf,
    /// Where its live map is.
    pub live_maps: PathBuf,
    /// Whether local writes go to the origin by themselves.
    pub pushes: bool,
}

impl StoreRecord {
    /// Writes the record into the device's run-time directory, whole or not at all. To be called before
    /// there is a device that could be written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, run_directory: &Path) -> Result<()> {
        let path = run_directory.join(FILE);
        write_whole(&path, self).context_io(|| format!("cannot write {}", path.display()))
    }

    /// Removes a record that an earlier mount under the name has left.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn forget(run_directory: &Path) -> Result<()> {
        let path = run_directory.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
                format!("cannot remove {}", path.display()),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Reads the record; `None` where there is none.
    pub(super) fn load(run_directory: &Path) -> Result<Option<Self>> {
        read_whole(&run_directory.join(FILE))
    }

    /// Sees to the local writes of a mount whose process has died. Gives what became of them, if there
    /// are any.
    ///
    /// # Errors
    /// When they were to be given up and are not.
    pub(super) fn after_death(&self, discard_dirty: bool) -> Result<Option<String>> {
        let path = self.path.display();
        let (dirty_bytes, sync_failed) = match inspect(&self.path, &self.live_maps) {
            Ok(report) => match report.contents {
                Contents::Idle(held) => (held.dirty_bytes, report.sync_failed),
                // Another mount goes on with it.
                Contents::InUse(_) if !discard_dirty => return Ok(None),
                Contents::InUse(process) => return Err(in_use(&self.path, process)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if !discard_dirty => {
                return Ok(Some(format!(
                    "what is in the local store {path} nobody can say: {}. `blockferry cache drop {path} \
                     --discard-dirty` gives it up",
                    error.chain()
                )));
            }
            Err(_) => {
                discard(&self.path, &self.live_maps, Discard::EvenDirty)?;
                return Ok(Some(format!(
                    "the local store {path} was damaged and is removed with all that it held; the next mount \
                     needs --takeover"
                )));
            }
        };
        if dirty_bytes == 0 && !(sync_failed && discard_dirty) {
            return Ok(None);
        }
        if !discard_dirty {
            return Ok(Some(unsent(dirty_bytes, &self.path, self.pushes)));
        }
        empty(&self.path, &self.live_maps)?;
        Ok(Some(format!(
            "{} of local writes were given up, and the local store {path} is empty; its server was not told: the \
             same mount goes on with that store, any other needs --takeover",
            format_size(dirty_bytes)
        )))
    }
}

fn in_use(path: &Path, process: Option<u32>) -> Error {
    let by = process.map_or_else(String::new, |pid| format!(" by process {pid}"));
    Error::new(
        ErrorKind::Busy,
        format!(
            "the local store {} is in use{by}: the writes in it are that one's to send",
            path.display()
        ),
    )
}

/// That local writes stay in a store which the origin does not have, and how they get there.
pub fn unsent(dirty_bytes: u64, store: &Path, pushes: bool) -> String {
    let (kept, store) = (format_size(dirty_bytes), store.display());
    let how = match pushes {
        true => "the same mount again sends them",
        false => {
            "the same mount again has them, and `blockferry sync` sends them then (--push is off)"
        }
    };
    format!("{kept} of local writes stay in the local store {store}; {how}")
}

/// Refuses to remove a store that a device whose process has died waits to go on with.
///
/// # Errors
/// `Busy`, with the name of that device and what to do.
pub fn refuse_waiting_for(store: &Path) -> Result<()> {
    refuse_waiting_for_in(&directory::run_directory(), store)
}

fn refuse_waiting_for_in(root: &Path, store: &Path) -> Result<()> {
    let Ok(store) = store.canonicalize() else {
        return Ok(());
    };
    for name in names(root)? {
        let directory = root.join(name.as_str());
        let waits = Claim::is_held(root, &name) == Some(false)
            && recovery::is_recoverable(&directory)
            && matches!(StoreRecord::load(&directory), Ok(Some(record)) if record.path == store);
        if waits {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "`{name}`, whose process has died, waits to go on with the cache in {}: `blockferry recover \
                     {name}` does, `blockferry stop {name} --force --discard-dirty` gives the device and the \
                     local writes up",
                    store.display()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceRecord, Recovery, UblkRecord};
    use crate::ops::MountRecord;

    #[test]
    fn a_store_that_a_dead_device_waits_for_is_not_removed_under_it() {
        let root = tempfile::tempdir().expect("directory");
        let store = tempfile::tempdir().expect("directory");
        let other = tempfile::tempdir().expect("directory");
        let path = store.path().canonicalize().expect("there");
        for (name, recovery) in [("fuse", false), ("disk", true)] {
            let name = name.parse().expect("legal");
            let claim = Claim::take_in(root.path(), Some(&name), "").expect("free");
            let device = DeviceRecord::Ublk(UblkRecord {
                id: 4_000_000_000,
                mark: 1,
                recovery: recovery.then_some(Recovery {
                    queues: 1,
                    depth: 1,
                }),
            });
            device.save(claim.directory()).expect("written");
            let mount = MountRecord {
                arguments: Vec::new(),
                directory: "/".into(),
                resource: "blockferry://host:1/disk".to_owned(),
                file: None,
                needs_ticket: false,
            };
            mount.save(claim.directory()).expect("written");
            let record = StoreRecord {
                path: path.clone(),
                live_maps: root.path().join(".stores"),
                pushes: true,
            };
            record.save(claim.directory()).expect("written");
            claim.leave();
            let refused = refuse_waiting_for_in(root.path(), store.path());
            assert_eq!(refused.is_err(), recovery);
            refuse_waiting_for_in(root.path(), other.path()).expect("another store");
            if let Err(error) = refused {
                assert_eq!(error.kind(), ErrorKind::Busy);
                for part in [
                    "`disk`",
                    "recover disk",
                    "stop disk --force --discard-dirty",
                ] {
                    assert!(error.to_string().contains(part), "{error}");
                }
            }
        }
    }
}
