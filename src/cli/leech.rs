//! `blockferry leech`: has a volume that another host seeds move here.

mod waiting;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockferry::device;
use blockferry::migrate::protocol::{Finalize, Mode};
use blockferry::migrate::{Arrived, LeechOptions, LeechStore, Migrator, SeedOptions, SourceStatus};
use blockferry::mount::direct;
use blockferry::net::{Compression, Server};
use blockferry::ops::{self, MountRecord, Name, Place, control};
use blockferry::wire::Ticket;
use blockferry::{Context, Error, ErrorKind, Result};
use clap::ValueEnum;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, mpsc, watch};

use self::waiting::{NOTICES_MAX, Waiting, answers, draw, draw_rest};
use super::device_choice::DeviceArgs;
use super::failure::Failure;
use super::managed::parse_rate;
use super::mounted::Mounted;
use super::output;
use super::progress::Progress;
use super::repeat;
use super::seed_service::SeedServiceArgs;
use super::seeded::{Coming, SeededDevice};
use super::serving::Serving;
use super::signals::Signals;
use super::store_place;
use super::ticket_argument::{self, Named};

/// The longest downtime that can be aimed at, in milliseconds.
const DOWNTIME_TARGET_MAX_MS: u64 = 3_600_000;

/// How long the ticket is waited for before anything else is told.
const SERVICE_WAIT: Duration = Duration::from_secs(1);

/// The longest that hybrid can pull before the volume moves, in seconds.
const PRE_COPY_TIME_MAX_S: u64 = 7 * 86_400;

/// The most rounds that can be asked for.
const ROUNDS_MAX: u32 = 1_000_000;

/// Has a volume that another host seeds move here, while it is in use there
///
/// What it holds is pulled first, in rounds, since it is written there meanwhile. When what is left can be
/// sent within the downtime target, or when `blockferry finalize` (or Enter) says so, the seeder's
/// requests wait for a moment, the rest is sent, and the volume is here: its device appears, and this
/// prints its path and, on the next line, for how long neither host took requests: `downtime 16.3 ms`, or
/// `downtime unknown` where the volume was here before. From then on it is as with `mount`: it runs until it
/// is told to end.
///
/// With --listen it is as with `seed` from then on: as soon as everything is here a ticket is printed, on a
/// line of its own before or after that of the downtime. Whoever has it can have the volume move on, or back,
/// while the device here is in use.
///
/// Until the volume has moved, `blockferry abort`, a signal, or the loss of either host leave it where it
/// is; the same command goes on with what was pulled. Once the seeder may have moved it, this asks until it
/// knows.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry leech @disk.ticket --store file:/srv/disk.img
  blockferry leech @disk.ticket --store file:/srv/disk.img --finalize manual --name disk
  blockferry finalize disk
  blockferry leech @disk.ticket --store /srv/volumes --listen 0.0.0.0:4480 --ticket-file on.ticket
  blockferry leech @disk.ticket --store mem: --downtime-target 20")]
pub(super) struct Args {
    /// The ticket that `blockferry seed` printed, @FILE, or - for standard input; without it, the
    /// ticket in $BLOCKFERRY_TICKET
    ticket: Option<String>,

    /// Where the volume is to be: file:PATH, made if it does not exist; a directory, for a file in it that is
    /// named as the volume is; or mem: for memory of this process, with which it is gone
    #[arg(long, value_name = "STORE")]
    store: LeechStore,

    /// Replace a file that has something else than a part of a volume; without this it is refused. What is
    /// equal in it does not travel
    #[arg(long)]
    overwrite: bool,

    /// Seed the volume on when it is here: the address and UDP port to listen on
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

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

    /// What is pulled when: pre-copy (everything before the volume moves), post-copy (everything after it:
    /// the device is there at once, and what is read is fetched first) or hybrid (before it up to
    /// --rounds-max or --pre-copy-time, the rest after it). Until the rest is here the volume needs both hosts
    #[arg(long, value_name = "MODE", default_value = "pre-copy")]
    mode: Which,

    /// With hybrid: for how many seconds it is pulled at most before the volume moves
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u64).range(1..=PRE_COPY_TIME_MAX_S))]
    pre_copy_time: u64,

    /// For how many seconds a request of the device waits for bytes that are still at the seeder, when that
    /// gives no answer. Then it fails with an I/O error; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = direct::IO_TIMEOUT_DEFAULT.as_secs(),
          value_parser = clap::value_parser!(u64).range(..=direct::IO_TIMEOUT_MAX.as_secs()))]
    io_timeout: u64,

    /// The most that is pulled, in bytes a second, when the volume is here and nobody waits for it
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    rest_rate: Option<u64>,

    /// Go on after the store's disk has failed to sync it while bytes were at the seeder: with what was
    /// flushed before. What was written since may be lost
    #[arg(long)]
    accept_loss: bool,

    /// If it is in doubt whether the volume is here, take it that it is, without asking the seeder. Only for
    /// when that is gone for good: if it is not, and has the volume still, both hosts have it from then on
    #[arg(long)]
    assume_committed: bool,

    /// After how many rounds the volume moves whatever the prediction is
    #[arg(long, value_name = "N", default_value = "30",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds_max: u32,

    /// Compress what travels: off, lz4, zstd, or auto: by lz4 where that saves time on this link
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compression,

    /// Run once, and told of each part of the volume that has come here for the first time: a line `OFFSET
    /// LENGTH` on its standard input, which ends when all is here. It holds up nothing, and has the time of
    /// --hook-timeout to end then
    #[arg(long, value_name = "COMMAND")]
    on_chunk_local: Option<String>,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten, next_help_heading = "With --listen")]
    service: SeedServiceArgs,

    /// How it was begun before its process died, if it was.
    #[arg(skip)]
    record: Option<MountRecord>,
}

/// Who says when the volume moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// The prediction
    Auto,
    /// The user
    Manual,
}

/// What is pulled when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Everything before the volume moves
    PreCopy,
    /// Everything after it
    PostCopy,
    /// Up to a limit before it, the rest after it
    Hybrid,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let ticket = match ticket_argument::resolve(args.ticket.as_deref())? {
        Named::Ticket(ticket) => ticket,
        Named::Url(url) => {
            let what = format!("{url} is on this host; a ticket of `blockferry seed` is needed");
            return Err(Failure::Usage(Error::new(ErrorKind::InvalidInput, what)));
        }
    };
    if args.listen.is_none() && args.service.is_any() {
        let what =
            "tickets, holds and hooks are for a volume that is seeded on: give --listen, too";
        return Err(Failure::Usage(Error::new(ErrorKind::InvalidInput, what)));
    }
    let store = args.store.clone().for_volume(&ticket.volume);
    let place = ops::place(args.name.as_ref(), &store.to_string(), &store.canonical())?;
    if place.left_over.is_some() {
        let name = place.claim.name();
        let what =
            format!("a device of {store} waits to be taken over: `blockferry recover {name}`");
        return Err(Error::new(ErrorKind::Busy, what).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(device::become_io_flusher)
        .enable_all()
        .build()
        .context_io(|| "cannot start the runtime")?;
    Ok(args.leech(&runtime, ticket, &store, place)?)
}

impl Args {
    /// The same again, under this name, and with this ticket if there is one.
    pub(super) fn again(
        mut self,
        name: Name,
        ticket: Option<String>,
        record: &MountRecord,
    ) -> Result<(), Failure> {
        (self.name, self.record) = (Some(name), Some(record.clone()));
        self.ticket = ticket.or(self.ticket);
        run(&self)
    }

    fn leech(
        &self,
        runtime: &Runtime,
        ticket: Ticket,
        store: &LeechStore,
        place: Place,
    ) -> Result<()> {
        let _guard = runtime.enter();
        let mut signals = Signals::catch()?;
        let claim = place.claim;
        let record = match &self.record {
            Some(record) => record.clone(),
            None => repeat::record(self.ticket.as_deref(), ticket.url())?,
        };
        record.save_of_migration(claim.directory())?;
        let (kind, options) = self.device.choose(&claim)?;
        let running = Arc::default();
        // What keeps it from being seeded on is to be known before it is here.
        let service = match self.listen {
            Some(at) => {
                let options = self.service.options(claim.name(), &running)?;
                Some((self.service.listen(at, claim.name())?, options))
            }
            None => None,
        };
        let (notices, told) = mpsc::channel(NOTICES_MAX);
        let leech_options = LeechOptions {
            told: Box::new(move |notice| {
                if notices.try_send(notice).is_err() {
                    tracing::debug!("a notice is lost");
                }
            }),
            part_is_local: self
                .on_chunk_local
                .clone()
                .map(|command| self.service.hooks.told_of_parts(command, &running)),
            ..self.options()?
        };
        let migrator = Migrator::new(kind, options.clone());
        let leeching = runtime.block_on(async {
            tokio::select! {
                leeching = migrator.leech(ticket, store, leech_options) => leeching,
                () = signals.next() => Err(Error::new(
                    ErrorKind::TimedOut,
                    "told to end before the seeder had answered",
                )),
            }
        })?;
        let seeds = Arc::default();
        let answers = answers(&leeching, &options, &seeds, &running);
        let orders = control::serve(claim.directory(), answers)?;
        let progress = Progress::drawn_by(draw(leeching.watch()));
        let resource = leeching.store().clone();
        let mut waiting = Waiting {
            leeching,
            told,
            orders,
            signals,
        };
        let here = runtime.block_on(waiting.until_here());
        drop(progress);
        let device = match here {
            Ok(device) => device,
            Err(error) => {
                // The name is given up when the device that was prepared is gone.
                runtime.block_on(waiting.leeching.end());
                return Err(error);
            }
        };
        let path = device.path().to_owned();
        claim.publish(&ops::Running {
            mode: "leech".to_owned(),
            ..ops::Running::new(
                device.path(),
                device.record(),
                &resource.url,
                resource.geometry.device_bytes(),
            )
        })?;
        output::line(path.display())?;
        let (arrived, orders, signals) = waiting.arrived(runtime);
        let Some((server, seed_options)) = service else {
            runtime.block_on(tell_downtime(&arrived))?;
            let progress = match arrived.part() {
                Some(_) => Progress::drawn_by(draw_rest(arrived.watch())),
                None => None,
            };
            let mount = match arrived.part() {
                Some(_) => Mounted::InPart(arrived),
                None => Mounted::Direct {
                    mount: arrived.into_mount(),
                    remote: None,
                },
            };
            let serving = Serving {
                claim,
                mount,
                path,
                device: Arc::new(Mutex::new(device)),
                orders,
                signals,
                progress,
            };
            return runtime.block_on(serving.until_stopped());
        };
        let arrived = Arc::new(arrived);
        let mut seeded = SeededDevice {
            device: Some(Arc::new(Mutex::new(device))),
            seeding: None,
            coming: Some(self.coming(&arrived, server, seed_options, seeds)),
            arrived: Some(Arc::clone(&arrived)),
            orders,
            signals,
            hooks: running,
        };
        let ended = runtime.block_on(async {
            seeded.until_seeded(SERVICE_WAIT).await;
            tell_downtime(&arrived).await?;
            drop(arrived);
            seeded.until_ended().await
        });
        drop(claim);
        ended
    }

    /// The service for those who have it move on, as soon as all of it is here; then its ticket is told.
    fn coming(
        &self,
        arrived: &Arc<Arrived>,
        server: Server,
        options: SeedOptions,
        seeds: Arc<OnceLock<watch::Receiver<SourceStatus>>>,
    ) -> Coming {
        let (arrived, service) = (Arc::clone(arrived), self.service.clone());
        Box::pin(async move {
            let seeding = arrived.seed(server, options).await?;
            service.announce(&seeding)?;
            let _ = seeds.set(seeding.watch());
            Ok(seeding)
        })
    }

    fn options(&self) -> Result<LeechOptions> {
        let name = self.host_name.clone().unwrap_or_else(host_name);
        Ok(LeechOptions {
            finalize: match self.finalize {
                When::Auto => Finalize::Auto,
                When::Manual => Finalize::Manual,
            },
            downtime_target: Duration::from_millis(self.downtime_target),
            rounds_max: self.rounds_max,
            mode: match self.mode {
                Which::PreCopy => Mode::PreCopy,
                Which::PostCopy => Mode::PostCopy,
                Which::Hybrid => Mode::Hybrid,
            },
            pre_copy_limit: Duration::from_secs(self.pre_copy_time),
            live_maps: Some(store_place::live_maps()),
            io_timeout: Some(Duration::from_secs(self.io_timeout)).filter(|time| !time.is_zero()),
            rest_rate: self.rest_rate,
            accept_loss: self.accept_loss,
            compression: self.compress,
            can_seed: self.listen.is_some(),
            assume_committed: self.assume_committed,
            overwrite: self.overwrite,
            ..LeechOptions::new(name)?
        })
    }
}

async fn tell_downtime(arrived: &Arrived) -> Result<()> {
    match arrived.downtime().await {
        Some(downtime) => output::line(format_args!(
            "downtime {:.1} ms",
            downtime.as_secs_f64() * 1e3
        )),
        // Whoever reads the lines waits for this one, too.
        None => output::line("downtime unknown"),
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
