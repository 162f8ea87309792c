//! `blockferry cache`: looks at a local store that was kept, and gets rid of it.

use std::path::PathBuf;

use blockferry::ops;
use blockferry::volume::cache::{CacheReport, Contents, Discard, discard, inspect};
use blockferry::volume::format_size;
use blockferry::{Error, ErrorKind, Result};
use data_encoding::HEXLOWER;

use super::output;
use super::store_place::live_maps;

/// Looks at the local store of a managed mount, or gets rid of it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry cache show /var/cache/disk
  blockferry cache drop /var/cache/disk --discard-dirty")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Show(Show),
    Drop(Remove),
}

/// Shows what a store belongs to and what is in it, and leaves it as it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blockferry cache show /var/cache/disk --json")]
struct Show {
    /// The store's directory, as given to `mount --cache`
    directory: PathBuf,

    /// Write a JSON object
    #[arg(long)]
    json: bool,
}

/// Removes a store that nobody uses. The directory stays, empty
///
/// Local writes that the origin does not have are not given up unless --discard-dirty says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blockferry cache drop /var/cache/disk")]
struct Remove {
    /// The store's directory, as given to `mount --cache`
    directory: PathBuf,

    /// Also if it holds local writes that the origin does not have, or is damaged
    #[arg(long)]
    discard_dirty: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Show(args) => show(args),
        What::Drop(args) => remove(args),
    }
}

fn show(args: &Show) -> Result<()> {
    let report = inspect(&args.directory, &live_maps())?;
    if args.json {
        return output::json(&as_json(&report));
    }
    let rows: Vec<Vec<String>> = facts(&report)
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .collect();
    output::line(output::table(&rows))
}

fn facts(report: &CacheReport) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("directory", report.path.display().to_string()),
        ("origin", report.origin_name.clone()),
        ("identity", HEXLOWER.encode(&report.identity)),
        ("size", format_size(report.size_bytes)),
        ("chunk", format_size(report.chunk_bytes)),
        ("epoch", report.epoch.to_string()),
        (
            "kept",
            if report.persistent {
                "on a disk"
            } else {
                "in memory"
            }
            .to_owned(),
        ),
    ];
    if report.sync_failed {
        facts.push((
            "uncertain",
            "the disk failed to sync it: what was written since its last flush may be lost. A mount with \
             --accept-loss goes on with what was flushed, one with --discard-dirty begins anew"
                .to_owned(),
        ));
    }
    match report.contents {
        Contents::InUse(process) => facts.push((
            "in use",
            process.map_or_else(|| "yes".to_owned(), |pid| format!("by process {pid}")),
        )),
        Contents::Idle(held) => facts.extend([
            ("local", format_size(held.present_bytes)),
            ("dirty", format_size(held.dirty_bytes)),
        ]),
    }
    facts
}

fn as_json(report: &CacheReport) -> serde_json::Value {
    let (in_use, held) = match report.contents {
        Contents::InUse(process) => (Some(process), None),
        Contents::Idle(held) => (None, Some(held)),
    };
    serde_json::json!({
        "directory": report.path,
        "origin": report.origin_name,
        "identity": HEXLOWER.encode(&report.identity),
        "size_bytes": report.size_bytes,
        "chunk_bytes": report.chunk_bytes,
        "epoch": report.epoch,
        "persistent": report.persistent,
        "sync_failed": report.sync_failed,
        "in_use": in_use.is_some(),
        "process": in_use.flatten(),
        "local_bytes": held.map(|held| held.present_bytes),
        "dirty_bytes": held.map(|held| held.dirty_bytes),
    })
}

fn remove(args: &Remove) -> Result<()> {
    ops::refuse_waiting_for(&args.directory)?;
    let what = match args.discard_dirty {
        true => Discard::EvenDirty,
        false => Discard::Clean,
    };
    discard(&args.directory, &live_maps(), what).map_err(|error| match error.kind() {
        ErrorKind::Dirty | ErrorKind::Damaged | ErrorKind::Foreign if !args.discard_dirty => {
            Error::new(
                error.kind(),
                format!("{}; --discard-dirty removes it all the same", error.chain()),
            )
        }
        _ => error,
    })
}
