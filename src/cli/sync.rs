//! `blockferry sync NAME`: local writes to the origin, now.

use std::time::Duration;

use blockferry::Result;
use blockferry::ops::{self, Name};

/// Makes everything that was written to a device durable at its resource, and returns when it is
///
/// The device goes on meanwhile. What the kernel has cached of it is written first; what a mounted file
/// system has cached is not, unless `sync` was run for it before. While the resource cannot be reached
/// it waits.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  blockferry sync disk\n  blockferry sync disk --timeout 600")]
pub(super) struct Args {
    /// The name of the device, as `blockferry list` shows it
    name: Name,

    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3600",
          value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

pub(super) fn run(args: &Args) -> Result<()> {
    ops::sync(&args.name, Duration::from_secs(args.timeout.into()))
}
