//! `blockferry stop NAME`: ends a device, or cleans up after a dead one.

use std::time::Duration;

use blockferry::Result;
use blockferry::ops::{self, Name};

/// Flushes and removes a device, or what a dead process left of it
///
/// A device that somebody still has open stays, and the message says who holds it; so does one that
/// waits to be recovered. With --force both go, and what waits for them fails.
///
/// A managed mount sends its local writes to the origin first. While that is away, or with --push off,
/// they stay in the directory of --cache, to be sent by the next mount; without --cache the device
/// stays, until it is told by --discard-dirty to give them up. Of a dead mount they stay in its local
/// store, and --discard-dirty empties that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry stop disk
  blockferry stop disk --force --timeout 5
  blockferry stop disk --discard-dirty")]
pub(super) struct Args {
    /// The name of the device, as `blockferry list` shows it
    name: Name,

    /// Remove the device even if somebody has it open: their I/O fails from then on
    #[arg(long)]
    force: bool,

    /// Give up local writes of a managed mount that the origin does not have, and with them its local
    /// store
    #[arg(long)]
    discard_dirty: bool,

    /// How long it may take, in seconds: to flush, to send local writes, and to end
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let patience = Duration::from_secs(args.timeout.into());
    if let Some(note) = ops::stop(&args.name, args.force, args.discard_dirty, patience)? {
        tracing::warn!("{note}");
    }
    Ok(())
}
