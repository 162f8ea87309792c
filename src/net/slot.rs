//! The sessions of one client on one volume, of which at most one may write.
//!
//! This is what keeps sending a request again safe: a later session is let in only after the one
//! before it is shut and all its writes have ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::sync::Notify;

use super::close::Close;

/// For how long the number of a client's last session is remembered. A hello has less time than
/// this, so none can come so late that its predecessor is forgotten.
const REMEMBERED: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    idle: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the latest session.
    session: u64,
    /// Its connection, until it has ended.
    connection: Option<Connection>,
    ended_at: Option<Instant>,
    /// Writes of any session of this client that are at the backend.
    writing: usize,
}

/// The right to have one write at the backend.
#[derive(Debug)]
pub(super) struct Pass(Arc<Slot>);

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `session` the latest one and ends the one before it. False for one that is not later.
    pub(super) fn begin(&self, session: u64, connection: &Connection) -> bool {
        let mut state = self.state();
        if session <= state.session {
            return false;
        }
        state.session = session;
        state.ended_at = None;
        if let Some(earlier) = state.connection.replace(connection.clone()) {
            Close::Superseded.close(&earlier);
        }
        true
    }

    /// Whether `session` is the latest one and has not ended.
    pub(super) fn is_open(&self, session: u64) -> bool {
        let state = self.state();
        state.session == session && state.connection.is_some()
    }

    /// Lets a write of `session` through, unless the session has ended.
    pub(super) fn enter(self: &Arc<Self>, session: u64) -> Option<Pass> {
        let mut state = self.state();
        if state.session != session || state.connection.is_none() {
            return None;
        }
        state.writing += 1;
        Some(Pass(Arc::clone(self)))
    }

    /// Ends `session` if it is the latest one: no write of it gets through any more.
    pub(super) fn end(&self, session: u64) {
        let mut state = self.state();
        if state.session == session && state.connection.take().is_some() {
            state.ended_at = Some(Instant::now());
        }
    }

    /// Ends whatever session there is, and closes its connection for `reason`.
    pub(super) fn evict(&self, reason: Close) {
        let mut state = self.state();
        if let Some(connection) = state.connection.take() {
            state.ended_at = Some(Instant::now());
            reason.close(&connection);
        }
    }

    /// Returns when no write is at the backend.
    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.state().writing == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Whether nothing would be lost if it were forgotten.
    pub(super) fn is_forgettable(&self) -> bool {
        let state = self.state();
        state.writing == 0 && state.ended_at.is_some_and(|at| at.elapsed() > REMEMBERED)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.writing -= 1;
        if state.writing == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
