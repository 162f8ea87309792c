//! `blockferry udev`: ublk devices for those who are not root.

use std::path::PathBuf;

use blockferry::device::ublk::owner;
use blockferry::{Context, Result};

use super::output;

/// Prints the udev rules that let every user make ublk devices
///
/// Without such rules only root can. The rules open /dev/ublk-control to all, and run this verb with
/// each new node, which it gives to the user who made the device. They name this program where it is
/// now: install it first. A container needs a file with the rules too, as a sign that its host has
/// them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry udev >/etc/udev/rules.d/90-blockferry.rules
  udevadm control --reload && udevadm trigger --action=change --name-match=ublk-control
  blockferry udev /dev/ublkc0")]
pub(super) struct Args {
    /// Give this node, /dev/ublkbN or /dev/ublkcN, to whoever made the device; for udev to run
    node: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if let Some(node) = &args.node {
        return owner::give_to_owner(node);
    }
    let program = std::env::current_exe().context_io(|| "cannot find this program")?;
    output::bytes(owner::udev_rules(&program).as_bytes())
}
