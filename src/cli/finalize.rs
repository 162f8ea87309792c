//! `blockferry finalize NAME`: the second phase of a migration, now.

use std::time::Duration;

use blockferry::Result;
use blockferry::ops::{self, Name};

/// Has a volume that is being leeched move here as soon as possible
///
/// It is for the leecher. What is being pulled is pulled first; then the seeder's requests wait for a
/// moment, and the device appears here.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blockferry finalize disk")]
pub(super) struct Args {
    /// The name of the migration, as `blockferry list` shows it
    name: Name,
}

/// How long the process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Args) -> Result<()> {
    ops::finalize(&args.name, PATIENCE).map(drop)
}
