//! `blockferry migrate status NAME`: how far a migration is.

use blockferry::migrate::MigrationStatus;
use blockferry::ops::{self, Name};
use blockferry::volume::format_size;
use blockferry::{Error, ErrorKind, Result};

use super::{list, output};

/// Shows how far migrations are
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blockferry migrate status disk")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Shows how far one is: phase, rounds, what is left, rates, and who owns the volume
    #[command(after_help = "Example:\n  blockferry migrate status disk --json")]
    Status {
        /// The name of the migration, as `blockferry list` shows it
        name: Name,

        /// Write a JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &Args) -> Result<()> {
    let Verb::Status { name, json } = &args.verb;
    let entry = ops::status(name)?;
    let migration = entry.status.and_then(|status| status.migration);
    let Some(migration) = migration else {
        let what = format!("`{name}` is part of no migration");
        return Err(Error::new(ErrorKind::NotFound, what));
    };
    match json {
        true => output::json(&migration),
        false => {
            let facts = facts(&migration).into_iter();
            let rows: Vec<_> = facts
                .map(|(what, value)| vec![what.to_owned(), value])
                .collect();
            output::line(output::table(&rows))
        }
    }
}

/// How far it is, as the end of a line; nothing where nothing is under way.
pub(super) fn in_short(status: &MigrationStatus) -> String {
    match (status.role.as_str(), status.phase.as_str()) {
        ("leecher", "pulling") => {
            let (pulled, all) = (status.pulled_bytes, status.round_bytes);
            let left = all
                .zip(pulled)
                .map_or(0, |(all, pulled)| all.saturating_sub(pulled));
            let round = status.rounds.map_or(0, |rounds| rounds + 1);
            format!(", round {round}, {} left", format_size(left))
        }
        ("leecher", "finalizing") => ", finalizing".to_owned(),
        ("leecher", _) => match status.rest_bytes {
            Some(left) => format!(", {} at the seeder", format_size(left)),
            None => String::new(),
        },
        ("seeder", "serving") => match status.leechers {
            Some(count @ 1..) => format!(", leechers: {count}"),
            _ => String::new(),
        },
        ("seeder", "finalizing") => {
            let to = status.finalizing.as_deref().unwrap_or("a leecher");
            format!(", moving to {to}")
        }
        ("seeder", _) => match &status.owner {
            Some(owner) if status.needed == Some(true) => {
                format!(", moved to {owner}, which needs it")
            }
            Some(owner) => format!(", moved to {owner}"),
            None => String::new(),
        },
        _ => String::new(),
    }
}

/// What there is to say of a migration.
pub(super) fn facts(status: &MigrationStatus) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("role", status.role.clone()),
        ("phase", status.phase.clone()),
    ];
    let owner = status.owner.clone();
    facts.extend(owner.map(|owner| ("owner", owner)));
    facts.extend(status.epoch.map(|epoch| ("epoch", epoch.to_string())));
    let leechers = status.leechers;
    facts.extend(leechers.map(|count| ("leechers", count.to_string())));
    let finalizing = status.finalizing.clone();
    facts.extend(finalizing.map(|name| ("finalizing", name)));
    facts.extend(status.rounds.map(|rounds| ("rounds", rounds.to_string())));
    // When the volume is here, no round is under way.
    let is_coming = status.owner.is_none();
    if let (true, Some(pulled), Some(all)) = (is_coming, status.pulled_bytes, status.round_bytes) {
        let left = format_size(all.saturating_sub(pulled));
        let pulled = format!(
            "{} of {}, {left} left",
            format_size(pulled),
            format_size(all)
        );
        facts.push(("this round", pulled));
    }
    if let Some(left) = status.rest_bytes {
        facts.push(("left", format!("{} at the seeder alone", format_size(left))));
    }
    if let Some(since) = status.away_since {
        let away = format!("away for {}", list::since(since));
        facts.push(("seeder", away));
    }
    if status.needed == Some(true) {
        let needed = "the new owner may need what is here: keep this running";
        facts.push(("needed", needed.to_owned()));
    }
    let dirty = status.dirty_bytes_per_s.filter(|_| is_coming);
    facts.extend(dirty.map(|rate| ("written there", format!("{}/s", format_size(rate)))));
    let predicted = status.predicted_downtime_ms.filter(|_| is_coming);
    facts.extend(predicted.map(|ms| ("predicted", format!("{ms} ms of downtime"))));
    let downtime = status.downtime_ms;
    facts.extend(downtime.map(|ms| ("downtime", format!("{ms:.1} ms"))));
    facts
}
