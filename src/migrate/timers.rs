//! The timers of a state machine.

use std::mem::discriminant;
use std::time::Duration;

use tokio::time::Instant;

/// Those that are armed, at most one of each name.
#[derive(Debug)]
pub(super) struct Timers<T>(Vec<(T, Instant)>);

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Timers<T> {
    /// Has it fire once; it takes the place of an earlier one of the same name.
    pub(super) fn arm(&mut self, timer: T, after: Duration) {
        let name = discriminant(&timer);
        self.0.retain(|(other, _)| discriminant(other) != name);
        self.0.push((timer, Instant::now() + after));
    }

    /// Waits for the next one; for ever where there is none. May be cancelled.
    pub(super) async fn next(&mut self) -> T {
        let next = self.0.iter().enumerate().min_by_key(|(_, (_, due))| *due);
        let Some((index, (timer, due))) = next.map(|(index, armed)| (index, *armed)) else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(due).await;
        self.0.swap_remove(index);
        timer
    }
}
