//! The leecher's end: carries out what the machine decides, on a store that becomes the volume.
//!
//! As at the seeder one task has the machine; what takes time runs beside it.

mod announced;
mod compare;
mod link;
mod pull;
mod rest;
mod runner;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use announced::PartCall;

use self::rest::Rest;
use super::protocol::{Epoch, Leecher, LeecherConfig, LeecherNotice, Mode, Records};
use super::record_keeper::RecordKeeper;
use crate::backend::Resource;
use crate::mount::managed::ManagedMount;
use crate::net::Remote;
use crate::{Context, Error, ErrorKind, Result};

/// How many inputs may wait for the machine. Who has more waits.
const INPUTS_MAX: usize = 256;

pub use rest::{RestOptions, forget_map};

/// Starts the device of a volume that is here: as a whole in the store, or, with a mount, in part.
pub type StartDevice =
    Box<dyn FnOnce(Epoch, Option<Arc<ManagedMount>>) -> Result<(), String> + Send>;

/// What a leecher is started with.
pub struct DestinationParts {
    /// How it is to go about it.
    pub config: LeecherConfig,
    /// The seeder.
    pub remote: Arc<Remote>,
    /// What becomes the volume.
    pub store: Resource,
    /// The store's records.
    pub records: RecordKeeper,
    /// What it takes to leave bytes at the seeder; without it everything is pulled before the volume moves.
    pub rest: Option<RestOptions>,
    /// Starts the device, on a thread that may block.
    pub start_device: StartDevice,
    /// Is told what has come.
    pub part_is_local: Option<PartCall>,
    /// Is told what a user may want to know. May not block.
    pub told: Box<dyn FnMut(LeecherNotice) + Send>,
}

/// How far a leecher is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DestinationStatus {
    /// How many rounds it has pulled.
    pub rounds: u32,
    /// The bytes of the round that is being pulled, and how many of them are here.
    pub round_bytes: u64,
    /// See there.
    pub pulled_bytes: u64,
    /// How many bytes were asked for in all: what the store had from before is not.
    pub fetched_bytes: u64,
    /// What is written at the seeder each second, in bytes.
    pub dirty_bytes_per_s: Option<u64>,
    /// How long the hold would be now.
    pub predicted: Option<Duration>,
    /// The bytes of the second phase.
    pub final_bytes: Option<u64>,
    /// For how long neither end took requests.
    pub downtime: Option<Duration>,
    /// The volume is here.
    pub is_owner: bool,
    /// All of it is here, durably, and it can be seeded on.
    pub can_seed: bool,
    /// The volume is here, but for bytes that are still at the seeder.
    pub rest: Option<RestStatus>,
    /// There is nothing left to do.
    pub is_done: bool,
    /// The seeder cannot be reached any more, and why.
    pub lost: Option<String>,
}

/// What is still at the seeder of a volume that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestStatus {
    /// How many bytes of it are not here yet. With none they are being compared.
    pub left_bytes: u64,
    /// Since when the seeder cannot be reached, in seconds since 1970.
    pub away_since: Option<u64>,
    /// What was pulled is not what the seeder has.
    pub differs: bool,
    /// The last failure of the pull or the store, for people.
    pub last_error: Option<String>,
}

/// A running leecher. Dropping it ends it; what is here stays.
#[derive(Debug)]
pub struct Destination {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<DestinationStatus>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Finalize,
    Abort,
    AssumeCommitted,
}

impl Destination {
    /// Begins to leech. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` where the store cannot be that of the volume, `Busy` where it is one that was
    /// never moved.
    pub fn start(parts: DestinationParts) -> Result<Self> {
        let (here, there) = (parts.store.geometry, parts.remote.geometry());
        if here.resource_bytes() != there.resource_bytes() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} has {} bytes, and the volume {}; give a store of that size, or a file that does \
                     not exist yet",
                    parts.store.url,
                    here.resource_bytes(),
                    there.resource_bytes()
                ),
            ));
        }
        let records = parts.records.records();
        let seeded = || {
            let what = format!(
                "{} is a volume that was seeded from here and has not moved away: it would be lost. Leech \
                 into another store",
                parts.store.url
            );
            Error::new(ErrorKind::Busy, what)
        };
        let machine = match records == Records::default() {
            true if parts.records.is_first_owner() => return Err(seeded()),
            true => Leecher::new(parts.config.clone()),
            false => Leecher::with_records(parts.config.clone(), &records).ok_or_else(seeded)?,
        };
        let announced = match &parts.part_is_local {
            Some(call) => Some(Arc::new(
                announced::Announced::new(Arc::clone(call), here.resource_bytes())
                    .context_io(|| "cannot start a thread for the hook that a chunk is local")?,
            )),
            None => None,
        };
        let rest = rest_of(&parts, &records, announced.as_ref())?;
        let (orders, to_do) = mpsc::channel(INPUTS_MAX);
        let (told, status) = watch::channel(DestinationStatus::default());
        let runner = runner::Runner::new(machine, parts, announced, rest, told);
        Ok(Self {
            orders,
            status,
            task: tokio::spawn(runner.run(to_do)),
        })
    }

    /// Has the volume move here as soon as possible.
    pub async fn finalize(&self) {
        let _ = self.orders.send(Order::Finalize).await;
    }

    /// Gives it up, as long as the volume may not have moved.
    pub async fn abort(&self) {
        let _ = self.orders.send(Order::Abort).await;
    }

    /// Has the volume be here though its seeder, which is gone for good, has not said so.
    pub async fn assume_committed(&self) {
        let _ = self.orders.send(Order::AssumeCommitted).await;
    }

    /// Ends it, and returns when nothing of it is left: a device that was not started is removed.
    pub async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// How far it is.
    pub fn status(&self) -> DestinationStatus {
        self.status.borrow().clone()
    }

    /// Follows how far it is.
    pub fn watch(&self) -> watch::Receiver<DestinationStatus> {
        self.status.clone()
    }
}

/// What it takes to leave bytes at the seeder, and to go on where that was done.
fn rest_of(
    parts: &DestinationParts,
    records: &Records,
    announced: Option<&Arc<announced::Announced>>,
) -> Result<Option<Rest>> {
    let rest = match &parts.rest {
        Some(options) => Rest::of(
            &parts.store,
            &parts.remote,
            options.clone(),
            announced.cloned(),
        )?,
        None => None,
    };
    match (&rest, rest::leaving(&records.standing())) {
        (Some(rest), Some(attempt)) => rest.reopen(attempt)?,
        (Some(rest), None) => rest.forget()?,
        (None, None) if parts.config.mode == Mode::PreCopy => {}
        (None, _) => {
            let store = &parts.store.url;
            let what = match &parts.rest {
                Some(_) => format!(
                    "{store} has no place to note which bytes are at the seeder: post-copy is for files"
                ),
                None => {
                    format!("{store}: bytes are at the seeder, and nobody says where live maps are")
                }
            };
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
    }
    Ok(rest)
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.task.abort();
    }
}
