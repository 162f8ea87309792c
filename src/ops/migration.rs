//! What a migration of a running device can be told.

use std::time::Duration;

use super::claim::Claim;
use super::client::Outcome;
use super::control::Command;
use super::directory;
use super::mount_record::MountRecord;
use super::name::Name;
use super::running::{clean, order_living, unknown};
use crate::{Error, ErrorKind, Result};

/// Has the volume that the device of that name leeches move here, and returns when it is tried.
///
/// # Errors
/// `NotFound` for an unknown name and where its process is dead, and why it is not done.
pub fn finalize(name: &Name, patience: Duration) -> Result<Option<String>> {
    order(name, Command::Finalize, patience)
}

/// Gives the migration of the device of that name up, at either end.
///
/// # Errors
/// `NotFound` for an unknown name and where its process is dead, and why it is not done.
pub fn abort(name: &Name, patience: Duration) -> Result<Option<String>> {
    order(name, Command::Abort, patience)
}

/// How the `seed` or `leech` was started whose process died under that name; `None` where none did.
///
/// # Errors
/// `NotFound` for an unknown name, and for a record that cannot be read.
pub fn dead_migration(name: &Name) -> Result<Option<MountRecord>> {
    let root = directory::run_directory();
    let is_held = Claim::is_held(&root, name).ok_or_else(|| unknown(name))?;
    match is_held {
        true => Ok(None),
        false => MountRecord::load_of_migration(&root.join(name.as_str())),
    }
}

/// Removes what it left, so that it can be started again.
///
/// # Errors
/// `Busy` where somebody holds its device open.
pub fn clean_dead_migration(name: &Name) -> Result<()> {
    clean(&directory::run_directory(), name, false)
}

fn order(name: &Name, command: Command, patience: Duration) -> Result<Option<String>> {
    match order_living(name, command, patience)? {
        Outcome::Done(note) => Ok(note),
        Outcome::Failed(error) | Outcome::EndedWith(error) => Err(error),
        Outcome::Ended => Err(Error::new(
            ErrorKind::NotFound,
            format!("`{name}` ended before that"),
        )),
    }
}
