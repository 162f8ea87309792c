//! `blockferry mount`: a resource as a block device on this host.

mod attach;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::backend::{Kind, OpenOptions, Resource, open};
use blockferry::device::{self, DEPTH_MAX, DeviceKind, DeviceOptions, DeviceRecord, QUEUES_MAX};
use blockferry::mount::direct;
use blockferry::mount::managed;
use blockferry::mount::managed::origin::StoreOptions;
use blockferry::net::{Compression, Remote, RemoteOptions, TlsFiles};
use blockferry::ops::{self, MountRecord, Name, Place};
use blockferry::volume::cache::OpenedCache;
use blockferry::wire::Ticket;
use blockferry::{AsyncBackend, Context, Error, ErrorKind, Result};
use clap::builder::RangedU64ValueParser;
use tokio::runtime::Runtime;

use super::block_size;
use super::detach;
use super::failure::Failure;
use super::managed::ManagedArgs;
use super::repeat;
use super::signals::Signals;
use super::store_place::{self, StorePlace};
use super::ticket_argument::{self, Named};

/// How long the last writes of a process that has died may take: until then they hold the file's
/// lock.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(30);

/// The file in the device's run-time directory that keeps who we are to the server.
const CLIENT_FILE: &str = "client.json";

/// Makes a resource a block device on this host and prints the device's path
///
/// RESOURCE is a ticket that `blockferry serve` printed, or a local resource. It runs until it is
/// told to end: by SIGINT, SIGTERM or `blockferry stop`. Then it flushes and removes the device. A
/// device that somebody still has open stays; a second signal removes it all the same.
///
/// A remote volume is mounted *managed*: the device is there at once, what is read is fetched and
/// kept in a local store, the rest comes in the background, and writes land in the store and are
/// pushed. With --direct every request goes to the resource, as it always does for a local one.
///
/// When it is killed, a ublk device of a file or of a remote volume is left behind, and whoever uses
/// it waits. The same command again, or `blockferry recover NAME`, goes on with it: all that is lost
/// is time. Until somebody does that, or removes it with `blockferry stop NAME --force`, everything
/// that touches the device hangs; --no-recovery has its I/O fail instead. A FUSE device, one of memory and
/// one that was made without root end with their process.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry mount @disk.ticket
  blockferry mount @disk.ticket --cache /var/cache/disk --detach
  blockferry mount @disk.ticket --pull-first --record-heat disk.heat
  blockferry mount @disk.ticket --pull-order disk.heat --push off --on-chunk-local 'cat >chunks'
  blockferry mount @disk.ticket --direct
  BLOCKFERRY_TICKET=$(cat disk.ticket) blockferry mount --direct --detach
  blockferry mount file:/srv/disk.img --name disk
  blockferry mount mem:1GiB --device ublk --queues 2 --depth 256

Resources:
  blockferry://HOST:PORT/VOLUME#…  a volume that another host serves (a ticket)
  @FILE, -                         the ticket in a file, or on standard input
  file:PATH                        a file or a block device
  mem:SIZE                         memory of this process, gone when it ends")]
pub(super) struct Args {
    /// What to mount; without it, the ticket in $BLOCKFERRY_TICKET
    resource: Option<String>,

    /// Send every request to the resource, instead of keeping a local copy of a remote one
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

    /// How many requests each queue holds [default: 128]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u16>::new().range(1..=DEPTH_MAX.into()))]
    depth: Option<u16>,

    /// The device's logical block in bytes: 512, 1024, 2048 or 4096 [default: the resource's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size::parse)]
    block_size: Option<u32>,

    /// After how many seconds without any answer a request to a remote resource fails; 0 to wait for
    /// ever
    ///
    /// While other requests are being answered, a request has ten times as long: a slow link is no
    /// failure. On a ublk device that was made without root it has 25 seconds at most, before the
    /// kernel would kill this process for it.
    #[arg(long, value_name = "SECONDS", default_value_t = direct::IO_TIMEOUT_DEFAULT.as_secs(),
          value_parser = parse_io_timeout)]
    io_timeout: u64,

    /// Compress what travels to and from a remote volume: off, lz4, zstd, or auto: by lz4 where that
    /// saves time on this link [default: auto; off with --direct]
    #[arg(long, value_name = "HOW")]
    compress: Option<Compression>,

    /// Take a remote volume over from the one who writes it; that one is shut out for good
    #[arg(long, conflicts_with = "read_only")]
    takeover: bool,

    /// Should this process be killed, let the device's I/O fail instead of having it wait for
    /// `blockferry recover`
    #[arg(long)]
    no_recovery: bool,

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

    #[command(flatten)]
    managed: ManagedArgs,
}

fn parse_io_timeout(text: &str) -> Result<u64> {
    let most = direct::IO_TIMEOUT_MAX.as_secs();
    let seconds = text.parse().ok().filter(|seconds| *seconds <= most);
    seconds.ok_or_else(|| {
        let allowed = format!("it has to be a whole number of seconds from 0 to {most}");
        Error::new(ErrorKind::InvalidInput, allowed)
    })
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

/// An open resource, with the connection behind it if it is on another host, and the local store in
/// front of it if it is managed.
struct Opened {
    resource: Resource,
    remote: Option<Arc<Remote>>,
    store: Option<(OpenedCache, StorePlace)>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.detach {
        ticket_argument::check(args.resource.as_deref())?;
        return detach::run();
    }
    let named = ticket_argument::resolve(args.resource.as_deref())?;
    args.check_options(&named)?;
    let resource = named.canonical();
    let place = ops::place(args.name.as_ref(), &named.to_string(), &resource)?;
    let record = repeat::record(args.resource.as_deref(), resource)?;
    Ok(args.run_at(named, place, record)?)
}

impl Args {
    /// Before anything is begun.
    fn check_options(&self, named: &Named) -> Result<(), Failure> {
        let direct = match named {
            Named::Url(url) => Some(format!("{url} is on this host, so it is mounted directly")),
            Named::Ticket(_) if self.direct => Some("--direct keeps nothing here".to_owned()),
            Named::Ticket(_) => None,
        };
        if let (Some(why), Some(option)) = (direct, self.managed.promised()) {
            return Err(Failure::Usage(Error::new(
                ErrorKind::InvalidInput,
                format!("{why}, and {option} is for managed mounts"),
            )));
        }
        self.managed.pull_order()?;
        let options = self.managed.options(self.io_timeout(), &Arc::default());
        Ok(options.map_err(Failure::Usage)?.check_record()?)
    }

    /// The arguments of a mount that is repeated after its process has died.
    pub(super) fn repeated(self, detached: bool) -> Self {
        Self {
            detach: false,
            detached,
            ..self
        }
    }

    /// The argument that names what is mounted.
    pub(super) fn resource(&self) -> Option<&str> {
        self.resource.as_deref()
    }

    /// Mounts `named` at a place that is held, and serves it to its end.
    pub(super) fn run_at(&self, named: Named, place: Place, record: MountRecord) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .on_thread_start(device::become_io_flusher)
            .enable_all()
            .build()
            .context_io(|| "cannot start the runtime")?;
        let mut signals = {
            let _guard = runtime.enter();
            Signals::catch()?
        };
        let name = place.claim.name().clone();
        let takes_over = place.left_over.is_some();
        let begun = self.kind(&place).and_then(|kind| {
            let opened = self.open(&runtime, kind, named, &place, &mut signals)?;
            self.attach(&runtime, kind, opened, place, record, signals)
        });
        let serving = match begun {
            Ok(serving) => serving,
            Err(error) if takes_over => {
                // Should queues be served already, their requests wait for the next process: they
                // would fail if the runtime ended in order. Nor is the lease given back.
                std::mem::forget(runtime);
                let what = format!("cannot go on with `{name}`, which stays as it is");
                return Err(Error::new(error.kind(), what).because(error.chain()));
            }
            Err(error) => return Err(error),
        };
        runtime.block_on(serving.until_stopped())
    }

    /// The kind of device to make, or the one that is there.
    fn kind(&self, place: &Place) -> Result<DeviceKind> {
        if place.left_over.is_some() {
            let other = self.device.0.is_some_and(|kind| kind != DeviceKind::Ublk);
            if other || self.no_recovery {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "it is a ublk device that waits to be taken over; to begin anew end it with \
                     `blockferry stop --force`",
                ));
            }
            return Ok(DeviceKind::Ublk);
        }
        let choice = device::choose(self.device.0)?;
        // That a better device is not to be had is worth a line unasked.
        match choice.rejected.is_empty() {
            true => tracing::info!("{choice}"),
            false => tracing::warn!("{choice}"),
        }
        Ok(choice.kind)
    }

    fn open(
        &self,
        runtime: &Runtime,
        kind: DeviceKind,
        named: Named,
        place: &Place,
        signals: &mut Signals,
    ) -> Result<Opened> {
        let options = OpenOptions {
            read_only: self.read_only,
            block_bytes: self.block_size,
            // A FUSE file has users of its own, whose requests need not be whole blocks.
            direct_io: kind == DeviceKind::Ublk,
            lock_patience: match place.left_over {
                Some(_) => LAST_WRITES_WAIT,
                None => Duration::ZERO,
            },
            migrates: false,
        };
        let ticket = match named {
            Named::Ticket(ticket) => ticket,
            Named::Url(url) => {
                // It may have to wait for the last writes of a dead process.
                let opening = runtime.spawn_blocking(move || open(&url, &options));
                let resource = runtime.block_on(async {
                    tokio::select! {
                        opened = opening => opened.unwrap_or_else(|panic| {
                            std::panic::resume_unwind(panic.into_panic())
                        }),
                        () = signals.next() => Err(told_to_end("the resource was free")),
                    }
                })?;
                return Ok(Opened {
                    resource,
                    remote: None,
                    store: None,
                });
            }
        };
        let name = ticket.url();
        let (remote, store) = runtime.block_on(async {
            tokio::select! {
                opened = self.connect(kind, ticket, place) => opened,
                () = signals.next() => Err(told_to_end("the server had answered")),
            }
        })?;
        let options = OpenOptions {
            read_only: remote.is_read_only(),
            ..options
        };
        let resource = match Resource::remote(&name, remote.clone(), options) {
            Ok(resource) => resource,
            Err(error) => {
                // Best effort: what is wrong with the volume matters more.
                let _ = runtime.block_on(remote.close());
                return Err(error);
            }
        };
        Ok(Opened {
            resource,
            remote: Some(remote),
            store,
        })
    }

    /// Connects to a server; for a managed mount on behalf of its local store.
    async fn connect(
        &self,
        kind: DeviceKind,
        ticket: Ticket,
        place: &Place,
    ) -> Result<(Arc<Remote>, Option<(OpenedCache, StorePlace)>)> {
        let options = self.remote_options(kind, place);
        if self.direct {
            return Ok((Remote::connect(ticket, options).await?, None));
        }
        let store = store_place::choose(&self.managed, &ticket.url())?;
        let options = RemoteOptions {
            // The store is known to the server, whichever process has it.
            client_file: None,
            ..options
        };
        let requests_max = self.device_shape(place).requests_max();
        let store_options = StoreOptions {
            path: store.path.clone(),
            run_directory: store_place::live_maps(),
            persistent: store.persistent,
            chunk_bytes: self.managed.chunk_bytes(),
            in_flight_slots: managed::in_flight_slots(requests_max),
            discard_dirty: self.managed.discard_dirty,
            accept_loss: self.managed.accept_loss,
            size_bytes_max: match store.persistent {
                true => u64::MAX,
                false => store_place::memory_bytes_max(),
            },
        };
        let (remote, cache) = managed::origin::open(ticket, options, &store_options)
            .await
            .map_err(|error| {
                let error = store.explained(error, self.managed.chunk_bytes());
                store.forget_made();
                error
            })?;
        Ok((remote, Some((cache, store))))
    }

    fn remote_options(&self, kind: DeviceKind, place: &Place) -> RemoteOptions {
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
            compression: self.compression(),
            tls,
            client_file: self
                .may_recover(kind)
                .then(|| place.claim.directory().join(CLIENT_FILE)),
            ..RemoteOptions::default()
        }
    }

    /// A direct mount's requests are short and waited for: there the time that compressing takes counts.
    fn compression(&self) -> Compression {
        self.compress.unwrap_or(match self.direct {
            true => Compression::Off,
            false => Compression::Auto,
        })
    }

    fn may_recover(&self, kind: DeviceKind) -> bool {
        kind == DeviceKind::Ublk && !self.no_recovery
    }

    /// The queues of the device: as asked for, as those of the one that is taken over, or the usual.
    fn device_shape(&self, place: &Place) -> DeviceOptions {
        let usual = DeviceOptions::new(place.claim.name().as_str(), place.claim.directory());
        let made_with = place.left_over.as_ref().and_then(DeviceRecord::recovery);
        let (queues, depth) = made_with.map_or((usual.queues, usual.depth), |made_with| {
            (made_with.queues, made_with.depth)
        });
        DeviceOptions {
            queues: self.queues.unwrap_or(queues),
            depth: self.depth.unwrap_or(depth),
            ..usual
        }
    }

    fn device_options(
        &self,
        kind: DeviceKind,
        resource: &Resource,
        place: &Place,
    ) -> DeviceOptions {
        DeviceOptions {
            read_only: resource.read_only,
            recoverable: self.may_recover(kind) && !matches!(resource.kind, Kind::Memory(_)),
            ..self.device_shape(place)
        }
    }

    fn io_timeout(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.io_timeout)).filter(|time| !time.is_zero())
    }
}

fn told_to_end(before: &str) -> Error {
    Error::new(ErrorKind::TimedOut, format!("told to end before {before}"))
}
