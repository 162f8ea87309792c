//! What is under way in one direction of the link, and who may go next.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::window::{Sent, Window};
use crate::volume::Priority;

/// One direction. Demand goes at once; bulk waits for room, read-ahead before the rest.
#[derive(Debug)]
pub(super) struct Flow {
    window: Mutex<Window>,
    moved: Notify,
    /// Read-ahead that waits.
    ahead: AtomicU32,
}

impl Flow {
    pub(super) fn new(chunk_bytes: u64, limit_bytes: u64) -> Self {
        Self {
            window: Mutex::new(Window::new(chunk_bytes, limit_bytes)),
            moved: Notify::new(),
            ahead: AtomicU32::new(0),
        }
    }

    /// `bytes` go now, whatever else is under way.
    pub(super) fn go(&self, bytes: u64) -> UnderWay<'_> {
        UnderWay {
            sent: Some(self.lock().sent(bytes, Instant::now())),
            flow: self,
        }
    }

    /// `bytes` go as soon as the link has room for them.
    pub(super) async fn go_when_free(&self, bytes: u64, priority: Priority) -> UnderWay<'_> {
        let is_ahead = priority <= Priority::ReadAhead;
        let _waiting = is_ahead.then(|| Waiting::new(&self.ahead));
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
    pub(super) fn rate(&self) -> f64 {
        self.lock().rate()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are under way; dropped without having arrived they are lost.
pub(super) struct UnderWay<'a> {
    sent: Option<Sent>,
    flow: &'a Flow,
}

impl UnderWay<'_> {
    /// They arrived.
    pub(super) fn arrived(mut self) {
        if let Some(sent) = self.sent.take() {
            self.flow.lock().delivered(sent, Instant::now());
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

struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
