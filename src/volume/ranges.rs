//! Ranges that are being changed, so that overlapping changes happen one after the other.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The ranges that calls are changing right now. There are at most as many as calls may run.
#[derive(Debug, Default)]
pub(crate) struct BusyRanges {
    busy: Mutex<Vec<Range<u64>>>,
    freed: Notify,
}

/// A range that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldRange {
    ranges: Arc<BusyRanges>,
    range: Range<u64>,
}

impl BusyRanges {
    /// Waits until nothing that overlaps `range` is held, and holds it.
    pub(crate) async fn hold(self: Arc<Self>, range: Range<u64>) -> HeldRange {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.try_hold(&range) {
                return HeldRange {
                    ranges: self.clone(),
                    range,
                };
            }
            freed.await;
        }
    }

    fn try_hold(&self, range: &Range<u64>) -> bool {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy
            .iter()
            .any(|held| held.start < range.end && range.start < held.end)
        {
            return false;
        }
        busy.push(range.clone());
        true
    }
}

impl Drop for HeldRange {
    fn drop(&mut self) {
        let mut busy = self
            .ranges
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = busy.iter().position(|held| *held == self.range) {
            busy.swap_remove(at);
        }
        drop(busy);
        self.ranges.freed.notify_waiters();
    }
}
