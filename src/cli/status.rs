//! `blockferry status NAME`: one device, in full.

use blockferry::Result;
use blockferry::ops::{self, Entry, Name};
use blockferry::volume::format_size;

use super::{list, output};

/// Shows what one device is and what it has done
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  blockferry status disk\n  blockferry status disk --json")]
pub(super) struct Args {
    /// The name of the device, as `blockferry list` shows it
    name: Name,

    /// Write a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let entry = ops::status(&args.name)?;
    if args.json {
        return output::json(&entry);
    }
    let rows: Vec<Vec<String>> = facts(&entry)
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .collect();
    output::line(output::table(&rows))
}

fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("name", entry.name.clone()),
        ("state", list::state(entry).to_owned()),
    ];
    if entry.recoverable {
        let recover = format!("`blockferry recover {}` goes on with it", entry.name);
        facts.push(("requests", format!("wait; {recover}")));
    }
    if let Some(path) = entry.left_over.as_ref().and_then(|record| record.path()) {
        facts.push(("device", path.display().to_string()));
    }
    if let Some(running) = &entry.running {
        facts.extend([
            ("device", running.device.display().to_string()),
            ("resource", running.resource.clone()),
            ("size", format_size(running.size_bytes)),
            ("mode", list::mode(running)),
            ("since", format!("{} ago", list::since(running.since))),
            ("process", running.pid.to_string()),
            ("version", running.version.clone()),
        ]);
    }
    if let Some(status) = &entry.status {
        let counters = status.counters;
        let moved = |n: u64, bytes: u64| format!("{n} ({})", format_size(bytes));
        facts.extend([
            ("queues", format!("{} of {}", status.queues, status.depth)),
            ("reads", moved(counters.reads, counters.read_bytes)),
            ("writes", moved(counters.writes, counters.written_bytes)),
            ("flushes", counters.flushes.to_string()),
            ("discards", counters.discards.to_string()),
            ("errors", counters.errors.to_string()),
        ]);
        let away = status.away_since;
        facts.extend(away.map(|at| ("unreachable", format!("for {}", list::since(at)))));
        facts.extend(status.last_error.clone().map(|text| ("last error", text)));
    }
    facts.extend(entry.note.clone().map(|note| ("note", note)));
    facts
}
