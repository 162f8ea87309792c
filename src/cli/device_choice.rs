//! Which kind of device, and of how many queues: the options that `seed` and `leech` share.

use blockferry::Result;
use blockferry::device::{self, DEPTH_MAX, DeviceKind, DeviceOptions, QUEUES_MAX};
use blockferry::ops::Claim;
use clap::builder::RangedU64ValueParser;

#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// The kind of device: auto, ublk, or fuse (with a loop device on top for root)
    #[arg(long, default_value = "auto", value_name = "KIND", value_parser = parse_kind)]
    device: Wanted,

    /// How many queues serve the device, each on a thread of its own [default: one a processor, at most 4]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u16>::new().range(1..=QUEUES_MAX.into()))]
    queues: Option<u16>,

    /// How many requests each queue holds [default: 128]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u16>::new().range(1..=DEPTH_MAX.into()))]
    depth: Option<u16>,
}

/// A kind of device, or whatever suits the machine best.
#[derive(Debug, Clone, Copy)]
struct Wanted(Option<DeviceKind>);

fn parse_kind(text: &str) -> Result<Wanted> {
    match text {
        "auto" => Ok(Wanted(None)),
        kind => kind.parse().map(|kind| Wanted(Some(kind))),
    }
}

impl DeviceArgs {
    /// The kind, and how it is set up.
    pub(super) fn choose(&self, claim: &Claim) -> Result<(DeviceKind, DeviceOptions)> {
        let choice = device::choose(self.device.0)?;
        match choice.rejected.is_empty() {
            true => tracing::info!("{choice}"),
            false => tracing::warn!("{choice}"),
        }
        let usual = DeviceOptions::new(claim.name().as_str(), claim.directory());
        let options = DeviceOptions {
            queues: self.queues.unwrap_or(usual.queues),
            depth: self.depth.unwrap_or(usual.depth),
            ..usual
        };
        Ok((choice.kind, options))
    }
}
