//! `blockferry abort NAME`: gives a migration up.

use std::time::Duration;

use blockferry::Result;
use blockferry::ops::{self, Name};

/// Gives a migration up, at either end, as long as the volume has not moved
///
/// The application at the seeder goes on as if nothing had happened. The seeder goes on too, and can be
/// leeched again; a leecher ends. Where none is under way this fails, and says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blockferry abort disk")]
pub(super) struct Args {
    /// The name of the migration, as `blockferry list` shows it
    name: Name,
}

/// How long the process may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(args: &Args) -> Result<()> {
    ops::abort(&args.name, PATIENCE).map(drop)
}
