//! `blockferry status NAME`: one device, in full.

use blockferry::Result;
use blockferry::mount::managed::ManagedStatus;
use blockferry::ops::{self, Entry, Name};
use blockferry::volume::format_size;
use blockferry::volume::managed::LatencySummary;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::heat_map::{self, Part};
use super::{list, migrate, output};

/// The parts of a map for programs, unless they say how many.
const PARTS_DEFAULT: u32 = 256;

/// Shows what one device is and what it has done
///
/// For a managed mount also what of it is local, what was written and is not at the origin yet
/// (dirty; what was discarded counts), how fast both move at the moment, how many reads had to wait for the origin (misses), and
/// how long they took. --json has the histograms.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry status disk
  blockferry status disk --json
  blockferry status disk --map
  blockferry status disk --map --json --parts 1024")]
pub(super) struct Args {
    /// The name of the device, as `blockferry list` shows it
    name: Name,

    /// Write a JSON object
    #[arg(long)]
    json: bool,

    /// Draw the volume of a managed mount from its start to its end: what of it is absent, local and
    /// dirty
    ///
    /// It is as wide as the terminal ($COLUMNS says otherwise), and in plain characters where the
    /// output is no terminal or $NO_COLOR is set.
    #[arg(long)]
    map: bool,

    /// With --map and --json: in how many parts [default: 256]
    #[arg(long, value_name = "N", requires_all = ["map", "json"],
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=ops::MAP_PARTS_MAX.into()))]
    parts: Option<u32>,
}

/// A device, with the map of its volume.
#[derive(Serialize)]
struct Mapped {
    #[serde(flatten)]
    entry: Entry,
    map: Vec<Part>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    match (args.map, args.json) {
        (false, false) => output::line(output::table(&rows(&ops::status(&args.name)?))),
        (false, true) => output::json(&ops::status(&args.name)?),
        (true, false) => heat_map::show(&args.name),
        (true, true) => output::json(&Mapped {
            entry: ops::status(&args.name)?,
            map: heat_map::parts(&args.name, args.parts.unwrap_or(PARTS_DEFAULT))?,
        }),
    }
}

fn rows(entry: &Entry) -> Vec<Vec<String>> {
    facts(entry)
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .collect()
}

fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let mut facts = vec![("name", entry.name.clone()), ("state", list::life(entry))];
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
        facts.extend(status.managed.iter().flat_map(managed_facts));
        facts.extend(status.migration.iter().flat_map(migrate::facts));
        let hooks = status.hooks.iter();
        facts.extend(hooks.map(|hook| ("runs hook", hook.to_string())));
        let away = status.away_since;
        facts.extend(away.map(|at| ("unreachable", format!("for {}", list::since(at)))));
        facts.extend(status.last_error.clone().map(|text| ("last error", text)));
    }
    facts.extend(entry.note.clone().map(|note| ("note", note)));
    facts
}

fn managed_facts(status: &ManagedStatus) -> Vec<(&'static str, String)> {
    let total = |rate: u64, bytes: u64| {
        let (rate, bytes) = (format_size(rate), format_size(bytes));
        format!("{rate}/s, {bytes} so far")
    };
    let mut facts = vec![
        ("store", status.store.display().to_string()),
        ("local", local(status)),
        ("dirty", format_size(status.dirty_bytes)),
        ("pull", total(status.pull_rate, status.fetched_bytes)),
        ("push", total(status.push_rate, status.pushed_bytes)),
    ];
    if status.pushed_zeroes_bytes > 0 {
        let zeroed = format_size(status.pushed_zeroes_bytes);
        facts.push((
            "push of zeros",
            format!("{zeroed} so far, discards included"),
        ));
    }
    facts.extend(status.store_full_since.map(|at| {
        let what = "what is not local cannot be kept, and a read of it fails, until there is room";
        ("store full", format!("for {}: {what}", list::since(at)))
    }));
    let left = status.seconds_left;
    facts.extend(left.map(|left| ("all local in", list::duration(left))));
    let ratio = status.hit_ratio.map_or_else(String::new, |ratio| {
        format!(" ({:.1}% hits)", floored(ratio * 100.0))
    });
    facts.push(("misses", format!("{}{ratio}", status.missed_reads)));
    for (what, latency) in [
        ("hit latency", &status.hit_latency),
        ("miss latency", &status.miss_latency),
    ] {
        facts.extend((latency.count > 0).then(|| (what, latencies(latency))));
    }
    facts.push(("failures", failures(status)));
    facts
}

fn local(status: &ManagedStatus) -> String {
    let percent = percent_local(status);
    let suffix = match status.pulls {
        _ if status.local_bytes >= status.size_bytes => "",
        true => "",
        false => "; the rest is fetched when it is read",
    };
    format!("{} ({percent}%){suffix}", format_size(status.local_bytes))
}

/// How much is local, in whole percent; 100 means all.
pub(super) fn percent_local(status: &ManagedStatus) -> u64 {
    let (local, size) = (status.local_bytes, status.size_bytes.max(1));
    (u128::from(local) * 100 / u128::from(size)) as u64
}

/// In tenths, so that 100 means all.
fn floored(percent: f64) -> f64 {
    (percent * 10.0).floor() / 10.0
}

fn latencies(latency: &LatencySummary) -> String {
    let time = |time_us: u64| match time_us {
        us @ 0..1000 => format!("{us}us"),
        us @ 1000..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        us => format!("{:.1}s", us as f64 / 1e6),
    };
    format!(
        "{} half, {} 99%, {} all",
        time(latency.p50_us),
        time(latency.p99_us),
        time(latency.max_us)
    )
}

fn failures(status: &ManagedStatus) -> String {
    let counts: Vec<String> = [
        (status.timeouts, "not answered in time"),
        (status.origin_failures, "of the origin"),
        (status.store_failures, "of the local store"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.join(", "),
    }
}
