//! A device that runs until it is told to end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockferry::device::{Device, write_back};
use blockferry::ops::{Claim, Command, Control, How, Order, holders, in_use};
use blockferry::{Context, Error, ErrorKind, Result};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::mounted::Mounted;
use super::progress::Progress;
use super::signals::Signals;

/// How long a device may take to disappear after it was told to.
pub(super) const REMOVE_WARNING: Duration = Duration::from_secs(10);

/// How long a forced stop lets the flush wait for an answer of the other end.
pub(super) const FORCED_FLUSH_WAIT: Duration = Duration::from_secs(5);

/// A device that a thread of its own may be at work on.
pub(super) type SharedDevice = Arc<Mutex<Box<dyn Device>>>;

/// A running device with all that belongs to it.
pub(super) struct Serving {
    pub(super) claim: Claim,
    pub(super) mount: Mounted,
    pub(super) path: PathBuf,
    pub(super) device: SharedDevice,
    pub(super) orders: Control,
    pub(super) signals: Signals,
    pub(super) progress: Option<Progress>,
}

impl Serving {
    /// Serves until a signal or an order ends it, or the device ends by itself.
    pub(super) async fn until_stopped(mut self) -> Result<()> {
        let mut refused_before = false;
        loop {
            let mut asked = Vec::new();
            let mut device = self.device.lock().await;
            tokio::select! {
                () = self.signals.next() => {}
                order = self.orders.order() => asked.push(order),
                error = device.ended() => {
                    drop(device);
                    drop(self.device);
                    drop(self.progress);
                    match self.mount.end().await {
                        Ok(Some(note)) => tracing::warn!("{note}"),
                        Ok(None) => {}
                        Err(also) => tracing::error!("{}", also.chain()),
                    }
                    return Err(error);
                }
            }
            drop(device);
            if let Some(order) = asked.pop_if(|order| *order.command() == Command::Sync) {
                self.sync(order);
                continue;
            }
            if let Some(order) = asked.pop_if(|order| is_of_migration(order.command())) {
                order.answer(Err(no_migration())).await;
                continue;
            }
            let by_signal = asked.is_empty();
            let force = by_signal && refused_before || asked.iter().any(is_forced);
            match self.stop(&mut asked, force).await {
                Ok(flushed) => {
                    drop(self.progress);
                    drop(self.device);
                    let ended = end(self.mount, &mut self.orders, &mut self.signals, &mut asked);
                    let ended = stopped(flushed, ended.await);
                    answer(asked, &ended, Order::answer_ended).await;
                    drop(self.claim);
                    return ended.map(|note| {
                        if let Some(note) = note {
                            tracing::warn!("{note}");
                        }
                    });
                }
                Err(error) => {
                    if by_signal {
                        tracing::error!("{}", error.chain());
                        refused_before = true;
                    }
                    answer(asked, &Err(error), Order::answer_with).await;
                }
            }
        }
    }

    /// Flushes and removes the device. With `force` it goes whatever happens, and the inner result
    /// says whether all bytes were made durable; without, it stays if somebody holds it or the
    /// flush fails. Orders that come meanwhile are added to `asked`.
    async fn stop(&mut self, asked: &mut Vec<Order>, force: bool) -> Result<Result<()>> {
        if !force {
            self.refuse_in_use()?;
        }
        let (flushed, forced) = self.flush(asked, force).await;
        if let (Err(error), false) = (&flushed, forced) {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "{}; the device stays: stop again with force to give up what was not flushed",
                    error.chain()
                ),
            ));
        }
        let forced = forced || self.settle(asked).await?;
        if !forced {
            // Somebody may have opened it while all this took its time.
            self.refuse_in_use()?;
        }
        if forced {
            self.mount.hooks().end_all();
        }
        self.remove().await?;
        Ok(flushed.map_err(|error| {
            let lost = "what was not flushed is lost";
            Error::new(error.kind(), format!("{lost}: {}", error.chain()))
        }))
    }

    fn refuse_in_use(&self) -> Result<()> {
        let holders = holders(&self.path)?;
        match holders.is_empty() {
            true => Ok(()),
            false => Err(in_use(&self.path, &holders)),
        }
    }

    /// Flushes. Being told to end once more gives up the requests that wait for the other end; the
    /// second result says whether that happened, or was asked for from the start.
    async fn flush(&mut self, asked: &mut Vec<Order>, mut force: bool) -> (Result<()>, bool) {
        let Self {
            device,
            mount,
            orders,
            signals,
            ..
        } = self;
        let path = self.path.clone();
        // A managed mount is made durable when it is settled.
        let is_managed = mount.managed().is_some();
        let flushing = in_background(device, move |device| {
            sync_file_systems(&path);
            match is_managed {
                true => write_back(&path),
                false => device.flush(),
            }
        });
        tokio::pin!(flushing);
        loop {
            let patience = tokio::time::sleep(FORCED_FLUSH_WAIT);
            tokio::select! {
                flushed = &mut flushing => return (flushed, force),
                () = signals.next() => force = true,
                order = orders.order() => {
                    force |= is_forced(&order);
                    asked.push(order);
                    if !force { continue; }
                }
                () = patience, if force => {
                    // Slow is not silent: what is being answered goes on.
                    if !mount.is_silent_for(FORCED_FLUSH_WAIT) { continue; }
                }
            }
            tracing::error!("told to end at once: what waits for the other end fails");
            mount.give_up();
        }
    }

    /// Sees to it that local writes are not lost with the device. Being told to end once more leaves
    /// them where they are; true then.
    async fn settle(&mut self, asked: &mut Vec<Order>) -> Result<bool> {
        if asked.iter().any(discards_dirty) {
            self.mount.discard_dirty();
        }
        let settling = self.mount.settle();
        tokio::pin!(settling);
        loop {
            tokio::select! {
                settled = &mut settling => return settled.map(|()| false),
                () = self.signals.next() => return Ok(true),
                order = self.orders.order() => {
                    let (forced, discards) = (is_forced(&order), discards_dirty(&order));
                    asked.push(order);
                    if discards {
                        self.mount.discard_dirty();
                        return Ok(forced);
                    }
                    if forced { return Ok(true); }
                }
            }
        }
    }

    /// Makes everything that was written durable at the resource, while the device goes on.
    fn sync(&self, order: Order) {
        let path = self.path.clone();
        let managed = self.mount.managed();
        tokio::spawn(async move {
            // Not by way of the device, which is being watched.
            let synced = match managed {
                Some(mount) => mount.sync_after(blocking(move || write_back(&path))).await,
                None => {
                    let flush = move || {
                        File::open(&path)
                            .and_then(|device| device.sync_all())
                            .context_io(|| format!("cannot flush {}", path.display()))
                    };
                    blocking(flush).await
                }
            };
            order.answer(synced).await;
        });
    }

    async fn remove(&mut self) -> Result<()> {
        let removing = in_background(&self.device, |device| device.remove());
        tokio::pin!(removing);
        loop {
            if let Ok(removed) = tokio::time::timeout(REMOVE_WARNING, &mut removing).await {
                return removed;
            }
            tracing::error!(
                device = %self.path.display(),
                "still there; what waits for the other end fails now"
            );
            self.mount.give_up();
        }
    }
}

/// Ends the mount, its device gone. Being told to end once more ends the hooks that it waits for. Orders
/// that come meanwhile are added to `asked`.
async fn end(
    mount: Mounted,
    orders: &mut Control,
    signals: &mut Signals,
    asked: &mut Vec<Order>,
) -> Result<Option<String>> {
    let hooks = mount.hooks();
    let ending = mount.end();
    tokio::pin!(ending);
    loop {
        tokio::select! {
            ended = &mut ending => return ended,
            () = signals.next() => hooks.end_all(),
            order = orders.order() => match order.command() {
                Command::Stop { force, .. } => {
                    if *force { hooks.end_all(); }
                    asked.push(order);
                }
                // It is told that the device has ended.
                Command::Sync | Command::Finalize | Command::Abort => drop(order),
            },
        }
    }
}

/// Has the file systems on the device write back what they have cached, where it is removed from under
/// them: once the driver stops a device that can be recovered, it takes no writes any more.
fn sync_file_systems(device: &Path) {
    let mounted = holders(device).unwrap_or_default().into_iter();
    for at in mounted.filter_map(|holder| match holder.how {
        How::Mounted(at) => Some(at),
        _ => None,
    }) {
        let synced = File::open(&at).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        if let Err(error) = synced {
            tracing::warn!(at = %at.display(), %error, "cannot write back a file system");
        }
    }
}

/// Runs work on the device that blocks, while the rest of the process goes on.
pub(super) async fn in_background(
    device: &SharedDevice,
    work: impl FnOnce(&mut dyn Device) -> Result<()> + Send + 'static,
) -> Result<()> {
    let device = Arc::clone(device);
    blocking(move || work(device.blocking_lock().as_mut())).await
}

/// Runs work that blocks.
pub(super) async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn is_of_migration(command: &Command) -> bool {
    matches!(command, Command::Finalize | Command::Abort)
}

fn no_migration() -> Error {
    let what = "no migration is under way: the volume is here, and stays until it is seeded";
    Error::new(ErrorKind::Unsupported, what)
}

pub(super) fn is_forced(order: &Order) -> bool {
    matches!(order.command(), Command::Stop { force: true, .. })
}

fn discards_dirty(order: &Order) -> bool {
    let command = order.command();
    matches!(
        command,
        Command::Stop {
            discard_dirty: true,
            ..
        }
    )
}

/// How it went, where the device is gone in any case: what was lost, and what the user should know.
fn stopped(flushed: Result<()>, ended: Result<Option<String>>) -> Result<Option<String>> {
    let (kind, wrong) = match (flushed, ended) {
        (Ok(()), Ok(note)) => return Ok(note),
        (Err(error), Ok(None)) | (Ok(()), Err(error)) => (error.kind(), error.chain()),
        (Err(error), Ok(Some(note))) => (error.kind(), format!("{}; {note}", error.chain())),
        (Err(error), Err(also)) => (error.kind(), format!("{}; {}", error.chain(), also.chain())),
    };
    Err(Error::new(kind, format!("stopped, but {wrong}")))
}

/// Tells all who asked how it went.
pub(super) async fn answer<F: Future<Output = ()>>(
    asked: Vec<Order>,
    result: &Result<Option<String>>,
    tell: impl Fn(Order, Result<Option<String>>) -> F,
) {
    for order in asked {
        let copy = match result {
            Ok(note) => Ok(note.clone()),
            Err(error) => Err(Error::new(error.kind(), error.chain())),
        };
        tell(order, copy).await;
    }
}
