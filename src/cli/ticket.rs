//! `blockferry ticket NAME`: a volume's ticket once more, or a new one.

use std::path::PathBuf;

use blockferry::Result;
use blockferry::net::StateDir;
use blockferry::wire::VolumeName;

use super::output;

/// Prints the ticket of a volume that is or was served on this host
///
/// With --rotate it makes a new one first. The old one is refused from then on, by a server that
/// is running too, and those who came in with it are sent away.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  blockferry ticket disk\n  blockferry ticket disk --rotate")]
pub(super) struct Args {
    /// The name of the volume
    name: VolumeName,

    /// Make a new secret; the old ticket is refused from now on
    #[arg(long)]
    rotate: bool,

    /// Where the server keeps its secrets [default: /var/lib/blockferry, or
    /// $XDG_STATE_HOME/blockferry where not root]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let state = StateDir::open(args.state_dir.as_deref())?;
    output::line(state.ticket(&args.name, args.rotate)?.reveal())
}
