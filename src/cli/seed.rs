//! `blockferry seed`: a resource as a device here, which can move to another host while it is in use.

use std::net::SocketAddr;
use std::sync::Arc;

use blockferry::backend::{self, OpenOptions};
use blockferry::device;
use blockferry::migrate::Migrator;
use blockferry::ops::{self, Claim, MountRecord, Name, Running, control};
use blockferry::{Context, Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::block_size;
use super::device_choice::DeviceArgs;
use super::failure::Failure;
use super::output;
use super::repeat;
use super::seed_service::SeedServiceArgs;
use super::seeded::{SeededDevice, answers};
use super::signals::Signals;

/// Makes a resource a device here that can move to another host while it is in use
///
/// Prints the device's path and, on the next line, the ticket. Whoever has the ticket can have the volume
/// move to his host, by `blockferry leech`: treat it like a password. From then on all I/O of the device
/// here fails; when the new host has everything, the device is removed and this command ends. The record
/// of the move stays beside the file, as NAME.blockferry: it keeps what was left here from being mounted.
///
/// What applications and mounted file systems have cached and not written is not part of the volume:
/// have it written by --freeze or --on-before-sync.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry seed file:/srv/disk.img --listen 0.0.0.0:4480
  blockferry seed file:/srv/disk.img --name disk --ticket-file disk.ticket --freeze /mnt/disk
  blockferry abort disk")]
pub(super) struct Args {
    /// What to seed: file:PATH or mem:SIZE
    #[arg(value_name = "URL")]
    resource: String,

    /// The address and UDP port to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4480")]
    listen: SocketAddr,

    /// The name of device and volume; one that follows from the resource unless given
    #[arg(long)]
    name: Option<Name>,

    #[command(flatten)]
    device: DeviceArgs,

    /// The logical block of the device, in bytes: 512, 1024, 2048 or 4096 [default: the resource's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size::parse)]
    block_size: Option<u32>,

    #[command(flatten)]
    service: SeedServiceArgs,

    /// How it was begun before its process died, if it was.
    #[arg(skip)]
    record: Option<MountRecord>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    backend::check(&args.resource).map_err(Failure::Usage)?;
    let canonical = backend::canonical(&args.resource);
    let place = ops::place(args.name.as_ref(), &args.resource, &canonical)?;
    if place.left_over.is_some() {
        let name = place.claim.name();
        let what = format!(
            "a device of {canonical} waits to be taken over: `blockferry recover {name}` goes on with it, \
             `blockferry stop {name}` ends it"
        );
        return Err(Error::new(ErrorKind::Busy, what).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(device::become_io_flusher)
        .enable_all()
        .build()
        .context_io(|| "cannot start the runtime")?;
    Ok(args.seed(&runtime, place.claim)?)
}

impl Args {
    /// The same again, under this name.
    pub(super) fn again(mut self, name: Name, record: &MountRecord) -> Result<(), Failure> {
        (self.name, self.record) = (Some(name), Some(record.clone()));
        run(&self)
    }

    fn seed(&self, runtime: &Runtime, claim: Claim) -> Result<()> {
        let _guard = runtime.enter();
        let signals = Signals::catch()?;
        let record = match &self.record {
            Some(record) => record.clone(),
            None => repeat::record(Some(&self.resource), backend::canonical(&self.resource))?,
        };
        record.save_of_migration(claim.directory())?;
        let options = OpenOptions {
            block_bytes: self.block_size,
            migrates: true,
            ..OpenOptions::default()
        };
        let resource = backend::open(&self.resource, &options)?;
        let (kind, options) = self.device.choose(&claim)?;
        let server = self.service.listen(self.listen, claim.name())?;
        let running = Arc::default();
        let seed_options = self.service.options(claim.name(), &running)?;
        let migrator = Migrator::new(kind, options.clone());
        let (device, seeding) = migrator.seed(&resource, server, seed_options)?;
        let answers = answers(seeding.watch(), seeding.volume(), &options, &running);
        let orders = control::serve(claim.directory(), answers)?;
        match &device {
            Some(device) => {
                claim.publish(&Running {
                    mode: "seed".to_owned(),
                    ..Running::new(
                        device.path(),
                        device.record(),
                        &resource.url,
                        resource.geometry.device_bytes(),
                    )
                })?;
                output::line(device.path().display())?;
            }
            None => {
                tracing::warn!(
                    "{} has moved away: there is no device; this answers its new owner until that has \
                     everything",
                    resource.url
                );
            }
        }
        self.service.announce(&seeding)?;
        let seeded = SeededDevice {
            device: device.map(|device| Arc::new(Mutex::new(device))),
            seeding: Some(seeding),
            coming: None,
            arrived: None,
            orders,
            signals,
            hooks: running,
        };
        let ended = runtime.block_on(seeded.until_ended());
        drop(claim);
        ended
    }
}
