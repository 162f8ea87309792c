//! A device that runs until it is told to end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use blockferry::device::{Device, DeviceOptions};
use blockferry::mount::direct::DirectMount;
use blockferry::net::Remote;
use blockferry::ops::{Claim, Command, Control, Order, Status, holders, in_use};
use blockferry::{AsyncBackend, Context, Error, ErrorKind, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;

/// How long a device may take to disappear after it was told to.
const REMOVE_WARNING: Duration = Duration::from_secs(10);

/// A running device with all that belongs to it.
pub(super) struct Serving {
    claim: Claim,
    mount: DirectMount,
    device: Box<dyn Device>,
    orders: Control,
    signals: Option<Signals>,
}

/// What a status request is answered with.
pub(super) fn status_of(
    mount: &DirectMount,
    options: &DeviceOptions,
    remote: Option<Arc<Remote>>,
) -> impl Fn() -> Status + Send + Sync + 'static {
    let (volume, queues, depth) = (mount.volume.clone(), options.queues, options.depth);
    move || Status {
        counters: volume.counters(),
        queues,
        depth,
        away_since: remote
            .as_ref()
            .and_then(|remote| remote.away_since())
            .and_then(|since| since.duration_since(UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
        last_error: None,
    }
}

/// Why a stop did not happen.
struct Refused {
    device: Box<dyn Device>,
    error: Error,
}

impl Serving {
    /// Takes signals over from here on.
    pub(super) fn new(
        claim: Claim,
        mount: DirectMount,
        device: Box<dyn Device>,
        orders: Control,
    ) -> Self {
        Self {
            claim,
            mount,
            device,
            orders,
            signals: Signals::catch().ok(),
        }
    }

    /// What applications open.
    pub(super) fn path(&self) -> &Path {
        self.device.path()
    }

    /// The directory of its run-time state.
    pub(super) fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// Serves until a signal or an order ends it, or the device ends by itself.
    pub(super) async fn until_stopped(self) -> Result<()> {
        let Self {
            claim,
            mut mount,
            mut device,
            mut orders,
            signals,
        } = self;
        let mut signals = signals.map_or_else(Signals::catch, Ok)?;
        let mut refused_before = false;
        loop {
            let order = tokio::select! {
                () = signals.next() => None,
                order = orders.order() => Some(order),
                error = device.ended() => return Err(error),
            };
            let force = match &order {
                None => refused_before,
                Some(order) => matches!(order.command(), Command::Stop { force: true }),
            };
            let error = match stop(device, &mut mount, &mut signals, force).await {
                Ok(flushed) => return end(order, flushed, (orders, claim)).await,
                Err(refused) => {
                    device = refused.device;
                    refused.error
                }
            };
            match order {
                Some(order) => order.answer(Err(error)).await,
                None => {
                    tracing::error!("{}", error.chain());
                    refused_before = true;
                }
            }
        }
    }
}

/// The device is gone: tells whoever asked for it, then gives the name back.
async fn end(order: Option<Order>, flushed: Result<()>, held: (Control, Claim)) -> Result<()> {
    let mine = flushed
        .as_ref()
        .map_err(|error| Error::new(error.kind(), error.chain()))
        .copied();
    if let Some(order) = order {
        order.answer(flushed).await;
    }
    drop(held);
    mine
}

/// Flushes and removes the device. With `force` it goes whatever happens, and the result says
/// whether all bytes were made durable; without, it stays if somebody holds it or a flush fails.
async fn stop(
    device: Box<dyn Device>,
    mount: &mut DirectMount,
    signals: &mut Signals,
    force: bool,
) -> std::result::Result<Result<()>, Refused> {
    if !force {
        match holders(device.path()) {
            Ok(holders) if holders.is_empty() => {}
            Ok(holders) => {
                let error = in_use(device.path(), &holders);
                return Err(Refused { device, error });
            }
            Err(error) => return Err(Refused { device, error }),
        }
    }
    let (device, flushed) = flush(device, mount, signals).await;
    if let (Err(error), false) = (&flushed, force) {
        let error = Error::new(
            ErrorKind::Io,
            format!(
                "{}; the device stays: stop again with force to give up what was not flushed",
                error.chain()
            ),
        );
        return Err(Refused { device, error });
    }
    let (device, removed) = remove(device, mount).await;
    match removed {
        Ok(()) => Ok(flushed),
        Err(error) => Err(Refused { device, error }),
    }
}

/// Flushes. A signal meanwhile gives up the requests that wait for the other end.
async fn flush(
    mut device: Box<dyn Device>,
    mount: &mut DirectMount,
    signals: &mut Signals,
) -> (Box<dyn Device>, Result<()>) {
    let mut flushing = spawn_blocking(move || {
        let result = device.flush();
        (device, result)
    });
    loop {
        tokio::select! {
            ended = &mut flushing => return ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
            () = signals.next() => {
                tracing::error!("told to end again: what waits for the other end fails");
                mount.fetcher.take();
            }
        }
    }
}

async fn remove(
    mut device: Box<dyn Device>,
    mount: &mut DirectMount,
) -> (Box<dyn Device>, Result<()>) {
    let path = device.path().to_owned();
    let mut removing = spawn_blocking(move || {
        let result = device.remove();
        (device, result)
    });
    loop {
        let ended = tokio::time::timeout(REMOVE_WARNING, &mut removing).await;
        if let Ok(ended) = ended {
            return ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        }
        tracing::error!(
            device = %path.display(),
            "still there; what waits for the other end fails now"
        );
        mount.fetcher.take();
    }
}

/// The signals that tell a process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn catch() -> Result<Self> {
        let of = |kind| signal(kind).context_io(|| "cannot catch signals");
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them. May be cancelled.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
