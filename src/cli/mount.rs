//! `blockferry mount`: a resource as a block device on this host.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::backend::{OpenOptions, Resource, open};
use blockferry::device::{self, DEPTH_DEFAULT, DEPTH_MAX, DeviceKind, DeviceOptions, QUEUES_MAX};
use blockferry::mount::direct;
use blockferry::net::{Remote, RemoteOptions, TlsFiles};
use blockferry::ops::{Claim, Name, Running, control};
use blockferry::{AsyncBackend, Context, Error, ErrorKind, Result};
use clap::builder::RangedU64ValueParser;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::detach;
use super::output;
use super::serving::{self, Serving};
use super::signals::Signals;
use super::ticket_argument::{self, Named};

/// Makes a resource a block device on this host and prints the device's path
///
/// RESOURCE is a ticket that `blockferry serve` printed, or a local resource. It runs until it is
/// told to end: by SIGINT, SIGTERM or `blockferry stop`. Then it flushes and removes the device. A
/// device that somebody still has open stays; a second signal removes it all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry mount @disk.ticket --direct
  BLOCKFERRY_TICKET=$(cat disk.ticket) blockferry mount --direct --detach
  blockferry mount file:/srv/disk.img --direct --name disk
  blockferry mount mem:1GiB --direct --device ublk --queues 2 --depth 256

Resources:
  blockferry://HOST:PORT/VOLUME#…  a volume that another host serves (a ticket)
  @FILE, -                         the ticket in a file, or on standard input
  file:PATH                        a file or a block device
  mem:SIZE                         memory of this process, gone when it ends")]
pub(super) struct Args {
    /// What to mount; without it, the ticket in $BLOCKFERRY_TICKET
    resource: Option<String>,

    /// Send every request to the resource
    #[arg(long)]
    direct: bool,

    /// The kind of device: auto, ublk, or fuse (with a loop device on top for root)
    #[arg(long, default_value = "auto", value_name = "KIND", value_parser = parse_kind)]
    device: Wanted,

    /// The name under which it runs; one that follows from the resource unless given
    #[arg(long)]
    name: Option<Name>,

    /// Refuse writes; of a remote volume, take no lease
    #[arg(long)]
    read_only: bool,

    /// How many queues serve the device, each on a thread of its own [default: one a processor, at most 4]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u16>::new().range(1..=QUEUES_MAX.into()))]
    queues: Option<u16>,

    /// How many requests each queue holds
    #[arg(long, value_name = "N", default_value_t = DEPTH_DEFAULT,
          value_parser = RangedU64ValueParser::<u16>::new().range(1..=DEPTH_MAX.into()))]
    depth: u16,

    /// The device's logical block in bytes: 512, 1024, 2048 or 4096 [default: the resource's own]
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,

    /// After how many seconds without any answer a request to a remote resource fails; 0 to wait for
    /// ever
    ///
    /// While other requests are being answered, a request has ten times as long: a slow link is no
    /// failure.
    #[arg(long, value_name = "SECONDS", default_value_t = direct::IO_TIMEOUT_DEFAULT.as_secs())]
    io_timeout: u64,

    /// Take a remote volume over from the one who writes it; that one is shut out for good
    #[arg(long, conflicts_with = "read_only")]
    takeover: bool,

    /// Return as soon as the device is ready, and go on in the background
    #[arg(long)]
    detach: bool,

    /// Set for the process that goes on in the background
    #[arg(long, hide = true)]
    detached: bool,

    /// The CA that signed the server's certificate, for a volume without a secret (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,

    /// Our certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,

    /// Our private key (PEM)
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
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

/// An open resource, and the connection behind it if it is on another host.
struct Opened {
    resource: Resource,
    remote: Option<Arc<Remote>>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if args.detach {
        return detach::run();
    }
    if !args.direct {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "only direct mounts are built in so far; add --direct",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(device::become_io_flusher)
        .enable_all()
        .build()
        .context_io(|| "cannot start the runtime")?;
    let choice = device::choose(args.device.0)?;
    // That a better device is not to be had is worth a line unasked.
    match choice.rejected.is_empty() {
        true => tracing::info!("{choice}"),
        false => tracing::warn!("{choice}"),
    }
    let named = ticket_argument::resolve(args.resource.as_deref())?;
    let claim = Claim::take(args.name.as_ref(), &named.to_string())?;
    let signals = {
        let _guard = runtime.enter();
        Signals::catch()?
    };
    let mut signals = signals;
    let opened = args.open(&runtime, choice.kind, named, &mut signals)?;
    let result = args.serve(&runtime, choice.kind, &opened, claim, signals);
    match &opened.remote {
        Some(remote) => result.and(
            runtime
                .block_on(remote.close())
                .context_io(|| "cannot give the volume back to its server"),
        ),
        None => result,
    }
}

impl Args {
    fn open(
        &self,
        runtime: &Runtime,
        kind: DeviceKind,
        named: Named,
        signals: &mut Signals,
    ) -> Result<Opened> {
        let options = OpenOptions {
            read_only: self.read_only,
            block_bytes: self.block_size,
            // A FUSE file has users of its own, whose requests need not be whole blocks.
            direct_io: kind == DeviceKind::Ublk,
        };
        let ticket = match named {
            Named::Ticket(ticket) => ticket,
            Named::Url(url) => {
                return Ok(Opened {
                    resource: open(&url, &options)?,
                    remote: None,
                });
            }
        };
        let name = ticket.url();
        let remote = runtime.block_on(async {
            tokio::select! {
                remote = Remote::connect(ticket, self.remote_options()) => remote,
                () = signals.next() => Err(Error::new(
                    ErrorKind::TimedOut,
                    "told to end before the server had answered",
                )),
            }
        })?;
        let options = OpenOptions {
            read_only: remote.is_read_only(),
            ..options
        };
        Ok(Opened {
            resource: Resource::remote(&name, remote.clone(), options)?,
            remote: Some(remote),
        })
    }

    fn remote_options(&self) -> RemoteOptions {
        let tls = match (&self.ca, &self.cert, &self.key) {
            (Some(ca), Some(certificate), Some(key)) => Some(TlsFiles {
                ca: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            _ => None,
        };
        RemoteOptions {
            read_only: self.read_only,
            takeover: self.takeover,
            tls,
            ..RemoteOptions::default()
        }
    }

    /// Makes the device, says where it is, and serves it to its end.
    fn serve(
        &self,
        runtime: &Runtime,
        kind: DeviceKind,
        opened: &Opened,
        claim: Claim,
        signals: Signals,
    ) -> Result<()> {
        let _guard = runtime.enter();
        let resource = &opened.resource;
        let usual = DeviceOptions::new(claim.name().as_str(), claim.directory());
        let options = DeviceOptions {
            queues: self.queues.unwrap_or(usual.queues),
            depth: self.depth,
            read_only: resource.read_only,
            ..usual
        };
        let io_timeout = Some(Duration::from_secs(self.io_timeout)).filter(|time| !time.is_zero());
        let mount = direct::mount(resource, options.requests_max(), io_timeout);
        let device = device::start(kind, mount.volume.clone(), &options)?;
        let size_bytes = resource.geometry.device_bytes();
        claim.publish(&Running {
            read_only: resource.read_only,
            ..Running::new(device.path(), device.record(), &resource.url, size_bytes)
        })?;
        let status = serving::status_of(&mount, &options, opened.remote.clone());
        let orders = control::serve(claim.directory(), status)?;
        match self.detached {
            true => detach::settle(claim.directory(), device.path())?,
            false => output::line(device.path().display())?,
        }
        let serving = Serving {
            claim,
            mount,
            path: device.path().to_owned(),
            device: Arc::new(Mutex::new(device)),
            orders,
            signals,
        };
        runtime.block_on(serving.until_stopped())
    }
}
