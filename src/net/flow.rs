//! What is under way in one direction of the link, and who may go next.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::window::{Sent, Window};
use crate::volume::Priority;

/// One direction. Demand goes at once; bulk waits for room, read-ahead before the rest.
#[derive(Debug)]
pub(crate) struct Flow {
    window: Mutex<Window>,
    moved: Notify,
    /// Read-ahead that waits.
    ahead: AtomicU32,
}

impl Flow {
    pub(crate) fn new(piece_bytes: u64, limit_bytes: u64) -> Self {
        Self {
            window: Mutex::new(Window::new(piece_bytes, limit_bytes)),
            moved: Notify::new(),
            ahead: AtomicU32::new(0),
        }
    }

    /// `bytes` go now, whatever else is under way.
    pub(crate) fn go(&self, bytes: u64) -> UnderWay<'_> {
        UnderWay {
            sent: Some(self.lock().sent(bytes, Instant::now())),
            flow: self,
        }
    }

    /// `bytes` go as soon as the link has room for them.
    pub(crate) async fn go_when_free(&self, bytes: u64, priority: Priority) -> UnderWay<'_> {
        let is_ahead = priority <= Priority::ReadAhead;
        let _waiting = is_ahead.then(|| Ahead::new(self));
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let opens_at = {
                let mut window = self.lock();
                let now = Instant::now();
                let turn = is_ahead || self.ahead.load(Ordering::Relaxed) == 0;
                if turn && window.has_room(bytes, now) {
                    let sent = Some(window.sent(bytes, now));
                    return UnderWay { sent, flow: self };
                }
                window.opens_at(now)
            };
            match opens_at {
                None => moved.await,
                Some(at) => drop(tokio::time::timeout_at(at.into(), moved).await),
            }
        }
    }

    /// The best rate lately, in bytes a second.
    pub(crate) fn rate(&self) -> f64 {
        self.lock().rate()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are under way; dropped without having arrived they are lost.
pub(crate) struct UnderWay<'a> {
    sent: Option<Sent>,
    flow: &'a Flow,
}

impl UnderWay<'_> {
    /// They arrived; so many of them are not in runs of zeros.
    pub(crate) fn arrived(mut self, data_bytes: u64) {
        if let Some(sent) = self.sent.take() {
            self.flow.lock().delivered(sent, data_bytes, Instant::now());
            self.flow.moved.notify_waiters();
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.flow.lock().lost(sent);
            self.flow.moved.notify_waiters();
        }
    }
}

/// Read-ahead that waits, until this is dropped. Nobody behind it goes meanwhile.
struct Ahead<'a>(&'a Flow);

impl<'a> Ahead<'a> {
    fn new(flow: &'a Flow) -> Self {
        flow.ahead.fetch_add(1, Ordering::Relaxed);
        Self(flow)
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        if self.0.ahead.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Poll, Wake};

    use super::*;

    const PIECE: u64 = 64 << 10;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Woken {
        fn poll<T>(self: &Arc<Self>, future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
            let waker = Arc::clone(self).into();
            match future.poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            }
        }

        fn take(&self) -> bool {
            self.0.swap(false, Ordering::Relaxed)
        }
    }

    #[test]
    fn a_pull_waits_for_read_ahead_and_is_woken_when_that_is_given_up() {
        let (flow, woken) = (Flow::new(PIECE, 1 << 20), Arc::new(Woken::default()));
        let under_way = flow.go(1 << 20);
        let mut ahead = Box::pin(flow.go_when_free(PIECE, Priority::ReadAhead));
        assert!(woken.poll(ahead.as_mut()).is_none(), "the window is full");
        under_way.arrived(1 << 20);
        woken.take();
        let mut pull = pin!(flow.go_when_free(PIECE, Priority::Pull));
        assert!(woken.poll(pull.as_mut()).is_none(), "read-ahead goes first");
        assert!(!woken.take());
        drop(ahead);
        assert!(woken.take(), "nothing else would wake it");
        assert!(woken.poll(pull.as_mut()).is_some());
    }

    #[test]
    fn what_is_lost_makes_room_as_what_arrives_does() {
        let (flow, woken) = (Flow::new(PIECE, 2 * PIECE), Arc::new(Woken::default()));
        let (first, second) = (flow.go(PIECE), flow.go(PIECE));
        let mut third = pin!(flow.go_when_free(PIECE, Priority::Pull));
        assert!(woken.poll(third.as_mut()).is_none(), "the window is full");
        drop(first);
        assert!(woken.take());
        let _third = woken.poll(third.as_mut()).expect("room");
        let mut fourth = pin!(flow.go_when_free(PIECE, Priority::Push));
        assert!(woken.poll(fourth.as_mut()).is_none(), "it is full again");
        second.arrived(PIECE);
        assert!(woken.take());
        assert!(woken.poll(fourth.as_mut()).is_some());
    }
}
