//! What a migration sees of a volume in use, and how it holds it.
//!
//! Nothing of this is asked of a queue thread but a look at one word, the `Phase`: which trackers
//! there are, and whether requests start, wait or fail. Whoever changes it rings all queues; each
//! says in its `Seat` which change it has seen, always between two requests, and during a hold
//! that nothing is under way any more. So it is the waiting side that does the work.

mod bitmap;
#[cfg(blockferry_loom)]
mod modelled_notify;
mod phase;
pub(super) mod queue;
mod seat;
mod tracker;

#[cfg(all(test, blockferry_loom))]
mod loom_tests;
#[cfg(all(test, not(blockferry_loom)))]
mod tests;

#[cfg(blockferry_loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, OnceLock, PoisonError};
#[cfg(not(blockferry_loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

#[cfg(not(blockferry_loom))]
use tokio::sync::Notify;

use self::bitmap::Bitmap;
#[cfg(blockferry_loom)]
use self::modelled_notify::Notify;
use self::phase::Phase;
use self::seat::Seat;
pub use self::tracker::Tracker;
use super::geometry::BlockRange;
use crate::{Context, Error, ErrorKind, Result};

/// The most trackers of a volume at once: one a leecher.
pub const TRACKERS_MAX: usize = 16;

/// Watches and holds one volume.
pub struct Watch {
    phase: AtomicU64,
    blocks: u64,
    seedable: bool,
    /// Made when a tracker first needs them, and kept: so a queue that has not heard yet that a
    /// tracker has gone does no harm.
    bitmaps: [OnceLock<Bitmap>; TRACKERS_MAX],
    control: Mutex<Control>,
    /// A queue has seen a change, has nothing under way any more, or has gone.
    told: Notify,
}

/// Known to those that change the phase; queues touch it only when they come and go.
#[derive(Default)]
struct Control {
    seats: Vec<Arc<Seat>>,
    /// A queue went with requests under way, of which nobody will hear any more.
    lost: bool,
    /// Trackers in use, a bit each.
    taken: u64,
    /// The number of the phase in which the hold began that is in place.
    held_at: Option<u64>,
}

impl Control {
    /// Whether nothing is under way, in the hold that began then.
    fn is_held_since(&self, held_at: u64) -> bool {
        let drained = |seat: &Arc<Seat>| seat.is_drained_since(held_at);
        !self.lost && self.held_at == Some(held_at) && self.seats.iter().all(drained)
    }
}

impl Watch {
    /// For a volume of so many blocks. Unless it is `seedable`, its queues are not asked to look.
    pub(super) fn new(blocks: u64, seedable: bool) -> Self {
        Self {
            phase: AtomicU64::new(Phase::QUIET.raw()),
            blocks,
            seedable,
            bitmaps: [const { OnceLock::new() }; TRACKERS_MAX],
            control: Mutex::new(Control::default()),
            told: Notify::new(),
        }
    }

    /// Whether the volume can be tracked and held.
    pub fn is_seedable(&self) -> bool {
        self.seedable
    }

    /// Whether anything is asked of the queues.
    pub fn is_active(&self) -> bool {
        !self.look().is_quiet()
    }

    /// Notes from now on which blocks change. It waits until every queue has heard of it, and what
    /// they had under way then is noted, too.
    ///
    /// # Errors
    /// `Unsupported` for a volume that was not opened to be seeded, `Busy` where there are
    /// [`TRACKERS_MAX`] already, `Io` where there is no memory, or a queue has broken down.
    pub async fn track(self: &Arc<Self>) -> Result<Tracker> {
        if !self.seedable {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this volume was not opened to be seeded: its writes cannot be tracked",
            ));
        }
        let tracker = self.take_tracker()?;
        let generation = self.change(&self.lock(), |phase| phase.with_tracker(tracker.number()));
        let told = self.until(|control| {
            if control.lost {
                return Some(Err(Error::new(
                    ErrorKind::Io,
                    "a queue of the volume has failed: what it wrote cannot be tracked any more",
                )));
            }
            let seen = |seat: &Arc<Seat>| seat.has_seen(generation);
            control.seats.iter().all(seen).then_some(Ok(()))
        });
        told.await.map(|()| tracker)
    }

    fn take_tracker(self: &Arc<Self>) -> Result<Tracker> {
        let mut control = self.lock();
        let number = (!control.taken).trailing_zeros() as usize;
        let Some(place) = self.bitmaps.get(number) else {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the volume is tracked by {TRACKERS_MAX} leechers already"),
            ));
        };
        match place.get() {
            Some(bitmap) => bitmap.clear(),
            None => {
                let bitmap = Bitmap::new(self.blocks)
                    .context_io(|| "no memory to track the volume's writes")?;
                // Nobody else sets it, under the lock.
                let _ = place.set(bitmap);
            }
        }
        control.taken |= 1 << number;
        Ok(Tracker::new(self.clone(), number))
    }

    fn give_back(&self, number: usize) {
        // A queue that does not know yet goes on noting, for nobody: there is no need to wake it.
        let mut control = self.lock();
        let phase = self.look().without_tracker(number).next();
        self.phase.store(phase.raw(), Ordering::Release);
        if let Some(bitmap) = self.bitmaps[number].get() {
            bitmap.clear();
        }
        control.taken &= !(1 << number);
    }

    /// New requests, of any kind, wait in their queues from now on. Resolves when none is under way.
    ///
    /// Dropping the future leaves the hold in place; [`resume`](Self::resume) ends it, and then this
    /// never resolves. Nor does it after a queue has broken down, as nobody knows what of its
    /// requests the resource still does.
    ///
    /// # Panics
    /// If the volume was not opened to be seeded.
    pub async fn hold(&self) {
        assert!(self.seedable, "a volume that can be held");
        let held_at = self.begin_hold();
        self.until(|control| control.is_held_since(held_at).then_some(()))
            .await;
    }

    /// Gives the number of the phase in which the hold began.
    fn begin_hold(&self) -> u64 {
        let mut control = self.lock();
        if let Some(held_at) = control.held_at {
            return held_at;
        }
        let held_at = self.change(&control, Phase::held);
        control.held_at = Some(held_at);
        held_at
    }

    /// Those that wait start, in order. Nothing when nothing is held, or the volume has moved.
    pub fn resume(&self) {
        let mut control = self.lock();
        control.held_at = None;
        self.change(&control, Phase::resumed);
    }

    /// The volume has moved away: those that wait, and all later ones, fail with an I/O error.
    pub fn close_moved(&self) {
        self.change(&self.lock(), Phase::moved);
    }

    /// The device is being taken down: while the volume is held, requests fail instead of waiting
    /// for an end that may not come. They never run, so nothing changes in a hold.
    pub(crate) fn end_waiting(&self) {
        if self.seedable {
            self.change(&self.lock(), Phase::ending);
        }
    }

    /// Sets the next phase and wakes all queues for it. Gives its number.
    fn change(&self, control: &Control, next: impl FnOnce(Phase) -> Phase) -> u64 {
        let phase = next(self.look()).next();
        self.phase.store(phase.raw(), Ordering::Release);
        for seat in &control.seats {
            seat.wake();
        }
        phase.generation()
    }

    fn look(&self) -> Phase {
        Phase::from_raw(self.phase.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the queues have told enough for an answer.
    async fn until<T>(&self, mut answer: impl FnMut(&Control) -> Option<T>) -> T {
        loop {
            let mut told = pin!(self.told.notified());
            told.as_mut().enable();
            if let Some(answer) = answer(&self.lock()) {
                return answer;
            }
            told.await;
        }
    }

    /// Notes the blocks for these trackers.
    fn note(&self, trackers: u64, blocks: BlockRange) {
        let mut rest = trackers;
        while rest != 0 {
            if let Some(bitmap) = self.bitmaps[rest.trailing_zeros() as usize].get() {
                bitmap.note(blocks);
            }
            rest &= rest - 1;
        }
    }

    /// A queue comes; what it has to know at the beginning.
    fn sit_down(&self, wake: Box<dyn Fn() + Send + Sync>) -> (Arc<Seat>, Phase) {
        let mut control = self.lock();
        let phase = self.look();
        let seat = Arc::new(Seat::new(phase.generation(), wake));
        control.seats.push(seat.clone());
        (seat, phase)
    }

    /// A queue goes. `lost`: with requests under way.
    fn stand_up(&self, seat: &Arc<Seat>, lost: bool) {
        let mut control = self.lock();
        control.seats.retain(|it| !Arc::ptr_eq(it, seat));
        control.lost |= lost;
        drop(control);
        self.told.notify_waiters();
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("phase", &self.look())
            .field("seedable", &self.seedable)
            .finish_non_exhaustive()
    }
}
