//! `blockferry migrate status NAME`: how far a migration is.

use blockferry::migrate::MigrationStatus;
use blockferry::migrate::protocol::Reason;
use blockferry::ops::{self, Name};
use blockferry::volume::format_size;
use blockferry::{Error, ErrorKind, Result};

use super::output;

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
    if let (Some(pulled), Some(all)) = (status.pulled_bytes, status.round_bytes) {
        let left = format_size(all.saturating_sub(pulled));
        let pulled = format!(
            "{} of {}, {left} left",
            format_size(pulled),
            format_size(all)
        );
        facts.push(("this round", pulled));
    }
    let dirty = status.dirty_bytes_per_s;
    facts.extend(dirty.map(|rate| ("written there", format!("{}/s", format_size(rate)))));
    let predicted = status.predicted_downtime_ms;
    facts.extend(predicted.map(|ms| ("predicted", format!("{ms} ms of downtime"))));
    let downtime = status.downtime_ms;
    facts.extend(downtime.map(|ms| ("downtime", format!("{ms:.1} ms"))));
    facts
}

/// Why an attempt or a migration ended, for people.
pub(super) fn explained(reason: &Reason) -> String {
    match reason {
        Reason::Busy { by } => format!("{by} is having it moved"),
        Reason::Moved { to, epoch } => format!("it has moved to {to} (epoch {})", epoch.0),
        Reason::Full => "the seeder has as many leechers as it takes".to_owned(),
        Reason::SeederAborted => "it was given up at the seeder".to_owned(),
        Reason::LeecherAborted => "it was given up at the leecher".to_owned(),
        Reason::HoldLimit => {
            "requests would have been held for longer than the seeder's --hold-limit".to_owned()
        }
        Reason::Disconnected => "the connection was lost".to_owned(),
        Reason::Asked => "the leecher lost the connection before it was decided".to_owned(),
        Reason::Over => "that attempt was over".to_owned(),
        Reason::HookFailed(why) => format!("at the seeder {why}"),
        Reason::StoreFailed(why) => format!("a store failed: {why}"),
        Reason::ProofDiffers => {
            "what was pulled is not what the seeder has; everything is compared anew".to_owned()
        }
        Reason::AnotherVolume => {
            "the store has to do with another volume; give another --store".to_owned()
        }
        Reason::Outdated => {
            "the store's volume has left this host since the seeder had it: what is there is old"
                .to_owned()
        }
    }
}
