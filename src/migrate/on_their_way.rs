//! Messages with sets of blocks that wait to be sent. They may be long, and are asked for again before they
//! have arrived: none is queued twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// As many as the queue takes. Clones are of the same queue.
#[derive(Debug)]
pub(super) struct OnTheirWay<M>(Arc<Mutex<Vec<M>>>);

impl<M> Clone for OnTheirWay<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for OnTheirWay<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M: PartialEq> OnTheirWay<M> {
    fn messages(&self) -> MutexGuard<'_, Vec<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `queue` take the message, unless it waits already. Whether it waits in the end.
    pub(super) fn queue(&self, message: M, queue: impl FnOnce() -> bool) -> bool {
        let mut messages = self.messages();
        if messages.contains(&message) {
            return true;
        }
        let is_queued = queue();
        if is_queued {
            messages.push(message);
        }
        is_queued
    }

    /// It has been sent.
    pub(super) fn sent(&self, message: &M) {
        self.messages().retain(|other| other != message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_not_queued_again_until_it_has_been_sent() {
        let on_their_way = OnTheirWay::default();
        let again = || -> bool { unreachable!("it waits already") };
        assert!(on_their_way.queue(1, || true));
        assert!(on_their_way.queue(1, again));
        assert!(on_their_way.queue(2, || true), "another one does not wait");
        on_their_way.sent(&1);
        assert!(!on_their_way.queue(1, || false), "there is no room");
        assert!(on_their_way.queue(1, || true), "now there is");
        assert!(on_their_way.queue(2, again));
    }
}
