//! The running devices of this user, and what dead processes left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::claim::Claim;
use super::client::Outcome;
use super::control::Command;
use super::name::Name;
use super::state::{Running, RunningHook, Status, unix_seconds};
use super::{client, directory, holders, recovery};
use crate::device::{self, DeviceRecord};
use crate::volume::format_size;
use crate::volume::state_map::Heat;
use crate::{Context, Error, ErrorKind, Result};

/// How long a process may take to say what it has done.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to look at every block of its volume.
const MAP_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether a process that was given an order waits for a hook.
const HOOKS_POLL: Duration = Duration::from_secs(1);

/// How often it is looked whether a process that was stopped has gone.
const GONE_POLL: Duration = Duration::from_millis(5);

/// Whether the process of a device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It serves the device.
    Alive,
    /// It is setting the device up, taking it over from a dead one, or removing it.
    Starting,
    /// It died; its device may be there still.
    Dead,
}

/// A device of this host, running or left over.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The name under which it runs.
    pub name: String,
    /// Whether its process lives.
    pub state: Life,
    /// Whether it is dead and another process can go on with its device, for which requests wait.
    pub recoverable: bool,
    /// What runs; `None` while it starts, and where a dead process had not come so far.
    #[serde(flatten)]
    pub running: Option<Running>,
    /// The device that a process left which died before it could say more.
    pub left_over: Option<DeviceRecord>,
    /// What it has done, as its process says.
    pub status: Option<Status>,
    /// What could not be found out, and why.
    pub note: Option<String>,
}

/// All devices of this user, by name.
///
/// # Errors
/// When the run-time directory cannot be read. That it does not exist is no error.
pub fn running() -> Result<Vec<Entry>> {
    let root = checked_directory()?;
    let names = names(&root)?;
    Ok(names.iter().filter_map(|name| look(&root, name)).collect())
}

/// The names that somebody has, or had when he died, in order.
pub(super) fn names(root: &Path) -> Result<Vec<Name>> {
    let cannot = || format!("cannot read the run-time directory {}", root.display());
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context_io(cannot)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.context_io(cannot)?.file_name();
        // What is not a name was not made by us.
        names.extend(name.to_str().and_then(|name| name.parse::<Name>().ok()));
    }
    names.sort();
    Ok(names)
}

/// The device of that name.
///
/// # Errors
/// `NotFound`, with the names there are.
pub fn status(name: &Name) -> Result<Entry> {
    let root = checked_directory()?;
    look(&root, name).ok_or_else(|| unknown(name))
}

/// The map of the volume behind the device of that name, in `parts` of about the same length; fewer
/// where it has fewer blocks.
///
/// # Errors
/// `NotFound` for an unknown name, and where its process is dead, cannot be asked or has no map.
pub fn map(name: &Name, parts: u32) -> Result<Vec<Heat>> {
    let root = checked_directory()?;
    let is_held = Claim::is_held(&root, name).ok_or_else(|| unknown(name))?;
    let cannot =
        |error: Error| Error::new(error.kind(), format!("no map of `{name}`")).because(error);
    if !is_held {
        let dead = Error::new(ErrorKind::NotFound, "its process is dead");
        return Err(cannot(dead));
    }
    client::map(&root.join(name.as_str()), parts, MAP_TIMEOUT).map_err(cannot)
}

/// Ends the device of that name: asks its process to, or cleans up after a dead one. When this
/// returns, the device and its directory are gone. Gives what the user should know of how it ended.
///
/// # Errors
/// `NotFound` for an unknown name, `Busy` where somebody holds the device open and `force` is not
/// set, `TimedOut` where it takes longer than `patience`.
pub fn stop(
    name: &Name,
    force: bool,
    discard_dirty: bool,
    patience: Duration,
) -> Result<Option<String>> {
    let root = checked_directory()?;
    let is_held = Claim::is_held(&root, name).ok_or_else(|| unknown(name))?;
    let deadline = Instant::now() + patience;
    let mut note = None;
    if is_held {
        let directory = root.join(name.as_str());
        let command = Command::Stop {
            force,
            discard_dirty,
        };
        match order_watched(&directory, command, patience) {
            Ok(Outcome::Failed(error)) => return Err(cannot_stop(name, error)),
            Ok(Outcome::Done(said)) => {
                note = said;
                wait_until_gone(&root, name, deadline)?;
            }
            Ok(Outcome::Ended) => wait_until_gone(&root, name, deadline)?,
            // It may have gone, or died, before it could be asked.
            Err(error) if is_alive(&root, name) => return Err(cannot_stop(name, error)),
            Err(error) => tracing::debug!(error = error.chain(), "ended meanwhile"),
        }
    }
    clean(&root, name, force)?;
    Ok(note)
}

/// Has the process of the device of that name make everything that was written durable at the
/// resource, and returns when it is.
///
/// # Errors
/// `NotFound` for an unknown name and where its process is dead, `TimedOut` where it takes longer than
/// `patience`, and what keeps the bytes from getting there.
pub fn sync(name: &Name, patience: Duration) -> Result<()> {
    let root = checked_directory()?;
    let is_held = Claim::is_held(&root, name).ok_or_else(|| unknown(name))?;
    let cannot =
        |error: Error| Error::new(error.kind(), format!("cannot sync `{name}`")).because(error);
    if !is_held {
        let dead = Error::new(ErrorKind::NotFound, "its process is dead");
        return Err(cannot(dead));
    }
    let directory = root.join(name.as_str());
    let ordered = order_watched(&directory, Command::Sync, patience).map_err(|error| {
        cannot(match error.kind() {
            ErrorKind::TimedOut => Error::new(
                error.kind(),
                format!("{}; {}", error.chain(), origin(&directory)),
            ),
            _ => error,
        })
    });
    match ordered? {
        Outcome::Done(_) => Ok(()),
        Outcome::Ended => Err(cannot(Error::new(
            ErrorKind::NotFound,
            "the device ended before that",
        ))),
        Outcome::Failed(error) => Err(cannot(error)),
    }
}

/// Gives an order to the process of the device of that name.
///
/// # Errors
/// `NotFound` for an unknown name and where its process is dead, and where it cannot be asked.
pub(super) fn order_living(name: &Name, command: Command, patience: Duration) -> Result<Outcome> {
    let root = checked_directory()?;
    match Claim::is_held(&root, name) {
        None => Err(unknown(name)),
        Some(false) => Err(Error::new(
            ErrorKind::NotFound,
            format!("the process of `{name}` is dead"),
        )),
        Some(true) => order_watched(&root.join(name.as_str()), command, patience),
    }
}

/// Where the writes of a device go, and what is known of that.
fn origin(directory: &Path) -> String {
    let running = Running::load(directory).ok().flatten();
    let to = running.map_or_else(|| "its resource".to_owned(), |running| running.resource);
    let status = client::status(directory, STATUS_TIMEOUT).unwrap_or_default();
    let dirty = status.managed.map_or_else(String::new, |managed| {
        format!("{} are not at {to}", format_size(managed.dirty_bytes))
    });
    match (status.away_since, dirty.is_empty()) {
        (Some(since), true) => format!(
            "{to} is away for {} s",
            unix_seconds().saturating_sub(since)
        ),
        (Some(since), false) => format!(
            "{dirty}, which is away for {} s",
            unix_seconds().saturating_sub(since)
        ),
        (None, true) => format!("{to} has not taken everything yet"),
        (None, false) => format!("{dirty} yet"),
    }
}

/// Gives an order, and says on which hooks of its mount it waits.
fn order_watched(directory: &Path, command: Command, patience: Duration) -> Result<Outcome> {
    let (answered, waiting) = channel::<()>();
    let ordered = thread::scope(|scope| {
        scope.spawn(move || {
            let mut told = Vec::new();
            while waiting.recv_timeout(HOOKS_POLL) == Err(RecvTimeoutError::Timeout) {
                for hook in hooks(directory) {
                    if !told.contains(&hook) {
                        tracing::warn!("waiting for the hook {hook}");
                        told.push(hook);
                    }
                }
            }
        });
        let ordered = client::order(directory, command, patience);
        drop(answered);
        ordered
    });
    ordered.map_err(|error| match hooks(directory).first() {
        Some(hook) if error.kind() == ErrorKind::TimedOut => Error::new(
            ErrorKind::TimedOut,
            format!("{}; it waits for the hook {hook}", error.chain()),
        ),
        _ => error,
    })
}

fn hooks(directory: &Path) -> Vec<RunningHook> {
    client::status(directory, STATUS_TIMEOUT).map_or_else(|_| Vec::new(), |status| status.hooks)
}

/// The run-time directory, which need not exist.
fn checked_directory() -> Result<PathBuf> {
    let root = directory::run_directory();
    match directory::check(&root) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(root),
    }
}

fn cannot_stop(name: &Name, error: Error) -> Error {
    Error::new(error.kind(), format!("cannot stop `{name}`")).because(error)
}

pub(super) fn unknown(name: &Name) -> Error {
    let names: Vec<_> = running()
        .unwrap_or_default()
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    let known = match names.as_slice() {
        [] => "nothing is running".to_owned(),
        names => format!("there is {}", names.join(", ")),
    };
    Error::new(
        ErrorKind::NotFound,
        format!("no device named `{name}`; {known}"),
    )
}

/// What there is under a name, if anything.
fn look(root: &Path, name: &Name) -> Option<Entry> {
    let directory = root.join(name.as_str());
    let is_held = Claim::is_held(root, name)?;
    let (running, note) = match Running::load(&directory) {
        Ok(running) => (running, None),
        Err(error) => (None, Some(error.chain())),
    };
    let mut entry = Entry {
        name: name.to_string(),
        state: match (is_held, &running) {
            (false, _) => Life::Dead,
            (true, Some(running)) if running.is_of_living_process() => Life::Alive,
            (true, _) => Life::Starting,
        },
        recoverable: !is_held && recovery::is_recoverable(&directory),
        left_over: match running {
            None if !is_held => DeviceRecord::load(&directory).ok().flatten(),
            _ => None,
        },
        running,
        status: None,
        note,
    };
    match entry.state {
        Life::Alive => match client::status(&directory, STATUS_TIMEOUT) {
            Ok(status) => entry.status = Some(status),
            Err(error) => entry.note = Some(error.chain()),
        },
        // It may pull everything first.
        Life::Starting => entry.status = client::status(&directory, STATUS_TIMEOUT).ok(),
        Life::Dead => {}
    }
    Some(entry)
}

fn is_alive(root: &Path, name: &Name) -> bool {
    Claim::is_held(root, name) == Some(true)
}

fn wait_until_gone(root: &Path, name: &Name, deadline: Instant) -> Result<()> {
    while is_alive(root, name) {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("`{name}` is ending, but its process has not gone yet"),
            ));
        }
        thread::sleep(GONE_POLL);
    }
    Ok(())
}

/// Removes what a dead process left under a name, its device first.
pub(super) fn clean(root: &Path, name: &Name, force: bool) -> Result<()> {
    let Some(claim) = Claim::take_dead(root, name)? else {
        return Ok(());
    };
    let removed = remove_device(claim.directory(), force);
    match removed.and_then(|()| DeviceRecord::forget(claim.directory())) {
        Ok(()) => Ok(()),
        Err(error) => {
            let or_recover = match recovery::is_recoverable(claim.directory()) {
                true => format!("; `blockferry recover {name}` goes on with it"),
                false => String::new(),
            };
            claim.leave();
            Err(Error::new(
                error.kind(),
                format!("cannot remove what the dead process of `{name}` left{or_recover}"),
            )
            .because(error))
        }
    }
}

fn remove_device(directory: &Path, force: bool) -> Result<()> {
    // A damaged state file tells nothing; the record beside it may be whole, and the other way.
    let running = Running::load(directory);
    let record = match (DeviceRecord::load(directory), &running) {
        (Ok(Some(record)), _) => record,
        (_, Ok(Some(running))) => running.record.clone(),
        (Ok(None), Ok(None)) => return Ok(()),
        (Err(error), _) if !force => return Err(error),
        (_, Err(_)) if !force => return running.map(drop),
        _ => return Ok(()),
    };
    if !force && let Some(path) = record.path() {
        holders::refuse_in_use(&path)?;
    }
    device::remove_left_over(&record)
}
