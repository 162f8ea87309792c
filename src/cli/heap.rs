//! What the process does not need any more goes back to the machine.

use std::time::Duration;

/// How often it is looked whether nothing moves.
const INTERVAL: Duration = Duration::from_secs(5);

/// Gives free memory back whenever something has moved and nothing does any more. `moved` grows with
/// what moves; `None`: it is over.
pub(super) async fn give_back(moved: impl Fn() -> Option<u64>) {
    let (mut last, mut is_due) = (0, false);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(now) = moved() else { return };
        if now != last {
            (last, is_due) = (now, true);
        } else if std::mem::take(&mut is_due) {
            trim();
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it touches free memory alone.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
