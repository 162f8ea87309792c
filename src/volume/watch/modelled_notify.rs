//! As much of tokio's `Notify` as is used here, for the model checker: it has to see what those that
//! wait learn from those that tell.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::{Mutex, MutexGuard};

/// How often it was told, and who waits.
pub(super) struct Notify(Mutex<(u64, Vec<Waker>)>);

pub(super) struct Notified<'a> {
    notify: &'a Notify,
    told_before: u64,
}

impl Notify {
    pub(super) fn new() -> Self {
        Self(Mutex::new((0, Vec::new())))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Waker>)> {
        self.0.lock().expect("not poisoned")
    }

    pub(super) fn notified(&self) -> Notified<'_> {
        Notified {
            notify: self,
            told_before: self.lock().0,
        }
    }

    pub(super) fn notify_waiters(&self) {
        let mut state = self.lock();
        state.0 += 1;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Notified<'_> {
    /// It counts from its making on.
    pub(super) fn enable(self: Pin<&mut Self>) -> bool {
        false
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.notify.lock();
        if state.0 != self.told_before {
            return Poll::Ready(());
        }
        state.1.push(context.waker().clone());
        Poll::Pending
    }
}
