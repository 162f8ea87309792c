//! A device whose volume is seeded: it runs until it is told to end, or the volume has moved.

use std::fs::File;
use std::future::pending;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockferry::device::DeviceOptions;
use blockferry::migrate::{Arrived, MigrationStatus, Seeding, SourceStatus};
use blockferry::ops::{Answers, Command, Control, Order, Status, holders, in_use};
use blockferry::volume::Volume;
use blockferry::{Context, Error, ErrorKind, Result};
use tokio::sync::watch;

use super::hook_command::RunningHooks;
use super::mounted::still_at_seeder;
use super::serving::{
    FORCED_FLUSH_WAIT, REMOVE_WARNING, SharedDevice, answer, blocking, in_background, is_forced,
};
use super::signals::Signals;

/// How long the new owner may take to hear that it is not needed any more, and to go.
const FAREWELL_WAIT: Duration = Duration::from_secs(3);

/// Why there is nothing to give up.
const NOBODY_LEECHES: &str = "no migration is under way: nobody leeches the volume";

/// The service, as soon as there can be one.
pub(super) type Coming = Pin<Box<dyn Future<Output = Result<Seeding>> + Send>>;

/// A device with all that belongs to it. Without one the service only answers the new owner.
pub(super) struct SeededDevice {
    pub(super) device: Option<SharedDevice>,
    /// None as long as it is still to come.
    pub(super) seeding: Option<Seeding>,
    pub(super) coming: Option<Coming>,
    /// What came here before it was seeded.
    pub(super) arrived: Option<Arc<Arrived>>,
    pub(super) orders: Control,
    pub(super) signals: Signals,
    pub(super) hooks: Arc<RunningHooks>,
}

/// What questions of other programs are answered with.
pub(super) fn answers(
    status: watch::Receiver<SourceStatus>,
    volume: Option<&Arc<Volume>>,
    options: &DeviceOptions,
    hooks: &Arc<RunningHooks>,
) -> Answers {
    let volume = volume.map(Arc::downgrade);
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
    Seeds(Result<Seeding>),
    Status,
}

impl SeededDevice {
    /// Serves until it is told to end, or until the new owner has everything.
    pub(super) async fn until_ended(mut self) -> Result<()> {
        let ended = self.serve().await;
        if let Some(seeding) = self.seeding.take() {
            seeding.end().await;
        }
        let Some(arrived) = self.arrived.take() else {
            return ended;
        };
        if let Some(left_bytes) = arrived.end().await? {
            tracing::warn!("{}", still_at_seeder(left_bytes));
        }
        ended
    }

    /// Waits for the service for this time at most.
    pub(super) async fn until_seeded(&mut self, time: Duration) {
        let seeding = tokio::time::timeout(time, come(&mut self.coming)).await;
        if let Ok(seeding) = seeding {
            self.coming = None;
            self.take(seeding);
        }
    }

    async fn serve(&mut self) -> Result<()> {
        let mut status = self.seeding.as_ref().map(Seeding::watch);
        let mut refused_before = false;
        loop {
            if let Some(status) = &mut status {
                let now = status.borrow_and_update().clone();
                if now.remove_device {
                    self.remove().await?;
                }
                // While the hook before the close runs, the application still has the device.
                if now.released && self.device.is_none() {
                    // It is told so, and then goes.
                    let gone = status.wait_for(|status| status.connected == 0);
                    let _ = tokio::time::timeout(FAREWELL_WAIT, gone).await;
                    return Ok(());
                }
            }
            let event = tokio::select! {
                () = self.signals.next() => Event::Signal,
                order = self.orders.order() => Event::Order(order),
                error = ended(&self.device) => Event::Device(error),
                seeding = come(&mut self.coming) => Event::Seeds(seeding),
                () = changed(&mut status) => Event::Status,
            };
            match event {
                Event::Status => {}
                Event::Seeds(seeding) => {
                    self.coming = None;
                    status = self.take(seeding);
                }
                Event::Device(error) => {
                    self.device = None;
                    let _ = self.give_up().await;
                    return Err(error);
                }
                Event::Signal => {
                    if self.end_if_asked(Vec::new(), refused_before).await {
                        return Ok(());
                    }
                    refused_before = true;
                }
                Event::Order(order) => match *order.command() {
                    Command::Stop { force, .. } => {
                        if self.end_if_asked(vec![order], force).await {
                            return Ok(());
                        }
                    }
                    Command::Sync => self.sync(order).await,
                    Command::Abort => {
                        let aborted = match self.is_leeched() {
                            true => self.give_up().await,
                            false => Err(Error::new(ErrorKind::NotFound, NOBODY_LEECHES)),
                        };
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

    /// It can be leeched from now on; without that the device goes on as it is.
    fn take(&mut self, seeding: Result<Seeding>) -> Option<watch::Receiver<SourceStatus>> {
        match seeding {
            Ok(seeding) => {
                let status = seeding.watch();
                self.seeding = Some(seeding);
                Some(status)
            }
            Err(error) => {
                tracing::error!(
                    "the volume is here, and its device goes on, but it cannot be seeded: {}",
                    error.chain()
                );
                None
            }
        }
    }

    /// Whether there is something that can be given up, or is too late for that.
    fn is_leeched(&self) -> bool {
        let status = self.seeding.as_ref().map(Seeding::status);
        status.is_some_and(|status| {
            status.leechers > 0 || status.connected > 0 || status.moved_to.is_some()
        })
    }

    /// Ends what is being done, as long as the volume has not moved.
    async fn give_up(&self) -> Result<()> {
        match &self.seeding {
            Some(seeding) => seeding.abort().await,
            None => Ok(()),
        }
    }

    /// Ends the device and tells who asked; without orders a signal did. Whether it has ended.
    async fn end_if_asked(&mut self, mut asked: Vec<Order>, force: bool) -> bool {
        let by_signal = asked.is_empty();
        let stopped = self.stop(&mut asked, force).await;
        if let (Err(error), true) = (&stopped, by_signal) {
            tracing::error!("{}", error.chain());
        }
        let has_ended = stopped.is_ok();
        answer(asked, &stopped.map(|()| None), Order::answer_with).await;
        has_ended
    }

    /// Ends the device. Without `force` it stays if somebody holds it. Orders to stop that come meanwhile are
    /// added to `asked`.
    async fn stop(&mut self, asked: &mut Vec<Order>, force: bool) -> Result<()> {
        if let (Some(path), false) = (self.path().await, force) {
            let holders = holders(&path)?;
            if !holders.is_empty() {
                return Err(in_use(&path, &holders));
            }
        }
        let status = self.seeding.as_ref().map(Seeding::status);
        if let Some(status) = status.filter(|status| status.is_needed() && !force) {
            let (to, _) = status.moved_to.unwrap_or_default();
            let lacks = match status.in_part {
                true => {
                    "has not pulled everything from here yet: without this, what it lacks cannot be read there"
                }
                false => {
                    "may not have heard yet that it is there: without this, it may be in use nowhere"
                }
            };
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{to}, which has the volume now, {lacks} until `blockferry seed` of the same resource is \
                     started again. Stop with force if that is meant"
                ),
            ));
        }
        if force {
            self.hooks.end_all();
        }
        match self.give_up().await {
            Ok(()) => {
                let (flushed, forced) = self.flush(asked, force).await;
                if !forced {
                    flushed?;
                }
            }
            // A flush would wait as long as that.
            Err(error) if error.kind() == ErrorKind::TimedOut && !force => {
                let what = "; the device stays: stop again with force to end it all the same";
                return Err(Error::new(error.kind(), error.chain() + what));
            }
            // What is here is not the volume any more.
            Err(_) => {}
        }
        self.remove().await
    }

    async fn path(&self) -> Option<PathBuf> {
        match &self.device {
            Some(device) => Some(device.lock().await.path().to_owned()),
            None => None,
        }
    }

    /// Makes everything that was written durable, while the device goes on.
    async fn sync(&self, order: Order) {
        let decided = self.seeding.as_ref().map(Seeding::decided);
        let path = self.path().await;
        tokio::spawn(async move {
            order.answer(sync(decided, path).await).await;
        });
    }

    /// Flushes. Being told to end once more gives up the requests that wait; the second result says whether
    /// that happened, or was asked for from the start.
    async fn flush(&mut self, asked: &mut Vec<Order>, mut force: bool) -> (Result<()>, bool) {
        let Some(device) = self.device.clone() else {
            return (Ok(()), force);
        };
        let flushing = in_background(&device, |device| device.flush());
        tokio::pin!(flushing);
        loop {
            let patience = tokio::time::sleep(FORCED_FLUSH_WAIT);
            tokio::select! {
                flushed = &mut flushing => return (flushed, force),
                () = self.signals.next() => force = true,
                order = self.orders.order() => {
                    if !matches!(order.command(), Command::Stop { .. }) {
                        let what = "the device is being stopped";
                        order.answer(Err(Error::new(ErrorKind::Busy, what))).await;
                        continue;
                    }
                    force |= is_forced(&order);
                    asked.push(order);
                    if !force { continue; }
                }
                () = patience, if force => {
                    // Slow is not silent: what is being answered goes on.
                    if !self.is_silent() { continue; }
                }
            }
            self.fail_what_waits();
        }
    }

    /// Whether requests wait that may not be answered at all.
    fn is_silent(&self) -> bool {
        let seeding = self.seeding.as_ref();
        let is_held = seeding.is_some_and(|seeding| seeding.status().finalizing.is_some());
        let part = self.arrived.as_ref().and_then(|arrived| arrived.part());
        is_held || part.is_some_and(|mount| mount.silent_for() >= FORCED_FLUSH_WAIT)
    }

    /// What waits for the end of a hold, or for a seeder, fails from now on.
    fn fail_what_waits(&self) {
        tracing::error!("told to end at once: requests that wait fail");
        if let Some(seeding) = &self.seeding {
            seeding.end_waiting();
        }
        if let Some(mount) = self.arrived.as_ref().and_then(|arrived| arrived.part()) {
            mount.give_up();
        }
    }

    async fn remove(&mut self) -> Result<()> {
        let Some(device) = self.device.take() else {
            return Ok(());
        };
        let removing = in_background(&device, |device| device.remove());
        tokio::pin!(removing);
        loop {
            if let Ok(removed) = tokio::time::timeout(REMOVE_WARNING, &mut removing).await {
                return removed;
            }
            tracing::error!("the device is still there");
            self.fail_what_waits();
        }
    }
}

/// Not by way of the device, which is being watched.
async fn sync(
    decided: Option<impl Future<Output = Result<Option<String>>>>,
    path: Option<PathBuf>,
) -> Result<()> {
    let moved_to = match decided {
        Some(decided) => decided.await?,
        None => None,
    };
    match (moved_to, path) {
        (Some(to), _) => Err(Error::new(
            ErrorKind::Fenced,
            format!("the volume has moved to {to}"),
        )),
        (None, Some(path)) => {
            let flush = move || {
                File::open(&path)
                    .and_then(|device| device.sync_all())
                    .context_io(|| format!("cannot flush {}", path.display()))
            };
            blocking(flush).await
        }
        (None, None) => Ok(()),
    }
}

async fn ended(device: &Option<SharedDevice>) -> Error {
    match device {
        Some(device) => device.lock().await.ended().await,
        None => pending().await,
    }
}

async fn come(coming: &mut Option<Coming>) -> Result<Seeding> {
    match coming {
        Some(coming) => coming.await,
        None => pending().await,
    }
}

async fn changed(status: &mut Option<watch::Receiver<SourceStatus>>) {
    if let Some(status) = status
        && status.changed().await.is_ok()
    {
        return;
    }
    pending().await
}
