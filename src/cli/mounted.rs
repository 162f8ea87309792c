//! What is behind a device: a direct mount, or a managed one with its store and its origin.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use blockferry::device::DeviceOptions;
use blockferry::migrate::Arrived;
use blockferry::mount::direct::{DirectMount, Fetcher};
use blockferry::mount::managed::ManagedMount;
use blockferry::net::Remote;
use blockferry::ops::{Answers, Status, unsent};
use blockferry::volume::cache::{Discard, discard};
use blockferry::volume::{Volume, format_size};
use blockferry::{AsyncBackend, Context, Error, ErrorKind, Result};
use tokio::task::spawn_blocking;

use super::hook_command::RunningHooks;
use super::store_place::{self, StorePlace};

/// How often it is looked whether the origin has gone while it is waited for.
const AWAY_POLL: Duration = Duration::from_millis(200);

/// How long an origin that sends not a packet though it is asked is waited for at the end, where nothing
/// is lost by not waiting. The transport takes longer to give it up.
const SILENCE_MAX: Duration = Duration::from_millis(1500);

/// How long this process itself may hold a store that it has closed: somebody may just be told its
/// status, and the kernel takes rings down in its own time.
const LET_GO_WAIT: Duration = Duration::from_secs(5);

/// How often it is looked.
const LET_GO_POLL: Duration = Duration::from_millis(5);

/// What is behind a device.
pub(super) enum Mounted {
    Direct {
        mount: DirectMount,
        remote: Option<Arc<Remote>>,
    },
    Managed(Managed),
    /// Leeched, and not as a whole yet when the volume had moved.
    InPart(Arrived),
}

/// A managed mount, and what becomes of its store.
pub(super) struct Managed {
    pub(super) mount: Arc<ManagedMount>,
    pub(super) remote: Arc<Remote>,
    pub(super) place: StorePlace,
    /// Local writes go to the origin by themselves.
    pub(super) pushes: bool,
    /// What the origin does not have is given up at the end.
    pub(super) discard_dirty: AtomicBool,
    /// Those that run.
    pub(super) hooks: Arc<RunningHooks>,
}

impl Mounted {
    pub(super) fn volume(&self) -> &Arc<Volume> {
        match self {
            Self::Direct { mount, .. } => &mount.volume,
            Self::Managed(managed) => managed.mount.volume(),
            Self::InPart(arrived) => arrived.volume(),
        }
    }

    /// How requests reach the resource, for people.
    pub(super) fn mode(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "direct",
            Self::Managed(_) => "managed",
            Self::InPart(_) => "leech",
        }
    }

    /// What questions of other programs are answered with.
    pub(super) fn answers(&self, options: &DeviceOptions) -> Answers {
        let (volume, queues, depth) =
            (Arc::downgrade(self.volume()), options.queues, options.depth);
        let common = move || Status {
            counters: volume
                .upgrade()
                .map(|volume| volume.counters())
                .unwrap_or_default(),
            queues,
            depth,
            ..Status::default()
        };
        match self {
            Self::Direct { mount, remote } => {
                let (remote, timeouts) = (
                    remote.clone(),
                    mount.fetcher.as_ref().map(Fetcher::timeouts),
                );
                Answers::from(move || {
                    let timed_out = timeouts.as_ref().map_or(0, |count| count.load(Relaxed));
                    let lost = remote.as_ref().and_then(|remote| remote.lost_because());
                    let away = remote.as_ref().and_then(|remote| remote.away_since());
                    Status {
                        away_since: away
                            .and_then(|since| since.duration_since(UNIX_EPOCH).ok())
                            .map(|since| since.as_secs()),
                        lost: lost.is_some(),
                        last_error: lost.or_else(|| {
                            (timed_out > 0)
                                .then(|| format!("{timed_out} requests were not answered in time"))
                        }),
                        ..common()
                    }
                })
            }
            Self::Managed(managed) => {
                // Its store is let go of before the last one has asked.
                let mount = Arc::downgrade(&managed.mount);
                let mapped = Weak::clone(&mount);
                let hooks = Arc::clone(&managed.hooks);
                Answers::from(move || {
                    let common = || Status {
                        hooks: hooks.list(),
                        ..common()
                    };
                    let Some(status) = mount.upgrade().map(|mount| mount.status()) else {
                        return common();
                    };
                    Status {
                        away_since: status.away_since,
                        lost: status.lost.is_some(),
                        last_error: status.lost.clone().or_else(|| status.last_error.clone()),
                        managed: Some(status),
                        ..common()
                    }
                })
                .with_map(move |parts| mapped.upgrade().map(|mount| mount.heat(parts)))
            }
            // A leecher answers for itself.
            Self::InPart(_) => Answers::from(common),
        }
    }

    /// A number that grows with what is asked of it and with what moves; `None` when it is gone.
    pub(super) fn moved(&self) -> impl Fn() -> Option<u64> + Send + 'static {
        let volume = Arc::downgrade(self.volume());
        let mount = self.managed().map(|mount| Arc::downgrade(&mount));
        move || {
            let counters = volume.upgrade()?.counters();
            let asked = counters.reads + counters.writes + counters.flushes + counters.discards;
            let moved = mount.as_ref().map_or(Some(0), |mount| {
                let status = mount.upgrade()?.status();
                Some(status.fetched_bytes + status.pushed_bytes + status.pushed_zeroes_bytes)
            });
            Some(asked + moved?)
        }
    }

    /// The managed mount, if it is one.
    pub(super) fn managed(&self) -> Option<Arc<ManagedMount>> {
        match self {
            Self::Direct { .. } | Self::InPart(_) => None,
            Self::Managed(managed) => Some(Arc::clone(&managed.mount)),
        }
    }

    /// At the end local writes that the origin does not have are given up.
    pub(super) fn discard_dirty(&self) {
        if let Self::Managed(managed) = self {
            managed.discard_dirty.store(true, Relaxed);
        }
    }

    /// The hooks that run.
    pub(super) fn hooks(&self) -> Arc<RunningHooks> {
        match self {
            Self::Direct { .. } | Self::InPart(_) => Arc::default(),
            Self::Managed(managed) => Arc::clone(&managed.hooks),
        }
    }

    /// Whether the other end has given no answer for so long; false where there is none.
    pub(super) fn is_silent_for(&self, time: Duration) -> bool {
        match self {
            Self::Direct { mount, .. } => mount
                .fetcher
                .as_ref()
                .is_some_and(|fetcher| fetcher.silent_for() >= time),
            Self::Managed(managed) => managed.mount.silent_for() >= time,
            Self::InPart(arrived) => arrived
                .part()
                .is_some_and(|mount| mount.silent_for() >= time),
        }
    }

    /// What waits for the other end fails from now on.
    pub(super) fn give_up(&mut self) {
        match self {
            Self::Direct { mount, .. } => drop(mount.fetcher.take()),
            Self::Managed(managed) => managed.mount.give_up(),
            Self::InPart(arrived) => {
                if let Some(mount) = arrived.part() {
                    mount.give_up();
                }
            }
        }
    }

    /// Before the device goes: local writes reach the origin, or a place where they are kept.
    ///
    /// # Errors
    /// Where they would be lost.
    pub(super) async fn settle(&self) -> Result<()> {
        match self {
            Self::Direct { .. } | Self::InPart(_) => Ok(()),
            Self::Managed(managed) => managed.settle().await,
        }
    }

    /// Ends the mount, its device gone. Gives what the user should know of how it ended.
    pub(super) async fn end(self) -> Result<Option<String>> {
        match self {
            Self::Direct { mount, remote } => {
                drop(mount);
                match remote {
                    Some(remote) => close(&remote).await.map(|()| None),
                    None => Ok(None),
                }
            }
            Self::Managed(managed) => managed.end().await,
            Self::InPart(arrived) => Ok(arrived.end().await?.map(still_at_seeder)),
        }
    }
}

/// What a user has to know of a volume that has not arrived as a whole.
pub(super) fn still_at_seeder(left_bytes: u64) -> String {
    format!(
        "{} of the volume are still at its seeder alone: that is needed until the same `blockferry leech` has \
         gone on, and released it",
        format_size(left_bytes)
    )
}

const UNREACHABLE: &str = "the origin cannot be reached";

async fn close(remote: &Remote) -> Result<()> {
    remote
        .close()
        .await
        .context_io(|| "cannot give the volume back to its server")
}

impl Managed {
    async fn settle(&self) -> Result<()> {
        if self.remote.is_read_only() || self.discard_dirty.load(Relaxed) {
            return Ok(());
        }
        if !self.pushes {
            return self.allow_dirty("--push is off; `blockferry sync` sends them");
        }
        let gone = async {
            while self.remote.away_since().is_none() && self.remote.lost_because().is_none() {
                tokio::time::sleep(AWAY_POLL).await;
            }
        };
        tokio::select! {
            synced = self.mount.sync() => match synced {
                Ok(()) => Ok(()),
                Err(error) => self.allow_dirty(&error.chain()),
            },
            () = gone => {
                let lost = self.remote.lost_because();
                self.allow_dirty(lost.as_deref().unwrap_or(UNREACHABLE))
            }
            () = self.silent_where_nothing_is_lost() => Ok(()),
        }
    }

    /// Waits until the origin is silent and the mount may end without it.
    async fn silent_where_nothing_is_lost(&self) {
        loop {
            self.remote.silent(SILENCE_MAX).await;
            if self.allow_dirty(UNREACHABLE).is_ok() {
                return;
            }
            tokio::time::sleep(AWAY_POLL).await;
        }
    }

    /// Tells the server that the volume is free, and says whether it knows. It may be away.
    async fn give_back(&self) -> bool {
        let closed = tokio::select! {
            closed = close(&self.remote) => closed.is_ok(),
            () = self.remote.silent(SILENCE_MAX) => false,
        };
        let _ = self.remote.close_keeping_lease().await;
        closed
    }

    /// Whether the mount may end with local writes that the origin does not have.
    fn allow_dirty(&self, why: &str) -> Result<()> {
        let dirty_bytes = self.mount.dirty_bytes();
        if dirty_bytes == 0 || self.place.keep || self.discard_dirty.load(Relaxed) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Dirty,
            format!(
                "{} of local writes are not at the origin: {why}. Stop again with --discard-dirty to give \
                 them up",
                format_size(dirty_bytes)
            ),
        ))
    }

    async fn end(self) -> Result<Option<String>> {
        let finished = self.mount.finish().await;
        let dirty_bytes = self.mount.dirty_bytes();
        let gives_up = dirty_bytes > 0 && self.discard_dirty.load(Relaxed);
        let stays = dirty_bytes > 0 && !gives_up;
        let (lost, pushes) = (self.remote.lost_because(), self.pushes);
        // Whoever only reads holds nothing, and from who is shut out it was taken.
        let held = !self.remote.is_read_only() && lost.is_none();
        let is_away = self.remote.away_since().is_some();
        if stays {
            let _ = self.remote.close_keeping_lease().await;
        }
        // The store is known to the server as the volume's writer, until it says that it is not.
        let holds = stays || !self.give_back().await && held || is_away && held;
        let place = self.place.clone();
        // It waits for the command that is told of chunks.
        let _ = spawn_blocking(move || drop(self)).await;
        let store = place.path.display();
        if !gives_up && (place.keep || holds) {
            let note = match lost {
                Some(why) if stays => Some(format!(
                    "{} of local writes stay in the local store {store} and cannot be sent any more: {why}. The \
                     same mount with --discard-dirty gives them up",
                    format_size(dirty_bytes)
                )),
                None if stays => Some(unsent(dirty_bytes, &place.path, pushes)),
                _ => holds.then(|| {
                    format!(
                        "the server could not be told that the volume is free: the same mount goes on with \
                         the local store {store}, any other needs --takeover"
                    )
                }),
            };
            return with_note(finished, note);
        }
        let removed = remove(&place, Discard::EvenDirty).await;
        let note = holds.then(|| {
            "the server could not be told that the volume is free, and the local store is gone: the next mount \
             needs --takeover"
                .to_owned()
        });
        with_note(finished.and(removed), note)
    }
}

/// What the user should know, whether or not something went wrong.
fn with_note(ended: Result<()>, note: Option<String>) -> Result<Option<String>> {
    match (ended, note) {
        (Ok(()), note) => Ok(note),
        (Err(error), None) => Err(error),
        (Err(error), Some(note)) => Err(Error::new(
            error.kind(),
            format!("{}; {note}", error.chain()),
        )),
    }
}

/// Removes a store; not the directory, where that is the user's.
pub(super) async fn remove(place: &StorePlace, what: Discard) -> Result<()> {
    let deadline = Instant::now() + LET_GO_WAIT;
    loop {
        let path = place.path.clone();
        let removed = spawn_blocking(move || discard(&path, &store_place::live_maps(), what))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match removed {
            Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                tokio::time::sleep(LET_GO_POLL).await;
            }
            other => break other?,
        }
    }
    place.forget_unused();
    Ok(())
}
