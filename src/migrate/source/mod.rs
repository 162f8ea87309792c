//! The seeder's end: carries out what the machine decides, on a device in use.
//!
//! One task has the machine, and never waits for a disk or the network: what takes time runs in tasks of
//! its own, which say how it ended.

mod links;
mod runner;
mod store;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::protocol::{Instance, Seeder, SeederConfig, SeederNotice};
use super::record_keeper::RecordKeeper;
use crate::backend::Resource;
use crate::net::Arrival;
use crate::volume::geometry::BlockRange;
use crate::volume::{ByteOffset, Volume, instance};
use crate::{Error, ErrorKind, Result};

/// How long requests are held unless told otherwise.
pub const HOLD_LIMIT_DEFAULT: Duration = Duration::from_secs(5);

/// How many inputs may wait for the machine. Who has more waits.
const INPUTS_MAX: usize = 256;

/// Something that is called, and may fail.
pub type Call = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The same, told a number of bytes.
pub type CallWithBytes = Arc<dyn Fn(u64) -> Result<(), String> + Send + Sync>;

/// What is called during a migration. Each may block.
#[derive(Clone, Default)]
pub struct SourceHooks {
    /// Before requests are held: suspend the application. If it fails, the attempt ends.
    pub before_sync: Option<Call>,
    /// Requests go on, or fail because the volume has moved: undo what the call before did, if it did
    /// anything. That it fails is logged.
    pub undo: Option<Call>,
    /// The volume is durable; so many bytes are left to send. If it fails, the attempt ends.
    pub after_sync: Option<CallWithBytes>,
    /// The volume has moved: stop the application.
    pub before_close: Option<Call>,
}

/// What a seeder is started with.
pub struct SourceParts {
    /// What is seeded.
    pub resource: Resource,
    /// The volume that the device is of; none where the volume has moved away before.
    pub volume: Option<Arc<Volume>>,
    /// The resource's records.
    pub records: RecordKeeper,
    /// Where leechers arrive.
    pub arrivals: mpsc::Receiver<Arrival>,
    /// How long requests are held at most.
    pub hold_limit: Duration,
    /// What is called.
    pub hooks: SourceHooks,
    /// Is told what a user may want to know. May not block.
    pub told: Box<dyn FnMut(SeederNotice) + Send>,
}

/// What a seeder is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// How many leechers there are.
    pub leechers: usize,
    /// How many of these, and of new owners, are connected.
    pub connected: usize,
    /// Who finalizes.
    pub finalizing: Option<String>,
    /// To whom the volume has moved, and in which epoch.
    pub moved_to: Option<(String, u64)>,
    /// Bytes of it may be here alone: the new owner pulls them.
    pub in_part: bool,
    /// The device is to be removed.
    pub remove_device: bool,
    /// The new owner has everything, and this process is not needed any more.
    pub released: bool,
}

impl SourceStatus {
    /// Whether the new owner still needs what is here: the word that the volume is its, or bytes of it.
    pub fn is_needed(&self) -> bool {
        self.moved_to.is_some() && !self.released
    }
}

/// A running seeder. Dropping it ends it: leechers lose their connection.
#[derive(Debug)]
pub struct Source {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<SourceStatus>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Abort,
}

impl Source {
    /// Begins to seed. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Where the resource is not, as a whole, a volume that is or was here.
    pub fn start(mut parts: SourceParts) -> Result<Self> {
        let geometry = parts.resource.geometry;
        let config = SeederConfig {
            volume: parts.records.volume()?,
            blocks: BlockRange::touched(ByteOffset(0), geometry.resource_bytes()),
            instance: Instance(instance::fresh()?),
            hold_limit: parts.hold_limit,
        };
        let machine = Seeder::new(config, &parts.records.records()).ok_or_else(|| {
            let what = format!("{} is not a whole volume", parts.resource.url);
            Error::new(ErrorKind::Dirty, what)
        })?;
        let (orders, to_do) = mpsc::channel(INPUTS_MAX);
        let (told, status) = watch::channel(SourceStatus::default());
        let runner = runner::Runner::new(machine, parts, told);
        Ok(Self {
            orders,
            status,
            task: tokio::spawn(runner.run(to_do)),
        })
    }

    /// Gives up what is being done, as long as the volume has not moved.
    pub async fn abort(&self) {
        let _ = self.orders.send(Order::Abort).await;
    }

    /// What it is doing.
    pub fn status(&self) -> SourceStatus {
        self.status.borrow().clone()
    }

    /// Follows what it is doing.
    pub fn watch(&self) -> watch::Receiver<SourceStatus> {
        self.status.clone()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}
