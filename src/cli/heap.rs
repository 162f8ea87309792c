//! What the process does not need any more goes back to the machine.

use std::time::Duration;

/// How often it is looked whether nothing moves.
const INTERVAL: Duration = Duration::from_secs(5);

/// From this size on memory is a mapping of its own, which is gone when it is freed, in bytes.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: i32 = 64 << 10;

/// How much free memory at the end of the heap is kept, in bytes.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: i32 = 1 << 20;

/// How many heaps there are: glibc would make eight a processor, each with a rest of its own.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: i32 = 4;

/// Sets the allocator up, before there is a second thread. Left alone it takes larger and larger blocks
/// from heaps that hardly ever become shorter.
#[cfg(target_env = "gnu")]
pub(super) fn set_up() {
    // SAFETY: nobody else allocates yet, and a value that it does not take changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn set_up() {}

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
