//! What a migration of a running device can be told.

use std::time::Duration;

use super::client::Outcome;
use super::control::Command;
use super::name::Name;
use super::running::order_living;
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
