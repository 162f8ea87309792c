//! `blockferry list`: what runs on this host.

use blockferry::Result;
use blockferry::ops::{self, Entry, Life};
use blockferry::volume::format_size;

use super::{migrate, output, status};

/// Lists the devices that run on this host, and what dead processes left
///
/// A line for each: its name, the device, the resource behind it, size, mode, for how long it has
/// been running, reads and writes, errors, and whether its process is alive; of a managed mount also how
/// much is local and how much is not at the origin yet, until all of it is; of a migration how far that is. What is `dead` is
/// cleaned up by `blockferry stop NAME`; what is `dead, recoverable` has I/O that waits until
/// `blockferry recover NAME` goes on with it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  blockferry list\n  blockferry list --json | jq -r '.[].device'"
)]
pub(super) struct Args {
    /// Write a JSON array, with all counters
    #[arg(long)]
    json: bool,
}

const HEAD: [&str; 10] = [
    "NAME", "DEVICE", "RESOURCE", "SIZE", "MODE", "SINCE", "READS", "WRITES", "ERRORS", "STATE",
];

pub(super) fn run(args: &Args) -> Result<()> {
    let entries = ops::running()?;
    if args.json {
        return output::json(&entries);
    }
    if entries.is_empty() {
        return Ok(());
    }
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(row));
    output::line(output::table(&rows))
}

fn row(entry: &Entry) -> Vec<String> {
    let nothing = || "-".to_owned();
    let mut cells = vec![entry.name.clone()];
    match &entry.running {
        Some(running) => cells.extend([
            running.device.display().to_string(),
            running.resource.clone(),
            format_size(running.size_bytes),
            mode(running),
            since(running.since),
        ]),
        None => {
            let left_over = entry.left_over.as_ref().and_then(|record| record.path());
            cells.push(left_over.map_or_else(nothing, |path| path.display().to_string()));
            cells.extend(std::iter::repeat_with(nothing).take(4));
        }
    }
    match entry.status.as_ref().map(|status| status.counters) {
        Some(counters) => {
            cells.extend([counters.reads, counters.writes, counters.errors].map(|n| n.to_string()))
        }
        None => cells.extend(std::iter::repeat_with(nothing).take(3)),
    }
    cells.push(life(entry));
    cells
}

/// The state of a device, and how far a managed mount is that has not everything here or at its
/// origin, or a migration.
pub(super) fn life(entry: &Entry) -> String {
    let mut text = state(entry).to_owned();
    let status = entry.status.as_ref();
    if let Some(migration) = status.and_then(|status| status.migration.as_ref()) {
        text.push_str(&migrate::in_short(migration));
    }
    if let Some(managed) = status.and_then(|status| status.managed.as_ref()) {
        if managed.local_bytes < managed.size_bytes {
            text.push_str(&format!(", {}% local", status::percent_local(managed)));
        }
        if managed.store_full_since.is_some() {
            text.push_str(", store full");
        }
        if managed.dirty_bytes > 0 {
            text.push_str(&format!(", {} dirty", format_size(managed.dirty_bytes)));
        }
    }
    text
}

pub(super) fn mode(running: &ops::Running) -> String {
    match running.read_only {
        true => format!("{},ro", running.mode),
        false => running.mode.clone(),
    }
}

fn state(entry: &Entry) -> &'static str {
    let away = |status: &ops::Status| status.away_since.is_some();
    let lost = |status: &ops::Status| status.lost;
    let role_is = |role| {
        let status = entry.status.as_ref();
        let migration = status.and_then(|status| status.migration.as_ref());
        migration.is_some_and(|migration| migration.role == role)
    };
    match entry.state {
        Life::Alive if entry.status.as_ref().is_some_and(lost) => "lost",
        Life::Alive if entry.status.as_ref().is_some_and(away) => "away",
        Life::Alive if entry.status.is_none() => "silent",
        Life::Alive => "alive",
        Life::Starting if role_is("leecher") => "leeching",
        // It has no device where the volume has moved away.
        Life::Starting if role_is("seeder") => "alive",
        Life::Starting => "starting",
        Life::Dead if entry.recoverable => "dead, recoverable",
        Life::Dead => "dead",
    }
}

/// How long ago that was, in the largest unit.
pub(super) fn since(unix_seconds: u64) -> String {
    duration(ops::unix_seconds().saturating_sub(unix_seconds))
}

/// A time in its largest unit.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}
