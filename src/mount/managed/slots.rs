//! Places in the table of writes under way, for changes that are made on this side.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::volume::state_map::FlightSlot;

/// How many changes this side makes at once.
pub(super) const SLOTS: u32 = 16;

/// The places.
#[derive(Debug)]
pub(super) struct Slots {
    free: Arc<ArrayQueue<FlightSlot>>,
    permits: Arc<Semaphore>,
}

impl Slots {
    /// The [`SLOTS`] places from `first` on.
    pub(super) fn new(first: u32) -> Self {
        let free = ArrayQueue::new(SLOTS as usize);
        for number in first..first + SLOTS {
            let _ = free.push(FlightSlot(number));
        }
        Self {
            free: Arc::new(free),
            permits: Arc::new(Semaphore::new(SLOTS as usize)),
        }
    }

    /// A place, as soon as one is free.
    pub(super) async fn take(&self) -> Slot {
        loop {
            let permit = self.permits.clone().acquire_owned().await.ok();
            // A number goes back before its permit does, so there is one for each.
            if let Some(number) = self.free.pop() {
                return Slot {
                    number,
                    free: Arc::clone(&self.free),
                    _permit: permit,
                };
            }
        }
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: FlightSlot,
    free: Arc<ArrayQueue<FlightSlot>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.free.push(self.number);
    }
}
