//! `blockferry seed`: a resource as a device here, which can move to another host while it is in use.

mod seeding;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::backend::{self, Kind, OpenOptions, Resource};
use blockferry::device;
use blockferry::migrate::protocol::{SeederNotice, Standing};
use blockferry::migrate::{RecordKeeper, Source, SourceParts, records};
use blockferry::mount::direct::{self, DirectMount};
use blockferry::net::{LEASE_DEFAULT, ServedVolume, Server, ServerConfig, arrivals, write_private};
use blockferry::ops::{self, Claim, Name, Running, control};
use blockferry::wire::{HostPort, VolumeName};
use blockferry::{Context, Error, ErrorKind, Result};
use tokio::runtime::Runtime;

use self::seeding::{Seeding, answers};
use super::block_size;
use super::device_choice::DeviceArgs;
use super::failure::Failure;
use super::output;
use super::serve::content_of;
use super::signals::Signals;
use super::source_hooks::SourceHookArgs;

/// The longest hold that can be asked for, in seconds.
const HOLD_LIMIT_MAX_S: u64 = 3600;

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

    /// Write the ticket to this file too, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,

    /// The address that goes into the ticket [default: the one listened on, or this host's first]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,

    /// Where the server's key and the secret are kept [default: /var/lib/blockferry, or
    /// $XDG_STATE_HOME/blockferry where not root]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,

    /// For how many seconds requests are held at most. Then they go on here, and the volume does not move
    /// this time
    #[arg(long, value_name = "SECONDS", default_value = "5",
          value_parser = clap::value_parser!(u64).range(1..=HOLD_LIMIT_MAX_S))]
    hold_limit: u64,

    #[command(flatten)]
    hooks: SourceHookArgs,
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
    fn seed(&self, runtime: &Runtime, claim: Claim) -> Result<()> {
        let _guard = runtime.enter();
        let signals = Signals::catch()?;
        let options = OpenOptions {
            block_bytes: self.block_size,
            migrates: true,
            ..OpenOptions::default()
        };
        let resource = backend::open(&self.resource, &options)?;
        let records = RecordKeeper::of(&resource)?;
        let is_here = is_here(&resource, &records)?;
        let (kind, options) = self.device.choose(&claim)?;
        let mount =
            is_here.then(|| direct::mount_seedable(&resource, options.requests_max(), None));
        let volume = mount.as_ref().map(|mount| Arc::clone(&mount.volume));

        let (to_arrive, arrivals) = arrivals();
        let name: VolumeName = claim.name().as_str().parse()?;
        let served = ServedVolume {
            name: name.clone(),
            backend: resource.as_async(),
            block_bytes: Some(resource.geometry.logical_block_bytes()),
            // Only the device here writes it.
            read_only: true,
            content: content_of(&resource),
            instance: resource.instance,
            leechers: Some(to_arrive),
        };
        let server = Server::bind(self.server_config(), vec![served])?;
        let ticket = server.ticket(&name).map(|ticket| ticket.reveal());
        let running = Arc::default();
        let source = Source::start(SourceParts {
            resource: resource.clone(),
            volume: volume.clone(),
            records,
            arrivals,
            hold_limit: Duration::from_secs(self.hold_limit),
            hooks: self.hooks.hooks(&running),
            told: Box::new(|notice| tell(&notice)),
        })?;
        let answers = answers(&source, volume.as_ref(), &options, &running);
        let orders = control::serve(claim.directory(), answers)?;
        let device = match &volume {
            Some(volume) => {
                let device = device::start(kind, Arc::clone(volume), &options)?;
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
                Some(device)
            }
            None => {
                tracing::warn!(
                    "{} has moved away: there is no device; this answers its new owner until that has \
                     everything",
                    resource.url
                );
                None
            }
        };
        self.announce(&ticket.unwrap_or_default())?;
        let seeding = Seeding {
            source,
            device,
            orders,
            signals,
            hooks: running,
        };
        let ended = runtime.block_on(seeding.until_ended(server));
        drop(mount.map(|mount: DirectMount| mount.volume));
        drop(claim);
        ended
    }

    fn server_config(&self) -> ServerConfig {
        ServerConfig {
            listen: self.listen,
            advertise: self.advertise.clone(),
            state_dir: self.state_dir.clone(),
            tls: None,
            lease: LEASE_DEFAULT,
        }
    }

    fn announce(&self, ticket: &str) -> Result<()> {
        if let Some(path) = &self.ticket_file {
            write_private(path, format!("{ticket}\n").as_bytes())?;
        }
        output::line(ticket)
    }
}

/// Whether the volume is here; if not, it has moved away.
fn is_here(resource: &Resource, records: &RecordKeeper) -> Result<bool> {
    match (records.records().standing(), &resource.kind) {
        (Standing::Owner(_), _) => Ok(true),
        (Standing::Moved(_), _) => Ok(false),
        (_, Kind::File(file)) => records::refuse_elsewhere(file.path()).map(|()| true),
        _ => Ok(true),
    }
}

/// What a user wants to know.
fn tell(notice: &SeederNotice) {
    match notice {
        SeederNotice::Finalizing(to) => tracing::info!(to, "the volume is about to move"),
        SeederNotice::Resumed(reason) => {
            tracing::warn!(
                "the volume has not moved, and requests go on here: {}",
                super::migrate::explained(reason)
            );
        }
        SeederNotice::Moved(record) => tracing::warn!(
            "the volume has moved to {} (epoch {})",
            record.to,
            record.epoch.0
        ),
        SeederNotice::HookFailed(why) => tracing::warn!("the volume has moved, but {why}"),
        SeederNotice::RecordStuck(why) => tracing::error!(
            "requests wait: the record that the volume moves could be neither written nor taken back: \
             {why}. It is tried again every second"
        ),
        SeederNotice::TooLate => {
            tracing::warn!("it is too late: the volume has moved, or is just about to");
        }
        SeederNotice::Released => tracing::info!("the new owner has everything"),
    }
}
