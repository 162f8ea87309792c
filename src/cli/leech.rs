//! `blockferry leech`: has a volume that another host seeds move here.

mod leeching;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::device::{self, Device};
use blockferry::migrate::protocol::{Finalize, LeecherConfig, MigrationId, Mode};
use blockferry::migrate::{Destination, DestinationParts, RecordKeeper};
use blockferry::mount::direct;
use blockferry::net::{Compression, Remote, RemoteOptions};
use blockferry::ops::{self, Name, Place, control};
use blockferry::volume::instance;
use blockferry::wire::Ticket;
use blockferry::{Context, Error, ErrorKind, Result};
use clap::ValueEnum;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc};

use self::leeching::{Leeching, NOTICES_MAX, answers, draw};
use self::store::StoreUrl;
use super::device_choice::DeviceArgs;
use super::failure::Failure;
use super::mounted::Mounted;
use super::output;
use super::progress::Progress;
use super::serving::Serving;
use super::signals::Signals;
use super::ticket_argument::{self, Named};

/// The longest downtime that can be aimed at, in milliseconds.
const DOWNTIME_TARGET_MAX_MS: u64 = 3_600_000;

/// The most rounds that can be asked for.
const ROUNDS_MAX: u32 = 1_000_000;

/// Has a volume that another host seeds move here, while it is in use there
///
/// What it holds is pulled first, in rounds, since it is written there meanwhile. When what is left can be
/// sent within the downtime target, or when `blockferry finalize` (or Enter) says so, the seeder's
/// requests wait for a moment, the rest is sent, and the volume is here: its device appears, and this
/// prints its path and, on the next line, for how long neither host took requests. From then on it is as
/// with `mount`: it runs until it is told to end.
///
/// Until the volume has moved, `blockferry abort`, a signal, or the loss of either host leave it where it
/// is; the same command goes on with what was pulled. Once the seeder may have moved it, this asks until it
/// knows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry leech @disk.ticket --store file:/srv/disk.img
  blockferry leech @disk.ticket --store file:/srv/disk.img --finalize manual --name disk
  blockferry finalize disk
  blockferry leech @disk.ticket --store mem: --downtime-target 20")]
pub(super) struct Args {
    /// The ticket that `blockferry seed` printed, @FILE, or - for standard input; without it, the
    /// ticket in $BLOCKFERRY_TICKET
    ticket: Option<String>,

    /// Where the volume is to be: file:PATH, made if it does not exist, or mem: for memory of this process,
    /// with which it is gone
    #[arg(long, value_name = "URL")]
    store: StoreUrl,

    /// The name under which it runs; one that follows from the store unless given
    #[arg(long)]
    name: Option<Name>,

    /// By what name the seeder knows this host [default: its host name]
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,

    /// When the volume moves: as soon as the downtime is predicted to be within the target, or when
    /// `blockferry finalize` says so
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    finalize: When,

    /// For how many milliseconds neither host may take requests, by prediction
    #[arg(long, value_name = "MS", default_value = "100",
          value_parser = clap::value_parser!(u64).range(1..=DOWNTIME_TARGET_MAX_MS))]
    downtime_target: u64,

    /// After how many rounds the volume moves whatever the prediction is
    #[arg(long, value_name = "N", default_value = "30",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds_max: u32,

    /// Compress what travels: off, lz4, zstd, or auto: by lz4 where that saves time on this link
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compression,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Who says when the volume moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// The prediction
    Auto,
    /// The user
    Manual,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let ticket = match ticket_argument::resolve(args.ticket.as_deref())? {
        Named::Ticket(ticket) => ticket,
        Named::Url(url) => {
            let what = format!("{url} is on this host; a ticket of `blockferry seed` is needed");
            return Err(Failure::Usage(Error::new(ErrorKind::InvalidInput, what)));
        }
    };
    let shown = args.store.to_string();
    let place = ops::place(args.name.as_ref(), &shown, &args.store.canonical())?;
    if place.left_over.is_some() {
        let name = place.claim.name();
        let what = format!(
            "a device of {} waits to be taken over: `blockferry recover {name}`",
            args.store
        );
        return Err(Error::new(ErrorKind::Busy, what).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(device::become_io_flusher)
        .enable_all()
        .build()
        .context_io(|| "cannot start the runtime")?;
    Ok(args.leech(&runtime, ticket, place)?)
}

impl Args {
    fn leech(&self, runtime: &Runtime, ticket: Ticket, place: Place) -> Result<()> {
        let _guard = runtime.enter();
        let mut signals = Signals::catch()?;
        let claim = place.claim;
        let (kind, options) = self.device.choose(&claim)?;
        let remote = runtime.block_on(async {
            tokio::select! {
                remote = Remote::connect(ticket, self.remote_options()) => remote,
                () = signals.next() => Err(Error::new(
                    ErrorKind::TimedOut,
                    "told to end before the seeder had answered",
                )),
            }
        });
        let remote = remote.map_err(|error| self.store.explained(error))?;
        let geometry = remote.geometry();
        let store = self.store.open(&geometry)?;
        let records = RecordKeeper::of(&store)?;
        let mount = direct::mount(&store, options.requests_max(), None);
        let (notices, told) = mpsc::channel(NOTICES_MAX);
        let (started, device) = mpsc::channel::<Box<dyn Device>>(1);
        let prepared = device::prepare(kind, Arc::clone(&mount.volume), &options)?;
        let destination = Destination::start(DestinationParts {
            config: self.config()?,
            remote: Arc::clone(&remote),
            store: store.clone(),
            records,
            start_device: Box::new(move |_| {
                let device = prepared.start().map_err(|error| error.chain())?;
                // It is removed if nobody waits for it.
                let _ = started.blocking_send(device);
                Ok(())
            }),
            told: Box::new(move |notice| {
                if notices.try_send(notice).is_err() {
                    tracing::debug!("a notice is lost");
                }
            }),
        })?;
        let answers = answers(&destination, &mount.volume, &options);
        let orders = control::serve(claim.directory(), answers)?;
        let mut leeching = Leeching {
            destination,
            told,
            device,
            orders,
            signals,
        };
        let progress = Progress::drawn_by(draw(leeching.destination.watch()));
        let device = runtime.block_on(leeching.until_here())?;
        drop(progress);
        let path = device.path().to_owned();
        claim.publish(&ops::Running {
            mode: "leech".to_owned(),
            ..ops::Running::new(
                device.path(),
                device.record(),
                &store.url,
                store.geometry.device_bytes(),
            )
        })?;
        output::line(path.display())?;
        let downtime = runtime.block_on(leeching.downtime());
        if let Some(downtime) = downtime {
            output::line(format_args!(
                "downtime {:.1} ms",
                downtime.as_secs_f64() * 1e3
            ))?;
        }
        let (orders, signals) = leeching.go_on(runtime);
        let serving = Serving {
            claim,
            mount: Mounted::Direct {
                mount,
                remote: None,
            },
            path,
            device: Arc::new(Mutex::new(device)),
            orders,
            signals,
            progress: None,
        };
        runtime.block_on(serving.until_stopped())
    }

    fn remote_options(&self) -> RemoteOptions {
        RemoteOptions {
            // Only the seeder's device writes.
            read_only: true,
            compression: self.compress,
            client_name: self.host_name.clone(),
            ..RemoteOptions::default()
        }
    }

    fn config(&self) -> Result<LeecherConfig> {
        Ok(LeecherConfig {
            name: self.host_name.clone().unwrap_or_else(host_name),
            migration: MigrationId(instance::fresh()?),
            mode: Mode::PreCopy,
            finalize: match self.finalize {
                When::Auto => Finalize::Auto,
                When::Manual => Finalize::Manual,
            },
            downtime_target: Duration::from_millis(self.downtime_target),
            rounds_max: self.rounds_max,
            pre_copy_limit: Duration::MAX,
        })
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name: String = name.to_string_lossy().chars().take(64).collect();
    match name.is_empty() {
        true => "a host".to_owned(),
        false => name,
    }
}

/// Where a file is by whichever name it is known.
fn path_of(rest: &str) -> PathBuf {
    PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))
}
