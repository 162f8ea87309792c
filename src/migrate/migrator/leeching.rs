//! A volume on its way here.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use super::arrived::{Arrived, Here};
use super::{LeechStore, Migrator};
use crate::backend::Resource;
use crate::device::{self, Device};
use crate::migrate::protocol::{
    Finalize, LeecherConfig, LeecherNotice, MigrationId, Mode, Standing,
};
use crate::migrate::{
    Destination, DestinationParts, DestinationStatus, PartCall, RecordKeeper, RestOptions,
    forget_map,
};
use crate::mount::direct;
use crate::net::{Compression, Remote, RemoteOptions};
use crate::volume::{Volume, instance};
use crate::wire::Ticket;
use crate::{Error, ErrorKind, Result};

/// How long the hold may be unless told otherwise, by prediction.
const DOWNTIME_TARGET_DEFAULT: Duration = Duration::from_millis(100);

/// After how many rounds it is finalized unless told otherwise.
const ROUNDS_MAX_DEFAULT: u32 = 30;

/// How long a hybrid migration pulls before the volume moves, unless told otherwise.
const PRE_COPY_LIMIT_DEFAULT: Duration = Duration::from_secs(60);

/// How many reasons why it is over may wait; there is one.
const ENDINGS_MAX: usize = 4;

/// How a volume is leeched.
pub struct LeechOptions {
    /// By what name the seeder knows this host.
    pub name: String,
    /// Who says when the volume moves.
    pub finalize: Finalize,
    /// For how long neither host may take requests, by prediction.
    pub downtime_target: Duration,
    /// After how many rounds the volume moves whatever is predicted.
    pub rounds_max: u32,
    /// What is pulled when.
    pub mode: Mode,
    /// How long [`Mode::Hybrid`] pulls before the volume moves.
    pub pre_copy_limit: Duration,
    /// Where it is noted, in memory and for this user only, which blocks are here: for whoever goes on after
    /// this process was killed. Post-copy needs it, and a store in which that was begun.
    pub live_maps: Option<PathBuf>,
    /// How long a request waits for bytes that are at the seeder; `None`: for ever.
    pub io_timeout: Option<Duration>,
    /// The most bytes a second that are pulled when the volume is here and nobody waits for them.
    pub rest_rate: Option<u64>,
    /// Go on where the store's disk has failed to sync it while bytes were at the seeder: what was written since
    /// may be lost.
    pub accept_loss: bool,
    /// How bytes are compressed on their way.
    pub compression: Compression,
    /// The volume can be seeded on from here, while its device is in use.
    pub can_seed: bool,
    /// Where it is in doubt whether the volume is here, it is, without asking the seeder: for when that is
    /// gone for good. If it is not, and has the volume, both hosts do from then on.
    pub assume_committed: bool,
    /// A store that has something else than a part of a volume is replaced, and not refused.
    pub overwrite: bool,
    /// Is told of each part of the volume when it has come for the first time.
    pub part_is_local: Option<PartCall>,
    /// Is told what a user may want to know. May not block.
    pub told: Box<dyn FnMut(LeecherNotice) + Send>,
}

impl LeechOptions {
    /// The usual: it moves when [`Leeching::finalize`] says so, and the log is told.
    ///
    /// # Errors
    /// `InvalidInput` where there is no name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            let what = "a leecher needs a name, by which the seeder knows it";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Self {
            name,
            finalize: Finalize::Manual,
            downtime_target: DOWNTIME_TARGET_DEFAULT,
            rounds_max: ROUNDS_MAX_DEFAULT,
            mode: Mode::PreCopy,
            pre_copy_limit: PRE_COPY_LIMIT_DEFAULT,
            live_maps: None,
            io_timeout: Some(direct::IO_TIMEOUT_DEFAULT),
            rest_rate: None,
            accept_loss: false,
            compression: Compression::Auto,
            can_seed: false,
            assume_committed: false,
            overwrite: false,
            part_is_local: None,
            told: Box::new(|notice| tracing::info!(?notice, "leeching")),
        })
    }

    fn remote(&self) -> RemoteOptions {
        RemoteOptions {
            // Only the seeder's device writes.
            read_only: true,
            compression: self.compression,
            leeches: true,
            client_name: Some(self.name.clone()),
            ..RemoteOptions::default()
        }
    }

    fn config(&self) -> Result<LeecherConfig> {
        Ok(LeecherConfig {
            name: self.name.clone(),
            migration: MigrationId(instance::fresh()?),
            mode: self.mode,
            finalize: self.finalize,
            downtime_target: self.downtime_target,
            rounds_max: self.rounds_max,
            pre_copy_limit: self.pre_copy_limit,
        })
    }
}

/// A volume on its way here. Dropping it gives that up, unless it is just being decided.
pub struct Leeching {
    destination: Option<Destination>,
    status: watch::Receiver<DestinationStatus>,
    device: mpsc::Receiver<Box<dyn Device>>,
    endings: mpsc::Receiver<Error>,
    here: Here,
}

impl fmt::Debug for Leeching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leeching")
            .field("store", &self.here.store.url)
            .finish_non_exhaustive()
    }
}

impl Migrator {
    /// Begins to pull a volume that another host seeds. Its device is made when it has moved here.
    ///
    /// Where it has moved here before, by the store's record, and its seeder cannot be reached any more, the
    /// device is made without that.
    ///
    /// # Errors
    /// Where the seeder cannot be reached, and where the store cannot be made or cannot be that of the
    /// volume; `Foreign` where it has something else, unless [`LeechOptions::overwrite`] is said.
    pub async fn leech(
        &self,
        ticket: Ticket,
        store: &LeechStore,
        mut options: LeechOptions,
    ) -> Result<Leeching> {
        let store = store.clone().for_volume(&ticket.volume);
        if options.assume_committed {
            if !store.has_arrived() {
                store.assume_committed().await?;
            }
            return self.go_on(&store, &options).await;
        }
        let remote = RemoteOptions {
            known_identity: store.volume().map(|volume| volume.0),
            ..options.remote()
        };
        let remote = match Remote::connect(ticket, remote).await {
            Ok(remote) => remote,
            Err(error) if is_away(&error) && store.has_arrived() => {
                tracing::warn!(
                    "{}: {store} has the volume by its record, and goes on without its seeder",
                    error.chain()
                );
                return self.go_on(&store, &options).await;
            }
            Err(error) => return Err(store.explained(error)),
        };
        if store.has_arrived() {
            tracing::warn!("{store} has the volume by its record: there is nothing to pull");
        }
        let store = store.open(&remote.geometry(), options.overwrite)?;
        let here = self.here(store, &options)?;
        let (started, device) = mpsc::channel(1);
        let (over, endings) = mpsc::channel(ENDINGS_MAX);
        let (kind, device_options) = (self.device, self.options.clone());
        let (volume, part) = (Arc::clone(&here.mount.volume), Arc::clone(&here.part));
        let prepared = match options.mode {
            // It will be of another volume.
            Mode::PostCopy => None,
            _ => Some(device::prepare(kind, Arc::clone(&volume), &device_options)?),
        };
        let config = options.config()?;
        let rest = options.live_maps.clone().map(|run_directory| RestOptions {
            run_directory,
            requests_max: self.options.requests_max(),
            io_timeout: options.io_timeout,
            pull_rate: options.rest_rate,
            accept_loss: options.accept_loss,
        });
        let destination = Destination::start(DestinationParts {
            config,
            remote,
            store: here.store.clone(),
            records: here.records.clone(),
            rest,
            part_is_local: options.part_is_local.take(),
            start_device: Box::new(move |_, mount| {
                let prepared = match (mount, prepared) {
                    (Some(mount), unused) => {
                        drop(unused);
                        let volume = Arc::clone(part.get_or_init(|| mount).volume());
                        device::prepare(kind, volume, &device_options)
                    }
                    (None, Some(prepared)) => Ok(prepared),
                    (None, None) => device::prepare(kind, volume, &device_options),
                };
                let device = prepared.and_then(|prepared| prepared.start());
                let device = device.map_err(|error| error.chain())?;
                // It is removed if nobody waits for it.
                let _ = started.blocking_send(device);
                Ok(())
            }),
            told: Box::new(move |notice| {
                if let Some(ending) = ending(&notice) {
                    // One is enough.
                    let _ = over.try_send(ending);
                }
                (options.told)(notice);
            }),
        })?;
        Ok(Leeching {
            status: destination.watch(),
            destination: Some(destination),
            device,
            endings,
            here,
        })
    }

    /// What its record says is here, without a seeder.
    async fn go_on(&self, store: &LeechStore, options: &LeechOptions) -> Result<Leeching> {
        let here = self.here(store.open_as_it_is()?, options)?;
        // Until the store was locked somebody else may have had the volume move on.
        if !matches!(here.records.records().standing(), Standing::Owner(_)) {
            let what = format!("{store} has been used meanwhile");
            return Err(store.explained(Error::new(ErrorKind::Busy, what)));
        }
        if let Some(live_maps) = &options.live_maps {
            forget_map(&here.store, live_maps)?;
        }
        let (started, device) = mpsc::channel(1);
        let (_, endings) = mpsc::channel(ENDINGS_MAX);
        let (kind, device_options) = (self.device, self.options.clone());
        let volume = Arc::clone(&here.mount.volume);
        let starting = spawn_blocking(move || device::start(kind, volume, &device_options));
        let made = starting
            .await
            .map_err(|panic| Error::new(ErrorKind::Io, panic.to_string()))??;
        let _ = started.send(made).await;
        let status = DestinationStatus {
            is_owner: true,
            can_seed: true,
            is_done: true,
            ..DestinationStatus::default()
        };
        Ok(Leeching {
            destination: None,
            status: watch::channel(status).1,
            device,
            endings,
            here,
        })
    }

    fn here(&self, store: Resource, options: &LeechOptions) -> Result<Here> {
        let records = RecordKeeper::of(&store)?;
        let requests_max = self.options.requests_max();
        let mount = match options.can_seed {
            true => direct::mount_seedable(&store, requests_max, None),
            false => direct::mount(&store, requests_max, None),
        };
        Ok(Here {
            store,
            records,
            mount,
            part: Arc::default(),
            live_maps: options.live_maps.clone(),
        })
    }
}

/// Whether nobody answers, rather than somebody who refuses.
fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::TimedOut)
}

/// Why it is over, if it is.
fn ending(notice: &LeecherNotice) -> Option<Error> {
    match notice {
        LeecherNotice::NoDevice(why) => Some(Error::new(
            ErrorKind::Io,
            format!(
                "the volume is here, but its device could not be started: {why}; the same command, or \
                 `blockferry mount`, can try again"
            ),
        )),
        LeecherNotice::LeftInDoubt => Some(Error::new(
            ErrorKind::Unreachable,
            "whether the volume is here the seeder alone knows, and it does not answer by this ticket any \
             more; give the same command a new one",
        )),
        LeecherNotice::Over(reason) => Some(Error::new(
            ErrorKind::Io,
            format!("the volume is not here: {reason}"),
        )),
        _ => None,
    }
}

impl Leeching {
    /// How far it is.
    pub fn status(&self) -> DestinationStatus {
        self.status.borrow().clone()
    }

    /// Follows how far it is.
    pub fn watch(&self) -> watch::Receiver<DestinationStatus> {
        self.status.clone()
    }

    /// Gives the volume that is behind the device, as long as there is one: which one that is is known when
    /// it is here.
    pub fn volume(&self) -> impl Fn() -> Option<Arc<Volume>> + Send + Sync + 'static {
        let whole = Arc::downgrade(&self.here.mount.volume);
        let part = Arc::downgrade(&self.here.part);
        move || {
            let part = part.upgrade();
            match part.as_ref().and_then(|part| part.get()) {
                Some(mount) => Some(Arc::clone(mount.volume())),
                None => whole.upgrade(),
            }
        }
    }

    /// The store that it is in.
    pub fn store(&self) -> &Resource {
        &self.here.store
    }

    /// Has it move here as soon as possible, without waiting for that.
    pub async fn ask_to_finalize(&self) {
        if let Some(destination) = &self.destination {
            destination.finalize().await;
        }
    }

    /// Gives it up, as long as the volume may not have moved: [`here`](Self::here) tells.
    pub async fn abort(&self) {
        if let Some(destination) = &self.destination {
            destination.abort().await;
        }
    }

    /// Gives it up, as dropping it does, and returns when nothing of it is left.
    pub async fn end(self) {
        if let Some(destination) = self.destination {
            destination.end().await;
        }
    }

    /// Waits until the volume is here, and gives its device, once. May be cancelled and called again.
    ///
    /// # Errors
    /// Why it will not be here.
    pub async fn here(&mut self) -> Result<Box<dyn Device>> {
        let over = || Error::new(ErrorKind::Io, "the volume is not here: it ended");
        tokio::select! {
            biased;
            Some(device) = self.device.recv() => Ok(device),
            Some(error) = self.endings.recv() => {
                let lost = self.status.borrow().lost.clone();
                Err(match lost {
                    Some(lost) if error.kind() == ErrorKind::Unreachable => error.because(lost),
                    Some(lost) => Error::new(ErrorKind::Unreachable, lost),
                    None => error,
                })
            }
            else => Err(over()),
        }
    }

    /// What is here, once [`here`](Self::here) has given the device.
    pub fn arrived(self) -> Arrived {
        let Self {
            destination,
            status,
            here,
            ..
        } = self;
        let mut followed = status.clone();
        // The connection to the seeder is kept until that is released, and not longer.
        tokio::spawn(async move {
            let _ = followed.wait_for(|status| status.is_done).await;
            drop(destination);
        });
        Arrived { status, here }
    }

    /// Has the volume move here as soon as possible, and gives its device, and what can be seeded on.
    ///
    /// # Errors
    /// Why it is not here.
    pub async fn finalize(mut self) -> Result<(Box<dyn Device>, Arrived)> {
        self.ask_to_finalize().await;
        match self.here().await {
            Ok(device) => Ok((device, self.arrived())),
            Err(error) => {
                self.end().await;
                Err(error)
            }
        }
    }
}
