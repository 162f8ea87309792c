//! How far a managed mount is, in the last line of the terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use blockferry::mount::managed::{ManagedMount, ManagedStatus};
use blockferry::ops::unix_seconds;
use blockferry::volume::format_size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::list;

/// How often it is drawn anew.
const INTERVAL: Duration = Duration::from_millis(250);

/// Local writes that are at the origin by then are nothing to speak of.
const DIRTY_SHOWN_AFTER: Duration = Duration::from_secs(2);

/// What the line looks like; how it is coloured is the terminal's business.
const STYLE: &str = "[{bar:30}] {msg}";

/// Whether the user wants to see any.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// The line that there is.
static LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Progress may be shown, if standard error is a terminal.
pub(super) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Does what writes to the terminal with the line out of its way.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let bar = line().clone();
    match bar {
        Some(bar) => bar.suspend(work),
        None => work(),
    }
}

fn line() -> MutexGuard<'static, Option<ProgressBar>> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the line up to date until it is dropped, which removes it.
pub(super) struct Progress {
    drawing: JoinHandle<()>,
}

impl Progress {
    /// The progress of a mount, if anybody is there to see it. Has to be called in a runtime.
    pub(super) fn of(mount: &Arc<ManagedMount>) -> Option<Self> {
        Self::drawn_by(draw(Arc::downgrade(mount)))
    }

    /// A line that this future draws, if anybody is there to see it. Has to be called in a runtime.
    pub(super) fn drawn_by(draw: impl Future<Output = ()> + Send + 'static) -> Option<Self> {
        if !ALLOWED.load(Ordering::Relaxed) {
            return None;
        }
        let target = ProgressDrawTarget::stderr();
        if target.is_hidden() {
            return None;
        }
        let style = ProgressStyle::with_template(STYLE).ok()?;
        let bar =
            ProgressBar::with_draw_target(None, target).with_style(style.progress_chars("#>-"));
        *line() = Some(bar);
        let drawing = tokio::spawn(draw);
        Some(Self { drawing })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.drawing.abort();
        if let Some(bar) = line().take() {
            bar.finish_and_clear();
        }
    }
}

/// Has the line show so much of so much, with a text beside it.
pub(super) fn show_share(done: u64, of: u64, text: String) {
    if let Some(bar) = line().as_ref() {
        bar.set_length(of);
        bar.set_position(done);
        bar.set_message(text);
    }
}

async fn draw(mount: Weak<ManagedMount>) {
    let mut dirty_since = None;
    loop {
        let Some(status) = mount.upgrade().map(|mount| mount.status()) else {
            return;
        };
        dirty_since = match status.dirty_bytes {
            0 => None,
            _ => dirty_since.or(Some(Instant::now())),
        };
        let is_dirty = dirty_since.is_some_and(|since| since.elapsed() >= DIRTY_SHOWN_AFTER);
        {
            let line = line();
            let Some(bar) = line.as_ref() else { return };
            show(bar, &status, is_dirty);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn show(bar: &ProgressBar, status: &ManagedStatus, is_dirty: bool) {
    let Some(text) = told(status, is_dirty) else {
        return bar.finish_and_clear();
    };
    if bar.is_finished() {
        bar.reset();
    }
    bar.set_length(status.size_bytes);
    bar.set_position(status.local_bytes);
    bar.set_message(text);
}

/// What there is to tell; nothing where all that is wanted here is here, and nothing else is under
/// way.
fn told(status: &ManagedStatus, is_dirty: bool) -> Option<String> {
    let is_pulling = status.pulls && status.local_bytes < status.size_bytes;
    if !is_pulling && !is_dirty {
        return None;
    }
    let mut parts = vec![format!(
        "{} of {} local",
        format_size(status.local_bytes),
        format_size(status.size_bytes)
    )];
    if is_pulling {
        parts.push(format!("{}/s", format_size(status.pull_rate)));
    }
    if status.dirty_bytes > 0 {
        let dirty = format_size(status.dirty_bytes);
        parts.push(match status.push_rate {
            0 => format!("{dirty} dirty"),
            rate => format!("{dirty} dirty, {}/s to the origin", format_size(rate)),
        });
    }
    if let Some(since) = status.store_full_since {
        let full = unix_seconds().saturating_sub(since);
        parts.push(format!(
            "the local store is full for {}",
            list::duration(full)
        ));
    }
    match (status.away_since, status.seconds_left) {
        (Some(since), _) => {
            let away = unix_seconds().saturating_sub(since);
            parts.push(format!("the origin is away for {}", list::duration(away)));
        }
        (None, Some(left)) => parts.push(format!("{} left", list::duration(left))),
        (None, None) => {}
    }
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ManagedStatus {
        ManagedStatus {
            size_bytes: 1 << 30,
            local_bytes: 256 << 20,
            pull_rate: 100 << 20,
            seconds_left: Some(8),
            pulls: true,
            ..ManagedStatus::default()
        }
    }

    #[test]
    fn it_tells_what_is_left_and_is_silent_when_nothing_is() {
        let pulling = told(&status(), false).expect("a line");
        assert_eq!(pulling, "256MiB of 1GiB local, 100MiB/s, 8s left");
        let done = ManagedStatus {
            local_bytes: 1 << 30,
            dirty_bytes: 4096,
            seconds_left: None,
            push_rate: 1 << 20,
            ..status()
        };
        assert_eq!(told(&done, false), None);
        let pushing = told(&done, true).expect("a line");
        assert_eq!(
            pushing,
            "1GiB of 1GiB local, 4KiB dirty, 1MiB/s to the origin"
        );
        let on_demand = ManagedStatus {
            pulls: false,
            ..status()
        };
        assert_eq!(told(&on_demand, false), None);
    }

    #[test]
    fn an_origin_that_is_away_has_no_time_left() {
        let away = ManagedStatus {
            away_since: Some(unix_seconds() - 90),
            ..status()
        };
        let line = told(&away, false).expect("a line");
        assert!(line.ends_with("the origin is away for 1m"), "{line}");
    }
}
