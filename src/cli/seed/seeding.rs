//! A seeder that runs until it is told to end, or the volume has moved.

use std::sync::Arc;
use std::time::Duration;

use blockferry::device::{Device, DeviceOptions};
use blockferry::migrate::{MigrationStatus, Source};
use blockferry::net::Server;
use blockferry::ops::{Answers, Command, Control, Order, Status, holders, in_use};
use blockferry::volume::Volume;
use blockferry::{Error, ErrorKind, Result};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::super::hook_command::RunningHooks;
use super::super::signals::Signals;

/// How long what is just being decided may take to be when it is told to end.
const DECISION_WAIT: Duration = Duration::from_secs(10);

/// How long the new owner may take to hear that it is not needed any more, and to go.
const FAREWELL_WAIT: Duration = Duration::from_secs(3);

/// A seeder with all that belongs to it. Without a device it only answers the new owner.
pub(super) struct Seeding {
    pub(super) source: Source,
    pub(super) device: Option<Box<dyn Device>>,
    pub(super) orders: Control,
    pub(super) signals: Signals,
    pub(super) hooks: Arc<RunningHooks>,
}

/// What questions of other programs are answered with.
pub(super) fn answers(
    source: &Source,
    volume: Option<&Arc<Volume>>,
    options: &DeviceOptions,
    hooks: &Arc<RunningHooks>,
) -> Answers {
    let (status, volume) = (source.watch(), volume.map(Arc::downgrade));
    let (queues, depth, hooks) = (options.queues, options.depth, Arc::clone(hooks));
    Answers::from(move || {
        let volume = volume.as_ref().and_then(|volume| volume.upgrade());
        Status {
            counters: volume.map(|volume| volume.counters()).unwrap_or_default(),
            queues,
            depth,
            hooks: hooks.list(),
            migration: Some(MigrationStatus::from(&*status.borrow())),
            ..Status::default()
        }
    })
}

/// Why the loop wakes up.
enum Event {
    Signal,
    Order(Order),
    Device(Error),
    Status,
}

impl Seeding {
    /// Serves until it is told to end, or until the new owner has everything.
    pub(super) async fn until_ended(mut self, server: Server) -> Result<()> {
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let ended = self.serve().await;
        drop(stop);
        let _ = serving.await;
        ended
    }

    async fn serve(&mut self) -> Result<()> {
        let mut status = self.source.watch();
        let mut refused_before = false;
        loop {
            let now = status.borrow_and_update().clone();
            if now.remove_device {
                self.remove().await?;
            }
            if now.released {
                // It is told so, and then goes.
                let gone = status.wait_for(|status| status.connected == 0);
                let _ = tokio::time::timeout(FAREWELL_WAIT, gone).await;
                return Ok(());
            }
            let event = tokio::select! {
                () = self.signals.next() => Event::Signal,
                order = self.orders.order() => Event::Order(order),
                error = ended(&mut self.device) => Event::Device(error),
                _ = status.changed() => Event::Status,
            };
            match event {
                Event::Status => {}
                Event::Device(error) => {
                    self.device = None;
                    self.source.abort().await;
                    return Err(error);
                }
                Event::Signal => match self.stop(refused_before).await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        tracing::error!("{}", error.chain());
                        refused_before = true;
                    }
                },
                Event::Order(order) => match order.command().clone() {
                    Command::Stop { force, .. } => {
                        let stopped = self.stop(force).await;
                        let ends = stopped.is_ok();
                        order.answer(stopped).await;
                        if ends {
                            return Ok(());
                        }
                    }
                    Command::Sync => {
                        let synced = self.sync().await;
                        order.answer(synced).await;
                    }
                    Command::Abort => {
                        let aborted = self.abort().await;
                        order.answer(aborted).await;
                    }
                    Command::Finalize => {
                        let what = "this is the seeder; `blockferry finalize` is for the leecher";
                        let refused = Err(Error::new(ErrorKind::Unsupported, what));
                        order.answer(refused).await;
                    }
                },
            }
        }
    }

    async fn abort(&self) -> Result<()> {
        self.source.abort().await;
        match self.decided().await {
            Some(to) => Err(Error::new(
                ErrorKind::Busy,
                format!("it is too late: the volume has moved to {to}"),
            )),
            None => Ok(()),
        }
    }

    /// Waits until nobody finalizes. Gives the new owner, if there is one.
    async fn decided(&self) -> Option<String> {
        let mut status = self.source.watch();
        let decided =
            status.wait_for(|status| status.finalizing.is_none() || status.moved_to.is_some());
        let _ = tokio::time::timeout(DECISION_WAIT, decided).await;
        self.source.status().moved_to.map(|(to, _)| to)
    }

    /// Ends the device. Without `force` it stays if somebody holds it.
    async fn stop(&mut self, force: bool) -> Result<()> {
        if let (Some(device), false) = (&self.device, force) {
            let holders = holders(device.path())?;
            if !holders.is_empty() {
                return Err(in_use(device.path(), &holders));
            }
        }
        self.source.abort().await;
        if force {
            self.hooks.end_all();
        }
        if self.decided().await.is_none() {
            let flushed = self.flush().await;
            if !force {
                flushed?;
            }
        }
        self.remove().await
    }

    async fn sync(&mut self) -> Result<()> {
        match self.decided().await {
            None => self.flush().await,
            Some(to) => Err(Error::new(
                ErrorKind::Fenced,
                format!("the volume has moved to {to}"),
            )),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let Some(mut device) = self.device.take() else {
            return Ok(());
        };
        let (device, flushed) = blocking(move || {
            let flushed = device.flush();
            (device, flushed)
        })
        .await;
        self.device = Some(device);
        flushed
    }

    async fn remove(&mut self) -> Result<()> {
        match self.device.take() {
            Some(mut device) => blocking(move || device.remove()).await,
            None => Ok(()),
        }
    }
}

async fn ended(device: &mut Option<Box<dyn Device>>) -> Error {
    match device {
        Some(device) => device.ended().await,
        None => std::future::pending().await,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
