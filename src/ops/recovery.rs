//! Devices whose process has died and that wait for another one to take them over.

use std::path::Path;

use super::claim::Claim;
use super::mount_record::MountRecord;
use super::name::Name;
use super::running::{clean, names, unknown};
use super::state::{Running, redacted};
use super::{control, directory};
use crate::device::{self, DeviceRecord};
use crate::{Error, ErrorKind, Result};

/// A name to run under, and the device that a dead process left there, if that goes on.
#[derive(Debug)]
pub struct Place {
    /// The name.
    pub claim: Claim,
    /// To be taken over by [`device::adopt`].
    pub left_over: Option<DeviceRecord>,
}

/// Finds where a mount of `resource` runs: as the one that goes on with the device that a dead process
/// left of it, or under a name of its own: `name`, or a free one that follows from `shown`. What is
/// left there of a device of the resource that ended with its process is removed, unless it is in use.
/// `resource` is as in [`MountRecord`].
///
/// # Errors
/// `Busy` where the name is taken, and where a dead process left a device of the resource under
/// another one.
pub fn place(name: Option<&Name>, shown: &str, resource: &str) -> Result<Place> {
    place_in(&directory::run_directory(), name, shown, resource)
}

fn place_in(root: &Path, name: Option<&Name>, shown: &str, resource: &str) -> Result<Place> {
    for found in left_over_of(root, resource)? {
        if name.is_some_and(|name| *name != found) {
            return Err(in_the_way(&found, shown));
        }
        // Somebody else may have been faster.
        let Some(claim) = Claim::take_dead(root, &found)? else {
            continue;
        };
        let Some(record) = recoverable(claim.directory(), Some(resource))? else {
            continue;
        };
        if device::is_left_over(&record)? {
            return Place::at(claim, Some(record));
        }
        // It was removed, or had not been started yet: there is nothing to go on with.
        device::remove_left_over(&record)?;
        claim.empty()?;
        return Place::at(claim, None);
    }
    let suggested = Name::suggested_by(shown);
    clean_remains(root, name.unwrap_or(&suggested), shown);
    let claim = Claim::take_in(root, name, shown)?;
    Place::at(claim, None)
}

/// What is left of a device of this resource that ended with its process, and that nobody has open,
/// makes way for the same mount again; what ended before it was ready nobody was told of, whoever's it is.
fn clean_remains(root: &Path, name: &Name, shown: &str) {
    let directory = root.join(name.as_str());
    let is_same = match Running::load(&directory) {
        Ok(Some(running)) => running.resource == redacted(shown),
        Ok(None) => true,
        Err(_) => false,
    };
    let is_over = || Claim::is_held(root, name) == Some(false) && !is_recoverable(&directory);
    if is_same && is_over() {
        match clean(root, name, false) {
            Ok(()) => tracing::info!("removed what the dead process of `{name}` left"),
            // The claim says what is in the way.
            Err(error) => tracing::debug!("{}", error.chain()),
        }
    }
}

/// Takes the device over that a dead process left under a name, and says how it was mounted.
///
/// # Errors
/// `NotFound` for an unknown name and for a device that is gone; `Busy` where its process lives;
/// `Unsupported` where it cannot be taken over.
pub fn take_left_over(name: &Name) -> Result<(Place, MountRecord)> {
    let root = directory::run_directory();
    let is_held = Claim::is_held(&root, name).ok_or_else(|| unknown(name))?;
    if is_held {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("the process of `{name}` lives; there is nothing to recover"),
        ));
    }
    let claim = Claim::take_dead(&root, name)?.ok_or_else(|| unknown(name))?;
    let mount = MountRecord::load(claim.directory())?;
    let record = recoverable(claim.directory(), None)?;
    let (Some(mount), Some(record)) = (mount, record) else {
        claim.leave();
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "`{name}` cannot be recovered: only ublk devices can, and of them neither those of \
                 memory nor those mounted with --no-recovery or without root; clean it with \
                 `blockferry stop {name}`"
            ),
        ));
    };
    if !device::is_left_over(&record)? {
        claim.leave();
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "the device of `{name}` is gone, so there is nothing to recover; clean it with \
                 `blockferry stop {name}`"
            ),
        ));
    }
    Ok((Place::at(claim, Some(record))?, mount))
}

/// Refuses what would change a resource behind the back of a device that a dead process left of it.
///
/// # Errors
/// `Busy`, with the name of that device and what to do.
pub fn refuse_left_over(resource: &str) -> Result<()> {
    refuse_left_over_in(&directory::run_directory(), resource)
}

fn refuse_left_over_in(root: &Path, resource: &str) -> Result<()> {
    match left_over_of(root, resource)?.first() {
        Some(found) => Err(in_the_way(found, resource)),
        None => Ok(()),
    }
}

/// Whether the device under a name, whose process is dead, can be taken over.
pub(super) fn is_recoverable(directory: &Path) -> bool {
    recoverable(directory, None).is_ok_and(|record| record.is_some())
}

/// The record of the device in a run-time directory if it can be taken over and is one of
/// `resource`, or of any.
fn recoverable(directory: &Path, resource: Option<&str>) -> Result<Option<DeviceRecord>> {
    let Some(record) = DeviceRecord::load(directory)? else {
        return Ok(None);
    };
    if record.recovery().is_none() {
        return Ok(None);
    }
    let mount = MountRecord::load(directory)?;
    let is_it = |mount: &MountRecord| resource.is_none_or(|resource| mount.resource == resource);
    Ok(mount.filter(is_it).map(|_| record))
}

/// The names under which dead processes left a device of this resource that can be taken over.
fn left_over_of(root: &Path, resource: &str) -> Result<Vec<Name>> {
    let is_left_over = |name: &Name| {
        let directory = root.join(name.as_str());
        Claim::is_held(root, name) == Some(false)
            && matches!(recoverable(&directory, Some(resource)), Ok(Some(_)))
    };
    Ok(names(root)?.into_iter().filter(is_left_over).collect())
}

fn in_the_way(found: &Name, resource: &str) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!(
            "`{found}`, whose process has died, is a device of {resource}: `blockferry recover \
             {found}` goes on with it, `blockferry stop {found} --force` gives it up"
        ),
    )
}

impl Place {
    fn at(claim: Claim, left_over: Option<DeviceRecord>) -> Result<Self> {
        control::remove_socket(claim.directory())?;
        MountRecord::forget_migration(claim.directory())?;
        Ok(Self { claim, left_over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Recovery, UblkRecord};

    const RESOURCE: &str = "file:/srv/disk.img";

    /// Leaves what a killed process leaves. `recovery`: its device outlives it.
    fn leave_dead(root: &Path, name: &str, recovery: bool, mount: bool) {
        let name = name.parse().expect("legal");
        let claim = Claim::take_in(root, Some(&name), "").expect("free");
        let device = DeviceRecord::Ublk(UblkRecord {
            id: 4_000_000_000,
            mark: 1,
            recovery: recovery.then_some(Recovery {
                queues: 1,
                depth: 1,
            }),
        });
        device.save(claim.directory()).expect("written");
        if mount {
            let record = MountRecord {
                arguments: vec!["mount".to_owned()],
                directory: "/".into(),
                resource: RESOURCE.to_owned(),
                file: None,
                needs_ticket: false,
            };
            record.save(claim.directory()).expect("written");
        }
        claim.leave();
    }

    #[test]
    fn a_resource_that_a_dead_device_stands_for_is_not_changed_behind_its_back() {
        let root = tempfile::tempdir().expect("directory");
        leave_dead(root.path(), "disk", true, true);
        let other = "other".parse().expect("legal");
        let errors = [
            place_in(root.path(), Some(&other), RESOURCE, RESOURCE).map(drop),
            refuse_left_over_in(root.path(), RESOURCE),
        ];
        for error in errors.map(|refused| refused.expect_err("in the way")) {
            assert_eq!(error.kind(), ErrorKind::Busy);
            for what in ["recover disk", "stop disk --force"] {
                let hint = format!("`blockferry {what}`");
                assert!(error.to_string().contains(&hint), "{error}");
            }
        }
        let elsewhere = "file:/srv/other.img";
        refuse_left_over_in(root.path(), elsewhere).expect("nothing to do with it");
        let place = place_in(root.path(), Some(&other), elsewhere, elsewhere).expect("free");
        assert_eq!(place.left_over, None);
    }

    #[test]
    fn what_ends_with_its_process_is_no_device_to_go_on_with() {
        for (recovery, mount) in [(false, true), (true, false)] {
            let root = tempfile::tempdir().expect("directory");
            leave_dead(root.path(), "disk", recovery, mount);
            assert!(!is_recoverable(&root.path().join("disk")));
            refuse_left_over_in(root.path(), RESOURCE).expect("it is gone");
            let place = place_in(root.path(), None, RESOURCE, RESOURCE).expect("free");
            assert_eq!(place.claim.name().as_str(), "disk-2");
        }
    }

    #[test]
    fn a_device_of_a_living_process_is_not_taken() {
        let root = tempfile::tempdir().expect("directory");
        leave_dead(root.path(), "disk", true, true);
        let name = "disk".parse().expect("legal");
        let _claim = Claim::take_dead(root.path(), &name).expect("dead");
        assert_eq!(left_over_of(root.path(), RESOURCE).expect("read"), []);
        let place = place_in(root.path(), None, RESOURCE, RESOURCE).expect("free");
        assert_eq!(place.claim.name().as_str(), "disk-2");
    }
}
