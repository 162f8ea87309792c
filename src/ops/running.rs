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
use super::state::{Running, Status, unix_seconds};
use super::store_record::StoreRecord;
use super::{client, directory, holders, recovery};
use crate::device::{self, DeviceRecord};
use crate::volume::format_size;
use crate::volume::state_map::Heat;
use crate::{Context, Error, ErrorKind, Result};

/// How long a process may take to say what it has done.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to look at every block of its volume.
const MAP_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked what a process waits for that was given an order.
const WAITS_POLL: Duration = Duration::from_secs(1);

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
/// `NotFound` for an unknown name; where `force` is not set `Busy` for a device that somebody holds
/// open, and for one that waits to be recovered; `TimedOut` where it takes longer than `patience`.
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
            Ok(Outcome::EndedWith(error)) => {
                wait_until_gone(&root, name, deadline)?;
                return Err(Error::new(
                    error.kind(),
                    format!("`{name}` has {}", error.chain()),
                ));
            }
            Ok(Outcome::Done(said)) => {
                note = said;
                wait_until_gone(&root, name, deadline)?;
            }
            Ok(Outcome::Ended) => wait_until_gone(&root, name, deadline)?,
            // It may have gone, or died, before it could be asked.
            Err(error) if !is_alive(&root, name) => {
                tracing::debug!(error = error.chain(), "ended meanwhile");
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(not_ended_yet(name, &directory, force, patience));
            }
            Err(error) => return Err(cannot_stop(name, error)),
        }
    }
    let left = end_dead(&root, name, force, discard_dirty)?;
    Ok(note.or(left))
}

/// Its process was told to end, and goes on with that.
fn not_ended_yet(name: &Name, directory: &Path, force: bool, patience: Duration) -> Error {
    let or_force = match force {
        true => "",
        false => ", `blockferry stop --force` has it end with what it has",
    };
    Error::new(
        ErrorKind::TimedOut,
        format!(
            "`{name}` has not ended within {} s: {}. It goes on; `blockferry stop` waits for it again{or_force}",
            patience.as_secs_f32(),
            doing(directory)
        ),
    )
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
                format!(
                    "it takes longer than {} s: {}",
                    patience.as_secs_f32(),
                    doing(&directory)
                ),
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
        Outcome::Failed(error) | Outcome::EndedWith(error) => Err(cannot(error)),
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

/// What a process does that has not done yet what it was told.
fn doing(directory: &Path) -> String {
    let Ok(status) = client::status(directory, STATUS_TIMEOUT) else {
        return "its process does not answer".to_owned();
    };
    if let Some(hook) = status.hooks.first() {
        return format!("it waits for the hook {hook}");
    }
    let to = resource_of(directory);
    let dirty = status
        .managed
        .filter(|managed| managed.dirty_bytes > 0)
        .map(|managed| {
            let (left, rate) = (
                format_size(managed.dirty_bytes),
                format_size(managed.push_rate),
            );
            (
                format!("{left} are not at {to}"),
                format!(" yet, and go there at {rate}/s"),
            )
        });
    match (status.away_since, dirty) {
        (Some(since), Some((dirty, _))) => format!("{dirty}, which is away for {} s", ago(since)),
        (Some(since), None) => format!("{to} is away for {} s", ago(since)),
        (None, Some((dirty, rate))) => format!("{dirty}{rate}"),
        (None, None) => format!("{to} has not taken everything yet"),
    }
}

/// Where the writes of a device go, for people.
fn resource_of(directory: &Path) -> String {
    let running = Running::load(directory).ok().flatten();
    running.map_or_else(|| "its resource".to_owned(), |running| running.resource)
}

fn ago(unix_s: u64) -> u64 {
    unix_seconds().saturating_sub(unix_s)
}

/// Gives an order, and says what it waits for: hooks of its mount, and the other end where that has to
/// be there.
fn order_watched(directory: &Path, command: Command, patience: Duration) -> Result<Outcome> {
    let (answered, waiting) = channel::<()>();
    let needs_other_end = command == Command::Sync;
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut told, mut told_away) = (Vec::new(), None);
            loop {
                let status = client::status(directory, STATUS_TIMEOUT).unwrap_or_default();
                if let Some(since) = status.away_since.filter(|_| needs_other_end)
                    && told_away != Some(since)
                {
                    told_away = Some(since);
                    tracing::warn!(
                        "{} is away for {} s; waiting until it is back",
                        resource_of(directory),
                        ago(since)
                    );
                }
                let more = waiting.recv_timeout(WAITS_POLL);
                if more != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                for hook in status.hooks {
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
    })
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
    match Claim::take_dead(root, name)? {
        Some(claim) => without_device(claim, force).map(drop),
        None => Ok(()),
    }
}

/// The same, and sees to the local writes that the process had not sent. Gives what became of them.
fn end_dead(root: &Path, name: &Name, force: bool, discard_dirty: bool) -> Result<Option<String>> {
    let Some(claim) = Claim::take_dead(root, name)? else {
        return Ok(None);
    };
    let claim = without_device(claim, force)?;
    match StoreRecord::load(claim.directory()) {
        Ok(Some(store)) => store.after_death(discard_dirty).map_err(|error| {
            let but = "the device is removed, but local writes were not given up";
            Error::new(error.kind(), but).because(error)
        }),
        Ok(None) => Ok(None),
        Err(error) => Ok(Some(format!(
            "which local store it had nobody can say: {}",
            error.chain()
        ))),
    }
}

/// Removes the device that a dead process left.
fn without_device(claim: Claim, force: bool) -> Result<Claim> {
    let removed = remove_device(claim.directory(), force);
    match removed.and_then(|()| DeviceRecord::forget(claim.directory())) {
        Ok(()) => Ok(claim),
        Err(error) => {
            let name = claim.name().clone();
            let or_recover = match recovery::is_recoverable(claim.directory()) {
                true => format!(
                    "; `blockferry recover {name}` goes on with it, `blockferry stop {name} --force` gives it up"
                ),
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
        if recovery::is_recoverable(directory) && device::is_left_over(&record)? {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{} waits to be recovered, and its I/O would fail",
                    path.display()
                ),
            ));
        }
    }
    device::remove_left_over(&record)
}
