//! Whether the local store has room, as what is written into it finds out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::volume::request::Errno;

/// After so long without a refusal a store is no longer taken for full by whoever may have needed no
/// room.
const CALM: Duration = Duration::from_secs(10);

/// Since when nothing that takes room has fitted into the store.
#[derive(Debug, Default)]
pub struct Room {
    /// In seconds since 1970; 0 for no such time.
    full_since: AtomicU64,
    refused_at: Mutex<Option<Instant>>,
}

impl Room {
    /// Since when the store is full, in seconds since 1970.
    pub fn full_since(&self) -> Option<u64> {
        Some(self.full_since.load(Ordering::Relaxed)).filter(|since| *since != 0)
    }

    /// The store failed something. Whether that was for want of room.
    #[cold]
    pub fn refused(&self, errno: Errno) -> bool {
        let is_full = errno == Errno::ENOSPC || errno == Errno::from_raw(libc::EDQUOT);
        if is_full {
            let now = UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
            let relaxed = Ordering::Relaxed;
            let first = self.full_since.compare_exchange(0, now, relaxed, relaxed);
            *lock(&self.refused_at) = Some(Instant::now());
            if first.is_ok() {
                tracing::warn!("the local store is full");
            }
        }
        is_full
    }

    /// Something has taken room.
    #[inline]
    pub fn taken(&self) {
        if self.full_since.load(Ordering::Relaxed) != 0 {
            self.has_room();
        }
    }

    /// Something was written that may have needed no room. Whether the store is full no longer.
    #[cold]
    pub fn maybe_taken(&self) -> bool {
        let refused_at = *lock(&self.refused_at);
        let is_calm = refused_at.is_none_or(|at| at.elapsed() >= CALM);
        if is_calm {
            self.taken();
        }
        is_calm
    }

    #[cold]
    fn has_room(&self) {
        if self.full_since.swap(0, Ordering::Relaxed) != 0 {
            tracing::info!("the local store has room again");
        }
    }
}

fn lock(refused_at: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    refused_at.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_full_from_the_first_refusal_until_something_has_taken_room() {
        let room = Room::default();
        assert!(!room.refused(Errno::EIO));
        assert_eq!(room.full_since(), None);
        assert!(room.refused(Errno::ENOSPC));
        let since = room.full_since().expect("full");
        assert!(room.refused(Errno::from_raw(libc::EDQUOT)));
        assert_eq!(room.full_since(), Some(since));
        assert!(!room.maybe_taken(), "it was refused just now");
        assert_eq!(room.full_since(), Some(since));
        room.taken();
        assert_eq!(room.full_since(), None);
    }
}
